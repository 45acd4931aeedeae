"""Fault operation: a measurement replaces an earlier one and what stands beside it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from reports import SAMPLES, TRUTH, accuracy, answers, report

from edgecls.bench.accuracy import Answers
from edgecls.bench.latency import LaunchTrace, Trace, write_samples
from edgecls.bench.report import write_report_files
from edgecls.runtime.imageset import ImageFile

OLD, NEW = 1.0, 2.0
LOADED: Any = None


def prepare(folder: Path) -> None:
    write(folder, OLD)


def run(folder: Path) -> None:
    write(folder, NEW)


def write(folder: Path, speed: float) -> None:
    """What a measurement writes; every part of it tells `speed`."""
    made, wrong = report(speed), [int(count * speed) for count in (5, 7)]
    seen = Answers(
        images=tuple(ImageFile(f"{number}.png", f"{number:064x}", None, int(TRUTH[number])) for number in range(300)),
        unreadable=(),
        top=tuple(answers(count)[:, None].astype(np.int32) for count in wrong),
        kl=None,
        scores=None,
    )
    slices = np.full(SAMPLES, int(speed * 1e6), np.int64)
    traces = [
        Trace([LaunchTrace(0.0, LOADED, slices=[slices]) for _ in item.latency.launches] if item.latency else [])
        for item in made.runs
    ]
    replace = msgspec.structs.replace
    runs = tuple(replace(item, accuracy=accuracy(count)) for item, count in zip(made.runs, wrong, strict=True))
    made = replace(made, valid=False, reasons=(f"speed {speed}",), runs=runs)
    predictions, samples = io.BytesIO(), io.BytesIO()
    seen.save(predictions, classes=len(made.runs))
    write_samples(traces, samples)
    write_report_files(folder / "report.json", made.to_json(), predictions.getvalue(), samples.getvalue())
