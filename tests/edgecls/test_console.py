"""Standard output holds the result alone; progress stays on standard error."""

import json
import math

import pytest

from edgecls.console import BarProgress, Console, LineProgress, json_text, size_text, table_text, time_text


@pytest.mark.parametrize("kind", [BarProgress, LineProgress])
def test_progress_is_told_on_standard_error(kind, capsys):
    progress = kind()
    with progress.stage("calibrating", 3) as advance:
        advance(2)
        with progress.stage("inside") as advance_inside:
            advance_inside(1)
        progress.note("[bold] is no markup")
        advance(1)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "calibrating" in printed.err
    assert "note: [bold] is no markup" in printed.err


def test_an_inner_stage_that_ended_leaves_no_bar():
    progress = BarProgress()
    with progress.stage("training", 40):
        for epoch in range(40):
            with progress.stage(f"epoch {epoch}", 1):
                assert [task.description for task in progress._bars.tasks] == ["training", f"epoch {epoch}"]


def test_lines_tell_how_long_it_will_take(capsys, monkeypatch):
    clock = iter([0.0, 0.0, 20.0, 60.0, 100.0])
    monkeypatch.setattr("edgecls.console.time.monotonic", lambda: next(clock))
    with LineProgress().stage("training", 100) as advance:
        advance(50)  # of which a resume knows
        advance(10)
        advance(20)
    assert capsys.readouterr().err.splitlines() == [
        "training ...",
        "training: 60 of 100, about 80 s left",
        "training: 80 of 100, about 40 s left",
        "training: done in 100.0 s",
    ]


@pytest.mark.parametrize("kind", [BarProgress, LineProgress])
def test_errors_pass_through_a_stage(kind):
    with pytest.raises(ZeroDivisionError), kind().stage("dividing") as advance:
        advance(1 // 0)


def test_quiet_means_quiet(capfd):
    console = Console(quiet=True)
    with console.work() as progress, progress.stage("calibrating", 3) as advance:
        advance(3)
        progress.note("nobody reads this")
    console.next("edgecls bench")
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_the_hint_leaves_json_alone(capfd):
    console = Console(json=True)
    console.result({"answer": 42}, "forty-two")
    console.next("edgecls bench")
    printed = capfd.readouterr()
    assert json.loads(printed.out) == {"answer": 42}
    assert "edgecls bench" in printed.err


def test_json_has_no_nan():
    assert json.loads(json_text({"drop": math.nan})) == {"drop": None}


def test_times_are_for_people():
    assert [time_text(s) for s in (0, 40.4, 100, 3600, 11100)] == ["0 s", "40 s", "2 min", "60 min", "3 h 05 min"]


def test_columns_line_up():
    lines = table_text(("name", "ms"), [("a", "10.25"), ("longer", "9")]).splitlines()
    assert [line.rstrip() for line in lines] == ["name       ms", "------  -----", "a       10.25", "longer      9"]


def test_sizes_are_for_people():
    assert (size_text(2_290_000), size_text(900)) == ("2.29 MB", "0.9 kB")
