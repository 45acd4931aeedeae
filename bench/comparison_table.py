"""A comparison as tables for people: in the page, in a pull request, in a terminal; and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from edgecls.bench.compare import Comparison, Contrast, Variant
from edgecls.bench.measured import visible
from edgecls.bench.report import Interval
from edgecls.bench.throughput import BatchThroughput

UNKNOWN = "-"
_SELDOM = {"energy of", "mJ per inference", "best pictures/s"}
"""Columns that are left out where no variant has them."""


class Cell(NamedTuple):
    """What stands in a table."""

    text: str
    value: float | None = None
    """What the column is sorted by; null for texts and for what was not measured."""


class Table(NamedTuple):
    """Columns of which the first `texts` are texts, the others numbers."""

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    texts: int


def variant_table(comparison: Comparison) -> Table:
    """A row for each run of each report."""
    head = (
        *("variant", "report", "device", "engine", "target", "energy of"),
        *("size", "top-1", "drop pp [95 %]", "p50 ms [95 %]", "p99 ms", "ratio to own reference [95 %]"),
        *("first answer ms", "peak memory", "mJ per inference", "best pictures/s"),
    )
    rows = [_variant_cells(item) for item in comparison.variants]
    kept = [
        column
        for column, name in enumerate(head)
        if name not in _SELDOM or any(row[column].text != UNKNOWN for row in rows)
    ]
    return Table(
        tuple(head[column] for column in kept),
        tuple(tuple(row[column] for column in kept) for row in rows),
        texts=6 if 5 in kept else 5,
    )


def throughput_table(comparison: Comparison) -> Table | None:
    """Pictures a second of each run by batch size and threads; None where no report has them."""
    measured = [(item, item.throughput.cells) for item in comparison.variants if item.throughput is not None]
    columns = sorted({(cell.threads, cell.batch) for _, cells in measured for cell in cells})
    if not columns:
        return None
    rows = []
    for item, cells in measured:
        speeds = {(cell.threads, cell.batch): cell.images_per_s for cell in cells}
        numbers = (Cell(number(speeds.get(column), ".1f"), speeds.get(column)) for column in columns)
        rows.append((Cell(_marked(item)), Cell(item.report), *numbers))
    head = (f"batch {batch}, {_threads(threads)}" for threads, batch in columns)
    return Table(("variant", "report", *head), tuple(rows), texts=2)


def contrast_table(comparison: Comparison) -> Table:
    """A row for each run of the later reports, compared with the first report."""
    first = comparison.reports[0].name
    return Table(
        (
            "variant",
            "report",
            f"against, in {first}",
            "notes",
            "p50 ms there",
            "p50 ms",
            "ratio [95 %]",
            "drop pp [95 %]",
        ),
        tuple(_contrast_cells(item) for item in comparison.contrasts),
        texts=4,
    )


def markdown(comparison: Comparison) -> str:
    """The tables for a pull request."""
    parts = [markdown_table(variant_table(comparison))]
    if (speeds := throughput_table(comparison)) is not None:
        parts.append(f"Pictures a second:\n\n{markdown_table(speeds)}")
    if comparison.contrasts:
        parts.append(markdown_table(contrast_table(comparison)))
    reasons = [(report.name, reason) for report in comparison.reports for reason in report.reasons]
    if reasons:
        parts.append(
            "\n".join(["Not valid:", "", *(f"- {code_span(name)}: {code_span(reason)}" for name, reason in reasons)])
        )
    return "\n\n".join(parts)


def csv_text(comparison: Comparison) -> str:
    """A row for each run of each report; intervals have a column for each end, and what was not measured is empty."""
    file = io.StringIO()
    rows = [_flat(item) for item in comparison.variants]
    writer = csv.DictWriter(file, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def number(value: float | None, style: str = ".2f") -> str:
    """A number for people."""
    return UNKNOWN if value is None else f"{value:{style}}"


def estimate(value: float | None, interval: Interval | None, style: str = ".2f") -> str:
    """A number with its interval."""
    if value is None or interval is None:
        return number(value, style)
    return f"{value:{style}} [{interval[0]:{style}}, {interval[1]:{style}}]"


def milliseconds(value: float | None, interval: Interval | None = None, decimals: int = 2) -> str:
    """A time with its interval; below 1 ms with three significant digits."""
    return estimate(value, interval, _style(value, 1.0, decimals))


def millijoules(value: float | None) -> str:
    """An energy; below 1 mJ with three significant digits."""
    return number(value, _style(value, 1.0, 1))


def latency_ratio_text(value: float | None, interval: Interval | None = None) -> str:
    """A ratio with its interval; below 0.1 with three significant digits."""
    return estimate(value, interval, _style(value, 0.1, 2))


def _style(value: float | None, bound: float, decimals: int) -> str:
    if value is None or not 0 < value < bound:
        return f".{decimals}f"
    return f".{min(2 - math.floor(math.log10(value)), 9)}f"


def _variant_cells(item: Variant) -> tuple[Cell, ...]:
    key, reference = item.key, item.role == "reference"
    best = item.throughput.best if item.throughput else None
    return (
        Cell(_marked(item)),
        Cell(item.report),
        Cell(key.device),
        Cell(", ".join(filter(None, (key.engine, key.gpu, _threads(key.threads))))),
        Cell(f"{item.target} {item.precision}"),
        Cell(item.energy_scope or UNKNOWN),
        Cell(f"{item.size_bytes / 1e6:.2f} MB", item.size_bytes),
        Cell(UNKNOWN if item.top1 is None else f"{100 * item.top1:.2f} %", item.top1),
        Cell("reference") if reference else Cell(estimate(item.drop_pp, item.ci95_pp, "+.2f"), item.drop_pp),
        Cell(milliseconds(item.p50_ms, item.p50_ci95_ms), item.p50_ms),
        Cell(milliseconds(item.p99_ms), item.p99_ms),
        Cell("reference") if reference else Cell(latency_ratio_text(item.ratio, item.ratio_ci95), item.ratio),
        Cell(number(item.coldstart_ms, ".0f"), item.coldstart_ms),
        Cell(UNKNOWN if item.peak_rss_bytes is None else f"{item.peak_rss_bytes / 1e6:.0f} MB", item.peak_rss_bytes),
        Cell(millijoules(item.mj_per_inference), item.mj_per_inference),
        Cell(_speed(best), best.images_per_s if best else None),
    )


def _marked(item: Variant) -> str:
    return item.name if item.valid else f"{item.name} (not valid)"


def _speed(cell: BatchThroughput | None) -> str:
    """A throughput with what it takes."""
    return UNKNOWN if cell is None else f"{cell.images_per_s:.1f} (batch {cell.batch}, {_threads(cell.threads)})"


def _threads(count: int) -> str:
    return f"{count} {'thread' if count == 1 else 'threads'}"


def _contrast_cells(item: Contrast) -> tuple[Cell, ...]:
    notes = ["the same bundle"] * item.same_bundle + list(item.notes)
    return (
        Cell(item.name),
        Cell(item.report),
        Cell(item.against),
        Cell("; ".join(notes) or UNKNOWN),
        Cell(milliseconds(item.first_p50_ms), item.first_p50_ms),
        Cell(milliseconds(item.p50_ms), item.p50_ms),
        Cell(latency_ratio_text(item.ratio, item.ratio_ci95), item.ratio),
        Cell(estimate(item.drop_pp, item.ci95_pp, "+.2f"), item.drop_pp),
    )


def markdown_table(table: Table) -> str:
    """A table for a pull request."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    head = [code_span(name) if "," in name else name for name in table.head]
    rule = ["---"] * table.texts + ["---:"] * (len(head) - table.texts)
    rows = [
        [code_span(cell.text) if column < table.texts else cell.text for column, cell in enumerate(row)]
        for row in table.rows
    ]
    return "\n".join(map(line, [head, rule, *rows]))


def code_span(text: str) -> str:
    """A code span: what a report says can neither be markup there nor call a person."""
    return "`" + (visible(text).replace("`", "'").replace("|", "\\|") or UNKNOWN) + "`"


def _flat(item: Variant) -> dict[str, object]:
    """The fields of a record, those of records within and the ends of intervals for themselves."""
    flat: dict[str, object] = {}
    for name, value in msgspec.structs.asdict(item).items():
        if name == "throughput":
            best = value.best if value else None
            flat |= {f"best_{field}": getattr(best, field, None) for field in ("images_per_s", "batch", "threads")}
        elif isinstance(value, msgspec.Struct):
            flat |= {field: _cell_text(inner) for field, inner in msgspec.structs.asdict(value).items()}
        elif "ci95" in name:
            flat |= {f"{name}_{end}": side for end, side in zip(("low", "high"), value or (None, None), strict=True)}
        else:
            flat[name] = _cell_text(value)
    return flat


def _cell_text(value: object) -> object:
    """A text that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value
