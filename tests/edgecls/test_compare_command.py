"""What `edgecls compare` prints and writes."""

import csv
import json

import pytest
import reports

from edgecls import cli
from edgecls.bench.report import write_report


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with the reports of a Pi, of the same Pi after a change, and of another board."""
    monkeypatch.chdir(tmp_path)
    write_report(reports.report(), "pi.json")
    write_report(reports.report(speed=1.5), "slower.json")
    write_report(reports.report(model="Raspberry Pi 4"), "other.json")
    return tmp_path


def test_a_terminal_gets_tables_and_what_forbids_a_ratio(capsys):
    assert cli.main(["compare", "pi.json", "slower.json", "other.json"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("pi: Raspberry Pi 5, Cortex-A76, arm64, 4 of 4 cores\n")
    assert "1.50 [" in text
    assert "note: int8 (other): no ratio, for these differ: device (Raspberry Pi 5" in text
    assert "note: int8 (slower): no ratio" not in text


def test_the_page_is_written_and_named(folder, capsys):
    assert cli.main(["compare", "pi.json", "--html", "page.html"]) == 0
    assert capsys.readouterr().out.endswith("\npage: page.html\n")
    assert (folder / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_markdown_and_csv_stand_alone_on_standard_output(capsys):
    assert cli.main(["compare", "pi.json", "slower.json", "--format", "md", "--html", "page.html"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line == "" or line.startswith("| ") for line in lines)
    assert cli.main(["compare", "pi.json", "slower.json", "--format", "csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [(row["report"], row["name"], row["p50_ms"]) for row in rows] == [
        ("pi", "fp32", "10.0"),
        ("pi", "int8", "4.0"),
        ("slower", "fp32", "15.0"),
        ("slower", "int8", "6.0"),
    ]


@pytest.mark.parametrize("flags", [["--json"], ["--format", "json"]])
def test_json_is_the_comparison(flags, capsys):
    assert cli.main(["compare", "pi.json", "other.json", *flags]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "edgecls.comparison/1"
    assert [item["differences"][0]["field"] for item in document["contrasts"]] == ["device", "device"]


def test_what_is_no_report_is_one_error(folder, capsys):
    (folder / "x.json").write_text("{}")
    assert cli.main(["compare", "x.json", "--format", "json"]) == 2
    printed = capsys.readouterr()
    assert "x.json is no report" in printed.err
    assert json.loads(printed.out)["error"]["exit_code"] == 2


def test_the_folder_of_the_page_must_exist(capsys):
    assert cli.main(["compare", "pi.json", "--html", "nowhere/page.html"]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_the_page_does_not_replace_a_report(folder, capsys):
    before = (folder / "other.json").read_bytes()
    assert cli.main(["compare", "pi.json", "other.json", "--html", "other.json"]) == 2
    assert "other.json is read by this command" in capsys.readouterr().err
    assert (folder / "other.json").read_bytes() == before


def test_a_model_card_gets_its_model_index(capsys):
    assert cli.main(["compare", "pi.json", "other.json", "--format", "model-index"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["model-index:", '  - name: "fp32"', "    results:"]
    assert lines.count("      - task:") == 4
    assert '          - type: "accuracy"' in lines
