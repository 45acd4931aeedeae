"""What `edgecls bench` prints below its table."""

from types import SimpleNamespace

import pytest

from edgecls import cli

PROFILE = "the quick profile warms up for 1 s"
NOISE = "samples vary by 40%"


def run(name, *warnings, accuracy=None):
    return SimpleNamespace(name=name, accuracy=accuracy, latency=SimpleNamespace(warnings=warnings), reasons=())


@pytest.fixture
def printed(tmp_path, monkeypatch, capsys):
    """Runs the command on a report that was not measured; returns what it prints."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b.edgecls").touch()
    monkeypatch.setattr("edgecls.report_table.report_table", lambda report: "TABLE")

    def bench(*runs, labelled=True, reference=0, **options):
        report = SimpleNamespace(
            runs=runs,
            valid=True,
            reasons=(),
            exit_code=0,
            reference=reference,
            dataset=SimpleNamespace(labelled=labelled),
            conditions=SimpleNamespace(warnings=("the machine was busy",)),
        )
        monkeypatch.setattr("edgecls.bench.measure.measure", lambda *arguments, **options: report)
        assert cli.main(["bench", "a b.edgecls", "--data", ".", *options.get("flags", ())]) == 0
        return capsys.readouterr().out

    return bench


def test_every_doubt_is_told_once(printed):
    lines = printed(run("one", PROFILE), run("two", PROFILE, NOISE), run("three", PROFILE)).splitlines()
    notes = [line for line in lines if line.startswith("note: ")]
    assert notes == ["note: the machine was busy", f"note: {PROFILE}", f"note: two: {NOISE}"]
    assert lines[-1] == "Next: edgecls gate report.json --max-drop 1pp"


def test_accuracy_that_misleads_and_figures_that_are_absent_are_told(printed):
    flattered = SimpleNamespace(warnings=("top-1 flatters",), unavailable="no scikit-learn")
    fair = SimpleNamespace(warnings=(), unavailable="no scikit-learn")
    text = printed(run("one", accuracy=flattered), run("two", accuracy=fair))
    assert "note: one: top-1 flatters\nnote: no scikit-learn\n" in text


def test_quiet_keeps_the_result_alone(printed):
    assert printed(run("one", PROFILE), flags=["--quiet"]).splitlines() == ["TABLE", "", "report: report.json"]


def test_without_labels_there_is_a_word_and_no_gate(printed):
    text = printed(run("one", accuracy=object()), run("two", accuracy=object()), labelled=False)
    assert "no class folders" in text
    assert "gate" not in text


def test_without_a_reference_the_next_step_is_one(printed):
    assert "Next: edgecls bench 'a b.edgecls' OTHER --reference OTHER" in printed(run("one"), reference=None)
