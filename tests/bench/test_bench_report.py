from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import reports

from edgecls.bench.gate import judge
from edgecls.bench.gate_result import Limits, Margin
from edgecls.bench.report import Report, predictions_path, read_report, report_stem, samples_path, write_report
from edgecls.bench.report_schema import SCHEMA_PATH, report_schema
from edgecls.runtime.errors import InputError

MakeReport = Callable[..., Report]


def test_a_report_survives_the_file(make_report: MakeReport, tmp_path: Path) -> None:
    report = make_report(("int8", 2, 1), ("other", None, None), ratios=())
    path = tmp_path / "report.json"
    write_report(report, path)
    assert read_report(path) == report
    document = msgspec.json.decode(path.read_bytes())
    assert next(iter(document)) == "schema"
    assert document["schema"] == "edgecls.report/1"
    assert list(document)[1:] == [
        "tool", "valid", "reasons", "device", "conditions", "dataset", "reference", "runs",
        "predictions_sha256", "samples_sha256", "gate",
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


@pytest.mark.parametrize(
    ("name", "stem"), [("report.json", "report"), ("lite-1.0", "lite-1.0"), ("lite-1.5.json", "lite-1.5")]
)
def test_only_json_is_no_part_of_a_reports_name(name: str, stem: str) -> None:
    path = Path("folder") / name
    assert report_stem(path) == stem
    assert predictions_path(path) == Path("folder") / f"{stem}.predictions.npz"
    assert samples_path(path) == Path("folder") / f"{stem}.samples.npz"


def test_the_answer_of_a_gate_survives_the_file(tmp_path: Path) -> None:
    limits = Limits(max_drop=Margin(2.0, "%rel"), max_latency_ratio=1.0, max_rss_bytes=1, max_cold_start_ms=1.0)
    report = reports.report()
    report = msgspec.structs.replace(report, gate=judge(report, limits))
    write_report(report, tmp_path / "report.json")
    assert read_report(tmp_path / "report.json") == report
    assert faults(msgspec.to_builtins(report), schema()) == []


def test_the_file_of_the_schema_is_that_of_the_records() -> None:
    assert SCHEMA_PATH.read_text(encoding="utf-8") == report_schema(), "the records changed: run `make schema`"


def test_the_schema_is_the_same_in_every_process() -> None:
    program = "from edgecls.bench.report_schema import report_schema; print(report_schema(), end='')"
    seeded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, env={**os.environ, "PYTHONHASHSEED": "1"}
    )
    assert seeded.stdout.decode() == report_schema()


def test_a_report_of_the_first_version_still_loads() -> None:
    path = Path(__file__).parents[1] / "data" / "report-1.json"
    document = msgspec.json.decode(path.read_bytes())
    assert faults(document, schema()) == []
    report = read_report(path)
    assert [run.name for run in report.runs] == ["digits-onnxruntime-fp32", "digits-onnxruntime-int8"]
    candidate = report.runs[1].accuracy
    assert candidate is not None
    assert candidate.drop_pp == document["runs"][1]["accuracy"]["drop_pp"]
    assert candidate.per_class is not None
    assert candidate.per_class[0].drop_p_holm is None
    assert judge(report, Limits(max_drop=Margin(5.0), max_rss_bytes=10**9)).verdict == "pass"


def test_the_schema_finds_what_is_no_report() -> None:
    document = msgspec.to_builtins(reports.report())
    assert faults(document, schema()) == []
    document["runs"][0]["latency"]["p50_ms"] = "10"
    document["runs"][1].pop("engine")
    document["runs"][1]["artifact"]["precision"] = "int4"
    assert faults(document, schema()) == ["$.runs.0.latency", "$.runs.1.engine", "$.runs.1.artifact.precision"]


def schema() -> dict[str, Any]:
    read: dict[str, Any] = msgspec.json.decode(SCHEMA_PATH.read_bytes())
    return read


_KINDS = {"object": dict, "array": (list, tuple), "string": str, "boolean": bool, "null": type(None)}


def faults(value: Any, rule: dict[str, Any], where: str = "$") -> list[str]:
    """Where a document breaks the schema, as far as the schema of records goes."""
    if "$ref" in rule:
        rule = schema()["$defs"][rule["$ref"].rpartition("/")[2]]
    if "anyOf" in rule:
        return [] if any(not faults(value, option, where) for option in rule["anyOf"]) else [where]
    kind = rule.get("type")
    if kind in ("integer", "number"):
        right = isinstance(value, int if kind == "integer" else (int, float)) and not isinstance(value, bool)
    else:
        right = kind is None or isinstance(value, _KINDS[kind])
    if not right or ("enum" in rule and value not in rule["enum"]):
        return [where]
    found: list[str] = []
    if isinstance(value, dict):
        found += [f"{where}.{name}" for name in rule.get("required", ()) if name not in value]
        for name, item in value.items():
            inner = rule.get("properties", {}).get(name, rule.get("additionalProperties", {}))
            found += faults(item, inner, f"{where}.{name}")
    elif isinstance(value, (list, tuple)):
        rules = rule.get("prefixItems", [rule.get("items")] * len(value))
        for number, (item, inner) in enumerate(zip(value, rules, strict=True)):
            found += faults(item, inner or {}, f"{where}.{number}")
    return found
