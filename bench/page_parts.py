"""What the sections of the page of a comparison are made from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from edgecls.bench.charts import COLOURS, Row, rows_chart
from edgecls.bench.compare import Comparison
from edgecls.bench.comparison_table import Cell, Table
from edgecls.bench.markup import Content, Element, element
from edgecls.bench.measured import Measured
from edgecls.bench.report import Run


class View(NamedTuple):
    """What a section is made from."""

    comparison: Comparison
    measured: Sequence[Measured]

    def label(self, item: Measured, run: str) -> str:
        """A run's name, with its report's where there are several, marked where the run or its report is not valid."""
        name = run if len(self.measured) == 1 else f"{run} · {item.name}"
        return f"{name} (not valid)" if (item.name, run) in self._invalid else name

    @property
    def _invalid(self) -> set[tuple[str, str]]:
        return {(variant.report, variant.name) for variant in self.comparison.variants if not variant.valid}

    def runs(self) -> Iterator[tuple[int, Measured, int, Run]]:
        """Every run with its report, each with its number."""
        for group, item in enumerate(self.measured):
            for index, run in enumerate(item.report.runs):
                yield group, item, index, run


def rows_figure(title: str, unit: str, rows: Sequence[Row], note: str, legend: Sequence[str] = ()) -> list[Content]:
    """A chart of lines, its numbers as a table; nothing for no rows.

    Args:
        title: Of both.
        unit: Of the axis.
        rows: The lines.
        note: How it is read.
        legend: Names of the parts of stacked bars.
    """
    if not rows:
        return []
    parts = [
        element("li", element("span", class_=f"key c{part % COLOURS}"), f"{part + 1}: {name}")
        for part, name in enumerate(legend)
    ]
    table = Table((title, unit), tuple((Cell(row.label), Cell(row.text)) for row in rows), texts=2)
    return figure(title, note, rows_chart(title, note, unit, rows), table, parts)


def figure(title: str, note: str, chart: Element, table: Table, legend: Sequence[Element] = ()) -> list[Content]:
    """A chart with how it is read and, for those who cannot see it, its numbers as a table."""
    return [
        element("h3", title),
        element("ol", *legend, class_="legend") if legend else None,
        element("figure", scroll(chart, title), element("figcaption", note)),
        element("details", element("summary", "The same as a table"), table_element(table, title)),
    ]


def table_element(table: Table, caption: str) -> Element:
    """A table whose columns can be sorted."""

    def kind(column: int) -> str | None:
        return None if column < table.texts else "number"

    head = [element("th", name, scope="col", class_=kind(column)) for column, name in enumerate(table.head)]
    rows = [
        element(
            "tr",
            *(
                element("th" if column == 0 else "td", cell.text, class_=kind(column), data_value=_value(cell))
                for column, cell in enumerate(row)
            ),
        )
        for row in table.rows
    ]
    for row in rows:
        row[0].set("scope", "row")
    made = element("table", element("caption", caption), element("thead", element("tr", *head)), class_="sortable")
    made.append(element("tbody", *rows))
    return scroll(made, caption)


def _value(cell: Cell) -> str | None:
    return None if cell.value is None else repr(float(cell.value))


def scroll(content: Element, label: str) -> Element:
    """What is wider than a phone scrolls by itself, with the keyboard too."""
    return element("div", content, class_="scroll", tabindex="0", role="region", aria_label=label)


def facts_table(facts: dict[str, str]) -> Element:
    """Names and what they are."""
    rows = [element("tr", element("th", name, scope="row"), element("td", fact)) for name, fact in facts.items()]
    return element("table", element("tbody", *rows), class_="facts")
