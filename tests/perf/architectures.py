"""The README's table of architectures: size, MACs, parity, share of integer operations, time against fp32.

    python tests/perf/architectures.py --data PICTURES --work FOLDER [NAME ...]

Exports every architecture of the catalogue, at its own picture size, in fp32 and INT8 for ONNX Runtime and OpenVINO,
and times the four bundles in turns, one thread, batch 1. Weights are random except those of EfficientNet-Lite, whose
accuracy is measured on the pictures that did not calibrate. Rows are kept in FOLDER/rows.json: a second call does what
is missing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

import edgecls  # noqa: F401 - before tests/ is on the path, where a folder has its name

sys.path.insert(0, str(Path(__file__).parents[1]))
import architectures
import lite

from edgecls.bench.measure import measure
from edgecls.export.job import export_bundle
from edgecls.export.trace import trace
from edgecls.models.catalogue import describe
from edgecls.runtime import ImageSet

CALIBRATION_SIZE = 32
"""Of random weights, whose answers mean nothing."""
TARGETS = ("onnxruntime", "openvino")


def row(name: str, data: Path) -> dict:
    """One line of the table."""
    entry = describe(name)
    images = ImageSet.from_folder(data).take(64)
    classifier = architectures.opened(name, images)
    trained = classifier.checkpoint_sha256 is not None
    calibration_size = lite.CALIBRATION_SIZE if trained else CALIBRATION_SIZE
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
        calibration, evaluation = lite.split(Path(folder) / "pictures", data, calibration_size)
        plan, paths = None, []
        for precision in ("fp32", "int8"):
            for target in TARGETS:
                path = Path(folder) / f"{target}-{precision}.edgecls"
                result = export_bundle(
                    classifier, target=target, precision=precision, output=path, traced=traced, plan=plan,
                    calibration=ImageSet.from_folder(calibration) if precision == "int8" and plan is None else None,
                    calibration_size=calibration_size,
                )  # fmt: skip
                paths.append(path)
                found[f"{target}-{precision}-bytes"] = result.size_bytes
                passport = result.manifest.passport
                if precision == "int8":
                    found[f"{target}-int8-share"] = passport.nodes_int8 / passport.nodes
                    plan = Path(folder) / "plan.json"
                    with zipfile.ZipFile(path) as archive:
                        plan.write_bytes(archive.read("plan.json"))
        if not trained:  # its classes are nobody's: pictures without labels
            evaluation = _flat(evaluation, Path(folder) / "unlabelled")
        report = measure(
            paths, evaluation, output=Path(folder) / "report.json", reference=paths[0], profile="smoke",
            accuracy=trained, threads=1,
        )  # fmt: skip
        for run in report.runs:
            bundle = f"{run.artifact.target}-{run.artifact.precision}"
            found[f"{bundle}-p50"] = run.latency.p50_ms
            if run.accuracy is not None:
                found[f"{bundle}-top1"] = run.accuracy.top1
    return found


def _flat(pictures: Path, folder: Path) -> Path:
    """A few of the pictures in one folder without sub-folders."""
    folder.mkdir()
    for image in ImageSet.from_folder(pictures).take(8).images:
        (folder / Path(image.path).name).symlink_to((pictures / image.path).resolve())
    return folder


def markdown(rows: list[dict]) -> str:
    """The table."""
    lines = [
        "| architecture | px | parameters, 10⁶ | MACs, 10⁹ | parity | fp32 → INT8, MB "
        "| integer operations, ONNX Runtime / OpenVINO | INT8 time / fp32 time, ONNX Runtime / OpenVINO "
        "| top-1 fp32 → INT8, ONNX Runtime / OpenVINO |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        share = " / ".join(f"{100 * r[f'{target}-int8-share']:.0f} %" for target in TARGETS)
        time = " / ".join(f"{r[f'{target}-int8-p50'] / r[f'{target}-fp32-p50']:.2f}" for target in TARGETS)
        size = f"{r['onnxruntime-fp32-bytes'] / 1e6:.1f} → {r['onnxruntime-int8-bytes'] / 1e6:.1f}"
        answers = " / ".join(
            " → ".join(f"{100 * r[f'{target}-{precision}-top1']:.1f}" for precision in ("fp32", "int8"))
            for target in TARGETS
            if f"{target}-int8-top1" in r
        )
        lines.append(
            f"| {r['name']} | {r['px']} | {r['parameters'] / 1e6:.1f} | {r['macs'] / 1e9:.2f} | {r['parity']:.0e} | "
            f"{size} | {share} | {time} | {answers} |"
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
    kept = arguments.work / "rows.json"
    rows = json.loads(kept.read_text()) if kept.exists() else {}
    for name in names:
        if name not in rows:
            rows[name] = row(name, arguments.data)
            kept.write_text(json.dumps(rows, indent=1))
            print(f"{name} done", file=sys.stderr, flush=True)
    print(markdown([rows[name] for name in names]))


if __name__ == "__main__":
    main()
