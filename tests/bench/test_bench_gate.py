from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from edgecls.bench.gate import judge, max_drop_pp_from_text
from edgecls.bench.report import Report, read_report, write_report
from edgecls.runtime.errors import InputError

MakeReport = Callable[..., Report]


@pytest.mark.parametrize(("text", "value"), [("1pp", 1.0), ("0.5pp", 0.5), (" 2 pp ", 2.0), (".25pp", 0.25)])
def test_margins_are_percentage_points_with_their_suffix(text: str, value: float) -> None:
    assert max_drop_pp_from_text(text) == value


@pytest.mark.parametrize("text", ["1", "0.01", "1%", "pp", "-1pp", "nanpp", "0pp", "100pp", "1e-2pp", "", "1ppm"])
def test_other_margins_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(InputError, match="1pp"):
        max_drop_pp_from_text(text)


@pytest.mark.parametrize(
    ("b", "c", "n", "verdict", "code"),
    [(2, 1, 372, "inconclusive", 3), (10, 12, 5000, "pass", 0), (80, 10, 1000, "fail", 1), (0, 0, 268, "pass", 0)],
)
def test_drop_verdicts(make_report: MakeReport, b: int, c: int, n: int, verdict: str, code: int) -> None:
    result = judge(make_report(("int8", b, c), n=n), 1.0)
    assert (result.verdict, result.exit_code) == (verdict, code)
    assert [run.name for run in result.runs] == ["int8"]


def test_inconclusive_says_how_many_pictures_would_do(make_report: MakeReport) -> None:
    (run,) = judge(make_report(("int8", 2, 1), n=372), 1.0).runs
    assert run.accuracy is not None
    assert run.accuracy.images_needed is not None
    assert 600 < run.accuracy.images_needed < 2000
    assert f"about {run.accuracy.images_needed} pictures would be needed" in run.messages[0]


def test_inconclusive_over_the_margin_asks_for_no_more_pictures(make_report: MakeReport) -> None:
    (run,) = judge(make_report(("int8", 8, 1), n=372), 1.0).runs
    assert run.verdict == "inconclusive"
    assert run.accuracy is not None
    assert run.accuracy.images_needed is None
    assert "would not help" in run.messages[0]


def test_the_worst_run_wins_and_a_variant_can_be_picked(make_report: MakeReport) -> None:
    report = make_report(("good", 0, 0), ("unsure", 7, 0), ("bad", 90, 0))
    assert judge(report, 1.0).verdict == "fail"
    assert judge(report, 1.0, variant="unsure").verdict == "inconclusive"
    assert judge(report, 1.0, variant="good").exit_code == 0
    assert judge(make_report(("good", 0, 0), ("unsure", 7, 0)), 1.0).verdict == "inconclusive"


@pytest.mark.parametrize(
    ("ratios", "limit", "verdict"),
    [
        ((0.5, 0.51, 0.49), 0.6, "pass"),
        ((0.5, 0.51, 0.49), 0.4, "fail"),
        ((0.5, 0.7, 0.4), 0.6, "inconclusive"),
        ((0.5,), 0.6, "inconclusive"),
    ],
)
def test_latency_verdicts(make_report: MakeReport, ratios: tuple[float, ...], limit: float, verdict: str) -> None:
    result = judge(make_report(("int8", 0, 0), ratios=ratios), None, limit)
    assert result.verdict == verdict
    assert result.runs[0].accuracy is None


def test_a_good_drop_does_not_hide_a_bad_latency(make_report: MakeReport) -> None:
    result = judge(make_report(("int8", 0, 0)), 1.0, 0.4)
    assert result.verdict == "fail"
    assert len(result.runs[0].messages) == 2


def test_an_invalid_report_is_not_judged(make_report: MakeReport) -> None:
    report = make_report(("int8", 0, 0), valid=False, reasons=("cannot read x.png: truncated",), reference=None)
    result = judge(report, 1.0)
    assert (result.verdict, result.exit_code, result.runs) == ("invalid", 4, ())
    assert result.reasons == ("cannot read x.png: truncated",)


def test_the_reasons_of_an_invalid_run_name_it(make_report: MakeReport) -> None:
    report = make_report(("int8", 0, 0), valid=False)
    broken = msgspec.structs.replace(report.runs[1], valid=False, reasons=("it died",))
    result = judge(msgspec.structs.replace(report, runs=(report.runs[0], broken)), 1.0)
    assert result.reasons == ("int8: it died",)


def test_questions_that_the_report_cannot_answer(make_report: MakeReport) -> None:
    report = make_report(("int8", 0, 0), ratios=())
    with pytest.raises(InputError, match=r"no run 'int9'.*int8"):
        judge(report, 1.0, variant="int9")
    with pytest.raises(InputError, match="is the report's reference"):
        judge(report, 1.0, variant="ref")
    with pytest.raises(InputError, match="latency ratio was not measured"):
        judge(report, None, 1.1)
    with pytest.raises(InputError, match="nothing to judge"):
        judge(report, None)
    with pytest.raises(InputError, match="no reference"):
        judge(make_report(("int8", 0, 0), reference=None), 1.0)
    with pytest.raises(InputError, match="only its reference"):
        judge(make_report(), 1.0)
    with pytest.raises(InputError, match="no labels"):
        judge(make_report(("int8", None, None)), 1.0)
    with pytest.raises(InputError, match="not a positive number"):
        judge(report, None, float("nan"))


def test_a_report_survives_the_file(make_report: MakeReport, tmp_path: Path) -> None:
    report = make_report(("int8", 2, 1), ("other", None, None), ratios=())
    path = tmp_path / "report.json"
    write_report(report, path)
    assert read_report(path) == report
    document = msgspec.json.decode(path.read_bytes())
    assert next(iter(document)) == "schema"
    assert document["schema"] == "edgecls.report/1"
    assert list(document)[1:] == [
        "tool", "valid", "reasons", "device", "conditions", "dataset", "reference", "runs", "gate",
    ]  # fmt: skip
    assert document["device"]["class"] == "pc"
    assert document["runs"][2]["accuracy"]["drop_pp"] is None
    assert document["runs"][1]["latency"] is None


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1]", b'{"schema": "edgecls.report/2"}', b'{"schema": "edgecls.report/1"}', b"\xff\xfe"]
)
def test_what_is_no_report_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"edgecls\.report/1"):
        read_report(path)


def test_a_report_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the report"):
        read_report(tmp_path / "missing.json")
