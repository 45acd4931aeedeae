"""`edgecls classify`: run a bundle on pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgecls.console import Console, printable
from edgecls.options import output_options, threads_option
from edgecls.parameter_types import INPUT_FILE


@click.command("classify", short_help="Run a bundle on pictures.")
@click.argument("bundle", type=INPUT_FILE)
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--top", type=click.IntRange(min=1), metavar="N", default=5, show_default=True, help="Answers a picture.")
@threads_option
@output_options
def command(console: Console, bundle: Path, images: tuple[Path, ...], top: int, threads: int | None) -> int:
    """Prints the best classes of every IMAGE.

    A picture that cannot be read is reported, the others are classified all the same, and the exit code is 2.
    """
    from edgecls.runtime import InputError, load

    with console.work() as progress:
        session = load(bundle, threads=threads, progress=progress)
    answers: list[dict[str, Any]] = []
    with session:
        for image in images:
            try:
                answer = {"image": image, "predictions": session.classify(image, top=top)}
            except InputError as error:
                answer = {"image": image, "error": printable(str(error))}
                click.echo(f"error: {printable(str(error))}", err=True)
            answers.append(answer)
            if not console.json and "predictions" in answer:
                click.echo(_text(answer))
    if console.json:
        console.result({"bundle": bundle, "results": answers}, "")
    return 2 if any("error" in answer for answer in answers) else 0


def _text(answer: dict[str, Any]) -> str:
    ranked = (f"  {prediction.score:7.2%}  {prediction.label}" for prediction in answer["predictions"])
    return printable("\n".join([str(answer["image"]), *ranked]))
