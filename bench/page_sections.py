"""The sections of the page of a comparison.

A new one is a function from the view to its content, and a line in `SECTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable

from edgecls.bench.charts import Point, scatter_chart
from edgecls.bench.comparison_table import contrast_table, estimate, milliseconds, variant_table
from edgecls.bench.markup import Content, element
from edgecls.bench.page_accuracy import classes, confusion, drops
from edgecls.bench.page_conditions import conditions, raw_reports, states
from edgecls.bench.page_latency import cold_start, energy, launches, stages, throughput
from edgecls.bench.page_parts import View, scroll, table_element


def _variants(view: View) -> list[Content]:
    note = "Drop and ratio are against the reference of the same report, whose variants took turns on one machine."
    return [element("p", note, class_="note"), table_element(variant_table(view.comparison), "Variants and devices")]


def _between(view: View) -> list[Content]:
    if not view.comparison.contrasts:
        return []
    note = (
        "Latencies of two reports are divided only where device, GPU, engine and version, threads, pinned cores, power "
        "mode, input shape and profile are the same. They were not measured in turns: on a busy machine trust the "
        "ratios within a report."
    )
    return [element("p", note, class_="note"), table_element(contrast_table(view.comparison), "Between reports")]


def _trade(view: View) -> list[Content]:
    points = []
    for group, item in enumerate(view.measured):
        for variant in view.comparison.variants:
            if variant.report == item.name and variant.top1 is not None and variant.p50_ms is not None:
                ends = variant.top1_ci95 and (100 * variant.top1_ci95[0], 100 * variant.top1_ci95[1])
                text = f"{milliseconds(variant.p50_ms, variant.p50_ci95_ms)} ms, {estimate(100 * variant.top1, ends)} %"
                points.append(
                    Point(
                        view.label(item, variant.name),
                        text,
                        group,
                        variant.p50_ms,
                        100 * variant.top1,
                        variant.p50_ci95_ms,
                        ends,
                        variant.valid,
                    )
                )
    if not points:
        return []
    note = (
        "Up and left is better. Bars are 95 % intervals: of the latency over launches, of top-1 over pictures. The "
        "dashed line joins what no variant of the same report beats on both; what is not valid stands outside it."
    )
    legend = [element("li", f"{point.label}: {point.text}") for point in points]
    chart = scatter_chart("Accuracy and latency", note, "median latency, ms", "top-1, %", points)
    return [
        element("figure", scroll(chart, "Accuracy and latency"), element("figcaption", note)),
        element("ol", *legend, class_="legend"),
    ]


SECTIONS: dict[str, Callable[[View], list[Content]]] = {
    "Variants and devices": _variants,
    "Between reports": _between,
    "Drop of top-1": drops,
    "Accuracy and latency": _trade,
    "Latency by launch": launches,
    "Stages": stages,
    "Cold start": cold_start,
    "Throughput": throughput,
    "Energy": energy,
    "Temperature and frequency": states,
    "Drop by class": classes,
    "Confusion": confusion,
    "Conditions and digests": conditions,
    "Raw reports": raw_reports,
}
"""What stands on the page, in this order; a section without content is left out."""
