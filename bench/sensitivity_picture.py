"""What each block of a network loses by INT8, and what its return to float would cost, as a picture."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Protocol

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from edgecls.runtime.atomic_file import atomic_file

_ROW_INCH = 0.2
_MAX_INCH = 200
"""Of height: more rows than this are drawn closer together."""


class Block(Protocol):
    """A part of a network that was kept in float, alone."""

    @property
    def name(self) -> str:
        """Of its modules."""

    @property
    def kl(self) -> float:
        """Divergence from the float network that goes with it, nats."""

    @property
    def cost(self) -> float | None:
        """Time that comes with it, as a share of the float network's; None where no time was measured."""


def draw_sensitivity(blocks: Sequence[Block], title: str, path: str | os.PathLike[str]) -> None:
    """Draws a bar for each block, in graph order from the top, and writes the picture as PNG.

    Where time was measured, a second column of bars tells the price.

    Args:
        blocks: The parts.
        title: Over the bars.
        path: The file; it is complete or is not there.

    Raises:
        InputError: The file cannot be written; choose another name.
    """
    timed = all(block.cost is not None for block in blocks)
    # Not pyplot: it would keep every figure, and choose a window system.
    figure = Figure(figsize=(9 if timed else 7, min(1.5 + _ROW_INCH * len(blocks), _MAX_INCH)), dpi=120)
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    gain, *price = figure.subplots(1, 2 if timed else 1, sharey=True, squeeze=False)[0]
    rows = range(len(blocks))
    gain.barh(rows, [block.kl for block in blocks], color="tab:blue")
    gain.set_yticks(rows, [block.name for block in blocks], fontsize=7, parse_math=False)
    gain.set_ylim(len(blocks) - 0.5, -0.5)
    gain.set_xlabel("KL less with the block in float, nats")
    if price:
        price[0].barh(rows, [100 * (block.cost or 0.0) for block in blocks], color="tab:orange")
        price[0].set_xlabel("time more, % of the float network's")
    for axes in (gain, *price):
        axes.axvline(0, color="black", linewidth=0.8)
        axes.grid(axis="x", alpha=0.3)
    figure.suptitle(title, fontsize=10, parse_math=False)
    with atomic_file(path) as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a script that the font lacks is drawn as boxes
        figure.savefig(file, format="png")
