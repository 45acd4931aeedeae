"""The page in a browser: it asks for nothing, its charts are there, its tables sort, all can be read by everybody."""

import pytest
import reports
from chromium import UnavailableError, browser

from edgecls.bench.compare import compare
from edgecls.bench.measured import open_measured
from edgecls.bench.page import write_page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

LONG = "a-name-of-a-report-that-is-longer-than-a-phone-is-wide-and-has-no-space"
ERRORS = ("error", "assert")

SORTED = """
(() => {
  const head = document.querySelector("thead th[aria-sort]"), column = head.cellIndex;
  const rows = [...head.closest("table").tBodies[0].rows];
  return [head.textContent, head.getAttribute("aria-sort"), rows.map(row => row.cells[column].dataset.value ?? null)];
})()"""

HEAD = """[...document.querySelectorAll("thead th")].find(head => head.textContent.startsWith("p50"))"""

PALE = """
(() => {
  // A canvas reads every notation of a colour: rgb(), color-mix(), color(srgb ...).
  const pen = Object.assign(document.createElement("canvas"), {width: 1, height: 1}).getContext("2d",
    {willReadFrequently: true});
  const over = (colours) => {
    pen.clearRect(0, 0, 1, 1);
    for (const colour of colours) { pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1); }
    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = colour => colour.map(part => part / 255)
    .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
  const pale = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  document.querySelectorAll("details").forEach(details => details.open = true);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest("title,desc")) continue;
    const style = getComputedStyle(element), grounds = [];
    for (let at = element; at; at = at.parentElement) grounds.unshift(getComputedStyle(at).backgroundColor);
    const letters = element.closest("svg") ? style.fill : style.color;
    const [low, high] = [luminance(over(grounds)), luminance(over([...grounds, letters]))].sort((a, b) => a - b);
    const size = parseFloat(style.fontSize), large = size >= 24 || size >= 18.66 && style.fontWeight >= 700;
    const contrast = (high + 0.05) / (low + 0.05);
    seen += 1;
    if (contrast < (large ? 3 : 4.5)) pale.push([walker.currentNode.data.trim().slice(0, 40), contrast]);
  }
  return [seen, pale];
})()"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where the page of two comparable reports and one of another device is."""
    folder = tmp_path_factory.mktemp("chromium")
    paths = [folder / f"{name}.json" for name in ("old", "new", LONG)]
    made = reports.report(), reports.report(speed=1.5), reports.report(model="Raspberry Pi 4")
    for path, report in zip(paths, made, strict=True):
        reports.write_beside(path, report)
    measured = open_measured(paths)
    write_page(compare(measured), measured, folder / "page.html")
    return (folder / "page.html").as_uri()


@pytest.fixture(scope="module")
def tab():
    """A tab of Chromium."""
    try:
        with browser() as opened:
            yield opened
    except UnavailableError as error:
        pytest.skip(f"THE PAGE WAS NOT OPENED IN A BROWSER, for there is no Chromium: {error}")


@pytest.fixture
def opened(tab, address):
    """The page, freshly opened in a wide and light window."""
    tab.look(1280, 900)
    tab.open(address)
    return tab


def asked(tab):
    return [parameters["request"]["url"] for name, parameters in tab.events if name == "Network.requestWillBeSent"]


def complaints(tab):
    """What the console shows as an error."""
    return [
        parameters
        for name, parameters in tab.events
        if name == "Runtime.exceptionThrown"
        or (name == "Runtime.consoleAPICalled" and parameters["type"] in ERRORS)
        or (name == "Log.entryAdded" and parameters["entry"]["level"] == "error")
    ]


def wait(tab):
    tab.run("new Promise(done => setTimeout(done, 300))")


def test_the_page_loads_nothing_and_complains_of_nothing(opened, address):
    wait(opened)
    assert asked(opened) == [address]
    assert complaints(opened) == []


def test_a_page_that_loads_and_complains_is_noticed(tab, tmp_path):
    (tmp_path / "bad.html").write_text(
        "<!doctype html><body><img src='other.png'><script>console.error('no'); nothing()</script>"
    )
    tab.open((tmp_path / "bad.html").as_uri())
    wait(tab)
    assert [url.rsplit("/", 1)[1] for url in asked(tab)] == ["bad.html", "other.png"]
    assert len(complaints(tab)) == 3  # the picture is not there, console.error, nothing is not defined


