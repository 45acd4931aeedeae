"""Where the Q/DQ pairs stand, by the rules of each engine."""

import dataclasses

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from networks import IMAGENET, classifier, plan_of
from torch import nn

from edgecls.calibration.graph import Graph
from edgecls.export.placement import place
from edgecls.export.targets import ANY_GPU, target_module
from edgecls.export.targets import onnxruntime as ort_target
from edgecls.export.targets import openvino as ov_target
from edgecls.export.targets import tensorrt as trt_target
from edgecls.export.trace import probe_pictures, run_onnx, trace
from edgecls.runtime.session import Session

ORT = ort_target.rules("x86-vnni")
OPENVINO = ov_target.rules("x86-vnni")
TENSORRT = trt_target.dialect_rules(trt_target.STRONG)
TARGETS = ("onnxruntime", "openvino", "tensorrt")


def placed(small, rules, plan=None):
    _, graph, own = small
    model = graph.ir_model()
    placement = place(model, plan or own, rules)
    return model, placement, Graph.from_ir(model)


def disagreement(small, placement, quantized, side=32):
    pictures = probe_pictures(side, 32)
    expected = run_onnx(small[1].proto, pictures)
    got = run_onnx(quantized.proto, Session.pad(pictures, placement.padding))
    return np.abs(got - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("rules", [ORT, OPENVINO, ort_target.rules("arm64"), ort_target.rules("x86")])
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


@pytest.mark.parametrize("rules", [ORT, OPENVINO, ov_target.rules("x86"), TENSORRT])
def test_a_picture_of_the_means_gives_the_bias_whatever_the_weights_are_rounded_to(rules):
    """The bias takes off what the rounded weights make of the mean, not what the exact ones would."""
    stem = nn.Conv2d(3, 16, 4, 4)
    with torch.no_grad():
        stem.weight[:] = 0.0104  # of steps of 0.01 or 0.02: all are rounded to the same side
        stem.weight[:, 0, 0, 0] = 1.27
    graph = trace(classifier(nn.Sequential(stem, nn.Flatten()).eval(), 8, 64, std=(0.2, 0.3, 0.25))).graph
    plan = plan_of(graph, probe_pictures(8, 8))
    model = graph.ir_model()
    padding = place(model, plan, rules).padding
    grey = np.broadcast_to(np.rint(255 * np.asarray(IMAGENET["mean"])).astype(np.uint8), (1, 8, 8, 3)).copy()
    got = run_onnx(ir.to_proto(model).SerializeToString(), Session.pad(grey, padding))
    low, high = plan.tensors["0"].asymmetric
    step = (high - low) / 255 if rules.closed else 0
    np.testing.assert_allclose(got, run_onnx(graph.proto, grey), atol=0.002 + step)


def test_int8_activations_reach_the_first_convolution_by_an_exact_change_of_type(small):
    model, _, _ = placed(small, ort_target.rules("arm64"))
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


@pytest.mark.parametrize("rules", [ORT, OPENVINO, TENSORRT])
def test_what_stays_in_float_keeps_no_correction_of_its_rounding(rules):
    graph = trace(classifier(nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.Flatten()).eval(), 8, 64)).graph
    plan = plan_of(graph, probe_pictures(8, 8))
    (conv,) = plan.weights
    plan = msgspec.structs.replace(plan, float_nodes={conv: "test"}, bias_shifts={rules.name: {conv: (1.0,) * 16}})
    _, placement, quantized = placed((None, graph, plan), rules)
    assert disagreement((None, graph, plan), placement, quantized, side=8) < 1e-5


def test_a_moved_tensor_lies_on_the_grid_of_its_source(small):
    model, _, _ = placed(small, ORT)
    pool = next(node for node in model.graph if node.op_type == "MaxPool")
    before = pool.inputs[0].producer()
    (after,) = {use.node for use in pool.outputs[0].uses()}
    assert (before.op_type, after.op_type) == ("DequantizeLinear", "QuantizeLinear")
    for index in (1, 2):
        assert before.inputs[index].const_value.numpy() == after.inputs[index].const_value.numpy()


