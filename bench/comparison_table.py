"""A comparison as tables for people: in the page, in a pull request, in a terminal; and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from edgecls.bench.compare import Comparison, Contrast, Variant
from edgecls.bench.measured import visible
from edgecls.bench.report import Interval

UNKNOWN = "-"


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
    return Table(
        (
            *("variant", "report", "device", "engine", "target"),
            *("size", "top-1", "drop pp [95 %]", "p50 ms [95 %]", "p99 ms", "ratio to own reference [95 %]"),
            *("first answer ms", "peak memory"),
        ),
        tuple(_variant_cells(item) for item in comparison.variants),
        texts=5,
    )


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


def _variant_cells(item: Variant) -> tuple[Cell, ...]:
    key, reference = item.key, item.role == "reference"
    return (
        Cell(item.name if item.valid else f"{item.name} (not valid)"),
        Cell(item.report),
        Cell(key.device),
        Cell(", ".join(filter(None, (key.engine, key.gpu, _threads(key.threads))))),
        Cell(f"{item.target} {item.precision}"),
        Cell(f"{item.size_bytes / 1e6:.2f} MB", item.size_bytes),
        Cell(UNKNOWN if item.top1 is None else f"{100 * item.top1:.2f} %", item.top1),
        Cell("reference") if reference else Cell(estimate(item.drop_pp, item.ci95_pp, "+.2f"), item.drop_pp),
        Cell(estimate(item.p50_ms, item.p50_ci95_ms), item.p50_ms),
        Cell(number(item.p99_ms), item.p99_ms),
        Cell("reference") if reference else Cell(estimate(item.ratio, item.ratio_ci95), item.ratio),
        Cell(number(item.coldstart_ms, ".0f"), item.coldstart_ms),
        Cell(UNKNOWN if item.peak_rss_bytes is None else f"{item.peak_rss_bytes / 1e6:.0f} MB", item.peak_rss_bytes),
    )


def _threads(count: int) -> str:
    return f"{count} {'thread' if count == 1 else 'threads'}"


def _contrast_cells(item: Contrast) -> tuple[Cell, ...]:
    notes = ["the same bundle"] * item.same_bundle + list(item.notes)
    return (
        Cell(item.name),
        Cell(item.report),
        Cell(item.against),
        Cell("; ".join(notes) or UNKNOWN),
        Cell(number(item.first_p50_ms), item.first_p50_ms),
        Cell(number(item.p50_ms), item.p50_ms),
        Cell(estimate(item.ratio, item.ratio_ci95), item.ratio),
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
        if isinstance(value, msgspec.Struct):
            flat |= {field: _cell_text(inner) for field, inner in msgspec.structs.asdict(value).items()}
        elif "ci95" in name:
            flat |= {f"{name}_{end}": side for end, side in zip(("low", "high"), value or (None, None), strict=True)}
        else:
            flat[name] = _cell_text(value)
    return flat


def _cell_text(value: object) -> object:
    """A text that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value
