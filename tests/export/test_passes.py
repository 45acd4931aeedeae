"""Every pass on graphs small enough to read."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecls.calibration.graph import Graph
from edgecls.export.passes.cast_bytes import cast_bytes
from edgecls.export.passes.dequantize_bytes import dequantize_bytes
from edgecls.export.passes.feed_bytes import feed_bytes
from edgecls.export.passes.fold_gemm_factors import fold_gemm_factors
from edgecls.export.passes.fold_layer_scale import fold_layer_scale
from edgecls.export.passes.name_by_module import name_by_module
from edgecls.export.passes.resolve_auto_pad import resolve_auto_pad
from edgecls.export.passes.restore_average_pool import restore_average_pool
from edgecls.export.passes.split_constants import split_constants
from edgecls.export.passes.take_bytes import take_bytes
from edgecls.export.qdq import dequantize_codes
from edgecls.export.trace import probe_pictures, run_onnx
from edgecls.models.normalize import normalized
from edgecls.runtime import Preprocess
from edgecls.runtime.session import Session

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def parsed(text: str) -> ir.Model:
    model = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text), strict_mode=True)
    return ir.from_proto(model)


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def stem_model(pads=(1, 1, 1, 1), bias=True, seed=0) -> ir.Model:
    """x float [n, 3, 8, 8] → Conv → Flatten → logits."""
    rng = np.random.default_rng(seed)
    side = (8 + pads[0] + pads[2] - 3) // 2 + 1, (8 + pads[1] + pads[3] - 3) // 2 + 1
    weight = onnx.numpy_helper.from_array(rng.normal(size=(4, 3, 3, 3)).astype(np.float32), "stem.weight")
    offset = onnx.numpy_helper.from_array(rng.normal(size=4).astype(np.float32), "stem.bias")
    inputs = ["x", "stem.weight", "stem.bias"] if bias else ["x", "stem.weight"]
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Conv", inputs, ["y"], strides=[2, 2], pads=list(pads), kernel_shape=[3, 3]),
            onnx.helper.make_node("Flatten", ["y"], ["logits"]),
        ],
        "stem",
        [onnx.helper.make_tensor_value_info("x", 1, ["n", 3, 8, 8])],
        [onnx.helper.make_tensor_value_info("logits", 1, ["n", 4 * side[0] * side[1]])],
        [weight, offset] if bias else [weight],
    )
    opset = [onnx.helper.make_opsetid("", 20)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def proto_of(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString()


@pytest.mark.parametrize("keepdims", [0, 1])
def test_mean_over_pixels_becomes_a_pool(keepdims):
    shape = "[n, 5, 1, 1]" if keepdims else "[n, 5]"
    model = parsed(
        f"""<ir_version: 10, opset_import: ["": 20]>
        g (float[n, 5, 4, 4] x) => (float{shape} y) <int64[2] axes = {{-1, -2}}>
        {{ y = ReduceMean<keepdims = {keepdims}>(x, axes) }}"""
    )
    before = proto_of(model)
    assert restore_average_pool(model)
    assert kinds(model) == (["GlobalAveragePool"] if keepdims else ["GlobalAveragePool", "Flatten"])
    values = np.random.default_rng(0).normal(size=(2, 5, 4, 4)).astype(np.float32)
    after = Graph.from_ir(model).proto
    np.testing.assert_allclose(run_onnx(after, values), run_onnx(before, values), atol=1e-6)


@pytest.mark.parametrize(("dims", "axes", "out"), [("n, 5, 4, 4", "{1, 2}", "n, 4"), ("n, 5, 4", "{1, 2}", "n")])
def test_other_means_stay(dims, axes, out):
    model = parsed(
        f"""<ir_version: 10, opset_import: ["": 20]>
        g (float[{dims}] x) => (float[{out}] y) <int64[2] axes = {axes}>
        {{ y = ReduceMean<keepdims = 0>(x, axes) }}"""
    )
    assert not restore_average_pool(model)
    assert kinds(model) == ["ReduceMean"]


@settings(max_examples=30)
@given(
    mean=st.tuples(*[st.floats(0, 1)] * 3),
    std=st.tuples(*[st.floats(0.1, 1)] * 3),
    colour=st.sampled_from(["rgb", "bgr"]),
    bias=st.booleans(),
    pads=st.sampled_from([(1, 1, 1, 1), (0, 0, 1, 1), (0, 0, 0, 0)]),
)
def test_bytes_in_gives_the_same_as_normalised_floats_in(mean, std, colour, bias, pads):
    preprocess = Preprocess(resize_px=8, crop_px=8, mean=mean, std=std, colour=colour)
    model = stem_model(pads, bias)
    pictures = probe_pictures(8, 2)
    expected = run_onnx(proto_of(model), normalized(pictures, preprocess))
    assert take_bytes(model, preprocess)
    assert kinds(model) == ["Transpose", "Cast", "Sub", "Conv", "Flatten"]
    got = run_onnx(Graph.from_ir(model).proto, pictures)
    np.testing.assert_allclose(got, expected, atol=1e-5 * max(1, float(np.abs(expected).max())))


@pytest.mark.parametrize("colour", ["rgb", "bgr"])
def test_a_network_that_begins_otherwise_keeps_its_arithmetic(colour):
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[n, 3, 4, 4] x) => (float[n, 48] logits) { y = Relu(x) logits = Flatten(y) }"""
    )
    preprocess = Preprocess(resize_px=4, crop_px=4, colour=colour, **IMAGENET)
    pictures = probe_pictures(4, 2)
    expected = run_onnx(proto_of(model), normalized(pictures, preprocess))
    take_bytes(model, preprocess)
    np.testing.assert_allclose(run_onnx(Graph.from_ir(model).proto, pictures), expected, atol=1e-5)
    assert feed_bytes(model) is None


