"""A confusion matrix as a picture."""

from __future__ import annotations

import os
import warnings

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from edgecls.runtime.atomic_file import atomic_file
from edgecls.runtime.labels import Labels

_MAX_NAMED = 30
_MAX_NUMBERED = 15
_MAX_LETTERS = 24


def draw_confusion(confusion: NDArray[np.int64], labels: Labels, path: str | os.PathLike[str]) -> None:
    """Draws the shares of every row, and writes the picture as PNG.

    Only classes that occur, as label or as answer, are drawn: up to 30 with their names, up to 15 with percentages.

    Args:
        confusion: Pictures by label (row) and answer (column), `int64 [classes, classes]`.
        labels: The classes.
        path: The file; it is complete or is not there.

    Raises:
        InputError: The file cannot be written; choose another name.
    """
    occurring = np.flatnonzero(confusion.sum(0) + confusion.sum(1))
    counts = confusion[np.ix_(occurring, occurring)]
    totals = counts.sum(1, keepdims=True)
    shares = np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
    side_inch = 4 + 0.3 * min(len(occurring), _MAX_NAMED)
    # Not pyplot: it would keep every figure, and choose a window system.
    figure = Figure(figsize=(side_inch + 1, side_inch), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the class's pictures")
    axes.set(xlabel="answer", ylabel="label")
    ticks = range(len(occurring))
    if len(occurring) <= _MAX_NAMED:
        names = [_shortened(labels.names[index]) for index in occurring]
        axes.set_xticks(ticks, names, rotation=90, parse_math=False)
        axes.set_yticks(ticks, names, parse_math=False)
    else:
        axes.set(xticks=[], yticks=[], xlabel=f"answer ({len(occurring)} classes)")
    if len(occurring) <= _MAX_NUMBERED:
        for row, column in np.argwhere(counts > 0):
            share = shares[row, column]
            colour = "white" if share > 0.5 else "black"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=8)
    with atomic_file(path) as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a script that the font lacks is drawn as boxes
        figure.savefig(file, format="png")


def _shortened(name: str) -> str:
    return name if len(name) <= _MAX_LETTERS else f"{name[: _MAX_LETTERS - 1]}…"
