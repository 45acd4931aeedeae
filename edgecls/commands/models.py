"""`edgecls models`: what can be trained and exported."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edgecls.console import Console, table_text
from edgecls.options import output_options

if TYPE_CHECKING:
    from edgecls.models.catalogue import CatalogueEntry

_OTHERS = """\
hog-svm     grey HOG and an SVM, for the smallest devices: edgecls train --data DIR --arch hog-svm
clip:NAME   zero-shot, without training: edgecls export clip:NAME --classes FILE --target onnxruntime
A network of your own is FILE.py:FACTORY or an .onnx file."""


@click.command("models", short_help="Architectures, their size and where they fit.")
@click.argument("pattern", required=False)
@output_options
def command(console: Console, pattern: str | None) -> int:
    """Lists architectures: parameters, MACs, input, licence of the weights, and the target for each board.

    PATTERN picks from all of torchvision and timm: '*mobilenet*', 'timm:resnet*'. The column of a board (Raspberry Pi
    4 and 5, a PC with VNNI, Jetson Orin Nano) names the target that suits it, where a rule of thumb on MACs finds the
    network light enough: nothing there was measured.
    """
    from edgecls.extra import needs_extra

    with needs_extra("export", "Listing architectures"):
        from edgecls.models.catalogue import BOARDS, catalogue

    with console.work() as progress:
        entries = catalogue(pattern, progress)
    limits = ", ".join(f"{most:g} ({board})" for board, (_, most) in BOARDS.items())
    lines = [
        table_text(["model", "parameters", "MACs", "input", *BOARDS, "licence of weights"], list(map(_cells, entries))),
        "",
        f"A board's target stands where there are at most so many G MACs: {limits}.",
        "That is a rule of thumb; `edgecls bench` measures.",
        *(["", _OTHERS] if pattern is None else []),
        *(f"note: {entry.model}: {entry.note}" for entry in entries if entry.note and not console.quiet),
    ]
    console.result({"models": entries}, "\n".join(lines))
    console.next(f"edgecls train --data DIR --arch {entries[0].model if pattern else 'mobilenet_v3_small'}")
    return 0


def _cells(entry: CatalogueEntry) -> list[str]:
    from edgecls.models.catalogue import BOARDS

    return [
        entry.model,
        "-" if entry.parameters is None else f"{entry.parameters / 1e6:.2f} M",
        "-" if entry.macs is None else f"{entry.macs / 1e9:.3f} G",
        "-" if entry.input_px is None else f"{entry.input_px} px",
        *(entry.targets.get(board, "-") for board in BOARDS),
        entry.licence,
    ]
