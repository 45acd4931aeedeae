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


def test_options_of_boards_need_a_board(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.edgecls").touch()
    assert cli.main(["bench", "a.edgecls", "--data", ".", "--keep"]) == 2
    assert "--host" in capsys.readouterr().err


@pytest.fixture
def boards(tmp_path, monkeypatch, capsys):
    """Runs the command with boards that answer with a report or an error; returns exit code and what it prints."""
    from edgecls.bench.host import HostReport
    from edgecls.runtime.errors import UnsupportedError

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.edgecls").touch()
    monkeypatch.setattr("edgecls.commands.bench._text", lambda console, report, output: f"TABLE of {output}")

    def measured(hosts, bundles, *, output, keep, **options):
        assert keep
        errors = [UnsupportedError(f"{host}: no engine") for host in hosts if "bad" in host]
        report = SimpleNamespace(exit_code=4, valid=False)
        return [HostReport(host, output, report) for host in hosts if "bad" not in host], errors

    monkeypatch.setattr("edgecls.bench.host.measure_on_hosts", measured)

    def bench(*hosts):
        named = [argument for host in hosts for argument in ("--host", host)]
        code = cli.main(["bench", "a.edgecls", "--data", ".", "--keep", *named])
        return code, *capsys.readouterr()

    return bench


def test_boards_are_named_where_their_tables_stand(boards):
    code, out, _ = boards("pi@one", "pi@two")
    assert code == 4
    assert "pi@one\nTABLE of report.json\n\npi@two\nTABLE" in out
    assert "Next: edgecls compare" in out


def test_a_board_that_fails_is_the_end_after_the_others(boards):
    code, out, err = boards("pi@bad", "pi@two")
    assert code == 5
    assert "pi@two\nTABLE" in out
    assert err == "error: pi@bad: no engine\n"
