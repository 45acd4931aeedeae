"""Standard output holds the result alone; progress stays on standard error."""

import json
import math

import pytest

from edgecls.console import BarProgress, Console, LineProgress, json_text, size_text, table_text


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


def test_columns_line_up():
    lines = table_text(("name", "ms"), [("a", "10.25"), ("longer", "9")]).splitlines()
    assert [line.rstrip() for line in lines] == ["name       ms", "------  -----", "a       10.25", "longer      9"]


def test_sizes_are_for_people():
    assert (size_text(2_290_000), size_text(900)) == ("2.29 MB", "0.9 kB")
