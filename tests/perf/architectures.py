"""The README's table of architectures: size, MACs, parity, share of integer operations, time against fp32.

    python tests/perf/architectures.py --data PICTURES --work FOLDER [NAME ...]

Exports every architecture of the catalogue, at its own picture size, in fp32 and INT8 for ONNX Runtime and OpenVINO,
and times the four bundles in turns, one thread, batch 1. Weights are random except those of EfficientNet-Lite: the
table says nothing about accuracy. Rows are kept in FOLDER/rows.json: a second call does what is missing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import architectures

from edgecls.bench.measure import measure
from edgecls.export.job import export_bundle
from edgecls.export.trace import trace
from edgecls.models.catalogue import describe
from edgecls.runtime import ImageSet

CALIBRATION_SIZE = 32
TARGETS = ("onnxruntime", "openvino")


def row(name: str, images: ImageSet) -> dict:
    """One line of the table."""
    entry = describe(name)
    classifier = architectures.opened(name, images)
    traced = trace(classifier)
    pixels = np.stack([classifier.preprocess.pixels(images.root / image.path) for image in images.images[:4]])
    found = {
        "name": name,
        "px": classifier.preprocess.crop_px,
        "parameters": entry.parameters,
        "macs": entry.macs,
        "parity": traced.parity_max_abs / float(architectures.answers(classifier, pixels).std()),
    }
    with tempfile.TemporaryDirectory() as folder:
        plan, paths = None, []
        for precision in ("fp32", "int8"):
            for target in TARGETS:
                path = Path(folder) / f"{target}-{precision}.edgecls"
                result = export_bundle(
                    classifier, target=target, precision=precision, output=path, traced=traced, plan=plan,
                    calibration=images if precision == "int8" and plan is None else None,
                    calibration_size=CALIBRATION_SIZE,
                )  # fmt: skip
                paths.append(path)
                found[f"{target}-{precision}-bytes"] = result.size_bytes
                passport = result.manifest.passport
                if precision == "int8":
                    found[f"{target}-int8-share"] = passport.nodes_int8 / passport.nodes
                    plan = Path(folder) / "plan.json"
                    with zipfile.ZipFile(path) as archive:
                        plan.write_bytes(archive.read("plan.json"))
        report = measure(
            paths, images.root, output=Path(folder) / "report.json", reference=paths[0], profile="smoke", limit=8,
            accuracy=False, threads=1,
        )  # fmt: skip
        for run in report.runs:
            found[f"{run.artifact.target}-{run.artifact.precision}-p50"] = run.latency.p50_ms
    return found


def markdown(rows: list[dict]) -> str:
    """The table."""
    lines = [
        "| architecture | px | parameters, 10⁶ | MACs, 10⁹ | parity | fp32 → INT8, MB "
        "| integer operations, ONNX Runtime / OpenVINO | INT8 time / fp32 time, ONNX Runtime / OpenVINO |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        share = " / ".join(f"{100 * r[f'{target}-int8-share']:.0f} %" for target in TARGETS)
        time = " / ".join(f"{r[f'{target}-int8-p50'] / r[f'{target}-fp32-p50']:.2f}" for target in TARGETS)
        size = f"{r['onnxruntime-fp32-bytes'] / 1e6:.1f} → {r['onnxruntime-int8-bytes'] / 1e6:.1f}"
        lines.append(
            f"| {r['name']} | {r['px']} | {r['parameters'] / 1e6:.1f} | {r['macs'] / 1e9:.2f} | {r['parity']:.0e} | "
            f"{size} | {share} | {time} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Makes the missing rows and prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    names = arguments.names or architectures.CURATED
    images = ImageSet.from_folder(arguments.data).take(64)
    kept = arguments.work / "rows.json"
    rows = json.loads(kept.read_text()) if kept.exists() else {}
    for name in names:
        if name not in rows:
            rows[name] = row(name, images)
            kept.write_text(json.dumps(rows, indent=1))
            print(f"{name} done", file=sys.stderr, flush=True)
    print(markdown([rows[name] for name in names]))


if __name__ == "__main__":
    main()
