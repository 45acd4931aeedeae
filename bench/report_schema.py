"""The JSON Schema of the report, which other programs check and generate code from.

`report.schema.json` lies beside this file in the package; `make schema` writes it again after a change of the records.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgecls.bench.report import Report

SCHEMA_PATH = Path(__file__).with_name("report.schema.json")


def report_schema() -> str:
    """The schema of `edgecls.report/1`, JSON Schema 2020-12, as the file has it."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(Report)}
    return msgspec.json.format(msgspec.json.encode(schema), indent=2).decode() + "\n"


if __name__ == "__main__":
    print(SCHEMA_PATH.write_text(report_schema(), encoding="utf-8"), "characters:", SCHEMA_PATH)
