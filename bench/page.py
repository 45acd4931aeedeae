"""A comparison as one HTML page that needs nothing else: no network, no other file, and no JavaScript but to sort."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Sequence

import msgspec

from edgecls.bench.compare import Comparison
from edgecls.bench.gate_result import GateResult, Limits
from edgecls.bench.markup import Element, element, html_text, items
from edgecls.bench.measured import Measured
from edgecls.bench.page_parts import View
from edgecls.bench.page_sections import SECTIONS
from edgecls.bench.page_style import SCRIPT, STYLE
from edgecls.runtime.atomic_file import atomic_file

_CONCLUSIONS = {
    "pass": ("PASS", "good"),
    "fail": ("FAIL", "bad"),
    "inconclusive": ("INCONCLUSIVE", "unsure"),
    "invalid": ("NOT VALID", "bad"),
    None: ("VALID", "good"),
}
"""By the worst verdict of a gate, None where none has judged: words and colour."""
_IN_PART = ("PASS IN PART", "unsure")
"""For a pass that leaves out something that the page shows."""
_WORST_FIRST = ("invalid", "fail", "inconclusive", None, "pass")


def write_page(comparison: Comparison, measured: Sequence[Measured], path: str | os.PathLike[str]) -> None:
    """Writes the page; the file is complete or is not there.

    Raises:
        InputError: The file cannot be written; choose another name.
    """
    with atomic_file(path) as file:
        file.write(page(comparison, measured).encode())


def page(comparison: Comparison, measured: Sequence[Measured]) -> str:
    """The page, the same for the same input.

    Args:
        comparison: Of the reports.
        measured: The reports.
    """
    view = View(comparison, measured)
    made = [(name, section(view)) for name, section in SECTIONS.items()]
    sections = [
        element("section", element("h2", name, id=_anchor(name)), *content) for name, content in made if content
    ]
    links = [element("li", element("a", name, href=f"#{_anchor(name)}")) for name, content in made if content]
    title = "Comparison of " + ", ".join(item.name for item in measured)
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src '{_digest(SCRIPT)}'; base-uri 'none'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", STYLE),
    )
    contents = element("nav", element("ul", *links), aria_label="Sections")
    main = element("main", element("h1", title), _banner(view), contents, *sections)
    documents = {"comparison": comparison, "reports": [{"name": item.name, "report": item.report} for item in measured]}
    body = element(
        "body",
        main,
        element("script", _script_json(documents), type="application/json", id="data"),
        element("script", SCRIPT),
    )
    return html_text(element("html", head, body, lang="en"))


def _banner(view: View) -> Element:
    comparison = view.comparison
    verdicts = ["invalid" if not report.valid else report.gate for report in comparison.reports]
    words, kind = _CONCLUSIONS[min(verdicts, key=_WORST_FIRST.index)]
    unjudged = [line for item in view.measured if item.report.gate for line in _unjudged(view, item, item.report.gate)]
    if words == "PASS" and unjudged:
        words, kind = _IN_PART
    many = len(comparison.reports), len(comparison.variants)
    lines = []
    for item in view.measured:
        if (gate := item.report.gate) is not None:
            baseline = f", compared with {gate.baseline}" if gate.baseline else ""
            lines.append(f"{item.name}: the gate says {gate.verdict}{baseline}; its limits: {_limits(gate.limits)}")
            lines += [f"{view.label(item, run.name)}: {message}" for run in gate.runs for message in run.messages]
    lines += unjudged
    lines += [f"{report.name}: {reason}" for report in comparison.reports for reason in report.reasons]
    if None in verdicts:
        without = [report.name for report in comparison.reports if report.gate is None]
        lines.append(
            f"No gate has judged {', '.join(without)}: valid means that the measurement holds, not that it is good."
        )
    if any(item.differences for item in comparison.contrasts):
        fields = {
            difference.field.replace("_", " "): None for item in comparison.contrasts for difference in item.differences
        }
        lines.append(f"Side by side without a ratio of latencies, for these differ: {', '.join(fields)}.")
    return element(
        "div",
        element("strong", words),
        f" {_plural(many[0], 'report')}, {_plural(many[1], 'variant')}.",
        items(lines),
        class_=f"banner {kind}",
    )


def _limits(limits: Limits) -> str:
    """What a gate was asked."""
    texts = [f"drop of top-1 {limits.max_drop}"] if limits.max_drop else []
    texts += [f"drop of {item.label} {item.margin}" for item in limits.critical_classes]
    texts += [f"latency ratio {limits.max_latency_ratio:g}"] if limits.max_latency_ratio else []
    texts += [f"peak memory {limits.max_rss_bytes / 1e6:g} MB"] if limits.max_rss_bytes else []
    texts += [f"first answer {limits.max_cold_start_ms:g} ms"] if limits.max_cold_start_ms else []
    return ", ".join(texts)


def _unjudged(view: View, item: Measured, gate: GateResult) -> list[str]:
    """Variants, and the drop where there is one, that a gate did not judge: its pass says nothing of them."""
    if gate.verdict == "invalid":
        return []
    candidates = [run for run in item.report.runs if run.role != "reference"]
    left = [view.label(item, run.name) for run in candidates if run.name not in {judged.name for judged in gate.runs}]
    if gate.limits.max_drop is None and any(run.accuracy and run.accuracy.drop_pp is not None for run in candidates):
        left.append("the drop of top-1")
    return [f"{item.name}: not judged: {', '.join(left)}"] if left else []


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _script_json(document: object) -> str:
    """JSON that no `</script>` within can end."""
    text = msgspec.json.encode(document).decode()
    return re.sub("[<>&\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _digest(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
