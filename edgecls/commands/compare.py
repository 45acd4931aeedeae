"""`edgecls compare`: reports side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgecls.console import Console, table_text
from edgecls.options import Invocation, output_options
from edgecls.parameter_types import INPUT_FILE, one_of, output_file

if TYPE_CHECKING:
    from edgecls.bench.compare import Comparison
    from edgecls.bench.comparison_table import Table

_WIDE = {"device", "engine", "target", "notes"}
"""Columns that a terminal has no room for."""


@click.command("compare", short_help="Reports side by side.")
@click.argument("reports", metavar="REPORT...", nargs=-1, required=True, type=INPUT_FILE)
@click.option("--html", type=output_file, metavar="FILE.html", help="Write one page with tables and charts.")
@click.option(
    "--format",
    "style",
    type=one_of("text", "md", "csv", "json", "model-index"),
    default="text",
    show_default=True,
    help="What is printed: for people, a pull request, a spreadsheet, a program or a Hugging Face model card.",
)
@output_options
@click.pass_context
def command(
    context: click.Context, /, console: Console, reports: tuple[Path, ...], html: Path | None, style: str
) -> int:
    """Puts every REPORT side by side, and compares with the first where that is fair.

    Latencies are divided only where device, GPU, engine and version, threads, pinned cores, power mode, input shape and
    profile are the same; otherwise the fields that differ are named. The page needs no network; samples and predictions
    are drawn where they lie beside the reports.
    """
    if style == "json":
        console.json = context.ensure_object(Invocation).json = True
    from edgecls.bench.compare import compare
    from edgecls.bench.comparison_table import csv_text, markdown
    from edgecls.bench.measured import open_measured

    if html is not None:
        from edgecls.runtime.atomic_file import refuse_overwriting

        refuse_overwriting(html, reports)
    measured = open_measured(reports)
    comparison = compare(measured)
    if html is not None:
        from edgecls.bench.page import write_page

        write_page(comparison, measured, html)
    if style == "model-index":
        from edgecls.bench.model_index import model_index_yaml

        text = model_index_yaml(measured)
    else:
        text = {"md": markdown, "csv": csv_text}.get(style, _text)(comparison).rstrip("\n")
    console.result(comparison, f"{text}\n\npage: {html}" if html is not None and style == "text" else text)
    return 0


def _text(comparison: Comparison) -> str:
    from edgecls.bench.comparison_table import contrast_table, throughput_table, variant_table

    devices = [f"{report.name}: {report.device}" for report in comparison.reports]
    parts = ["\n".join(devices), _narrow(variant_table(comparison))]
    if (speeds := throughput_table(comparison)) is not None:
        parts.append(f"pictures a second\n{_narrow(speeds)}")
    if comparison.contrasts:
        parts.append(_narrow(contrast_table(comparison)))
    notes = [f"not valid: {report.name}: {reason}" for report in comparison.reports for reason in report.reasons]
    notes += [f"note: {item.name} ({item.report}): {note}" for item in comparison.contrasts for note in item.notes]
    return "\n\n".join([*parts, "\n".join(notes)] if notes else parts)


def _narrow(table: Table) -> str:
    kept = [column for column, name in enumerate(table.head) if name not in _WIDE]
    return table_text(
        [table.head[column] for column in kept], [[row[column].text for column in kept] for row in table.rows]
    )