def parsed(text: str, arrays: dict[str, np.ndarray] | None = None) -> Graph:
    """A graph of ONNX' textual form, nodes called as their outputs; `arrays` are further constants."""
    model = onnx.parser.parse_model(text)
    for node in model.graph.node:
        node.name = node.output[0]
    constants = (onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in (arrays or {}).items())
    model.graph.initializer.extend(constants)
    return Graph.from_ir(ir.from_proto(onnx.shape_inference.infer_shapes(model)))


def test_halves_of_channels_lie_on_the_grid_of_the_whole():
    """As in ShuffleNetV2: ONNX Runtime splits codes where nothing changes their grid."""
    graph = parsed(
        """<ir_version: 10, opset_import: ["": 20]>
        g (uint8[n, 4, 4, 3] image) => (float[n, 64] logits)
        <float[4, 3, 1, 1] w = {100, 20, -100, 30, 100, -70, 1, 0, -1, 0, 1, 1}, float[2, 2, 1, 1] v = {1, 2, 3, 4},
         float[1] mean = {128}>
        { p = Transpose<perm = [0, 3, 1, 2]>(image) f = Cast<to = 1>(p) s = Sub(f, mean) c = Conv(s, w)
          a, b = Split<axis = 1, num_outputs = 2>(c) d = Conv(a, v) e = Concat<axis = 1>(b, d) logits = Flatten(e) }"""
    )
    plan = plan_of(graph, probe_pictures(4, 16))
    model, placement, quantized = placed((None, graph, plan), ORT)
    assert disagreement((None, graph, plan), placement, quantized, side=4) < 0.1
    kinds = ort_target.optimised_kinds(quantized.proto)[1]
    assert kinds["DequantizeLinear"] <= 1  # of the answer
    (split,) = [node for node in model.graph if node.op_type == "Split"]
    assert {use.node.op_type for half in split.outputs for use in half.uses()} == {"QuantizeLinear"}


def test_parts_of_a_tensor_have_grids_of_their_own():
    """Queries and keys are a hundred times as large as the values beside them in one fused product."""
    graph = parsed(
        """<ir_version: 10, opset_import: ["": 20]>
        g (uint8[n, 4, 4, 3] image) => (float[n, 256] logits)
        <float[4, 3, 1, 1] w = {100, 20, -100, 30, 100, -70, 1, 0, -1, 0, 1, 1}, float[1] mean = {128},
         int64[3] flat = {0, 4, 16}, int64[1] none = {0}, int64[1] two = {2}, int64[1] all = {4}, int64[1] one = {1}>
        { p = Transpose<perm = [0, 3, 1, 2]>(image) f = Cast<to = 1>(p) s = Sub(f, mean) c = Conv(s, w)
          r = Reshape(c, flat) q = Slice(r, none, two, one) v = Slice(r, two, all, one)
          t = Transpose<perm = [0, 2, 1]>(q) a = MatMul(t, v) logits = Flatten(a) }"""
    )
    plan = plan_of(graph, probe_pictures(4, 16))
    _, placement, quantized = placed((None, graph, plan), OPENVINO)
    assert disagreement((None, graph, plan), placement, quantized, side=4) < 0.1


@pytest.mark.parametrize("target", TARGETS)
def test_a_product_whose_left_side_is_a_constant_stays_in_float(target):
    """Tokens that are mixed by a learned matrix, as `self.mix @ tokens`."""
    rng = np.random.default_rng(0)
    arrays = {"w": rng.normal(size=(16, 3, 4, 4)), "mix": rng.normal(size=(12, 16))}
    graph = parsed(
        """<ir_version: 10, opset_import: ["": 20]>
        g (uint8[n, 8, 8, 3] image) => (float[n, 48] logits) <float[1] mean = {128}, int64[3] flat = {0, 16, 4}>
        { p = Transpose<perm = [0, 3, 1, 2]>(image) f = Cast<to = 1>(p) s = Sub(f, mean)
          c = Conv<strides = [4, 4]>(s, w) r = Reshape(c, flat) mixed = MatMul(mix, r) logits = Flatten(mixed) }""",
        arrays,
    )
    plan = plan_of(graph, probe_pictures(8, 16))
    artifact = target_module(target).compile_artifact(graph, "int8", plan, "x86-vnni", ANY_GPU)
    (note,) = [note for note in artifact.notes if "its weight is its left side" in note]
    assert "mixed" in note


