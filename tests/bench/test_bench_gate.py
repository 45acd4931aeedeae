from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
import reports

from edgecls.bench.gate import judge
from edgecls.bench.gate_markdown import gate_markdown
from edgecls.bench.gate_result import CriticalClass, Limits, Margin
from edgecls.bench.measured import Measured, open_measured
from edgecls.bench.report import ClassAccuracy, Report, predictions_path
from edgecls.runtime.errors import InputError

replace = msgspec.structs.replace

MakeReport = Callable[..., Report]


ONE_PP = Limits(max_drop=Margin(1.0))


def latency(limit: float) -> Limits:
    return Limits(max_latency_ratio=limit)


@pytest.mark.parametrize(
    ("text", "margin"),
    [
        ("1pp", Margin(1.0)),
        ("0.5pp", Margin(0.5)),
        (" 2 pp ", Margin(2.0)),
        (".25pp", Margin(0.25)),
        ("2%rel", Margin(2.0, "%rel")),
        ("1.5 %rel", Margin(1.5, "%rel")),
    ],
)
def test_margins_have_a_unit(text: str, margin: Margin) -> None:
    assert Margin.from_text(text) == margin


@pytest.mark.parametrize(
    "text", ["1", "0.01", "1%", "pp", "-1pp", "nanpp", "0pp", "100pp", "1e-2pp", "", "1ppm", "1rel", "%rel", "0%rel"]
)
def test_other_margins_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(InputError, match=r"1(pp|%rel)"):
        Margin.from_text(text)


@pytest.mark.parametrize(
    ("b", "c", "n", "verdict", "code"),
    [(2, 1, 372, "inconclusive", 3), (10, 12, 5000, "pass", 0), (80, 10, 1000, "fail", 1), (0, 0, 268, "pass", 0)],
)
def test_drop_verdicts(make_report: MakeReport, b: int, c: int, n: int, verdict: str, code: int) -> None:
    result = judge(make_report(("int8", b, c), n=n), ONE_PP)
    assert (result.verdict, result.exit_code) == (verdict, code)
    assert [run.name for run in result.runs] == ["int8"]


def test_inconclusive_says_how_many_pictures_would_do(make_report: MakeReport) -> None:
    (run,) = judge(make_report(("int8", 2, 1), n=372), ONE_PP).runs
    (check,) = run.checks
    assert check.images_needed is not None
    assert 600 < check.images_needed < 2000
    assert f"about {check.images_needed} pictures would be needed" in run.messages[0]


def test_inconclusive_over_the_margin_asks_for_no_more_pictures(make_report: MakeReport) -> None:
    (run,) = judge(make_report(("int8", 8, 1), n=372), ONE_PP).runs
    assert run.verdict == "inconclusive"
    assert run.checks[0].images_needed is None
    assert "would not help" in run.messages[0]


def test_the_worst_run_wins_and_a_variant_can_be_picked(make_report: MakeReport) -> None:
    report = make_report(("good", 0, 0), ("unsure", 7, 0), ("bad", 90, 0))
    assert judge(report, ONE_PP).verdict == "fail"
    assert judge(report, ONE_PP, variant="unsure").verdict == "inconclusive"
    assert judge(report, ONE_PP, variant="good").exit_code == 0
    assert judge(make_report(("good", 0, 0), ("unsure", 7, 0)), ONE_PP).verdict == "inconclusive"


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
    result = judge(make_report(("int8", 0, 0), ratios=ratios), latency(limit))
    assert result.verdict == verdict
    assert [check.condition for check in result.runs[0].checks] == ["max-latency-ratio"]


def test_a_good_drop_does_not_hide_a_bad_latency(make_report: MakeReport) -> None:
    result = judge(make_report(("int8", 0, 0)), Limits(max_drop=Margin(1.0), max_latency_ratio=0.4))
    assert result.verdict == "fail"
    assert len(result.runs[0].messages) == 2


