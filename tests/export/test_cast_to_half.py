"""The float16 body: what stays in float32, and that it computes the same."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgecls.calibration.graph import Graph
from edgecls.export.lint.tensorrt import lint
from edgecls.export.passes.cast_to_half import cast_to_half
from edgecls.export.qdq import half_scale

HEAD = '<ir_version: 9, opset_import: ["": 20]>\n'


def model_of(body):
    text = f"{HEAD} g (float[batch, 4, 8, 8] image) => (float[batch, 4, 8, 8] logits) {body}"
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text), strict_mode=True))
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


def run(model, image):
    session = ort.InferenceSession(Graph.from_ir(model).proto, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image})[0]


def kinds(model):
    return {node.op_type: node.outputs[0].dtype for node in model.graph}


def test_the_body_is_float16_and_the_ends_are_not():
    model = model_of("<float k = {0.5}> { a = Relu(image) b = Mul(a, k) logits = Sigmoid(b) }")
    assert cast_to_half(model, {}) == {}
    assert {kinds(model)[kind] for kind in ("Relu", "Mul", "Sigmoid")} == {ir.DataType.FLOAT16}
    assert (model.graph.inputs[0].dtype, model.graph.outputs[0].dtype) == (ir.DataType.FLOAT, ir.DataType.FLOAT)
    assert model.graph.outputs[0].name == "logits"


def test_what_would_overflow_stays_in_float32():
    body = "<float k = {1000.0}> { big = Mul(image, k) small = Sigmoid(big) logits = Relu(small) }"
    image = np.linspace(-300, 300, 256, dtype=np.float32).reshape(1, 4, 8, 8)
    expected = run(model_of(body), image)
    model = model_of(body)
    kept = cast_to_half(model, {"image": 300.0, "big": 300_000.0})
    assert set(kept.values()) == {"big reaches 3e+05, too near to float16's largest value, 65504"}
    assert kinds(model)["Mul"] == ir.DataType.FLOAT
    assert kinds(model)["Relu"] == ir.DataType.FLOAT16
    np.testing.assert_allclose(run(model, image), expected, atol=1e-3)


def test_there_is_headroom_for_other_pictures():
    body = "{ a = Relu(image) logits = Sigmoid(a) }"
    assert cast_to_half(model_of(body), {"a": 65504 / 2 - 1}) == {}
    assert len(cast_to_half(model_of(body), {"a": 65504 / 2 + 1})) == 2


def test_a_pooling_whose_sum_would_overflow_stays_in_float32():
    body = "{ p = GlobalAveragePool(image) logits = Add(image, p) }"
    assert cast_to_half(model_of(body), {"image": 500.0}) == {}
    (reason,) = cast_to_half(model_of(body), {"image": 600.0}).values()
    assert reason.startswith("its sums reach 3.84e+04")


def test_sensitive_operations_stay_in_float32():
    model = model_of("{ a = Relu(image) s = Softmax<axis = 1>(a) logits = Relu(s) }")
    assert list(cast_to_half(model, {}).values()) == ["Softmax loses too much in float16"]
    assert kinds(model)["Softmax"] == ir.DataType.FLOAT


@pytest.mark.parametrize(("constant", "reason"), [("100000.0", "beyond float16"), ("0.000000001", "become zero")])
def test_constants_that_float16_lacks(constant, reason):
    model = model_of(f"<float k = {{{constant}}}> {{ a = Add(image, k) logits = Relu(a) }}")
    assert reason in "".join(cast_to_half(model, {}).values())
    assert kinds(model)["Add"] == ir.DataType.FLOAT


def test_a_clip_without_an_end_stays_one():
    model = model_of("<float low = {0.0}, float high = {3.0e38}> { logits = Clip(image, low, high) }")
    assert cast_to_half(model, {}) == {}
    image = np.full((1, 4, 8, 8), 60000, np.float32)
    np.testing.assert_array_equal(run(model, image), image)


def test_a_pair_has_the_type_of_its_reader():
    pair = "<float s = {0.5}, int8 z = {0}> { c = QuantizeLinear(image, s, z) d = DequantizeLinear(c, s, z) "
    model = model_of(pair + "logits = Relu(d) }")
    assert cast_to_half(model, {}) == {}
    assert kinds(model)["DequantizeLinear"] == ir.DataType.FLOAT16
    model = model_of(pair + "logits = Exp(d) }")
    cast_to_half(model, {})
    assert "Cast" not in kinds(model)
    assert kinds(model)["DequantizeLinear"] == ir.DataType.FLOAT


@given(arrays(np.float32, 8, elements=st.floats(2.0**-40, 3e4, width=32)))
def test_a_half_scale_covers_at_least_what_it_should(scale):
    half = half_scale(scale)
    assert (half >= scale).all()
    assert (half.astype(np.float16) == half).all()
    below = np.nextafter(half.astype(np.float16), np.float16(0))
    assert (below < scale).all()


def test_the_scales_of_a_resize_stay_float32():
    model = model_of(
        "<float[4] s = {1., 1., 2., 2.}, float[4] t = {1., 1., 0.5, 0.5}> "
        '{ a = Resize<mode = "nearest">(image, , s) b = Resize<mode = "nearest">(a, , t) logits = Relu(b) }'
    )
    assert cast_to_half(model, {}) == {}
    assert not [finding for finding in lint(Graph.from_ir(model), "strong") if finding.rule == "mixed-types"]
    assert kinds(model)["Resize"] == ir.DataType.FLOAT16


def test_what_fills_a_shape_is_float16_too():
    body = "<int64[1] one = {1}> { fill = ConstantOfShape<value = float[1] {2.0}>(one) logits = Mul(image, fill) }"
    image = np.linspace(-2, 2, 512, dtype=np.float32).reshape(2, 4, 8, 8)
    model = model_of(body)
    assert cast_to_half(model, {}) == {}
    assert kinds(model)["ConstantOfShape"] == ir.DataType.FLOAT16
    np.testing.assert_allclose(run(model, image), 2 * image, rtol=1e-3)
