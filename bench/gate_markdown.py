"""A gate's answer for a pull request."""

from __future__ import annotations

from edgecls.bench.comparison_table import UNKNOWN, Cell, Table, code_span, markdown_table
from edgecls.bench.gate_result import Check, GateResult, Unit

_STYLES: dict[Unit, tuple[float, str, str]] = {
    "pp": (1, "+.2f", " pp"),
    "ratio": (1, ".3f", ""),
    "bytes": (1e-6, ".1f", " MB"),
    "ms": (1, ".0f", " ms"),
}
"""Factor, format and unit of a figure."""


def gate_markdown(result: GateResult) -> str:
    """The verdict, a table with a row for each limit of each run, and in words what is not a pass."""
    counted = "" if result.on_inconclusive is None or result.verdict != "inconclusive" else result.on_inconclusive
    parts = [f"### edgecls gate: {result.verdict}" + (f", counted as {counted}" if counted else "")]
    rows = tuple(
        (
            Cell(run.name),
            Cell(UNKNOWN if run.against is None else run.against),
            Cell(check.condition if check.label is None else f"{check.condition} {check.label}"),
            Cell(check.verdict),
            Cell(_measured(check)),
            Cell(_text(check, check.limit).lstrip("+")),
            Cell(UNKNOWN if check.n is None else str(check.n)),
        )
        for run in result.runs
        for check in run.checks
    )
    if rows:
        sure = f"{100 * (1 - 2 * result.limits.alpha):g} %"
        head = ("variant", "against", "condition", "verdict", f"measured [{sure}]", "limit", "pictures")
        parts.append(markdown_table(Table(head, rows, texts=4)))
    told = [(run.name, check.message) for run in result.runs for check in run.checks if check.verdict != "pass"]
    told += [(run.name, note) for run in result.runs for note in run.notes]
    told += [("not valid", reason) for reason in result.reasons]
    if told:
        parts.append("\n".join(f"- {code_span(name)}: {code_span(text)}" for name, text in told))
    return "\n\n".join(parts) + "\n"


def _measured(check: Check) -> str:
    value = _text(check, check.value)
    if check.lower is None or check.upper is None:
        return value
    return f"{value} [{_text(check, check.lower)}, {_text(check, check.upper)}]"


def _text(check: Check, value: float) -> str:
    factor, style, unit = _STYLES[check.unit]
    return f"{factor * value:{style}}{unit}"
