"""`edgecls verify`: the golden samples, here."""

from __future__ import annotations

from pathlib import Path

import click

from edgecls.console import Console, quoted, table_text
from edgecls.options import output_options, threads_option
from edgecls.parameter_types import INPUT_FILE


@click.command("verify", short_help="Replay a bundle's golden samples here.")
@click.argument("bundle", type=INPUT_FILE)
@threads_option
@output_options
def command(console: Console, bundle: Path, threads: int | None) -> int:
    """Checks that BUNDLE gives here the pixels and the logits that it gave where it was made; exit code 1 if not."""
    from edgecls.runtime import load
    from edgecls.runtime.verify import verify_bundle

    with console.work() as progress, load(bundle, threads=threads, progress=progress) as session:
        result = verify_bundle(session)
    rows = [
        (
            sample.name,
            "same" if sample.pixels_match else "DIFFERENT",
            f"{sample.max_abs_difference:.1e}",
            "same" if sample.same_top1 else "DIFFERENT",
        )
        for sample in result.samples
    ]
    verdict = "passed" if result.passed else "FAILED"
    text = table_text(("sample", "pixels", "logits differ by", "top-1"), rows)
    console.result(result, f"{text}\n\n{verdict}: at most {result.tolerance:.1e} is allowed")
    if result.passed:
        console.next(f"edgecls bench {quoted(bundle)} --data DIR -o report.json")
    return 0 if result.passed else 1
