"""`edgecls verify`: the golden samples, here."""

from __future__ import annotations

from pathlib import Path

import click

from edgecls.console import Console, quoted, table_text
from edgecls.options import output_options, threads_option
from edgecls.parameter_types import INPUT_FILE


@click.command("verify", short_help="Replay a bundle's golden samples here.")
@click.argument("bundle", type=INPUT_FILE)
@click.option(
    "--key",
    type=INPUT_FILE,
    metavar="FILE",
    help="Public Ed25519 key, PEM; a bundle that it has not signed is refused.",
)
@threads_option
@output_options
def command(console: Console, bundle: Path, key: Path | None, threads: int | None) -> int:
    """Checks that BUNDLE gives here the pixels and the logits that it gave where it was made; exit code 1 if not.

    With --key it is first checked who made it; exit code 6 if it is not signed with that key.
    """
    from edgecls.runtime import load
    from edgecls.runtime.verify import verify_bundle

    with console.work() as progress, load(bundle, threads=threads, progress=progress, key=key) as session:
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
    signed = "" if key is None else f", and {key} has signed it"
    console.result(result, f"{text}\n\n{verdict}: at most {result.tolerance:.1e} is allowed{signed}")
    if result.passed:
        console.next(f"edgecls bench {quoted(bundle)} --data DIR -o report.json")
    return 0 if result.passed else 1
