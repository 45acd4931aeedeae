"""The page: whole in itself, well-formed whatever a report says, legible in light and dark."""

import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest
import reports

from edgecls.bench.charts import COLOURS, Band, Row, bands_chart, rows_chart
from edgecls.bench.compare import compare
from edgecls.bench.energy import Energy
from edgecls.bench.gate import judge
from edgecls.bench.gate_result import GateResult, Limits, Margin, RunVerdict
from edgecls.bench.measured import open_measured
from edgecls.bench.page import page, write_page
from edgecls.bench.page_style import DARK, LIGHT, SCRIPT, STRONGEST_HEAT, STYLE
from edgecls.bench.report import write_report
from edgecls.bench.throughput import BatchThroughput, Throughput

replace = msgspec.structs.replace
EVERYTHING = Limits(max_drop=Margin(1.0), max_latency_ratio=1.1, max_rss_bytes=200_000_000, max_cold_start_ms=2000)
HOSTILE = "</script><script>alert(1)</script><img src=http://x onerror=alert(1)>\u202e\"'&amp;"
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Outline(HTMLParser):
    """Checks that elements are closed in their order; keeps tags, attributes and texts."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.texts = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else None, data))


def outline(text):
    parser = Outline()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return parser


def page_of(*paths):
    measured = open_measured(paths)
    return page(compare(measured), measured)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Two comparable reports with all that can lie beside them."""
    folder = tmp_path_factory.mktemp("full")
    reports.write_beside(folder / "old.json", reports.report())
    reports.write_beside(folder / "new.json", reports.report(speed=1.5))
    return page_of(folder / "old.json", folder / "new.json")


@pytest.fixture
def single(tmp_path):
    """The page of one report that stands alone."""

    def make(report):
        write_report(report, tmp_path / "alone.json")
        return page_of(tmp_path / "alone.json")

    return make


def headings(text):
    return re.findall(r'<h2 id="[^"]*">([^<]*)</h2>', text)


def test_the_page_holds_every_section_and_a_link_to_each(full):
    assert headings(full) == [
        "Variants and devices",
        "Between reports",
        "Drop of top-1",
        "Accuracy and latency",
        "Latency by launch",
        "Stages",
        "Cold start",
        "Temperature and frequency",
        "Drop by class",
        "Confusion",
        "Conditions and digests",
        "Raw reports",
    ]
    tags = outline(full).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    links = [attributes["href"] for tag, attributes in tags if tag == "a"]
    assert len(set(ids)) == len(ids)
    assert [link.removeprefix("#") for link in links] == ids[: len(links)]
    assert len(full) < 500_000


def test_the_page_asks_nothing_of_the_network(full):
    assert not re.search(r"https?:|//[a-z]|@import|url\(", full)
    assert not [
        tag for tag, attributes in outline(full).tags if "src" in attributes or tag in ("link", "iframe", "img")
    ]
    policy = html.unescape(re.search(r'Policy" content="([^"]*)"', full)[1])
    assert policy.startswith("default-src 'none'")
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert full.count(SCRIPT) == 1


def test_the_same_reports_give_the_same_page(full, tmp_path):
    reports.write_beside(tmp_path / "old.json", reports.report())
    reports.write_beside(tmp_path / "new.json", reports.report(speed=1.5))
    assert page_of(tmp_path / "old.json", tmp_path / "new.json") == full


def test_charts_are_well_formed_and_described(full):
    pictures = [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", full, re.DOTALL)]
    # Drops, trade-off, temperature, frequency; launches, stages, cold start and classes of both reports.
    assert len(pictures) == 12
    for picture in pictures:
        assert [child.tag for child in picture[:2]] == ["title", "desc"]
        assert all(child.text for child in picture[:2])
        width, height = map(float, picture.get("viewBox").split()[2:])
        for text in picture.iter("text"):
            assert 0 <= float(text.get("x")) <= width
            assert 0 <= float(text.get("y")) <= height


def test_tables_and_wide_pictures_can_be_reached_by_keyboard_and_have_names(full):
    tags = outline(full).tags
    boxes = [attributes for _, attributes in tags if attributes.get("class") == "scroll"]
    assert boxes
    assert all(box["tabindex"] == "0" and box["role"] == "region" and box["aria-label"] for box in boxes)
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in tags if tag == "th")
    assert full.count("<table") - full.count('class="facts"') - full.count('class="matrix"') == full.count("<caption")