def test_an_invalid_report_is_not_judged(make_report: MakeReport) -> None:
    report = make_report(("int8", 0, 0), valid=False, reasons=("cannot read x.png: truncated",), reference=None)
    result = judge(report, ONE_PP)
    assert (result.verdict, result.exit_code, result.runs) == ("invalid", 4, ())
    assert result.reasons == ("cannot read x.png: truncated",)


def test_the_reasons_of_an_invalid_run_name_it(make_report: MakeReport) -> None:
    report = make_report(("int8", 0, 0), valid=False)
    broken = msgspec.structs.replace(report.runs[1], valid=False, reasons=("it died",))
    result = judge(msgspec.structs.replace(report, runs=(report.runs[0], broken)), ONE_PP)
    assert result.reasons == ("int8: it died",)


def test_questions_that_the_report_cannot_answer(make_report: MakeReport) -> None:
    report = make_report(("int8", 0, 0), ratios=())
    with pytest.raises(InputError, match=r"no run 'int9'.*int8"):
        judge(report, ONE_PP, variant="int9")
    with pytest.raises(InputError, match="is the report's reference"):
        judge(report, ONE_PP, variant="ref")
    with pytest.raises(InputError, match="latency ratio was not measured"):
        judge(report, latency(1.1))
    with pytest.raises(InputError, match="nothing to judge"):
        Limits()
    with pytest.raises(InputError, match="no reference"):
        judge(make_report(("int8", 0, 0), reference=None), ONE_PP)
    with pytest.raises(InputError, match="only its reference"):
        judge(make_report(), ONE_PP)
    with pytest.raises(InputError, match="no labels"):
        judge(make_report(("int8", None, None)), ONE_PP)
    with pytest.raises(InputError, match="not a positive number"):
        latency(float("nan"))
    with pytest.raises(InputError, match="memory was not measured"):
        judge(report, Limits(max_rss_bytes=1))
    with pytest.raises(InputError, match="cold start was not measured"):
        judge(report, Limits(max_cold_start_ms=1.0))
    with pytest.raises(InputError, match="2%rel of an accuracy that is 0 or unknown"):
        judge(report, Limits(max_drop=Margin(2.0, "%rel")))
    with pytest.raises(InputError, match="no classes with pictures are called 'cat'"):
        judge(report, critical("cat"))
    with pytest.raises(InputError, match="b=900, c=200 of 1000 pictures cannot be"):
        judge(make_report(("int8", 900, 200)), ONE_PP)
    with pytest.raises(InputError, match="two margins"):
        critical("cat", "cat")


def critical(*labels: str) -> Limits:
    return Limits(critical_classes=tuple(CriticalClass(label, Margin(5.0)) for label in labels))


def changed(report: Report, **fields: Any) -> Report:
    """The report with other figures of the accuracy of its last run."""
    *others, last = report.runs
    accuracy = replace(last.accuracy, **fields)
    return replace(report, runs=(*others, replace(last, accuracy=accuracy)))


@pytest.mark.parametrize(("top1", "verdict"), [(0.8, "pass"), (0.2, "fail")])
def test_a_relative_margin_is_of_the_references_accuracy(make_report: MakeReport, top1: float, verdict: str) -> None:
    report = changed(make_report(("int8", 60, 40), n=5000), top1=top1)
    (check,) = judge(report, Limits(max_drop=Margin(1.6, "%rel"))).runs[0].checks
    assert check.limit == pytest.approx(1.6 * (top1 + 0.004))
    assert check.verdict == ("pass" if verdict == "pass" else "inconclusive")
    assert "(1.6%rel)" in check.message


def classes(**counts: tuple[int, int, int]) -> tuple[ClassAccuracy, ...]:
    return tuple(
        ClassAccuracy(index=index, label=label, n=n, correct=n - b, predicted=n, b=b, c=c)
        for index, (label, (b, c, n)) in enumerate(counts.items())
    )


