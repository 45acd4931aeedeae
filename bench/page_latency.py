"""The sections of the page on time: launches, stages, cold start."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgecls.bench.charts import Row
from edgecls.bench.markup import Content
from edgecls.bench.page_parts import View, rows_figure


def launches(view: View) -> list[Content]:
    """How the latencies of each launch are spread."""
    content: list[Content] = []
    for group, item in enumerate(view.measured):
        rows = []
        for index, run in enumerate(item.report.runs):
            for launch, median in enumerate(run.latency.launches if run.latency else ()):
                samples = None if item.samples_ms is None else item.samples_ms[index][launch]
                rows.append(_launch(f"{run.name}, launch {launch + 1}", group, median.p50_ms, samples))
        note = (
            "Box: the middle half; thick line: the median; thin line: the 5th to the 95th percentile."
            if item.samples_ms is not None
            else "Medians alone: the samples (NAME.samples.npz beside NAME.json) are not here."
        )
        content += rows_figure(f"Latency of {item.name}, by launch", "latency, ms", rows, note)
    return content


def _launch(label: str, group: int, p50_ms: float, samples: NDArray[np.float64] | None) -> Row:
    if samples is None:
        return Row(label, f"{p50_ms:.2f} ms", group, p50_ms)
    p5, p25, p50, p75, p95 = np.quantile(samples, [0.05, 0.25, 0.5, 0.75, 0.95]).tolist()
    return Row(label, f"{p5:.2f} | {p25:.2f} | {p50:.2f} | {p75:.2f} | {p95:.2f} ms", group, p50, p5, p95, (p25, p75))


def stages(view: View) -> list[Content]:
    """What the time from a picture's file to the answer is made of."""
    content: list[Content] = []
    note = "Medians of each stage by itself, so that their sum is not the median of the whole."
    for group, item in enumerate(view.measured):
        rows = []
        for run in item.report.runs:
            if run.latency is not None and (stages := run.latency.stages) is not None:
                parts = (stages.decode_ms, stages.preprocess_ms, stages.model_ms, stages.top_k_ms)
                rows.append(_stacked(run.name, group, parts, f"; in all {stages.total_ms:.1f} ms"))
        names = ("decode", "preprocess", "model", "top-k")
        content += rows_figure(f"Picture file to answer, {item.name}", "ms", rows, note, names)
    return content


def cold_start(view: View) -> list[Content]:
    """What the time from nothing to the first answer is made of."""
    content: list[Content] = []
    note = "Medians over launches, the files in the system's cache."
    for group, item in enumerate(view.measured):
        rows = []
        for run in item.report.runs:
            if (start := run.coldstart) is not None:
                parts = (start.process_ms, start.import_ms, start.load_ms, start.first_inference_ms)
                rows.append(_stacked(run.name, group, parts, f" = {sum(parts):.0f} ms"))
        names = ("process", "import of edgecls", "load of engine and bundle", "first inference")
        content += rows_figure(f"Nothing to the first answer, {item.name}", "ms", rows, note, names)
    return content


def _stacked(label: str, group: int, parts: tuple[float, ...], total: str) -> Row:
    return Row(label, " + ".join(f"{part:.1f}" for part in parts) + total, group, parts=parts)
