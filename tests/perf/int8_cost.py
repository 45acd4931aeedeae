"""How long INT8 takes to make: `python tests/perf/int8_cost.py CHECKPOINT... --calibration DIR --eval DIR`.

Exports each checkpoint that `edgecls train` wrote (its preprocessing and labels are in it) and prints the seconds of
every stage, as the command line reports them:

- the base plan, calibrated on 256 pictures, for ONNX Runtime and OpenVINO;
- a hard case (per-tensor weights, entropy ranges, no corrections) with a budget that the plan alone does not meet, so
  that the ladder measures every block and keeps some in float.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from edgecls.calibration.quantization import CORRECTIONS

EDGECLS = Path(sys.executable).with_name("edgecls")
STAGE = re.compile(r"^(.+): done in ([\d.]+) s$", re.MULTILINE)
HARD = "--weights per-tensor --ranges entropy" + "".join(f" --without {name}" for name in CORRECTIONS)


def export(checkpoint: Path, target: str, calibration: Path, options: list[str], folder: Path) -> bool:
    """Exports once, prints the stages, and tells whether it ended with exit code 0."""
    command = [str(EDGECLS), "export", str(checkpoint.resolve()), "--target", target, "--int8"]
    command += ["--calibration", str(calibration.resolve()), *options, "-o", f"{target}.edgecls"]
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    print(f"{checkpoint.name}, {target} {' '.join(options)}: {seconds:.1f} s, exit {done.returncode}")
    for stage, took in STAGE.findall(done.stderr):
        print(f"    {float(took):7.1f} s  {stage}")
    print("    " + "\n    ".join(line for line in (done.stderr + done.stdout).splitlines() if "note:" in line))
    print("    " + "\n    ".join(line.strip() for line in done.stdout.splitlines() if "budget" in line), flush=True)
    return done.returncode == 0


def main() -> int:
    """Exports all; the exit code is 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--eval", type=Path, required=True)
    parser.add_argument("--max-drop", default="0.3pp", help="of the hard case")
    given = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory() as folder:
        for checkpoint in given.checkpoints:
            for target in ("onnxruntime", "openvino"):
                good &= export(checkpoint, target, given.calibration, [], Path(folder))
            hard = [*HARD.split(), "--max-drop", given.max_drop, "--eval", str(given.eval.resolve())]
            good &= export(checkpoint, "onnxruntime", given.calibration, hard, Path(folder))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