def test_a_critical_class_has_its_own_margin(make_report: MakeReport) -> None:
    report = changed(
        make_report(("int8", 20, 5), n=2000), per_class=classes(ant=(2, 3, 1000), cat=(18, 2, 100), dog=(0, 0, 900))
    )
    assert judge(report, Limits(max_drop=Margin(2.0))).verdict == "pass"
    (run,) = judge(report, critical("ant", "cat")).runs
    assert [(check.label, check.verdict, check.n) for check in run.checks] == [
        ("ant", "pass", 1000),
        ("cat", "fail", 100),
    ]
    assert run.verdict == "fail"
    assert run.messages[1].startswith("drop +16.00 pp on 100 pictures of cat: 95 % sure above")
    unsure = Limits(critical_classes=(CriticalClass("ant", Margin(0.2)),))
    (check,) = judge(report, unsure).runs[0].checks
    assert (check.condition, check.verdict) == ("critical-class", "inconclusive")
    assert check.images_needed is not None
    assert check.images_needed > 1000


def test_a_class_is_found_by_a_name_that_it_alone_has(make_report: MakeReport) -> None:
    twice = classes(crane=(0, 0, 500), other=(0, 0, 500))
    twice = (twice[0], replace(twice[1], label="crane"))
    with pytest.raises(InputError, match="2 classes with pictures are called 'crane'"):
        judge(changed(make_report(("int8", 0, 0)), per_class=twice), critical("crane"))
    older = classes(cat=(0, 0, 500))
    older = (replace(older[0], b=None, c=None),)
    with pytest.raises(InputError, match="what class 'cat' lost"):
        judge(changed(make_report(("int8", 0, 0)), per_class=older), critical("cat"))


def test_memory_and_cold_start_need_no_reference() -> None:
    report = replace(reports.report(), reference=None)
    result = judge(report, Limits(max_rss_bytes=60_000_000, max_cold_start_ms=350.0))
    assert (result.verdict, [run.against for run in result.runs]) == ("pass", [None, None])
    assert judge(report, Limits(max_rss_bytes=59_999_999)).verdict == "fail"
    (check,) = judge(report, Limits(max_cold_start_ms=349.0), variant="int8").runs[0].checks
    assert (check.verdict, check.value, check.limit) == ("fail", 350.0, 349.0)
    assert check.message == "first answer 350 ms after the start (median): over the limit of 349 ms"


@pytest.mark.parametrize(("counts_as", "code"), [(None, 3), ("fail", 1), ("pass", 0)])
def test_what_inconclusive_counts_as_changes_the_exit_code_alone(
    make_report: MakeReport, counts_as: Literal["fail", "pass"] | None, code: int
) -> None:
    result = judge(make_report(("int8", 2, 1), n=372), ONE_PP, on_inconclusive=counts_as)
    assert (result.verdict, result.exit_code) == ("inconclusive", code)
    failed = judge(make_report(("int8", 80, 1), n=372), ONE_PP, on_inconclusive=counts_as)
    assert failed.exit_code == 1


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., tuple[Measured, ...]]:
    """Writes reports with what lies beside them, and opens them."""

    def write_and_open(*made: Report) -> tuple[Measured, ...]:
        paths = [tmp_path / f"report{number}.json" for number in range(len(made))]
        for path, report in zip(paths, made, strict=True):
            reports.write_beside(path, report)
        return open_measured(paths)

    return write_and_open


def test_a_baseline_is_paired_by_its_predictions(opened: Callable[..., tuple[Measured, ...]]) -> None:
    earlier, now = opened(reports.report(), reports.report(speed=1.5))
    result = judge(now, Limits(max_drop=Margin(1.0), max_latency_ratio=1.1), baseline=earlier)
    assert (result.baseline, [run.name for run in result.runs]) == ("report0", ["int8"])
    (run,) = result.runs
    assert run.against == "int8 (report0)"
    drop, ratio = run.checks
    assert (drop.verdict, drop.value, drop.n) == ("pass", 0.0, 300)
    assert (ratio.verdict, ratio.value) == ("fail", pytest.approx(1.5))
    assert "not measured in turns" in ratio.message
    assert judge(now, latency(1.6), baseline=earlier).verdict == "pass"


