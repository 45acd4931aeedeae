"""What only a machine with an NVIDIA GPU can show: TensorRT bundles answer as ONNX Runtime does, and how fast.

    edgecls export MODEL --target tensorrt --fp16 -o fp16.edgecls      (on the workstation; --int8 likewise)
    edgecls export MODEL --target onnxruntime -o fp32.edgecls
    python tests/perf/gpu_check.py fp16.edgecls int8.edgecls --reference fp32.edgecls --data PICTURES

Every bundle is loaded (and built, if it has to be), its golden samples are replayed, its logits are compared with the
reference's, and batches of 1 and 32 are timed by the wall clock (the whole `infer`) and by CUDA events (what the stream
did, copies included). The report, gpu-check.json, says what ran and what did not. Exit code: 0 everything ran and
agreed, 1 something did not, 5 there is no GPU here and nothing ran.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecls.runtime import EdgeclsError, ImageSet, Session, UnsupportedError, load
from edgecls.runtime.device_memory import open_device_memory
from edgecls.runtime.engines import engine_module
from edgecls.runtime.verify import verify_bundle

BATCHES = (1, 32)
PICTURES = 64
RUNS = 1000
"""Timed runs of a batch: p99 wants at least 662."""

MIN_SAME_TOP1 = {"fp32": 1.0, "fp16": 0.98, "int8": 0.90}
"""Part of the pictures on which the first answer must be the reference's: loose, for 64 pictures are few."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument("--reference", type=Path, help="a bundle of the same model for onnxruntime, fp32")
    parser.add_argument("--data", type=Path, help="folder with pictures; noise without it, which proves less")
    parser.add_argument("--runs", type=int, default=RUNS, help="timed runs of every batch")
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu-check.json"))
    options = parser.parse_args(arguments)
    report: dict[str, Any] = {
        "schema": "edgecls.gpu_check/1",
        "ran": False,
        "reason": None,
        "memory": {name: check_memory(name) for name in ("pycuda", "cuda-python")},
    }
    report["libraries"] = {name: engine_module(name).version() for name in ("tensorrt", "tensorrt-rtx")}
    code = 0
    try:
        memory = open_device_memory()
    except UnsupportedError as error:
        report["reason"], code = str(error), 5
        print(f"gpu_check: nothing ran: {error}", file=sys.stderr)
    else:
        gpu = memory.gpu
        memory.close()
        report |= {
            "ran": True,
            "gpu": {field: getattr(gpu, field) for field in gpu.__struct_fields__},
            "pictures": str(options.data) if options.data else "noise",
            "bundles": [check_bundle(path, options.reference, options.data, options.runs) for path in options.bundles],
        }
        code = 0 if all(entry["passed"] for entry in report["bundles"]) else 1
    options.output.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    print(f"gpu_check: report in {options.output}")
    return code


def check_memory(package: str) -> str:
    """A round trip through the GPU: `passed`, or why not."""
    try:
        memory = open_device_memory(package)
        with memory.current():
            address, there, back = memory.allocate(256), *(memory.allocate_pinned(256) for _ in range(2))
            there[:] = np.arange(256)
            memory.upload(address, there)
            memory.download(back, address)
            memory.synchronize()
            passed = np.array_equal(there, back)
        memory.close()
    except EdgeclsError as error:
        return f"did not run: {error}"
    return "passed" if passed else "failed: other bytes came back"


def check_bundle(path: Path, reference: Path | None, data: Path | None, runs: int) -> dict[str, Any]:
    entry: dict[str, Any] = {"bundle": str(path), "passed": False, "reason": None}
    try:
        began = time.monotonic()
        with load(path) as session:
            entry["load_s"] = time.monotonic() - began
            manifest, info = session.bundle.manifest, session.engine_info
            entry |= {
                "name": manifest.name,
                "precision": manifest.precision,
                "engine": f"{info.name} {info.version}",
                "cuda_graph": getattr(session.engine, "cuda_graph", None),
            }
            golden = verify_bundle(session)
            entry["golden"] = {
                "passed": golden.passed,
                "tolerance": golden.tolerance,
                "max_abs_difference": max(sample.max_abs_difference for sample in golden.samples),
            }
            crops = pictures(session, data)
            entry["reference"] = None if reference is None else compare(session, reference, crops)
            entry["latency"] = {f"batch {batch}": latency(session, crops, batch, runs) for batch in BATCHES}
        agrees = entry["reference"] is None or entry["reference"]["same_top1"] >= MIN_SAME_TOP1[manifest.precision]
        entry["passed"] = golden.passed and agrees
        entry["reason"] = None if entry["passed"] else "its answers differ from ONNX Runtime's"
    except EdgeclsError as error:
        entry["reason"] = str(error)
    print(f"{path}: {'passed' if entry['passed'] else entry['reason']}")
    return entry


def pictures(session: Session, data: Path | None) -> NDArray[np.uint8]:
    """Crops, `uint8 [pictures, crop, crop, 3]`."""
    side = session.preprocess.crop_px
    if data is None:
        return np.random.default_rng(0).integers(0, 256, (PICTURES, side, side, 3), dtype=np.uint8)
    images = ImageSet.from_folder(data).take(PICTURES)
    return np.stack([session.preprocess.pixels(images.root / image.path) for image in images.images])


def compare(session: Session, reference: Path, crops: NDArray[np.uint8]) -> dict[str, float]:
    with load(reference) as other:
        expected = np.concatenate([other.logits(crop) for crop in crops])
    found = np.concatenate([session.logits(crops[start : start + 32]) for start in range(0, len(crops), 32)])
    return {
        "pictures": len(crops),
        "max_abs_difference": float(np.abs(found - expected).max()),
        "largest_logit": float(np.abs(expected).max()),
        "same_top1": float((found.argmax(1) == expected.argmax(1)).mean()),
    }


def latency(session: Session, crops: NDArray[np.uint8], batch: int, runs: int) -> dict[str, float | int | None]:
    """p50 and p99 of one engine call by both clocks; p99 only where there are runs enough."""
    engine: Any = session.engine
    images = session.pad(np.resize(crops, (batch, *crops.shape[1:])), session.bundle.manifest.padding)
    for _ in range(20):
        engine.infer(images)
    clocks: dict[str, Callable[[], float]] = {"wall": lambda: wall_ms(engine, images)}
    if hasattr(engine, "timed_ms"):
        clocks["events"] = lambda: engine.timed_ms(images)
    result: dict[str, float | int | None] = {"runs": runs}
    for clock, measure in clocks.items():
        samples = [measure() for _ in range(runs)]
        result[f"{clock}_p50_ms"] = float(np.percentile(samples, 50))
        result[f"{clock}_p99_ms"] = float(np.percentile(samples, 99)) if runs >= 662 else None
    return result


def wall_ms(engine: Any, images: NDArray[np.uint8]) -> float:
    began = time.perf_counter_ns()
    engine.infer(images)
    return (time.perf_counter_ns() - began) / 1e6


if __name__ == "__main__":
    sys.exit(main())
