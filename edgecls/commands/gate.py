"""`edgecls gate`: a report's verdict as exit code."""

from __future__ import annotations

from pathlib import Path

import click

from edgecls.console import Console
from edgecls.options import output_options
from edgecls.parameter_types import INPUT_FILE, percentage_points


@click.command("gate", short_help="Verdict on a report, as exit code.")
@click.argument("report", type=INPUT_FILE)
@click.option(
    "--max-drop",
    "max_drop_pp",
    type=percentage_points,
    metavar="Npp",
    help="Margin of the top-1 drop against the reference, such as 1pp.",
)
@click.option(
    "--max-latency-ratio",
    type=click.FloatRange(min=0, min_open=True),
    metavar="X",
    help="Limit of the latency against the reference, such as 1.1.",
)
@click.option("--variant", metavar="NAME", help="The only run to judge. [default: all but the reference]")
@output_options
def command(
    console: Console, report: Path, max_drop_pp: float | None, max_latency_ratio: float | None, variant: str | None
) -> int:
    """Judges REPORT: exit code 0 pass, 1 fail, 3 inconclusive, 4 the report is not valid.

    A drop passes when it is shown to be below the margin (score test, 95 % one-sided), and fails when it is shown to
    be above; otherwise the answer says how many pictures would decide it.
    """
    from edgecls.bench.gate import judge
    from edgecls.bench.report import read_report

    result = judge(read_report(report), max_drop_pp, max_latency_ratio, variant)
    lines = [f"{run.name}: {run.verdict}\n  {message}" for run in result.runs for message in run.messages]
    lines += [f"not valid: {reason}" for reason in result.reasons]
    console.result(result, "\n".join([*lines, f"\n{result.verdict.upper()}"]))
    return result.exit_code
