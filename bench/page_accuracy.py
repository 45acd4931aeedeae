"""The sections of the page on accuracy: drops, classes, confusion."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgecls.bench.charts import Row, heat_chart
from edgecls.bench.comparison_table import Cell, Table, estimate
from edgecls.bench.markup import Content, element
from edgecls.bench.measured import Measured
from edgecls.bench.metrics import MAX_CONFUSION_CLASSES
from edgecls.bench.page_parts import View, rows_figure, scroll, table_element
from edgecls.bench.statistics import confidence_interval

_MAX_CLASSES = 15
"""Classes whose drop is drawn, the largest first."""
_MAX_NUMBERED = 20
"""Up to so many classes a confusion matrix is a table; larger ones are pictures."""
_MAX_MISTAKES = 10


def drops(view: View) -> list[Content]:
    """A forest plot: the drop of every run with its interval."""
    rows = []
    for group, item, _, run in view.runs():
        accuracy = run.accuracy
        if run.role != "reference" and accuracy is not None and accuracy.drop_pp is not None:
            text = estimate(accuracy.drop_pp, accuracy.ci95_pp, "+.2f") + " pp"
            low, high = accuracy.ci95_pp or (None, None)
            rows.append(Row(view.label(item, run.name), text, group, accuracy.drop_pp, low, high))
    note = "Right of 0 is worse than the reference of the same report. Lines are 95 % score intervals."
    return rows_figure("Drop of top-1", "drop of top-1, pp", rows, note)


def classes(view: View) -> list[Content]:
    """The classes that differ most from the reference."""
    content: list[Content] = []
    for group, item, index, run in view.runs():
        reference = item.report.reference
        if reference is None or run.role == "reference":
            continue
        rows = _class_rows(item, reference.run, index, group)
        note = f"The {len(rows)} classes that lost or gained most. "
        note += (
            "The predictions (NAME.predictions.npz beside NAME.json) are not here, so there are no intervals."
            if item.answered is None
            else "Lines are 95 % score intervals, each for itself; p is one-sided, adjusted for the number of classes."
        )
        content += rows_figure(f"Drop by class, {view.label(item, run.name)}", "drop of recall, pp", rows, note)
    return content


def _class_rows(item: Measured, reference: int, run: int, group: int) -> list[Row]:
    """The classes that differ most from the reference."""
    own, other = item.report.runs[run].accuracy, item.report.runs[reference].accuracy
    if own is None or other is None:
        return []
    before = {entry.index: entry for entry in other.per_class or ()}
    rows = []
    for entry in own.per_class or ():
        if entry.n and entry.index in before and before[entry.index].n == entry.n:
            drop = 100 * (before[entry.index].correct - entry.correct) / entry.n
            ends = None
            if entry.b is not None and entry.c is not None:
                low, high = confidence_interval(entry.b, entry.c, entry.n)
                ends = 100 * low, 100 * high
            text = f"{estimate(drop, ends, '+.1f')} pp of {entry.n}"
            text += "" if entry.drop_p_holm is None else f", p {entry.drop_p_holm:.2g}"
            rows.append(Row(entry.label, text, group, drop, *(ends or (None, None))))
    return sorted(rows, key=lambda row: -abs(row.middle or 0))[:_MAX_CLASSES]


def confusion(view: View) -> list[Content]:
    """Which class is taken for which."""
    content: list[Content] = []
    for _, item, _, run in view.runs():
        if run.accuracy is not None and run.accuracy.confusion:
            counts = np.array(run.accuracy.confusion, dtype=np.float64)[:MAX_CONFUSION_CLASSES, :MAX_CONFUSION_CLASSES]
            names = {entry.index: entry.label for entry in run.accuracy.per_class or ()}
            title = f"Confusion matrix of {view.label(item, run.name)}"
            content += [element("h3", title), *_matrix(title, counts, names)]
    if not content:
        note = f"No report holds one: there are no labels, or more than {MAX_CONFUSION_CLASSES} classes."
        content.append(element("p", note, class_="note"))
    return content


def _matrix(title: str, counts: NDArray[np.float64], names: dict[int, str]) -> list[Content]:
    """A table with numbers, or for many classes a picture and the most frequent mistakes."""
    kept = np.flatnonzero(counts.sum(0) + counts.sum(1))
    counts, labels = counts[np.ix_(kept, kept)], [names.get(int(index), f"class {index}") for index in kept]
    if not len(kept):
        return [element("p", "It is empty.", class_="note")]
    totals = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    if len(kept) <= _MAX_NUMBERED:
        head = element(
            "tr", element("th", "label \\ answer", scope="col"), *(element("th", x, scope="col") for x in labels)
        )
        rows = [
            element(
                "tr",
                element("th", label, scope="row"),
                *(
                    element("td", f"{count:.0f}", style=f"--share:{share:.2f}", class_="share")
                    if count
                    else element("td")
                    for count, share in zip(counts[row], shares[row], strict=True)
                ),
            )
            for row, label in enumerate(labels)
        ]
        table = element("table", element("thead", head), element("tbody", *rows), class_="matrix")
        return [scroll(table, title)]
    note = "A row a label, a column an answer; the stronger the colour, the larger the share of the label's pictures."
    mistakes = counts - np.diag(np.diag(counts))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:_MAX_MISTAKES]
    worst = [(int(cell) // len(kept), int(cell) % len(kept)) for cell in order if mistakes.flat[cell] > 0]
    frequent = Table(
        ("label", "answer", "pictures"),
        tuple((Cell(labels[a]), Cell(labels[b]), Cell(f"{counts[a, b]:.0f}", counts[a, b])) for a, b in worst),
        texts=2,
    )
    figure = element("figure", scroll(heat_chart(title, note, shares.tolist()), title), element("figcaption", note))
    return [figure, table_element(frequent, "The most frequent mistakes") if worst else None]
