"""The comparison with other quantizers: its figures, and that each of them makes a graph that its engine runs."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

FOLDER = str(Path(__file__).parent)


@pytest.fixture
def quantizers(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("quantizers")


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("peers")


def test_differences_are_the_peers_minus_ours(quantizers):
    rng = np.random.default_rng(0)
    right = 4 * rng.normal(size=(300, 5)).astype(np.float32)
    answers = {
        "fp32": right,
        "edgecls": right + rng.normal(0, 0.1, right.shape).astype(np.float32),
        "worse": right + rng.normal(0, 1.0, right.shape).astype(np.float32),
        "ours again": None,
    }
    answers["ours again"] = answers["edgecls"]
    times = dict.fromkeys(answers, (1.0, 0.5))
    rows = {row["quantizer"]: row for row in quantizers.rows_of("x", answers, right.argmax(axis=1), times)}
    assert rows["fp32"]["kl"] == rows["fp32"]["disagreement"] == rows["fp32"]["drop_pp"] == 0
    assert rows["worse"]["drop_pp"] == pytest.approx(100 * rows["worse"]["disagreement"])
    mean, low, high = rows["worse"]["kl_over_ours"]
    assert 0 < low < mean < high
    assert mean == pytest.approx(rows["worse"]["kl"] - rows["edgecls"]["kl"])
    assert rows["worse"]["disagreement_over_ours"][1] > 0
    assert rows["ours again"]["kl_over_ours"] == [0, 0, 0]
    middle, low, high = rows["ours again"]["disagreement_over_ours"]
    assert low < middle == 0 < high
    text = quantizers.table({"net": [*rows.values(), {"target": "x", "quantizer": "gone", "failed": "a | b"}]})
    assert {line.count("|") for line in text.splitlines()} == {12}


def test_without_labels_there_is_no_drop(quantizers):
    answers = {"fp32": np.eye(3, dtype=np.float32), "edgecls": np.eye(3, dtype=np.float32)}
    rows = quantizers.rows_of("x", answers, None, dict.fromkeys(answers, (1.0, 1.0)))
    assert "drop_pp" not in rows[1]
    assert "| net | x | edgecls |  | 0.00 |" in quantizers.table({"net": rows})


def test_graphs_take_turns(quantizers):
    calls = []
    runs = {name: lambda crop, name=name: calls.append(name) for name in ("fp32", "edgecls")}
    times = quantizers.timed(runs, np.zeros(1), 0)
    assert times["fp32"][1] == 1
    rounds = [calls[start : start + 10] for start in range(20, len(calls), 10)]
    assert all(taken[:5] == taken[:1] * 5 and taken[5:] == taken[5:6] * 5 and len(set(taken)) == 2 for taken in rounds)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "ort defaults",
        "ort min-max",
        "ort percentile",
        "ort entropy",
        "nncf onnx",
        "nncf",
        "nncf mixed",
        "nncf accuracy-aware",
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_every_peer_makes_a_graph_that_answers_like_the_float_one(peers, small, name):
    pytest.importorskip("nncf")
    import openvino

    from edgecls.export.trace import probe_pictures, run_onnx

    graph = small[1]
    pictures = probe_pictures(32, 32)
    expected = run_onnx(graph.proto, pictures)
    calibration = peers.Calibration(list(pictures[:, None]), [int(row.argmax()) for row in expected])
    made = (peers.ONNX_PEERS | peers.OPENVINO_PEERS)[name](graph, calibration, False)
    if name in peers.ONNX_PEERS:
        got = run_onnx(made, pictures)
    else:
        got = openvino.Core().compile_model(openvino.Core().read_model(*made), "CPU")([pictures])[0]
    assert np.abs(got - expected).mean() < expected.std() / 2
