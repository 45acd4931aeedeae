"""The sections of the page on how it was measured: the state of the machines, conditions, the raw reports."""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from edgecls.bench.charts import COLOURS, Band, bands_chart
from edgecls.bench.compare import device_text
from edgecls.bench.comparison_table import UNKNOWN, Cell, Table, number
from edgecls.bench.conditions import Moment, Snapshot
from edgecls.bench.markup import Content, element, items
from edgecls.bench.measured import Measured
from edgecls.bench.page_parts import View, facts_table, figure, table_element
from edgecls.bench.report import Accuracy, Run


def states(view: View) -> list[Content]:
    """Temperature and frequency before, while and after latency was measured."""
    rows = []
    for item in view.measured:
        before, after = item.report.conditions.before, item.report.conditions.after
        for name, show in _STATES.items():
            cells = [Cell(item.name), Cell(name), Cell(show(before)), Cell(show(after))]
            if cells[2].text != UNKNOWN or cells[3].text != UNKNOWN:
                rows.append(tuple(cells))
    warnings = items(f"{item.name}: {text}" for item in view.measured for text in _doubts(item))
    table = Table(("report", "state", "before", "after"), tuple(rows), texts=4)
    return [table_element(table, "State of the machines") if rows else None, *_traces(view), warnings]


def _traces(view: View) -> list[Content]:
    content: list[Content] = []
    for (title, unit), show in _TRACES.items():
        bands = []
        for group, item in enumerate(view.measured):
            seen = [(moment.seconds, *ends) for moment in item.report.conditions.trace if (ends := show(moment))]
            if len(seen) > 1:
                bands.append(Band(item.name, group, tuple(seen)))
        if bands:
            table = Table(
                ("report", *(f"{name} {unit}" for name in ("first", "lowest", "highest", "last"))),
                tuple((Cell(band.label), *map(_whole, band.numbers)) for band in bands),
                texts=1,
            )
            legend = [
                element("li", element("span", class_=f"key c{band.group % COLOURS}"), band.label) for band in bands
            ]
            content += figure(title, _TRACE_NOTE, bands_chart(title, _TRACE_NOTE, "s", unit, bands), table, legend)
    return content


def _whole(value: float) -> Cell:
    return Cell(f"{value:.0f}", value)


def _pair(value: float | None) -> tuple[float, float] | None:
    return None if value is None else (value, value)


_TRACE_NOTE = "Seen between turns, at most twice a second: never while anything was timed."
_TRACES: dict[tuple[str, str], Callable[[Moment], tuple[float, float] | None]] = {
    ("Temperature", "°C"): lambda moment: _pair(moment.temperature_c),
    ("Frequency of the CPUs, slowest to fastest", "MHz"): lambda moment: moment.frequency_mhz,
    ("Frequency of the GPU", "MHz"): lambda moment: _pair(moment.gpu_frequency_mhz),
}
"""Title and unit of each chart, and what it shows of a look at the machine."""


_STATES: dict[str, Callable[[Snapshot], str]] = {
    "temperature °C": lambda state: number(state.temperature_c, ".1f"),
    "frequency MHz, slowest to fastest CPU": lambda state: (
        UNKNOWN if state.frequency_mhz is None else f"{state.frequency_mhz[0]:.0f} to {state.frequency_mhz[1]:.0f}"
    ),
    "governors": lambda state: ", ".join(state.governors or ()) or UNKNOWN,
    "power mode": lambda state: state.power_mode or UNKNOWN,
    "load average": lambda state: number(state.load_average),
    "CPU quota": lambda state: number(state.cpu_quota),
    "waits for the quota": lambda state: number(state.quota_waits, ".0f"),
    "slowed since boot": lambda state: number(state.throttle_events, ".0f"),
    "slowed by": lambda state: (
        UNKNOWN if state.throttle_flags is None else ", ".join(state.throttle_flags) or "nothing"
    ),
    "peaks of power since boot": lambda state: number(state.power_peaks, ".0f"),
}


def _doubts(item: Measured) -> list[str]:
    """What a report says casts doubt on its figures, each once."""
    doubts = list(item.report.conditions.warnings)
    for run in item.report.runs:
        doubts += [f"{run.name}: {text}" for part in (run.latency, run.accuracy) if part for text in part.warnings]
    return list(dict.fromkeys(doubts))


def conditions(view: View) -> list[Content]:
    """Devices, tools, pictures and bundles, with their digests."""
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
        content += [element("h3", item.name), facts_table(facts)]
        for run in report.runs:
            content += [element("h4", view.label(item, run.name)), facts_table(_run_facts(run))]
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
        f"{engine.threads} threads" + (f", {engine.device}" if engine.device else ""),
        "preprocessing": f"{taken.mode} {taken.resize_px} px, crop {taken.crop_px} px, {taken.interpolation}, "
        f"sha256 {run.preprocess.sha256}",
        "answers": _answers(run.accuracy),
        "reasons": "; ".join(run.reasons) or "valid",
    }


def _answers(accuracy: Accuracy | None) -> str:
    """The figures that no chart shows."""
    if accuracy is None:
        return UNKNOWN
    figures = {
        "macro F1": number(accuracy.macro_f1, ".4f"),
        "balanced accuracy": number(accuracy.balanced_accuracy, ".4f"),
        "macro AUC": number(accuracy.macro_auc, ".5f"),
        "other best class than the reference": number(accuracy.top1_disagreement, ".2%"),
        "right only here or only there": number(accuracy.flip_rate, ".2%"),
        "McNemar's mid-p": number(accuracy.mcnemar_mid_p, ".3g"),
        "mean KL": number(accuracy.kl_mean, ".2g"),
    }
    return _pairs({name: text for name, text in figures.items() if text != UNKNOWN}) or UNKNOWN


def raw_reports(view: View) -> list[Content]:
    """The JSON of each report, folded."""
    content: list[Content] = []
    for item in view.measured:
        text = msgspec.json.format(msgspec.json.encode(item.report), indent=1).decode()
        # A line for each innermost list and object; strings stay as they are, for JSON's hold no line breaks.
        text = re.sub(r"[\[{]\n[^\[\]{}]*[\]}]", lambda found: re.sub(r"\n *", " ", found[0]), text)
        content.append(element("details", element("summary", f"{item.name}, raw"), element("pre", text, tabindex="0")))
    return content


def _pairs(values: dict[str, object] | dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
