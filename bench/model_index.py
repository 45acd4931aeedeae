"""A report as the `model-index` of a model card, which the Hugging Face Hub shows beside the model.

The format is the Hub's: https://github.com/huggingface/hub-docs/blob/main/modelcard.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

from edgecls.bench.compare import device_text
from edgecls.bench.measured import Measured
from edgecls.bench.report import Report, Run
from edgecls.runtime.errors import InputError


def model_index(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """The `model-index`: an entry for each name of a run, with a result for each report that it stands in.

    The data set is an `imagefolder`, named by its digest: reports hold no names of folders.

    Raises:
        InputError: A report is not valid, or holds no accuracy: a card must not quote the one and needs the other.
    """
    results: dict[str, list[dict[str, Any]]] = {}
    for item in measured:
        report = item.report
        if not report.valid:
            raise InputError(f"{item.name} is not valid, and a model card must not quote it: measure again")
        for run in report.runs:
            metrics = list(_metrics(report, run))
            if run.accuracy is None or run.accuracy.top1 is None:
                raise InputError(f"{item.name} holds no accuracy of {run.name}: measure on pictures in class folders")
            results.setdefault(run.name, []).append(
                {
                    "task": {"type": "image-classification", "name": "Image classification"},
                    "dataset": {
                        "type": "imagefolder",
                        "name": f"{run.accuracy.n} pictures of {report.dataset.n_folders} classes",
                        "args": {"sha256": report.dataset.sha256},
                    },
                    "metrics": metrics,
                }
            )
    return [{"name": name, "results": own} for name, own in results.items()]


def model_index_yaml(measured: Sequence[Measured]) -> str:
    """The `model-index` as YAML, to be put between the `---` lines of a model card.

    Raises:
        InputError: As `model_index`.
    """
    return "\n".join(_yaml({"model-index": model_index(measured)}, ""))


def _metrics(report: Report, run: Run) -> Iterator[dict[str, Any]]:
    accuracy, latency = run.accuracy, run.latency
    if accuracy is not None:
        figures: list[tuple[str, str, float | None, dict[str, Any]]] = [
            ("accuracy", "top-1", accuracy.top1, {}),
            ("accuracy", "top-5", accuracy.top5, {"k": 5}),
            ("f1", "macro F1", accuracy.macro_f1, {"average": "macro"}),
            ("roc_auc", "macro AUC", accuracy.macro_auc, {"average": "macro", "multi_class": "ovr"}),
        ]
        for kind, name, value, options in figures:
            if value is not None:
                yield _metric(kind, name, value, options)
        if run.role != "reference" and report.reference is not None and accuracy.drop_pp is not None:
            name = f"drop of top-1 against {report.runs[report.reference.run].name}, percentage points"
            options = {} if accuracy.ci95_pp is None else {"ci95": list(accuracy.ci95_pp)}
            yield _metric("accuracy_drop", name, accuracy.drop_pp, options)
    if latency is not None:
        threads = f"{latency.threads} {'thread' if latency.threads == 1 else 'threads'}"
        where = f"{device_text(report.device)}; {run.engine.name} {run.engine.version}, {threads}"
        yield _metric("latency", f"median latency, ms; {where}", latency.p50_ms, {})


def _metric(kind: str, name: str, value: float, options: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "name": name, "value": value} | ({"args": options} if options else {})


def _yaml(value: Any, indent: str) -> Iterator[str]:
    """Lines of block YAML; scalars are JSON, which YAML takes as they are, but for floats."""
    pairs = value.items() if isinstance(value, dict) else (("-", item) for item in value)
    for key, item in pairs:
        head = f"{indent}-" if key == "-" else f"{indent}{key}:"
        if isinstance(item, (dict, list)):
            inner = list(_yaml(item, indent + "  "))
            if key == "-":
                yield f"{head} {inner[0].lstrip()}"
                yield from inner[1:]
            else:
                yield head
                yield from inner
        else:
            yield f"{head} {_scalar(item)}"


def _scalar(value: str | float) -> str:
    if isinstance(value, float):
        # Not 1e-05, which YAML 1.1 takes for a text.
        return str(np.format_float_positional(value, precision=6, trim="0"))
    return msgspec.json.encode(value).decode()
