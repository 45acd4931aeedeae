"""What the main job costs and gains: EfficientNet-Lite0, one thread, batch 1, everything timed in turns.

    python tests/perf/main_job.py [--seconds 20] [--bundles FOLDER]

prints the wall time and memory of one INT8 export, then ratios: INT8 against fp32 on each engine, and the session
against the bare engine call. What others need from JPEG bytes to top-5: tests/perf/against/pipelines.py.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

import edgecls  # noqa: F401 - before tests/ is on the path, where a folder has its name

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
import lite
import turns

from edgecls.bench.device import device
from edgecls.runtime import ImageSet, Session, load

EDGECLS = Path(sys.executable).with_name("edgecls")
ROUND = 5
"""Calls of a turn."""


def export(folder: Path, target: str, precision: str, calibration: Path) -> tuple[Path, float, float]:
    """Exports by the command line; the bundle, wall seconds and peak GiB of the process."""
    path = folder / f"lite0-{target}-{precision}.edgecls"
    command = [
        str(EDGECLS), "export", "timm:tf_efficientnet_lite0", "--checkpoint", str(lite.weights()), "--match", "order",
        "--labels", str(lite.LABELS), "--target", target, "--quiet", "-o", str(path),
    ]  # fmt: skip
    if precision == "int8":
        command += ["--int8", "--calibration", str(calibration), "--calibration-size", str(lite.CALIBRATION_SIZE)]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)
    seconds = time.perf_counter() - start
    return path, seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=20, help="timed seconds of each engine")
    parser.add_argument("--bundles", type=Path, help="where bundles of an earlier run are, or shall be kept")
    arguments = parser.parse_args()
    if reason := lite.missing():
        sys.exit(f"cannot measure: {reason}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.bundles or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        calibration, _ = lite.split(Path(scratch))
        machine = device()
        print(
            f"{machine.cpu}, {machine.cores} CPUs, {machine.isa}; 1 thread, batch 1, {arguments.seconds:g} s an engine"
        )
        bundles = {}
        for target in ("onnxruntime", "openvino"):
            for precision in ("int8", "fp32"):
                path = folder / f"lite0-{target}-{precision}.edgecls"
                if not path.exists():
                    path, seconds, gib = export(folder, target, precision, calibration)
                    print(f"export {target} {precision}: {seconds:.1f} s, peak {gib:.2f} GiB so far")
                bundles[target, precision] = load(path, threads=1)
    compare(bundles, arguments.seconds)


def compare(bundles: dict[tuple[str, str], Session], seconds: float) -> None:
    """Prints the ratios."""
    image = next(i for i in ImageSet.from_folder(lite.PICTURES).images if size_of(i.path) == (500, 375))
    data = (lite.PICTURES / image.path).read_bytes()
    crop = bundles["onnxruntime", "fp32"].preprocess.pixels(data)[None]
    for target in ("onnxruntime", "openvino"):
        int8 = bundles[target, "int8"]
        ready = int8.pad(crop, int8.bundle.manifest.padding)
        ways = {
            "fp32": partial(bundles[target, "fp32"].logits, crop),
            "int8": partial(int8.logits, crop),
            "bare int8 engine": partial(int8.engine.infer, ready),
        }
        with turns.one_cpu():
            times = turns.in_turns(ways, seconds, calls=ROUND, warm_up=10)
        for name, ms in times.items():
            ratio = np.median(ms / times["int8"])
            print(f"{target}: {name:16} {np.median(ms):7.3f} ms, {ratio:.3f} × that of the int8 session")


def size_of(path: str) -> tuple[int, int]:
    """Width and height of a picture, pixels."""
    from PIL import Image

    with Image.open(lite.PICTURES / path) as picture:
        return picture.size


if __name__ == "__main__":
    main()