def transformer(norm):
    """Two blocks that add to a stream and read it through something."""
    rng = np.random.default_rng(0)
    shapes = {"w": (6, 3, 2, 2), "a": (6, 6), "b": (6, 6), "one": (6,)}
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    graph = parsed(
        f"""<ir_version: 10, opset_import: ["": 20]>
        g (uint8[n, 8, 8, 3] image) => (float[n, 96] logits) <float[1] mean = {{128}}, int64[3] flat = {{0, 6, 16}}>
        {{ p = Transpose<perm = [0, 3, 1, 2]>(image) f = Cast<to = 1>(p) s = Sub(f, mean)
          c = Conv<strides = [2, 2]>(s, w) r = Reshape(c, flat) x = Transpose<perm = [0, 2, 1]>(r)
          first = {norm} left = MatMul(first, a) y = Add(x, left) second = {norm.replace("x", "y")}
          right = MatMul(second, b) z = Add(y, right) last = {norm.replace("x", "z")} logits = Flatten(last) }}""",
        arrays,
    )
    return None, graph, plan_of(graph, probe_pictures(8, 16))


@pytest.mark.parametrize("rules", [ORT, OPENVINO, TENSORRT])
def test_sums_that_a_layer_norm_reads_stay_in_float(rules):
    model, placement, _ = placed(transformer("LayerNormalization(x, one)"), rules)
    assert {"y", "z"} <= set(placement.floats)
    sums = [node.outputs[0] for node in model.graph if node.op_type == "Add"]
    assert {use.node.op_type for value in sums for use in value.uses()} == {"Add", "LayerNormalization"}


@pytest.mark.parametrize("rules", [ORT, OPENVINO, TENSORRT])
def test_sums_that_no_layer_norm_reads_are_integer(rules):
    model, placement, _ = placed(transformer("Relu(x)"), rules)
    assert not {"y", "z"} & set(placement.floats)
    for node in model.graph:
        if node.op_type == "Add":
            assert "DequantizeLinear" in {value.producer().op_type for value in node.inputs}


def test_what_computes_in_half_precision_stays_in_float_and_is_told():
    graph = parsed(
        """<ir_version: 10, opset_import: ["": 20]>
        g (uint8[n, 8, 8, 3] image) => (float[n, 2] logits)
        <float[2, 3, 1, 1] w = {1, 2, 3, 4, 5, 6}, float16[2, 2, 1, 1] half = {1, 2, 3, 4}, float[1] mean = {9}>
        { p = Transpose<perm = [0, 3, 1, 2]>(image) f = Cast<to = 1>(p) s = Sub(f, mean) a = Conv(s, w)
          h = Cast<to = 10>(a) c = Conv(h, half) b = Cast<to = 1>(c) g2 = GlobalAveragePool(b) logits = Flatten(g2) }"""
    )
    plan = plan_of(graph, probe_pictures(8, 16))
    _, placement, quantized = placed((None, graph, plan), ORT)
    assert placement.floats == {"c": "it computes in float16"}
    assert disagreement((None, graph, plan), placement, quantized, side=8) < 0.1


def test_the_fourth_byte_of_a_pixel_makes_no_difference(small):
    _, placement, quantized = placed(small, ORT)
    assert placement.padding.pixel_bytes == 4
    pixels = Session.pad(probe_pictures(32, 4), placement.padding)
    other = pixels.copy()
    other[..., 3] = 255 - other[..., 3]
    np.testing.assert_array_equal(run_onnx(quantized.proto, pixels), run_onnx(quantized.proto, other))


def test_wide_pixels_change_no_logit(small):
    _, placement, wide = placed(small, ORT)
    _, narrow_placement, narrow = placed(small, dataclasses.replace(ORT, wide_pixels=False))
    pictures = probe_pictures(32, 4)
    np.testing.assert_array_equal(
        run_onnx(wide.proto, Session.pad(pictures, placement.padding)),
        run_onnx(narrow.proto, Session.pad(pictures, narrow_placement.padding)),
    )