@settings(max_examples=30)
@given(
    mean=st.one_of(
        st.tuples(*[st.floats(0, 1)] * 3), st.floats(0, 1).map(lambda m: (m, m, m)), st.just(IMAGENET["mean"])
    ),
    bias=st.booleans(),
    pads=st.sampled_from([(1, 1, 1, 1), (0, 0, 1, 1), (0, 0, 0, 0)]),
)
def test_bytes_fed_to_the_stem_are_right_inside_and_right_to_half_a_code_at_the_border(mean, bias, pads):
    preprocess = Preprocess(resize_px=8, crop_px=8, mean=mean, std=(0.25, 0.25, 0.25))
    model = stem_model(pads, bias)
    take_bytes(model, preprocess)
    pictures = probe_pictures(8, 3)
    expected = run_onnx(Graph.from_ir(model).proto, pictures).reshape(3, 4, -1)
    weight = model.graph.initializers["stem.weight"].const_value.numpy()

    stem = feed_bytes(model)
    dequantize_codes(model.graph, stem.grid, stem.conv)
    got = run_onnx(Graph.from_ir(model).proto, Session.pad(pictures, stem.padding)).reshape(3, 4, -1)
    half_a_code = np.abs(weight).sum(axis=(1, 2, 3)).max() * 0.5
    error = np.abs(got - expected)
    assert error.max() <= half_a_code + 1e-3
    rows = round(np.sqrt(expected.shape[2]))
    if rows * rows == expected.shape[2] and rows > 2:
        inside = error.reshape(3, 4, rows, rows)[:, :, 1:-1, 1:-1]
        assert inside.max() <= 1e-3
    rounded = {round(255 * m) for m in mean}
    assert (stem.padding is None) == (len(rounded) == 1 or not any(pads))
    assert stem.grid.scale == 1.0


def expanding() -> ir.Model:
    """A token for every picture, as a vision transformer has, beside what the stem makes."""
    return parsed(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[n, 3, 4, 4] x) => (float[n, 36] logits)
        <float[2, 3, 1, 1] w = {1, 2, 3, 4, 5, 6}, float[1, 4] token = {1, 2, 3, 4}, int64[1] four = {4}>
        { b = Shape<start = 0, end = 1>(x) y = Conv(x, w) l = Flatten(y) s = Concat<axis = 0>(b, four)
          t = Expand(token, s) logits = Concat<axis = 1>(t, l) }"""
    )


def test_who_asks_for_the_batch_does_not_keep_the_stem_from_the_bytes():
    preprocess = Preprocess(resize_px=4, crop_px=4, **IMAGENET)
    model = expanding()
    pictures = probe_pictures(4, 3)
    expected = run_onnx(proto_of(model), normalized(pictures, preprocess))
    take_bytes(model, preprocess)
    assert "Mul" not in kinds(model)
    np.testing.assert_allclose(run_onnx(Graph.from_ir(model).proto, pictures), expected, rtol=1e-4, atol=1e-4)
    stem = feed_bytes(model, 128)
    assert stem is not None
    dequantize_codes(model.graph, stem.grid, stem.conv)
    np.testing.assert_allclose(run_onnx(Graph.from_ir(model).proto, pictures), expected, rtol=1e-4, atol=1e-3)
    for order in (dequantize_bytes, cast_bytes):
        other = ir.from_proto(onnx.load_model_from_string(Graph.from_ir(model).proto))
        assert order(other)
        np.testing.assert_allclose(run_onnx(Graph.from_ir(other).proto, pictures), expected, rtol=1e-4, atol=1e-3)
    assert [use.node.op_type for use in other.graph.inputs[0].uses()] == ["Cast"]


def test_names_come_from_modules_and_are_the_same_every_time():
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[n, 2] image) => (float[n, 2] logits) <float[2, 2] w = {1, 0, 0, 1}>
        { a = Relu(image) b = Gemm(a, w) c = Relu(b) d = Gemm(c, w) logits = Relu(d) }"""
    )
    model.graph.initializers["w"].name = "block.fc.weight"
    assert name_by_module(model)
    assert [node.name for node in model.graph] == ["Relu_0", "block.fc", "Relu_1", "Gemm_0", "Relu_2"]
    assert [node.outputs[0].name for node in model.graph] == ["Relu_0", "block.fc", "Relu_1", "Gemm_0", "logits"]


