"""`edgecls gate`: a report's verdict as exit code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from edgecls.console import Console
from edgecls.options import output_options
from edgecls.parameter_types import INPUT_FILE, duration_ms, margin, one_of, output_file, size_bytes

if TYPE_CHECKING:
    from edgecls.bench.gate_result import CriticalClass, GateResult


def critical_class(value: str | CriticalClass) -> CriticalClass:
    """`stop sign:0.5pp`: a class and its margin."""
    from edgecls.bench.gate_result import CriticalClass

    if isinstance(value, CriticalClass):
        return value
    label, colon, text = value.rpartition(":")
    if not colon or not label:
        raise click.BadParameter(f"{value!r} is no class with its margin; write NAME:1pp.")
    return CriticalClass(label, margin(text))


@click.command("gate", short_help="Verdict on a report, as exit code.")
@click.argument("report", type=INPUT_FILE)
@click.option(
    "--max-drop",
    type=margin,
    metavar="Npp|N%rel",
    help="Margin of the top-1 drop: percentage points such as 1pp, or per cent of the reference's top-1 such as 2%rel.",
)
@click.option(
    "--critical-class",
    "critical_classes",
    type=critical_class,
    multiple=True,
    metavar="NAME:MARGIN",
    help="Margin of the recall of one class, such as 'stop sign:0.5pp'; repeat it for others.",
)
@click.option(
    "--max-latency-ratio",
    type=click.FloatRange(min=0, min_open=True),
    metavar="X",
    help="Limit of the latency against the reference, such as 1.1.",
)
@click.option(
    "--max-rss", "max_rss_bytes", type=size_bytes, metavar="SIZE", help="Limit of the peak memory, such as 200MB."
)
@click.option(
    "--max-cold-start",
    "max_cold_start_ms",
    type=duration_ms,
    metavar="TIME",
    help="Limit of the time from nothing to the first answer, such as 800ms or 2s.",
)
@click.option(
    "--baseline",
    type=INPUT_FILE,
    metavar="REPORT",
    help="Compare each run with the one of its name in this earlier report, instead of with the reference.",
)
@click.option("--variant", metavar="NAME", help="The only run to judge. [default: all but the reference]")
@click.option(
    "--on-inconclusive", type=one_of("fail", "pass"), help="What inconclusive counts as. [default: exit code 3]"
)
@click.option("--markdown", type=output_file, metavar="FILE", help="Write a summary for a pull request as well.")
@click.option("--record", is_flag=True, help="Write the verdict into REPORT too, for `edgecls compare` to show it.")
@output_options
def command(
    console: Console,
    report: Path,
    baseline: Path | None,
    variant: str | None,
    on_inconclusive: Literal["fail", "pass"] | None,
    markdown: Path | None,
    record: bool,
    **limits: Any,
) -> int:
    """Judges REPORT: exit code 0 pass, 1 fail, 3 inconclusive, 4 the report is not valid.

    A drop passes when it is shown to be below the margin (score test, 95 % one-sided), and fails when it is shown to
    be above; otherwise the answer says how many pictures would decide it. A latency ratio passes and fails likewise,
    over launches. Every limit must be kept.
    """
    from edgecls.bench.gate import judge
    from edgecls.bench.gate_result import Limits
    from edgecls.bench.measured import open_measured, read_harmless

    asked = Limits(**limits)
    if markdown is not None:
        from edgecls.runtime.atomic_file import refuse_overwriting

        refuse_overwriting(markdown, filter(None, (report, baseline)))
    if baseline is None:
        result = judge(read_harmless(report), asked, variant=variant, on_inconclusive=on_inconclusive)
    else:
        earlier, now = open_measured([baseline, report])
        result = judge(now, asked, variant=variant, baseline=earlier, on_inconclusive=on_inconclusive)
    if markdown is not None:
        from edgecls.bench.gate_markdown import gate_markdown
        from edgecls.runtime.atomic_file import atomic_file

        with atomic_file(markdown) as file:
            file.write(gate_markdown(result).encode())
    if record:
        import msgspec

        from edgecls.bench.report import read_report, write_report

        write_report(msgspec.structs.replace(read_report(report), gate=result), report)
    console.result(result, _text(result, quiet=console.quiet))
    return result.exit_code


def _text(result: GateResult, *, quiet: bool) -> str:
    from edgecls.bench.measured import visible

    lines = []
    for run in result.runs:
        lines.append(f"{run.name}: {run.verdict}" + (f", against {run.against}" if run.against else ""))
        lines += [f"  {message}" for message in run.messages]
        lines += [] if quiet else [f"  note: {note}" for note in run.notes]
    lines += [f"not valid: {reason}" for reason in result.reasons]
    counted = result.verdict == "inconclusive" and result.on_inconclusive
    return "\n".join(
        [*map(visible, lines), f"\n{result.verdict.upper()}" + (f", counted as {counted}" if counted else "")]
    )
