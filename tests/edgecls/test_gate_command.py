"""What `edgecls gate` takes, prints and writes."""

import json

import msgspec
import pytest
import reports

from edgecls import cli
from edgecls.bench.report import ClassAccuracy, read_report, write_report

replace = msgspec.structs.replace


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with a report of 6 lost pictures of 300, the same one slower, and what lies beside both."""
    monkeypatch.chdir(tmp_path)
    for name, speed in (("old", 1.0), ("new", 1.5)):
        report = reports.report(speed=speed)
        classes = tuple(
            ClassAccuracy(index=index, label=label, n=100, correct=93, predicted=100, b=2, c=0)
            for index, label in enumerate(("ant", "stop: sign", "cat"))
        )
        last = report.runs[1]
        lost = replace(last, accuracy=replace(last.accuracy, per_class=classes))
        reports.write_beside(tmp_path / f"{name}.json", replace(report, runs=(report.runs[0], lost)))
    return tmp_path


def gate(*arguments):
    return cli.main(["gate", "new.json", *arguments])


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--max-drop", "5pp"], 0),
        (["--max-drop", "6%rel"], 0),
        (["--max-drop", "0.1pp"], 1),
        (["--max-drop", "2.5pp"], 3),
        (["--max-drop", "2.5pp", "--on-inconclusive", "fail"], 1),
        (["--max-drop", "2.5pp", "--on-inconclusive", "pass"], 0),
        (["--critical-class", "ant:10pp", "--critical-class", "stop: sign:10%rel"], 0),
        (["--max-drop", "5pp", "--critical-class", "cat:3pp"], 3),
        (["--max-rss", "60MB", "--max-cold-start", "0.35s"], 0),
        (["--max-drop", "5pp", "--max-rss", "59MB"], 1),
        (["--max-cold-start", "349ms"], 1),
        (["--baseline", "old.json", "--max-drop", "1pp"], 0),
        (["--baseline", "old.json", "--max-latency-ratio", "1.1"], 1),
        (["--baseline", "old.json", "--max-latency-ratio", "1.5"], 3),
    ],
)
def test_exit_codes(arguments, code):
    assert gate(*arguments) == code


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "nothing to judge"),
        (["--max-drop", "1"], "write percentage points"),
        (["--max-drop", "1%"], "2%rel"),
        (["--critical-class", "ant"], "write NAME:1pp"),
        (["--critical-class", ":1pp"], "write NAME:1pp"),
        (["--critical-class", "ant:1"], "write percentage points"),
        (["--critical-class", "eel:1pp"], "no classes with pictures are called 'eel'"),
        (["--max-rss", "200"], "no size such as 256MB"),
        (["--max-cold-start", "800"], "no time such as 800ms"),
        (["--max-cold-start", "0s"], "no time such as 800ms"),
        (["--max-drop", "1pp", "--on-inconclusive", "maybe"], "not one of fail, pass"),
        (["--max-drop", "1pp", "--markdown", "absent/x.md"], "does not exist"),
    ],
)
def test_what_cannot_be_judged_is_a_usage_error(arguments, complaint, capfd):
    assert gate(*arguments) == 2
    assert complaint in capfd.readouterr().err


def broken(report):
    """What no measurement wrote, by name."""
    last = report.runs[1]
    launches = tuple(replace(launch, ratio=0.0) for launch in last.latency.launches)
    return {
        "no such reference": replace(report, reference=replace(report.reference, run=2)),
        "no runs": replace(report, runs=()),
        "no time": replace(
            report, runs=(report.runs[0], replace(last, latency=replace(last.latency, launches=launches)))
        ),
        "an invalid run": replace(report, runs=(report.runs[0], replace(last, valid=False, reasons=("it died",)))),
    }


@pytest.mark.parametrize("what", ["no such reference", "no runs", "no time", "an invalid run"])
def test_a_report_that_nobody_measured_is_refused(what, folder, capsys):
    write_report(broken(read_report(folder / "new.json"))[what], folder / "new.json")
    assert gate("--max-drop", "5pp", "--max-latency-ratio", "1.1") == 2
    assert "get the report again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("label", "asked"), [("三毛　猫", "三毛　猫"), ("caf\u00e9", "cafe\u0301"), ("a\u200bb", "a\u200bb")]
)
@pytest.mark.parametrize("baseline", [[], ["--baseline", "old.json"]])
def test_a_class_is_found_however_its_name_is_written(label, asked, baseline, folder):
    report = read_report(folder / "new.json")
    last = report.runs[1]
    classes = (replace(last.accuracy.per_class[0], label=label), *last.accuracy.per_class[1:])
    renamed = replace(last, accuracy=replace(last.accuracy, per_class=classes))
    write_report(replace(report, runs=(report.runs[0], renamed)), folder / "new.json")
    assert gate("--critical-class", f"{asked}:10pp", *baseline) == 0


def test_the_text_names_the_run_once_and_each_limit(capsys):
    assert gate("--max-drop", "2.5pp", "--max-rss", "1GB", "--on-inconclusive", "pass") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "int8: inconclusive, against fp32"
    assert lines[1].startswith("  drop +2.00 pp on 300 pictures: the true drop may be from ")
    assert lines[2] == "  peak memory 60.0 MB: within the limit of 1000 MB"
    assert lines[-1] == "INCONCLUSIVE, counted as pass"


def test_one_call_gives_json_and_a_summary(folder, capsys):
    assert gate("--max-drop", "2%rel", "--baseline", "old.json", "--json", "--markdown", "summary.md") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["verdict"], document["baseline"]) == ("pass", "old")
    assert document["limits"]["max_drop"] == {"value": 2.0, "unit": "%rel"}
    (check,) = document["runs"][0]["checks"]
    assert (check["condition"], check["verdict"], check["unit"], check["n"]) == ("max-drop", "pass", "pp", 300)
    assert check["lower"] < check["value"] < check["upper"] < check["limit"]
    summary = (folder / "summary.md").read_text()
    assert summary.startswith("### edgecls gate: pass\n\n| variant | against |")
    assert "| `int8` | `int8 (old)` | `max-drop` | `pass` | +0.00 pp [" in summary


def test_a_verdict_is_recorded_only_if_asked(folder):
    before = read_report(folder / "new.json")
    assert gate("--max-drop", "0.1pp") == 1
    assert read_report(folder / "new.json") == before
    assert gate("--max-drop", "0.1pp", "--record") == 1
    after = read_report(folder / "new.json")
    assert after.gate.verdict == "fail"
    assert replace(after, gate=None) == before
    assert cli.main(["compare", "new.json", "--html", "page.html"]) == 0
    assert "<strong>FAIL</strong>" in (folder / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["new.json", "old.json"])
def test_the_summary_does_not_replace_a_report(name, folder, capsys):
    before = (folder / name).read_bytes()
    assert gate("--max-drop", "5pp", "--baseline", "old.json", "--markdown", name, "--record") == 2
    assert f"{name} is read by this command" in capsys.readouterr().err
    assert (folder / name).read_bytes() == before


def test_a_project_writes_its_limits_down(folder, capsys):
    (folder / "edgecls.toml").write_text(
        '[gate]\nmax-drop = "5pp"\ncritical-class = ["ant:10pp", "cat:3pp"]\nmax-cold-start = "1s"\n'
    )
    assert gate("--json") == 3
    checks = json.loads(capsys.readouterr().out)["runs"][0]["checks"]
    assert [(check["condition"], check["label"], check["verdict"]) for check in checks] == [
        ("max-drop", None, "pass"),
        ("critical-class", "ant", "pass"),
        ("critical-class", "cat", "inconclusive"),
        ("max-cold-start", None, "pass"),
    ]
