"""The sections of the page of a comparison.

A new one is a function from the view to its content, and a line in `SECTIONS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgecls.bench.charts import COLOURS, Point, Row, heat_chart, rows_chart, scatter_chart
from edgecls.bench.compare import Comparison, device_text
from edgecls.bench.comparison_table import UNKNOWN, Cell, Table, contrast_table, estimate, number, variant_table
from edgecls.bench.conditions import Snapshot
from edgecls.bench.markup import Content, Element, element, items
from edgecls.bench.measured import Measured
from edgecls.bench.metrics import MAX_CONFUSION_CLASSES
from edgecls.bench.report import Run
from edgecls.bench.statistics import confidence_interval

_MAX_CLASSES = 15
"""Classes whose drop is drawn, the largest first."""
_MAX_NUMBERED = 20
"""Up to so many classes a confusion matrix is a table; larger ones are pictures."""
_MAX_MISTAKES = 10


class View(NamedTuple):
    """What a section is made from."""

    comparison: Comparison
    measured: Sequence[Measured]

    def label(self, item: Measured, run: Run) -> str:
        """A run's name, with its report's where there are several."""
        return run.name if len(self.measured) == 1 else f"{run.name} · {item.name}"

    def runs(self) -> Iterator[tuple[int, Measured, int, Run]]:
        """Every run with its report, each with its number."""
        for group, item in enumerate(self.measured):
            for index, run in enumerate(item.report.runs):
                yield group, item, index, run


def _variants(view: View) -> list[Content]:
    note = "Drop and ratio are against the reference of the same report, whose variants took turns on one machine."
    return [element("p", note, class_="note"), _table(variant_table(view.comparison), "Variants and devices")]


def _between(view: View) -> list[Content]:
    if not view.comparison.contrasts:
        return []
    note = (
        "Latencies of two reports are divided only where device, engine and version, threads, power mode, input shape "
        "and profile are the same. They were not measured in turns: on a busy machine trust the ratios within a report."
    )
    return [element("p", note, class_="note"), _table(contrast_table(view.comparison), "Between reports")]


def _drops(view: View) -> list[Content]:
    rows = []
    for group, item, _, run in view.runs():
        accuracy = run.accuracy
        if run.role != "reference" and accuracy is not None and accuracy.drop_pp is not None:
            text = estimate(accuracy.drop_pp, accuracy.ci95_pp, "+.2f") + " pp"
            low, high = accuracy.ci95_pp or (None, None)
            rows.append(Row(view.label(item, run), text, group, accuracy.drop_pp, low, high))
    note = "Right of 0 is worse than the reference of the same report. Lines are 95 % score intervals."
    return _figure("Drop of top-1", "drop of top-1, pp", rows, note)


def _trade(view: View) -> list[Content]:
    points = []
    for group, item in enumerate(view.measured):
        for variant in view.comparison.variants:
            if variant.report == item.name and variant.top1 is not None and variant.p50_ms is not None:
                ends = variant.top1_ci95 and (100 * variant.top1_ci95[0], 100 * variant.top1_ci95[1])
                text = f"{estimate(variant.p50_ms, variant.p50_ci95_ms)} ms, {estimate(100 * variant.top1, ends)} %"
                label = variant.name if len(view.measured) == 1 else f"{variant.name} · {item.name}"
                points.append(Point(label, text, group, variant.p50_ms, 100 * variant.top1, variant.p50_ci95_ms, ends))
    if not points:
        return []
    note = (
        "Up and left is better. Bars are 95 % intervals: of the latency over launches, of top-1 over pictures. The "
        "dashed line joins what no variant of the same report beats on both."
    )
    legend = [element("li", f"{point.label}: {point.text}") for point in points]
    chart = scatter_chart("Accuracy and latency", note, "median latency, ms", "top-1, %", points)
    return [
        element("figure", _scroll(chart, "Accuracy and latency"), element("figcaption", note)),
        element("ol", *legend, class_="legend"),
    ]


def _launches(view: View) -> list[Content]:
    content: list[Content] = []
    for group, item in enumerate(view.measured):
        rows = []
        for index, run in enumerate(item.report.runs):
            for launch, median in enumerate(run.latency.launches if run.latency else ()):
                samples = None if item.samples_ms is None else item.samples_ms[index][launch]
                rows.append(_launch(f"{run.name}, launch {launch + 1}", group, median.p50_ms, samples))
        note = (
            "Box: the middle half; thick line: the median; thin line: the 5th to the 95th percentile."
            if item.samples_ms is not None
            else "Medians alone: the samples (NAME.samples.npz beside NAME.json) are not here."
        )
        content += _figure(f"Latency of {item.name}, by launch", "latency, ms", rows, note)
    return content


def _launch(label: str, group: int, p50_ms: float, samples: NDArray[np.float64] | None) -> Row:
    if samples is None:
        return Row(label, f"{p50_ms:.2f} ms", group, p50_ms)
    p5, p25, p50, p75, p95 = np.quantile(samples, [0.05, 0.25, 0.5, 0.75, 0.95]).tolist()
    return Row(label, f"{p5:.2f} | {p25:.2f} | {p50:.2f} | {p75:.2f} | {p95:.2f} ms", group, p50, p5, p95, (p25, p75))


def _stages(view: View) -> list[Content]:
    content: list[Content] = []
    note = "Medians of each stage by itself, so that their sum is not the median of the whole."
    for group, item in enumerate(view.measured):
        rows = []
        for run in item.report.runs:
            if run.latency is not None and (stages := run.latency.stages) is not None:
                parts = (stages.decode_ms, stages.preprocess_ms, stages.model_ms, stages.top_k_ms)
                rows.append(_stacked(run.name, group, parts, f"; in all {stages.total_ms:.1f} ms"))
        names = ("decode", "preprocess", "model", "top-k")
        content += _figure(f"Picture file to answer, {item.name}", "ms", rows, note, names)
    return content


def _cold_start(view: View) -> list[Content]:
    content: list[Content] = []
    note = "Medians over launches, the files in the system's cache."
    for group, item in enumerate(view.measured):
        rows = []
        for run in item.report.runs:
            if (start := run.coldstart) is not None:
                parts = (start.process_ms, start.import_ms, start.load_ms, start.first_inference_ms)
                rows.append(_stacked(run.name, group, parts, f" = {sum(parts):.0f} ms"))
        names = ("process", "import of edgecls", "load of engine and bundle", "first inference")
        content += _figure(f"Nothing to the first answer, {item.name}", "ms", rows, note, names)
    return content


def _stacked(label: str, group: int, parts: tuple[float, ...], total: str) -> Row:
    return Row(label, " + ".join(f"{part:.1f}" for part in parts) + total, group, parts=parts)


def _states(view: View) -> list[Content]:
    """Temperature and frequency before and after; the trace between them is not drawn yet."""
    rows = []
    for item in view.measured:
        before, after = item.report.conditions.before, item.report.conditions.after
        for name, show in _STATES.items():
            cells = [Cell(item.name), Cell(name), Cell(show(before)), Cell(show(after))]
            if cells[2].text != UNKNOWN or cells[3].text != UNKNOWN:
                rows.append(tuple(cells))
    warnings = items(f"{item.name}: {text}" for item in view.measured for text in _doubts(item))
    table = Table(("report", "state", "before", "after"), tuple(rows), texts=4)
    return [_table(table, "State of the machines") if rows else None, warnings]


_STATES: dict[str, Callable[[Snapshot], str]] = {
    "temperature °C": lambda state: number(state.temperature_c, ".1f"),
    "frequency MHz, slowest to fastest CPU": lambda state: (
        UNKNOWN if state.frequency_mhz is None else f"{state.frequency_mhz[0]:.0f} to {state.frequency_mhz[1]:.0f}"
    ),
    "governors": lambda state: ", ".join(state.governors or ()) or UNKNOWN,
    "power mode": lambda state: state.power_mode or UNKNOWN,
    "load average": lambda state: number(state.load_average),
    "slowed since boot": lambda state: number(state.throttle_events, ".0f"),
}


def _doubts(item: Measured) -> list[str]:
    """What a report says casts doubt on its figures, each once."""
    doubts = list(item.report.conditions.warnings)
    for run in item.report.runs:
        doubts += [f"{run.name}: {text}" for part in (run.latency, run.accuracy) if part for text in part.warnings]
    return list(dict.fromkeys(doubts))


def _classes(view: View) -> list[Content]:
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
        content += _figure(f"Drop by class, {view.label(item, run)}", "drop of recall, pp", rows, note)
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
            ends = _class_interval(item, reference, run, entry.index)
            text = f"{estimate(drop, ends, '+.1f')} pp of {entry.n}"
            text += "" if entry.drop_p_holm is None else f", p {entry.drop_p_holm:.2g}"
            rows.append(Row(entry.label, text, group, drop, *(ends or (None, None))))
    return sorted(rows, key=lambda row: -abs(row.middle or 0))[:_MAX_CLASSES]


def _class_interval(item: Measured, reference: int, run: int, label: int) -> tuple[float, float] | None:
    if item.answered is None or not (mask := item.answered.label == label).any():
        return None
    was, is_ = item.answered.right[reference, mask], item.answered.right[run, mask]
    low, high = confidence_interval(int(np.sum(was & ~is_)), int(np.sum(is_ & ~was)), len(was))
    return 100 * low, 100 * high


def _confusion(view: View) -> list[Content]:
    content: list[Content] = []
    for _, item, _, run in view.runs():
        if run.accuracy is not None and run.accuracy.confusion:
            counts = np.array(run.accuracy.confusion, dtype=np.float64)[:MAX_CONFUSION_CLASSES, :MAX_CONFUSION_CLASSES]
            names = {entry.index: entry.label for entry in run.accuracy.per_class or ()}
            title = f"Confusion matrix of {view.label(item, run)}"
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
        return [_scroll(table, title)]
    note = "A row a label, a column an answer; the stronger the colour, the larger the share of the label's pictures."
    mistakes = counts - np.diag(np.diag(counts))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:_MAX_MISTAKES]
    worst = [(int(cell) // len(kept), int(cell) % len(kept)) for cell in order if mistakes.flat[cell] > 0]
    frequent = Table(
        ("label", "answer", "pictures"),
        tuple((Cell(labels[a]), Cell(labels[b]), Cell(f"{counts[a, b]:.0f}", counts[a, b])) for a, b in worst),
        texts=2,
    )
    figure = element("figure", _scroll(heat_chart(title, note, shares.tolist()), title), element("figcaption", note))
    return [figure, _table(frequent, "The most frequent mistakes") if worst else None]


def _conditions(view: View) -> list[Content]:
    content: list[Content] = []
    for item in view.measured:
        report = item.report
        device, tool, data = report.device, report.tool, report.dataset
        pictures = f"{data.n}, {data.n_folders} class folders, {data.n_unreadable} unreadable, sha256 {data.sha256}"
        facts = {
            "device": device_text(device),
            "memory": UNKNOWN if device.ram_bytes is None else f"{device.ram_bytes / 1e9:.1f} GB",
            "system": f"{device.os}, kernel {device.kernel}",
            "measured by": f"{tool.name} {tool.version}, {_pairs(tool.packages)}; seed {tool.seed}",
            "profile": _pairs(msgspec.structs.asdict(tool.profile)) if tool.profile else "latency was not measured",
            "pictures": pictures,
        }
        content += [element("h3", item.name), _facts(facts)]
        for run in report.runs:
            content += [element("h4", view.label(item, run)), _facts(_run_facts(run))]
    return content


def _run_facts(run: Run) -> dict[str, str]:
    artifact, engine, taken = run.artifact, run.engine, run.preprocess.settings
    calibration = run.calibration
    share = "" if artifact.int8_share is None else f", {100 * artifact.int8_share:.0f} % of the operations on integers"
    return {
        "bundle": f"sha256 {artifact.sha256}, {artifact.size_bytes} bytes",
        "model": f"{artifact.model}, checkpoint {artifact.checkpoint_sha256 or UNKNOWN}",
        "made for": f"{artifact.target} {artifact.precision}, {artifact.isa or 'any processor'}{share}",
        "graph": artifact.graph_sha256,
        "plan": f"{artifact.plan_sha256 or UNKNOWN}, quantizer {artifact.quantizer or UNKNOWN}",
        "calibration": f"{calibration.n} pictures, seed {calibration.seed}, sha256 {calibration.sha256}"
        if calibration
        else UNKNOWN,
        "engine": f"{engine.name} {engine.version}, {engine.provider_used} (asked for {engine.provider_requested}), "
        f"{engine.threads} threads",
        "preprocessing": f"{taken.mode} {taken.resize_px} px, crop {taken.crop_px} px, {taken.interpolation}, "
        f"sha256 {run.preprocess.sha256}",
        "reasons": "; ".join(run.reasons) or "valid",
    }


def _raw(view: View) -> list[Content]:
    content: list[Content] = []
    for item in view.measured:
        text = msgspec.json.format(msgspec.json.encode(item.report), indent=1).decode()
        # A line for each innermost list and object; strings stay as they are, for JSON's hold no line breaks.
        text = re.sub(r"[\[{]\n[^\[\]{}]*[\]}]", lambda found: re.sub(r"\n *", " ", found[0]), text)
        content.append(element("details", element("summary", f"{item.name}, raw"), element("pre", text, tabindex="0")))
    return content


SECTIONS: dict[str, Callable[[View], list[Content]]] = {
    "Variants and devices": _variants,
    "Between reports": _between,
    "Drop of top-1": _drops,
    "Accuracy and latency": _trade,
    "Latency by launch": _launches,
    "Stages": _stages,
    "Cold start": _cold_start,
    "Temperature and frequency": _states,
    "Drop by class": _classes,
    "Confusion": _confusion,
    "Conditions and digests": _conditions,
    "Raw reports": _raw,
}
"""What stands on the page, in this order; a section without content is left out."""


def _figure(title: str, unit: str, rows: Sequence[Row], note: str, legend: Sequence[str] = ()) -> list[Content]:
    """A chart of lines and, for those who cannot see it, its numbers as a table."""
    if not rows:
        return []
    parts = [
        element("li", element("span", class_=f"key c{part % COLOURS}"), f"{part + 1}: {name}")
        for part, name in enumerate(legend)
    ]
    table = Table((title, unit), tuple((Cell(row.label), Cell(row.text)) for row in rows), texts=2)
    return [
        element("h3", title),
        element("ol", *parts, class_="legend") if parts else None,
        element("figure", _scroll(rows_chart(title, note, unit, rows), title), element("figcaption", note)),
        element("details", element("summary", "The same as a table"), _table(table, title)),
    ]


def _table(table: Table, caption: str) -> Element:
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
    return _scroll(made, caption)


def _value(cell: Cell) -> str | None:
    return None if cell.value is None else repr(float(cell.value))


def _scroll(content: Element, label: str) -> Element:
    """What is wider than a phone scrolls by itself, with the keyboard too."""
    return element("div", content, class_="scroll", tabindex="0", role="region", aria_label=label)


def _facts(facts: dict[str, str]) -> Element:
    rows = [element("tr", element("th", name, scope="row"), element("td", fact)) for name, fact in facts.items()]
    return element("table", element("tbody", *rows), class_="facts")


def _pairs(values: dict[str, object] | dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
