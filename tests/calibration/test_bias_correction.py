import msgspec
import numpy as np
import onnx_ir as ir
import pytest
from networks import classifier, plan_of
from torch import nn

from edgecls.calibration.bias_correction import bias_shifts, shift_biases
from edgecls.calibration.graph import Graph
from edgecls.calibration.walk import walk
from edgecls.export.placement import place
from edgecls.export.targets import target_module
from edgecls.export.trace import probe_pictures, run_onnx, trace
from edgecls.runtime.session import Session

PICTURES = probe_pictures(32, 24)


def learned(graph, plan, target):
    """The plan with what its Q/DQ graph for a target should add to its biases."""
    rules = target_module(target).rules("x86-vnni")
    model = graph.ir_model()
    padding = place(model, plan, rules).padding
    shifts = bias_shifts(graph, model, [PICTURES], [Session.pad(PICTURES, padding)], lambda n: None)
    return msgspec.structs.replace(plan, bias_shifts={rules.name: shifts}), rules


def means(model, pictures):
    """By weighted node: mean of each channel."""
    return {
        step.node.name: step.outputs[0].mean(axis=(0, 2, 3))
        for step in walk(model, [pictures])
        if step.node.op_type == "Conv"
    }


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt"])
def test_the_means_come_nearer_to_those_of_the_float_graph(small, target):
    _, graph, plan = small
    # Coarse weights move means: every bound is three times too large.
    coarse = msgspec.structs.replace(plan, weights={n: tuple(3 * b for b in c) for n, c in plan.weights.items()})
    corrected, rules = learned(graph, coarse, target)
    expected = means(graph.ir_model(), PICTURES)

    def distance(plan):
        model = graph.ir_model()
        padding = place(model, plan, rules).padding
        got = means(model, Session.pad(PICTURES, padding))
        return sum(float(np.abs(got[name] - expected[name]).sum()) for name in corrected.bias_shifts[rules.name])

    assert distance(corrected) < 0.5 * distance(coarse)


def test_single_pixels_are_not_corrected(small):
    _, graph, plan = small
    corrected, rules = learned(graph, plan, "onnxruntime")
    named = set(corrected.bias_shifts[rules.name])
    assert "stem.0" in named
    assert not any("reduce" in name or "expand" in name or name == "fc" for name in named)


def test_what_stays_in_float_is_not_corrected(small):
    _, graph, plan = small
    corrected, rules = learned(graph, msgspec.structs.replace(plan, float_nodes={"head.0": "test"}), "onnxruntime")
    named = set(corrected.bias_shifts[rules.name])
    assert "stem.0" in named
    assert "head.0" not in named


def test_a_network_of_matrix_products_alone_has_nothing_to_correct():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5), nn.ReLU(), nn.Linear(5, 7))
    graph = trace(classifier(network.eval())).graph
    corrected, rules = learned(graph, plan_of(graph, PICTURES), "onnxruntime")
    assert corrected.bias_shifts == {rules.name: {}}


def test_shifts_are_added_and_a_missing_bias_is_made(small):
    _, graph, _ = small
    model = graph.ir_model()
    node = next(node for node in model.graph if node.op_type == "Gemm")
    shift_biases(model, {node.name: (1.0, -2.0, 0.0, 0.0, 0.0, 0.0, 3.0)})
    moved = run_onnx(Graph.from_ir(model).proto, PICTURES) - run_onnx(graph.proto, PICTURES)
    np.testing.assert_allclose(moved, np.tile([1, -2, 0, 0, 0, 0, 3], (len(PICTURES), 1)), atol=1e-5)
    bare = ir.node("Conv", [node.inputs[0], node.inputs[1]])
    assert len(bare.inputs) == 2
