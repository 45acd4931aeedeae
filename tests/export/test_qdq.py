import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecls.calibration.plan import TensorRange
from edgecls.export.qdq import Grid, quantize_weight, register

RANGES = st.tuples(st.floats(-1e3, 0), st.floats(0, 1e3)).filter(lambda ends: ends[1] - ends[0] > 1e-3)


def tensor(low, high):
    return TensorRange(minimum=low, maximum=high, asymmetric=(low, high), symmetric=max(-low, high))


@given(RANGES)
def test_zero_is_on_every_grid_and_the_range_is_covered_to_a_step(ends):
    grid = Grid.from_range(tensor(*ends), "uint8")
    assert 0 <= grid.zero_point <= 255
    assert grid.low <= 0 <= grid.high
    assert abs(grid.low - ends[0]) <= grid.scale
    assert abs(grid.high - ends[1]) <= grid.scale


@given(RANGES)
def test_unsigned_and_signed_are_the_same_grid(ends):
    unsigned, signed = (Grid.from_range(tensor(*ends), dtype) for dtype in ("uint8", "int8"))
    assert signed == unsigned.retyped("int8")
    assert (signed.low, signed.high) == (unsigned.low, unsigned.high)
    assert unsigned == signed.retyped("uint8")


def conv(weight, bias):
    graph = ir.Graph([ir.Value(name="x")], [], nodes=[], opset_imports={"": 20})
    inputs = [graph.inputs[0], register(graph, "w", weight), register(graph, "b", bias)]
    node = ir.node("Conv", inputs, name="conv")
    graph.append(node)
    graph.outputs.append(node.outputs[0])
    return graph, node


def dequantized(value):
    codes, scale, zero_point = (part.const_value.numpy() for part in value.producer().inputs)
    assert not zero_point.any()
    return codes, codes * scale.reshape(-1, *[1] * (codes.ndim - 1)).astype(np.float64)


@pytest.mark.parametrize(("bits", "largest"), [(8, 127), (7, 63)])
def test_weights_lie_within_half_a_step_of_their_channel(bits, largest):
    rng = np.random.default_rng(0)
    weight = (rng.normal(size=(5, 3, 3, 3)) * np.logspace(-3, 1, 5).reshape(5, 1, 1, 1)).astype(np.float32)
    bounds = np.abs(weight).max(axis=(1, 2, 3))
    graph, node = conv(weight, np.zeros(5, np.float32))
    quantize_weight(graph, node, bounds.tolist(), bits=bits)
    codes, values = dequantized(node.inputs[1])
    assert np.abs(codes).max() == largest
    steps = (bounds / largest).reshape(5, 1, 1, 1)
    assert (np.abs(values - weight) <= steps * 0.5001).all()
    assert node.inputs[2].const_value.dtype == ir.DataType.FLOAT


def test_an_int32_bias_keeps_its_value_even_on_a_dead_channel():
    weight = np.ones((2, 1, 1, 1), np.float32)
    weight[1] = 1e-9
    bias = np.asarray([0.3, 40.0], np.float32)
    graph, node = conv(weight, bias)
    quantize_weight(graph, node, [1.0, 1e-9], bias_scale=0.02)
    codes, values = dequantized(node.inputs[2])
    assert codes.dtype == np.int32
    np.testing.assert_allclose(values, bias, rtol=1e-3)
    input_scale = 0.02
    weight_scale = node.inputs[1].producer().inputs[1].const_value.numpy()
    bias_scale = node.inputs[2].producer().inputs[1].const_value.numpy()
    np.testing.assert_allclose(bias_scale, weight_scale * input_scale, rtol=1e-6)
