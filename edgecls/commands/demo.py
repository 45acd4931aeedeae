"""`edgecls demo`: all of it, on data and a model that need no download."""

from __future__ import annotations

from pathlib import Path

import click

from edgecls.console import Console
from edgecls.options import output_options, seed_option


@click.command("demo", short_help="All of it, on data and a model that need no download.")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    default="edgecls-demo",
    show_default=True,
    help="Where everything is written.",
)
@seed_option
@output_options
def command(console: Console, output: Path, seed: int) -> int:
    """Trains a small classifier of handwritten digits, exports it, measures the bundles and judges them."""
    from edgecls.demo import MAX_DROP_PP, run_demo
    from edgecls.extra import needs_extra
    from edgecls.report_table import report_table

    with console.work() as progress, needs_extra("demo", "The demo"):
        result = run_demo(output, seed=seed, progress=progress)
    document = {
        "folder": result.folder,
        "bundles": result.bundles,
        "report": result.report_path,
        "torch_top1": result.torch_top1,
        "gate": result.gate,
    }
    text = f"""\
{report_table(result.report, result.gate)}

Top-1 in torch: {100 * result.torch_top1:.2f} % of {result.report.dataset.n} test pictures. \
Verdict on a drop of {MAX_DROP_PP:g} pp: {result.gate.verdict}.
Latency is a smoke test (seconds, one thread): good to see that it works, not to be quoted.

Everything is in {output}: the pictures, the checkpoint, the bundles, {result.report_path.name}."""
    console.result(document, text)
    bundle = result.bundles[1]
    console.next(
        f"edgecls classify {bundle} {output}/data/test/7/*.png\n"
        f"      edgecls inspect {bundle}\n"
        f"      edgecls bench {output}/*.edgecls --data {output}/data/test --reference {result.bundles[0]}"
    )
    return result.gate.exit_code
