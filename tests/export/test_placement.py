"""Where the Q/DQ pairs stand, by the rules of each engine."""

import msgspec
import numpy as np
import pytest

from edgecls.calibration.graph import Graph
from edgecls.export.placement import place
from edgecls.export.targets import onnxruntime as ort_target
from edgecls.export.targets import openvino as ov_target
from edgecls.export.trace import probe_pictures, run_onnx
from edgecls.runtime.session import Session

ORT = ort_target.rules("uint8", 8)
OPENVINO = ov_target.rules(8)


def placed(small, rules, plan=None):
    _, graph, own = small
    model = graph.ir_model()
    placement = place(model, plan or own, rules)
    return model, placement, Graph.from_ir(model)


def disagreement(small, placement, quantized):
    pictures = probe_pictures(32, 32)
    expected = run_onnx(small[1].proto, pictures)
    got = run_onnx(quantized.proto, Session.pad(pictures, placement.padding))
    return np.abs(got - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("rules", [ORT, OPENVINO, ort_target.rules("int8", 8), ort_target.rules("uint8", 7)])
def test_the_quantized_graph_still_computes_the_network(small, rules):
    _, placement, quantized = placed(small, rules)
    assert disagreement(small, placement, quantized) < (0.2 if rules.weight_bits == 7 else 0.1)


def test_no_clamp_is_left_where_a_grid_saturates(small):
    model, _, _ = placed(small, ORT)
    assert not [node for node in model.graph if node.op_type in {"Relu", "Clip"}]


def test_nothing_float_stands_before_the_first_convolution(small):
    model, placement, _ = placed(small, ORT)
    kinds = [node.op_type for node in model.graph if "weight" not in node.name and "bias" not in node.name]
    assert kinds[:3] == ["Transpose", "DequantizeLinear", "Conv"]
    assert placement.padding.value == (124, 116, 104)


def test_int8_activations_reach_the_first_convolution_by_an_exact_change_of_type(small):
    model, _, _ = placed(small, ort_target.rules("int8", 8))
    types = {
        str(node.inputs[2].const_value.dtype)
        for node in model.graph
        if node.op_type == "QuantizeLinear" and node.inputs[2].const_value is not None
    }
    assert types == {"INT8"}


def test_openvino_keeps_squeeze_and_excitation_in_float_and_says_so(small):
    model, placement, _ = placed(small, OPENVINO)
    squeezes = [name for name in placement.floats if "reduce" in name or "expand" in name]
    assert len(squeezes) == 4
    for node in model.graph:
        if node.name in placement.floats:
            assert all(v.producer() is None or v.producer().op_type != "DequantizeLinear" for v in node.inputs[:1])


def test_a_node_that_the_plan_leaves_in_float_stays_in_float(small):
    plan = msgspec.structs.replace(small[2], float_nodes={"head.0": "the user said so"})
    model, placement, quantized = placed(small, ORT, plan)
    assert placement.floats == {"head.0": "the user said so"}
    head = next(node for node in model.graph if node.name == "head.0")
    assert head.inputs[1].const_value.dtype.name == "FLOAT"
    assert disagreement(small, placement, quantized) < 0.1


def test_a_stem_in_float_still_reads_bytes(small):
    plan = msgspec.structs.replace(small[2], float_nodes={"stem.0": "test"})
    model, placement, quantized = placed(small, ORT, plan)
    assert [node.op_type for node in model.graph][:2] == ["Transpose", "DequantizeLinear"]
    assert disagreement(small, placement, quantized) < 0.1


def test_a_moved_tensor_lies_on_the_grid_of_its_source(small):
    model, _, _ = placed(small, ORT)
    pool = next(node for node in model.graph if node.op_type == "MaxPool")
    before = pool.inputs[0].producer()
    (after,) = {use.node for use in pool.outputs[0].uses()}
    assert (before.op_type, after.op_type) == ("DequantizeLinear", "QuantizeLinear")
    for index in (1, 2):
        assert before.inputs[index].const_value.numpy() == after.inputs[index].const_value.numpy()