def test_what_has_no_weight_is_named_after_the_module_that_torch_wrote_down():
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[n, 2] image) => (float[n, 2] logits)
        { a = Relu(image) b = Add(a, image) c = Add(a, b) d = Add(c, b) e = Add(d, c) f = Add(e, d)
          logits = Relu(f) }"""
    )
    scopes = [
        "['', 'act', 'relu']",
        "['', 'blocks', 'blocks.0', 'add']",
        "['', 'blocks', 'blocks.0', 'add_1']",
        "['', 'blocks', 'blocks.1', 'add_2']",
        "['', 'add_3']",
        "['_empty_nn_module_stack_from_metadata_hook', 'sym', 'add_4']",
        "['",
    ]
    for node, scope in zip(model.graph, scopes, strict=True):
        node.metadata_props["pkg.torch.onnx.name_scopes"] = scope
    assert name_by_module(model)
    assert [node.name for node in model.graph] == [
        "act.Relu_0", "blocks.0.Add_0", "blocks.0.Add_1", "blocks.1.Add_0", "Add_0", "Add_1", "Relu_0"
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("operation", ["Conv", "MaxPool", "AveragePool"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_automatic_padding_is_written_out(kind, operation, stride):
    weight = ", w" if operation == "Conv" else ""
    model = parsed(
        f"""<ir_version: 10, opset_import: ["": 20]>
        g (float[n, 2, 8, 7] x) => (float[n, c, h, k] y) <float[1, 2, 3, 2] w = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3}}>
        {{ y = {operation}<auto_pad = "{kind}", kernel_shape = [3, 2], strides = [{stride}, {stride}]>(x{weight}) }}"""
    )
    values = np.random.default_rng(0).normal(size=(2, 2, 8, 7)).astype(np.float32)
    before = run_onnx(proto_of(model), values)
    assert resolve_auto_pad(model)
    assert not resolve_auto_pad(model)
    assert "auto_pad" not in model.graph[0].attributes
    np.testing.assert_allclose(run_onnx(Graph.from_ir(model).proto, values), before, atol=1e-5)


def test_automatic_padding_of_unknown_sides_stays():
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[n, 2, h, w] x) => (float[n, 2, a, b] y)
        { y = MaxPool<auto_pad = "SAME_UPPER", kernel_shape = [3, 3], strides = [2, 2]>(x) }"""
    )
    assert not resolve_auto_pad(model)


@pytest.mark.parametrize(
    ("bias", "values", "factors"),
    [
        ("float[3] b = {1, 2, 3}", ", b", "alpha = 0.5, beta = 2.0"),
        ("float[1, 3] b = {1, 2, 3}", ", b", "alpha = 1.0"),
        ("float[1] b = {4}", ", b", "beta = 0.25"),
        ("float b = {4}", ", b", "beta = 1.0"),
        ("float b = {4}", "", "alpha = 3.0"),
    ],
)
@pytest.mark.parametrize("transposed", [0, 1])
def test_factors_of_a_gemm_go_into_its_weight_and_bias(bias, values, factors, transposed):
    shape = "[3, 2]" if transposed else "[2, 3]"
    model = parsed(
        f"""<ir_version: 10, opset_import: ["": 20]>
        g (float[n, 2] x) => (float[n, 3] y) <float{shape} w = {{1, 2, 3, 4, 5, 6}}, {bias}>
        {{ y = Gemm<{factors}, transB = {transposed}>(x, w{values}) }}"""
    )
    pictures = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    before = run_onnx(proto_of(model), pictures)
    assert fold_gemm_factors(model)
    assert not fold_gemm_factors(model)
    gemm = model.graph[0]
    assert set(gemm.attributes) == {"transB"}
    assert [value.shape for value in gemm.inputs[2:]] == ([ir.Shape([3])] if values else [])
    np.testing.assert_allclose(run_onnx(Graph.from_ir(model).proto, pictures), before, atol=1e-5)


