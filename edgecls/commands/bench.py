"""`edgecls bench`: measure bundles, here or on boards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgecls.console import Console, quoted
from edgecls.options import output_option, output_options, seed_option, threads_option
from edgecls.parameter_types import INPUT_FILE, INPUT_FOLDER, cpu_numbers, one_of

if TYPE_CHECKING:
    from edgecls.bench.report import Report


@click.command("bench", short_help="Measure bundles, here or on a board.")
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True, type=INPUT_FILE)
@click.option("--data", type=INPUT_FOLDER, metavar="DIR", required=True, help="Pictures, in a sub-folder a class.")
@click.option("--reference", type=INPUT_FILE, metavar="BUNDLE", help="What the others are compared with.")
@click.option(
    "--profile",
    type=one_of("quick", "standard", "sustained"),
    default="quick",
    show_default=True,
    help="How long latency is measured: 3 launches of 5 s, 5 of 20 s, or one of 10 minutes.",
)
@click.option("--latency/--no-latency", default=True, help="Whether to measure latency.")
@click.option("--accuracy/--no-accuracy", default=True, help="Whether to measure accuracy.")
@click.option("--throughput", is_flag=True, help="Measure batches too: pictures a second by batch size and threads.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most so many pictures, spread over classes.")
@threads_option
@click.option("--cores", type=cpu_numbers, metavar="LIST", help="CPUs to pin timed processes to, such as 2,3 or 0-3.")
@seed_option
@output_option("The report.", default="report.json")
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="USER@BOARD",
    help="Measure there, over ssh, and bring the report back; repeat it for several, one after another.",
)
@click.option("--keep", is_flag=True, help="Leave what --host sent and installed there, for the next time.")
@click.option(
    "--ssh-config", type=INPUT_FILE, metavar="FILE", help="Of --host: ports, keys, ... [default: ~/.ssh/config]"
)
@output_options
def command(
    console: Console,
    bundles: tuple[Path, ...],
    output: Path,
    hosts: tuple[str, ...],
    keep: bool,
    ssh_config: Path | None,
    **options: Any,
) -> int:
    """Measures the accuracy and the latency of every BUNDLE, side by side, and writes a report.

    With several --host, report.json becomes report-1.json, report-2.json, ... in their order.

    The exit code is 4 if a report is not valid; it then says why.
    """
    if hosts:
        return _on_hosts(console, hosts, bundles, output, keep=keep, ssh_config=ssh_config, **options)
    if keep or ssh_config is not None:
        raise click.UsageError("--keep and --ssh-config belong to --host, which is not given.")
    from edgecls.bench.measure import measure

    with console.work() as progress:
        report = measure(bundles, output=output, progress=progress, **options)
    console.result(report, _text(console, report, output))
    _next(console, report, output, bundles, options)
    return report.exit_code


def _on_hosts(console: Console, hosts: tuple[str, ...], bundles: tuple[Path, ...], output: Path, **options: Any) -> int:
    """The same on boards; one that fails does not keep the others from it."""
    from edgecls.bench.host import measure_on_hosts

    with console.work() as progress:
        measured, errors = measure_on_hosts(hosts, bundles, output=output, progress=progress, **options)
    if errors and (console.json or not measured):
        raise errors[0]
    texts = [f"{one.host}\n{_text(console, one.report, one.output)}" for one in measured]
    reports = [one.report for one in measured]
    console.result(reports[0] if len(hosts) == 1 else reports, "\n\n".join(texts))
    if errors:
        raise errors[0]
    if len(measured) == 1:
        _next(console, reports[0], output, bundles, options)
    else:
        console.next(f"edgecls compare {' '.join(quoted(one.output) for one in measured)}")
    return max(report.exit_code for report in reports)


def _text(console: Console, report: Report, output: Path) -> str:
    """The table, and what is to be known of it."""
    from edgecls.report_table import report_table

    lines = [report_table(report), f"\nreport: {output}"]
    if not report.valid:
        lines.append("NOT VALID:")
        lines += [f"  {reason}" for reason in report.reasons]
        lines += [f"  {run.name}: {reason}" for run in report.runs for reason in run.reasons]
    if not console.quiet:
        lines += [f"note: {note}" for note in _notes(report)]
    return "\n".join(lines)


def _next(console: Console, report: Report, output: Path, bundles: tuple[Path, ...], options: dict[str, Any]) -> None:
    """Tells the next useful command."""
    if report.valid and report.reference is None:
        console.next(f"edgecls bench {quoted(bundles[0])} OTHER --reference OTHER --data {quoted(options['data'])}")
    elif report.valid and options["accuracy"] and report.dataset.labelled and len(report.runs) > 1:
        console.next(f"edgecls gate {quoted(output)} --max-drop 1pp")


def _notes(report: Report) -> list[str]:
    """What makes a figure of the table doubtful or absent; a doubt that all runs share is told once."""
    notes = list(report.conditions.warnings)
    if any(run.accuracy is not None for run in report.runs) and not report.dataset.labelled:
        notes.append("the pictures lie in no class folders: without labels there is no top-1")
    judged = {run.name: run.accuracy for run in report.runs if run.accuracy is not None and report.dataset.labelled}
    notes += _told_once({name: accuracy.warnings for name, accuracy in judged.items()})
    notes += _told_once({name: filter(None, [accuracy.unavailable]) for name, accuracy in judged.items()})
    notes += _told_once({run.name: run.latency.warnings for run in report.runs if run.latency is not None})
    return notes


def _told_once(notes: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """The notes of the runs, each with the names of its runs unless it is all of them."""
    runs: dict[str, list[str]] = {}
    for name, own in notes.items():
        for note in own:
            runs.setdefault(note, []).append(name)
    for note, names in runs.items():
        yield note if len(names) == len(notes) else f"{', '.join(names)}: {note}"