def test_figures_stand_in_plain_tables(full):
    assert '<td class="number" data-value="2.0">+2.00 [+0.50, +3.50]</td>' in full
    assert re.search(r'<td class="number" data-value="1\.(5|49+\d*|50+\d*)">1\.50 \[1\.', full)
    assert ">48.0</td><td>61.5</td>" in full
    assert "2.0 + 1.0 + 4.0 + 0.100; in all 7.0 ms" in full
    assert ">2400</td>" in full
    assert re.search(r'>48</td><td class="number" data-value="48\.0">48</td><td class="number" data-value="60\.', full)


def test_the_raw_reports_are_data(full):
    document = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', full, re.DOTALL)[1])
    assert document["comparison"]["schema"] == "edgecls.comparison/1"
    assert [item["name"] for item in document["reports"]] == ["old", "new"]
    shown = [html.unescape(text) for text in re.findall(r"<pre[^>]*>(.*?)</pre>", full, re.DOTALL)]
    assert [json.loads(text) for text in shown] == [item["report"] for item in document["reports"]]
    assert document["reports"][0]["report"]["runs"][1]["latency"]["p50_ms"] == 4.0


def test_what_a_report_says_stays_text(tmp_path):
    report = reports.report(model=HOSTILE, labels=(HOSTILE, "bee", "cat"))
    named = replace(report.runs[1], name=HOSTILE)
    report = replace(report, runs=(report.runs[0], named), valid=False, reasons=(HOSTILE,))
    reports.write_beside(tmp_path / "a.json", report)
    write_report(reports.report(), tmp_path / "b.json")
    text = page_of(tmp_path / "a.json", tmp_path / "b.json")
    parsed = outline(text)
    assert [tag for tag, _ in parsed.tags].count("script") == 2
    assert not [tag for tag, attributes in parsed.tags if tag == "img" or "onerror" in attributes]
    assert "\u202e" not in text
    shown = HOSTILE.replace("\u202e", "\\u202e")
    assert any(tag == "th" and shown in data for tag, data in parsed.texts)
    assert any(tag == "title" and shown in data for tag, data in parsed.texts)
    for picture in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(picture)
    document = json.loads(next(data for tag, data in parsed.texts if tag == "script"))
    assert document["reports"][0]["report"]["runs"][1]["name"] == shown


def test_reports_that_differ_stand_side_by_side(tmp_path):
    write_report(reports.report(), tmp_path / "pi5.json")
    write_report(reports.report(model="Raspberry Pi 4"), tmp_path / "pi4.json")
    text = page_of(tmp_path / "pi5.json", tmp_path / "pi4.json")
    assert "Side by side without a ratio of latencies, for these differ: device." in text
    assert "no ratio, for these differ: device (Raspberry Pi 5, Cortex-A76" in text


def test_what_is_not_there_is_said(single):
    text = single(reports.report())
    assert "(NAME.samples.npz beside NAME.json) are not here" in text
    assert "(NAME.predictions.npz beside NAME.json) are not here" in text
    assert "Between reports" not in headings(text)


def test_a_report_of_little_leaves_sections_out(single):
    report = reports.report()
    bare = (
        replace(run, accuracy=None, latency=None, coldstart=None, memory=None, role="candidate") for run in report.runs
    )
    text = single(replace(report, runs=tuple(bare), reference=None))
    outline(text)
    assert headings(text) == [
        "Variants and devices", "Temperature and frequency", "Confusion", "Conditions and digests", "Raw reports",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("verdict", "words", "kind"),
    [
        (None, "VALID", "good"),
        ("pass", "PASS", "good"),
        ("fail", "FAIL", "bad"),
        ("inconclusive", "INCONCLUSIVE", "unsure"),
    ],
)
def test_the_banner_tells_the_verdict_in_words(single, verdict, words, kind):
    judged = RunVerdict(name="int8", verdict="pass", against="fp32", checks=())
    gate = verdict and GateResult(verdict=verdict, limits=EVERYTHING, runs=(judged,), reasons=())
    text = single(replace(reports.report(), gate=gate))
    assert f'<div class="banner {kind}"><strong>{words}</strong>' in text
    assert ("No gate has judged alone" in text) == (verdict is None)


