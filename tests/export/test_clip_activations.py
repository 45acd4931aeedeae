"""Quantized activations made float again."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgecls.export.passes.clip_activations import clamp_ends_seen, clip_activations, grid_ends, quantized_tensors
from edgecls.export.targets.onnxruntime import compile_artifact
from edgecls.export.trace import probe_pictures, run_onnx
from edgecls.runtime.session import Session


@pytest.fixture
def placed(small):
    _, graph, plan = small
    artifact = compile_artifact(graph, "int8", plan, "x86-vnni")
    return ir.from_proto(onnx.load_model_from_string(artifact.files["model.onnx"])), artifact.padding


def answers(model, padding):
    return run_onnx(ir.to_proto(model).SerializeToString(), Session.pad(probe_pictures(32, 16), padding))


def test_without_rounding_the_graph_answers_as_the_float_graph_does(small, placed):
    _, graph, plan = small
    model, padding = placed
    again = ir.from_proto(ir.to_proto(model))
    expected = run_onnx(graph.proto, probe_pictures(32, 16))
    pairs = quantized_tensors(model, plan.tensors)
    assert len(pairs) > 10
    ends = {name: clamp_ends_seen(tensor.minimum, tensor.maximum) for name, tensor in plan.tensors.items()}
    assert clip_activations(model, ends)
    assert not quantized_tensors(model, plan.tensors)
    off = np.abs(answers(model, padding) - expected).mean()
    # The clamps that placement left to the grids are there again: without them the answers are others.
    clip_activations(again, dict.fromkeys(plan.tensors, (-math.inf, math.inf)))
    assert off < np.abs(answers(again, padding) - expected).mean() / 5
    assert off < 0.1 * expected.std()


def test_at_the_ends_of_the_grids_values_saturate_as_codes_do(small, placed):
    plan, (model, padding) = small[2], placed
    name, node = next(iter(quantized_tensors(model, plan.tensors).items()))
    low, high = grid_ends(node)
    kept = plan.tensors[name].asymmetric
    assert (low, high) == pytest.approx(kept, abs=(kept[1] - kept[0]) / 255)
    assert clip_activations(model, {name: (0.0, 0.0)})
    assert np.ptp(answers(model, padding), axis=0) == pytest.approx(0, abs=1e-3)


def test_a_graph_without_pairs_is_left_alone(small):
    model = small[1].ir_model()
    assert not clip_activations(model, {"image": (0.0, 1.0)})


def test_whole_numbers_are_the_ends_of_a_clamp():
    assert clamp_ends_seen(0.0, 6.0) == (0.0, 6.0)
    assert clamp_ends_seen(0.0, 5.93) == (0.0, math.inf)
    assert clamp_ends_seen(-2.7, 0.31) == (-math.inf, math.inf)