def test_a_gemm_with_a_computed_bias_stays():
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[n, 2] x) => (float[n, 2] y) <float[2, 2] w = {1, 2, 3, 4}>
        { b = Relu(x) y = Gemm<alpha = 2.0>(x, w, b) }"""
    )
    assert not fold_gemm_factors(model)


@pytest.mark.parametrize("shape", ["2, 1, 1", "1, 2, 1, 1"])
@pytest.mark.parametrize("bias", ["", ", b"])
@pytest.mark.parametrize("product", ["Mul(c, scale)", "Mul(scale, c)"])
def test_a_layer_scale_goes_into_the_convolution(shape, bias, product):
    model = parsed(
        f"""<ir_version: 10, opset_import: ["": 20]>
        g (float[n, 2, 4, 4] x) => (float[n, 2, 4, 4] y)
        <float[2, 2, 1, 1] w = {{1, 2, 3, 4}}, float[2] b = {{5, 6}}, float[{shape}] scale = {{0.5, -3}}>
        {{ c = Conv(x, w{bias}) m = {product} y = Add(m, x) }}"""
    )
    pictures = np.random.default_rng(0).normal(size=(3, 2, 4, 4)).astype(np.float32)
    before = run_onnx(proto_of(model), pictures)
    assert fold_layer_scale(model)
    assert not fold_layer_scale(model)
    assert kinds(model) == ["Conv", "Add"]
    assert model.graph[0].inputs[1].name == "w"
    np.testing.assert_allclose(run_onnx(Graph.from_ir(model).proto, pictures), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "body",
    [
        "c = Conv(x, w) m = Mul(c, row) y = Add(m, x)",
        "c = Conv(x, w) m = Mul(c, scale) y = Add(m, c)",
        "b = GlobalAveragePool(x) c = Conv(x, w) m = Mul(c, b) y = Add(m, x)",
    ],
)
def test_other_products_stay(body):
    model = parsed(
        f"""<ir_version: 10, opset_import: ["": 20]>
        g (float[n, 2, 4, 2] x) => (float[n, 2, 4, 2] y)
        <float[2, 2, 1, 1] w = {{1, 2, 3, 4}}, float[2] row = {{5, 6}}, float[2, 1, 1] scale = {{0.5, -3}}>
        {{ {body} }}"""
    )
    assert not fold_layer_scale(model)
    assert "Mul" in kinds(model)


@pytest.mark.parametrize("how", ["Split<num_outputs = 2>(w)", "Split<axis = -1>(w, sizes)"])
def test_constants_are_split_beforehand(how):
    model = parsed(
        f"""<ir_version: 10, opset_import: ["": 20]>
        g (float[n, 2] x) => (float[n, 2] y) <float[5] w = {{1, 2, 3, 4, 5}}, int64[2] sizes = {{3, 2}}>
        {{ three, two = {how} most = ReduceMax<keepdims = 1>(three) sum = Add(x, two) y = Add(sum, most) }}"""
    )
    pictures = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    before = run_onnx(proto_of(model), pictures)
    assert split_constants(model)
    assert not split_constants(model)
    assert kinds(model) == ["ReduceMax", "Add", "Add"]
    np.testing.assert_array_equal(run_onnx(proto_of(model), pictures), before)


def test_a_constant_with_computed_sizes_stays_whole():
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[n, 2] x, int64[2] sizes) => (float[a] y) <float[5] w = {1, 2, 3, 4, 5}>
        { y, z = Split(w, sizes) }"""
    )
    assert not split_constants(model)


def test_a_stem_with_a_computed_bias_is_not_fed_bytes():
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[n, 3, 4, 4] x) => (float[n, 32] logits)
        <float[2, 3, 1, 1] w = {1, 2, 3, 4, 5, 6}, float[2] one = {1, 1}>
        { b = Relu(one) y = Conv(x, w, b) logits = Flatten(y) }"""
    )
    take_bytes(model, Preprocess(resize_px=4, crop_px=4, **IMAGENET))
    assert feed_bytes(model) is None


def test_names_and_weights_of_the_network_survive_the_bytes():
    """Constants called as ours are, and a stem's weight that another convolution reads too."""
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[n, 3, 4, 4] x) => (float[n, 48] last)
        <float[3, 3, 1, 1] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}, float mean = {2}, float scale = {3}, float image = {4},
         float logits = {5}>
        { a = Conv(x, w) b = Mul(a, scale) c = Add(b, mean) d = Conv(c, w) e = Add(d, image) f = Mul(e, logits)
          last = Flatten(f) }"""
    )
    preprocess = Preprocess(resize_px=4, crop_px=4, **IMAGENET)
    pictures = probe_pictures(4, 2)
    expected = run_onnx(proto_of(model), normalized(pictures, preprocess))
    take_bytes(model, preprocess)
    model.graph.outputs[0].name = "logits"
    name_by_module(model)
    np.testing.assert_allclose(run_onnx(Graph.from_ir(model).proto, pictures), expected, rtol=1e-4)