def test_the_banner_tells_what_the_gate_says_of_each_run(single):
    report = reports.report()
    gate = judge(report, Limits(max_rss_bytes=59_000_000))
    text = single(replace(report, gate=gate))
    assert '<div class="banner bad"><strong>FAIL</strong>' in text
    assert "<li>int8: peak memory 60.0 MB: over the limit of 59 MB</li>" in text


def test_a_pass_of_one_limit_is_no_pass_of_the_page(single):
    report = reports.report()
    text = single(replace(report, gate=judge(report, Limits(max_rss_bytes=200_000_000))))
    assert '<div class="banner unsure"><strong>PASS IN PART</strong>' in text
    assert "<li>alone: the gate says pass; its limits: peak memory 200 MB</li>" in text
    assert "<li>alone: not judged: the drop of top-1</li>" in text


def test_a_pass_of_one_variant_is_no_pass_of_the_page(single):
    report = reports.report()
    report = replace(report, runs=(*report.runs, replace(report.runs[1], name="fp16")))
    gate = judge(report, replace(EVERYTHING, max_drop=Margin(5.0)), variant="int8")
    text = single(replace(report, gate=gate))
    assert '<div class="banner unsure"><strong>PASS IN PART</strong>' in text
    limits = "drop of top-1 5pp, latency ratio 1.1, peak memory 200 MB, first answer 2000 ms"
    assert f"<li>alone: the gate says pass; its limits: {limits}</li>" in text
    assert "<li>alone: not judged: fp16</li>" in text


def test_energy_and_throughput_have_sections(single):
    report = reports.report()
    energy = Energy(
        source="RAPL", scope="package-0", seconds=2.0, inferences=100, joules=1.25, mean_w=0.625, mj_per_inference=12.5
    )
    cells = (BatchThroughput(batch=8, threads=2, images=900, images_per_s=300.5),)
    died = Throughput(cells=cells, error="it died")
    first = replace(report.runs[0], energy_unavailable="read by root alone", throughput=died)
    second = replace(report.runs[1], energy=energy, throughput=Throughput(cells=cells, error=None))
    text = single(replace(report, runs=(first, second)))
    assert headings(text)[6:8] == ["Throughput", "Energy"]
    assert '>batch 8, 2 threads</th></tr></thead><tbody><tr><th scope="row">fp32</th><td>alone</td>' in text
    assert '<td class="number" data-value="300.5">300.5</td>' in text
    assert '<td>RAPL, package-0</td><td class="number" data-value="12.5">12.5</td>' in text
    assert "<li>fp32: read by root alone</li>" in text
    assert "<li>fp32: it died</li>" in text


def test_what_is_very_fast_keeps_three_digits(single):
    report = reports.report()
    fast = replace(report.runs[1], latency=reports.latency(0.016, 0.004))
    text = single(replace(report, runs=(report.runs[0], fast)))
    assert "<title>int8, launch 2: 0.0160 ms</title>" in text
    assert "2.0 + 1.0 + 0.0160 + 0.100; in all 3.0 ms" in text


def test_what_is_not_valid_is_marked_in_charts_and_stands_outside_the_front(single):
    report = reports.report()
    best = replace(report.runs[1], name="odd", valid=False, reasons=("it fell back",), accuracy=reports.accuracy(3))
    text = single(replace(report, valid=False, runs=(*report.runs, best)))
    front = re.search(r'<polyline points="([^"]*)" class="front', text)[1]
    assert len(front.split()) == 2  # INT8 and the reference, both beaten by what is not valid
    for title in ("odd (not valid): -2.00 [-3.50, -0.50] pp", "odd (not valid): 4.00 [3.60, 4.40] ms, 97.00"):
        assert f"<title>{title}" in text
    assert "<title>int8: +2.00" in text


