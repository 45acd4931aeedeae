"""The sections of the page on time and energy: launches, stages, cold start, throughput, energy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgecls.bench.charts import Row
from edgecls.bench.comparison_table import Cell, Table, millijoules, milliseconds, throughput_table
from edgecls.bench.markup import Content, element, items
from edgecls.bench.page_parts import View, rows_figure, table_element


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
        return Row(label, f"{milliseconds(p50_ms)} ms", group, p50_ms)
    spread = p5, p25, p50, p75, p95 = np.quantile(samples, [0.05, 0.25, 0.5, 0.75, 0.95]).tolist()
    return Row(label, f"{' | '.join(map(milliseconds, spread))} ms", group, p50, p5, p95, (p25, p75))


def stages(view: View) -> list[Content]:
    """What the time from a picture's file to the answer is made of."""
    content: list[Content] = []
    note = "Medians of each stage by itself, so that their sum is not the median of the whole."
    for group, item in enumerate(view.measured):
        rows = []
        for run in item.report.runs:
            if run.latency is not None and (stages := run.latency.stages) is not None:
                parts = (stages.decode_ms, stages.preprocess_ms, stages.model_ms, stages.top_k_ms)
                rows.append(
                    _stacked(run.name, group, parts, f"; in all {milliseconds(stages.total_ms, decimals=1)} ms")
                )
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
    return Row(label, " + ".join(milliseconds(part, decimals=1) for part in parts) + total, group, parts=parts)


def throughput(view: View) -> list[Content]:
    """Pictures a second where they wait in batches."""
    table = throughput_table(view.comparison)
    failed = [
        f"{view.label(item, run.name)}: {run.throughput.error}"
        for _, item, _, run in view.runs()
        if run.throughput is not None and run.throughput.error
    ]
    content: list[Content] = []
    if table is not None:
        note = "Ready crops to logits, batches one after another in one process, medians over turns."
        content += [element("p", note, class_="note"), table_element(table, "Pictures a second")]
    return [*content, items(failed)] if content or failed else []


def energy(view: View) -> list[Content]:
    """What an inference draws, idle power of what the meter covers included."""
    rows, missing = [], []
    for _, item, _, run in view.runs():
        if (drawn := run.energy) is not None:
            rows.append(
                (
                    *(Cell(view.label(item, run.name)), Cell(f"{drawn.source}, {drawn.scope}")),
                    Cell(millijoules(drawn.mj_per_inference), drawn.mj_per_inference),
                    *(Cell(f"{drawn.mean_w:.2f}", drawn.mean_w), Cell(str(drawn.inferences), drawn.inferences)),
                    Cell(f"{drawn.seconds:.1f}", drawn.seconds),
                )
            )
        elif run.energy_unavailable:
            missing.append(f"{view.label(item, run.name)}: {run.energy_unavailable}")
    content: list[Content] = []
    if rows:
        head = ("variant", "energy of", "mJ per inference", "mean W", "inferences", "seconds")
        note = "Batch 1, in a pass of its own. What the meter covers draws power when idle too."
        content += [element("p", note, class_="note"), table_element(Table(head, tuple(rows), texts=2), "Energy")]
    return [*content, items(missing)] if content or missing else []