def test_the_policy_of_the_page_forbids_to_load(opened, address):
    """Even to what got into the page in spite of all care."""
    opened.run("document.body.append(Object.assign(new Image(), {src: 'other.png'}))")
    wait(opened)
    assert asked(opened) == [address, address.replace("page.html", "other.png")]
    assert [parameters["blockedReason"] for name, parameters in opened.events if name == "Network.loadingFailed"] == [
        "csp"
    ]


def test_every_chart_takes_its_place(opened):
    charts = opened.run(
        """[...document.querySelectorAll("svg")].map(svg => [
             svg.querySelector("title").textContent, svg.getBoundingClientRect().width,
             svg.getBoundingClientRect().height,
             [...svg.querySelectorAll(".mark,.bar,.box,.part,.band,.heat")].map(mark => {
               const box = mark.getBoundingClientRect(); return Math.max(box.width, box.height); })])"""
    )
    assert len(charts) == 16  # drops, trade-off, temperature, frequency; 4 of each report
    for title, width, height, marks in charts:
        assert width > 300, title
        assert height > 50, title
        assert marks, title
        assert any(marks), title


def test_a_click_on_a_head_sorts_by_number_and_again_the_other_way(opened):
    x, y = opened.run(
        f"""(() => {{ const button = {HEAD}.querySelector("button"); button.scrollIntoView({{block: "center"}});
             const box = button.getBoundingClientRect();
             return [box.x + box.width / 2, box.y + box.height / 2]; }})()"""
    )
    for order, values in (("ascending", [4, 4, 6, 10, 10, 15]), ("descending", [15, 10, 10, 6, 4, 4])):
        for kind in ("mousePressed", "mouseReleased"):
            opened.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        head, direction, found = opened.run(SORTED)
        assert head.startswith("p50 ms")
        assert direction == order
        assert [float(value) for value in found] == values


def test_the_keyboard_reaches_a_head_shows_where_it_is_and_sorts(opened):
    opened.run("document.querySelector('.scroll').focus()")
    opened.press("Tab")
    place, outline_px = opened.run(
        """(() => { const at = document.activeElement;
             return [at.closest("th").textContent, parseFloat(getComputedStyle(at).outlineWidth)]; })()"""
    )
    assert place == "variant"
    assert outline_px >= 2
    opened.press("Enter")
    assert opened.run(SORTED)[:2] == ["variant", "ascending"]
    names = opened.run("[...document.querySelector('table').tBodies[0].rows].map(row => row.cells[0].textContent)")
    assert names == ["fp32"] * 3 + ["int8"] * 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_the_contrast_of_wcag_aa(opened, scheme):
    opened.look(1280, 900, scheme=scheme)
    ground = opened.run("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(15, 20, 26)"}[scheme]
    seen, pale = opened.run(PALE)
    assert seen > 500
    assert pale == []


def test_pale_text_is_noticed(opened):
    opened.run("document.querySelector('h1').style.color = '#aaa'")
    _, ((text, contrast),) = opened.run(PALE)
    assert text.startswith("Comparison of")
    assert 2 < contrast < 3


def test_a_phone_scrolls_tables_and_pictures_but_not_the_page(opened):
    opened.look(360, 740)
    opened.run("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert opened.run("[innerWidth, document.documentElement.scrollWidth]") == [360, 360]
    assert opened.run("[...document.querySelectorAll('.scroll')].some(box => box.scrollWidth > box.clientWidth)")


def test_without_javascript_tables_and_charts_are_there(tab, address):
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.look(1280, 900)
        tab.open(address)
        assert tab.run("document.querySelectorAll('th button').length") == 0
        heights = tab.run(
            """[...document.querySelectorAll("table,svg")].filter(one => !one.closest("details"))
                 .map(one => one.getBoundingClientRect().height)"""
        )
        assert len(heights) > 20
        assert min(heights) > 20
        assert asked(tab) == [address]
        assert complaints(tab) == []
    finally:
        tab.call("Emulation.setScriptExecutionDisabled", value=False)
