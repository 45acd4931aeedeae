"""A report as one table for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgecls.bench.comparison_table import latency_ratio_text, millijoules, milliseconds
from edgecls.console import size_text, table_text

if TYPE_CHECKING:
    from edgecls.bench.gate_result import GateResult
    from edgecls.bench.report import Report, Run

_UNKNOWN = "-"


def report_table(report: Report, gate: GateResult | None = None) -> str:
    """One line a run: size, accuracy, drop with its 95 % interval, latency; and the verdict where there is one.

    The balanced accuracy has a column where top-1 alone would mislead, energy where it was measured, and throughput a
    table of its own.
    """
    verdicts = {run.name: run.verdict for run in gate.runs} if gate is not None else {}
    head = ["variant", "size", "top-1", "drop pp [95 %]", "p50 ms", "latency ratio [95 %]"]
    rows = [_cells(run) for run in report.runs]
    if any(run.accuracy.warnings for run in report.runs if run.accuracy is not None):
        place = head.index("top-1") + 1
        head.insert(place, "balanced")
        for row, run in zip(rows, report.runs, strict=True):
            row.insert(place, percent_text(run.accuracy.balanced_accuracy if run.accuracy else None))
    if any(run.energy for run in report.runs):
        head.append("mJ/inference")
        for row, run in zip(rows, report.runs, strict=True):
            row.append(millijoules(run.energy.mj_per_inference) if run.energy else _UNKNOWN)
    if verdicts:
        head.append("verdict")
        rows = [[*row, verdicts.get(run.name, run.role)] for row, run in zip(rows, report.runs, strict=True)]
    return table_text(head, rows) + _throughput_table(report)


def _throughput_table(report: Report) -> str:
    """Pictures a second by batch size and threads; empty where they were not measured."""
    measured = {run.name: run.throughput.cells for run in report.runs if run.throughput is not None}
    columns = sorted({(cell.threads, cell.batch) for cells in measured.values() for cell in cells})
    if not columns:
        return ""
    head = ["pictures a second", *(f"batch {batch}, {threads} thr." for threads, batch in columns)]
    rows = []
    for name, cells in measured.items():
        speeds = {(cell.threads, cell.batch): f"{cell.images_per_s:.1f}" for cell in cells}
        rows.append([name, *(speeds.get(column, _UNKNOWN) for column in columns)])
    return f"\n\n{table_text(head, rows)}"


def _cells(run: Run) -> list[str]:
    drop = p50 = ratio = _UNKNOWN
    top1 = percent_text(run.accuracy.top1 if run.accuracy else None)
    if run.role == "reference":
        drop = ratio = "reference"
    elif run.accuracy is not None and run.accuracy.drop_pp is not None:
        drop = f"{run.accuracy.drop_pp:+.2f}{interval_text(run.accuracy.ci95_pp, '+.2f')}"
    if run.latency is not None:
        p50 = milliseconds(run.latency.p50_ms)
        if run.role != "reference" and run.latency.ratio is not None:
            ratio = latency_ratio_text(run.latency.ratio, run.latency.ratio_ci95)
    return [run.name, size_text(run.artifact.size_bytes), top1, drop, p50, ratio]


def percent_text(rate: float | None) -> str:
    """A rate 0..1 for people."""
    return _UNKNOWN if rate is None else f"{100 * rate:.2f} %"


def interval_text(ends: tuple[float, float] | None, style: str) -> str:
    """A confidence interval for people; empty where there is none."""
    return "" if ends is None else f" [{ends[0]:{style}}, {ends[1]:{style}}]"