def test_a_new_name_is_compared_with_the_baselines_only_candidate(
    opened: Callable[..., tuple[Measured, ...]],
) -> None:
    made = reports.report()
    renamed = replace(made, reference=None, runs=(replace(made.runs[0], name="fresh"),))
    earlier, now = opened(made, renamed)
    limits = Limits(max_drop=Margin(5.0), critical_classes=(CriticalClass("bee", Margin(5.0)),))
    (run,) = judge(now, limits, baseline=earlier).runs
    # 7 wrong answers a class before, 5 now.
    assert [(check.value, check.n) for check in run.checks] == [(pytest.approx(-2.0), 300), (pytest.approx(-2.0), 100)]
    two = replace(made, reference=None, runs=tuple(replace(run, role="candidate") for run in made.runs))
    earlier, now = opened(two, renamed)
    with pytest.raises(InputError, match="no run 'fresh' but fp32, int8"):
        judge(now, limits, baseline=earlier)


def test_what_cannot_be_compared_with_a_baseline_is_named(
    opened: Callable[..., tuple[Measured, ...]], tmp_path: Path
) -> None:
    made = reports.report()
    both = Limits(max_drop=Margin(1.0), max_latency_ratio=1.1)
    earlier, now = opened(made, replace(made, dataset=replace(made.dataset, sha256="e")))
    with pytest.raises(InputError, match=r"dataset\.sha256 differs"):
        judge(now, both, baseline=earlier)
    assert judge(now, latency(1.1), baseline=earlier).verdict == "pass"
    earlier, now = opened(made, reports.report(model="Raspberry Pi 4"))
    with pytest.raises(InputError, match=r"these differ: device \(Raspberry Pi 5.*Raspberry Pi 4"):
        judge(now, both, baseline=earlier)
    assert judge(now, ONE_PP, baseline=earlier).verdict == "pass"
    earlier, now = opened(replace(made, valid=False, reasons=("hot",)), made)
    with pytest.raises(InputError, match="baseline report0 is not valid"):
        judge(now, both, baseline=earlier)
    opened(made, made)
    predictions_path(tmp_path / "report0.json").unlink()
    earlier, now = open_measured([tmp_path / "report0.json", tmp_path / "report1.json"])
    with pytest.raises(InputError, match="do not lie beside both report0 and report1"):
        judge(now, both, baseline=earlier)


@pytest.mark.parametrize("without", [0, 1])
def test_a_baseline_without_accuracy_is_told_as_that(opened: Callable[..., tuple[Measured, ...]], without: int) -> None:
    made = [reports.report(), reports.report()]
    made[without] = replace(made[without], runs=tuple(replace(run, accuracy=None) for run in made[without].runs))
    earlier, now = opened(*made)
    with pytest.raises(InputError, match=rf"of int8 was not measured in report{without}: .*--no-accuracy"):
        judge(now, ONE_PP, baseline=earlier)


def test_the_summary_for_a_pull_request(make_report: MakeReport) -> None:
    report = changed(make_report(("int8", 2, 1), n=372), warnings=("top-1 flatters | <b>\n@someone",))
    text = gate_markdown(judge(report, Limits(max_drop=Margin(1.0), max_latency_ratio=0.6), on_inconclusive="pass"))
    lines = text.splitlines()
    assert lines[0] == "### edgecls gate: inconclusive, counted as pass"
    table = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")]
    assert table[0] == [
        "variant", "against", "condition", "verdict", "measured [90 %]", "limit", "pictures",
    ]  # fmt: skip
    assert table[2][:4] == ["`int8`", "`ref`", "`max-drop`", "`inconclusive`"]
    assert table[2][5:] == ["1.00 pp", "372"]
    assert table[3][2:] == ["`max-latency-ratio`", "`pass`", "0.500 [0.483, 0.517]", "0.600", "-"]
    assert [line[:20] for line in lines if line.startswith("- ")] == ["- `int8`: `drop +0.2", "- `int8`: `top-1 fla"]
    assert lines[-1] == "- `int8`: `top-1 flatters \\| <b>\\n@someone`"
    invalid = gate_markdown(judge(replace(report, valid=False, reasons=("hot",)), ONE_PP))
    assert invalid == "### edgecls gate: invalid\n\n- `not valid`: `hot`\n"