@pytest.mark.parametrize("looks", [2, 239, 241, 5000])
def test_a_long_trace_is_thinned_and_keeps_its_extremes(looks):
    seen = tuple((0.5 * look, 600.0 if look == 1 else 1800.0, 2400.0) for look in range(looks))
    chart = bands_chart("t", "d", "s", "MHz", [Band("pi", 0, seen)])
    (polygon,) = chart.iter("polygon")
    corners = [tuple(map(float, corner.split(","))) for corner in polygon.get("points").split()]
    assert 4 <= len(corners) <= 2 * 240
    assert len({y for _, y in corners}) == 3
    assert all(0 <= x <= 480 and 0 <= y <= 320 for x, y in corners)


def test_the_banner_of_an_invalid_report_says_why(single):
    text = single(replace(reports.report(), valid=False, reasons=("the CPUs were slowed for heat",)))
    assert '<div class="banner bad"><strong>NOT VALID</strong>' in text
    assert "<li>alone: the CPUs were slowed for heat</li>" in text


@pytest.mark.parametrize(("classes", "pictures"), [(3, 0), (20, 0), (21, 1), (100, 1)])
def test_a_confusion_matrix_is_a_table_or_a_picture(single, classes, pictures):
    report = reports.report()
    counts = (np.eye(classes, dtype=int) * 8 + np.roll(np.eye(classes, dtype=int), 1, axis=1) * 2).tolist()
    seen = replace(report.runs[0].accuracy, confusion=tuple(map(tuple, counts)))
    text = single(replace(report, runs=(replace(report.runs[0], accuracy=seen),)))
    assert text.count('class="heat"') == 2 * pictures  # shares of 0.8 and 0.2
    assert text.count('<table class="matrix">') == 1 - pictures
    assert text.count("The most frequent mistakes</caption>") == pictures
    assert len(text) < 500_000


def luminance(colour):
    channels = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one, other):
    """Contrast ratio of WCAG 2."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def mixed(one, other, share):
    parts = (share * int(one[i : i + 2], 16) + (1 - share) * int(other[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(part):02x}" for part in parts)


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_letters_and_marks_have_the_contrast_of_wcag_aa(palette):
    for ground in ("ground", "raised"):
        for letters in ("text", "muted", "good", "bad", "unsure", "c0"):
            assert contrast(palette[letters], palette[ground]) >= 4.5
        for mark in ("line", *(f"c{index}" for index in range(COLOURS))):
            assert contrast(palette[mark], palette[ground]) >= 3
    assert contrast(palette["text"], mixed(palette["c0"], palette["ground"], STRONGEST_HEAT)) >= 4.5


def test_every_colour_of_the_style_is_in_both_palettes():
    assert LIGHT.keys() == DARK.keys()
    used = set(re.findall(r"var\(--([a-z]\w*)\)", STYLE)) - {"own", "share"}
    assert used <= LIGHT.keys()
    assert "@media(prefers-color-scheme:dark)" in STYLE


@pytest.mark.parametrize("values", [(0.0,), (5.0,), (-3.0, 4.0), (1e-9,), (-1e15, 1e15), (99.99, 100.0)], ids=str)
def test_marks_of_any_size_stay_inside_their_chart(values):
    rows = [Row("row", "", 0, value, value, value, (value, value)) for value in values]
    chart = rows_chart("t", "d", "ms", rows)
    places = [float(x) for path in chart.iter("path") for x in re.findall(r"[ML](-?[\d.]+) ", path.get("d"))]
    shapes = [float(path.get("transform")[10:].split()[0]) for path in chart.iter("path") if path.get("transform")]
    assert all(0 <= place <= 480 for place in [*places, *shapes])


def test_the_page_is_written_whole_or_not_at_all(tmp_path):
    write_report(reports.report(), tmp_path / "a.json")
    measured = open_measured([tmp_path / "a.json"])
    write_page(compare(measured), measured, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text == page(compare(measured), measured)
    assert text.startswith('<!doctype html>\n<html lang="en">')
    assert text.endswith("</html>\n")
