"""QuantizeLinear and DequantizeLinear: the grids, and writing them into a graph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgecls.calibration.graph import constant
from edgecls.calibration.plan import TensorRange, weight_axis

_CODES = {"uint8": (0, 255), "int8": (-128, 127)}


def half_scale(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """The smallest float16 values that are not below the given steps, so that no grid covers less than it shall."""
    half = np.asarray(scale, np.float16)
    half = np.where(half < scale, np.nextafter(half, np.float16(np.inf)), half)
    return half.astype(np.float32)


@dataclass(frozen=True)
class Grid:
    """The 8-bit grid of an activation: value = (code − zero_point) · scale."""

    dtype: Literal["uint8", "int8"]
    scale: float
    zero_point: int

    @property
    def low(self) -> float:
        """The smallest value on the grid; what is below saturates to it."""
        return (_CODES[self.dtype][0] - self.zero_point) * self.scale

    @property
    def high(self) -> float:
        """The largest value on the grid."""
        return (_CODES[self.dtype][1] - self.zero_point) * self.scale

    @classmethod
    def from_range(cls, tensor: TensorRange, dtype: Literal["uint8", "int8"]) -> Grid:
        """The asymmetric grid of 255 steps, with zero on it.

        `uint8` with zero point z and `int8` with z − 128 are the same grid.
        """
        low, high = tensor.asymmetric
        scale = float(np.float32((high - low) / 255))
        zero_point = int(np.clip(round(-low / scale), 0, 255))
        return cls(dtype, scale, zero_point + _CODES[dtype][0])

    @classmethod
    def symmetric(cls, tensor: TensorRange, *, half: bool) -> Grid:
        """The `int8` grid around zero, whose zero point is 0.

        Args:
            half: Whether the scale will be written as a float16.
        """
        scale = np.asarray(tensor.symmetric / 127, np.float32)
        return cls("int8", float(half_scale(scale) if half else scale), 0)

    def retyped(self, dtype: Literal["uint8", "int8"]) -> Grid:
        """The same values with codes of another type."""
        return Grid(dtype, self.scale, self.zero_point - _CODES[self.dtype][0] + _CODES[dtype][0])


def register(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    """Adds a constant to a graph, under a name that was not taken."""
    base, rank = name, 0
    while name in graph.initializers:
        rank += 1
        name = f"{base}:{rank}"
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.dtype, value.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
    graph.register_initializer(value)
    return value


def quantize_activation(
    graph: ir.Graph, value: ir.Value, grid: Grid, readers: Iterable[tuple[ir.Node, int]]
) -> ir.Value:
    """Puts value → QuantizeLinear → DequantizeLinear before the given inputs.

    Args:
        readers: (node, index of its input) pairs that shall see the quantized value; others keep the float one.

    Returns:
        The dequantized value.
    """
    scale = register(graph, f"{value.name}:scale", np.asarray(grid.scale, np.float32))
    zero_point = register(graph, f"{value.name}:zero_point", np.asarray(grid.zero_point, grid.dtype))
    readers = list(readers)
    quantize = ir.node("QuantizeLinear", [value, scale, zero_point], name=f"{value.name}:quantize")
    dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], scale, zero_point], name=f"{value.name}:dequantize")
    quantize.outputs[0].name, dequantize.outputs[0].name = f"{value.name}:codes", f"{value.name}:grid"
    quantize.outputs[0].dtype, dequantize.outputs[0].dtype = zero_point.dtype, ir.DataType.FLOAT
    quantize.outputs[0].shape = dequantize.outputs[0].shape = value.shape
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], [quantize, dequantize])
    else:
        graph.insert_after(producer, [quantize, dequantize])
    for node, index in readers:
        node.replace_input_with(index, dequantize.outputs[0])
    return dequantize.outputs[0]


def dequantize_codes(graph: ir.Graph, grid: Grid, reader: ir.Node) -> ir.Value:
    """Puts a DequantizeLinear before the first input of a node, which is codes already."""
    codes = reader.inputs[0]
    assert codes is not None
    scale = register(graph, f"{codes.name}:scale", np.asarray(grid.scale, np.float32))
    zero_point = register(graph, f"{codes.name}:zero_point", np.asarray(grid.zero_point, grid.dtype))
    node = ir.node("DequantizeLinear", [codes, scale, zero_point], name=f"{codes.name}:dequantize")
    node.outputs[0].name, node.outputs[0].dtype, node.outputs[0].shape = (
        f"{codes.name}:grid",
        ir.DataType.FLOAT,
        codes.shape,
    )
    graph.insert_before(reader, node)
    reader.replace_input_with(0, node.outputs[0])
    return node.outputs[0]


def quantize_weight(
    graph: ir.Graph,
    node: ir.Node,
    bounds: Sequence[float],
    *,
    bits: int = 8,
    bias_scale: float | None = None,
    half: bool = False,
    codes_in_file: bool = True,
    offset: NDArray[np.float64] | None = None,
) -> None:
    """Replaces a node's weight by int8 codes and a DequantizeLinear, one symmetric scale an output channel.

    Args:
        bounds: The largest |weight| on the grid of each channel.
        bits: 8, or 7 where pairs of products are summed in 16 bits and must not saturate.
        bias_scale: Scale of the quantized input, where the bias shall become int32 codes of scale input · weight; None
            leaves it in float.
        half: Whether the scales will be written as float16.
        codes_in_file: Whether the file holds the codes; else it holds their float values, which a QuantizeLinear turns
            into the same codes.
        offset: A number for each of the first input channels whose product with the weight is part of the bias: there
            too the weight is rounded.
    """
    source = node.inputs[1]
    assert source is not None
    assert source.const_value is not None
    weight = source.const_value.numpy().astype(np.float64)
    axis = weight_axis(node)
    largest = 2 ** (bits - 1) - 1
    scale = np.asarray(bounds, np.float64) / largest
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if bias_scale is not None and bias is not None:
        # An almost dead channel's bias would not fit int32: its weights can afford a coarser step.
        scale = np.maximum(scale, np.abs(bias.astype(np.float64)) / (bias_scale * 2.0**30))
    scale = scale.astype(np.float32)
    scale = half_scale(scale) if half else scale
    shape = [1] * weight.ndim
    shape[axis] = -1
    codes = np.clip(np.rint(weight / scale.reshape(shape)), -largest, largest).astype(np.int8)
    name = source.name or "weight"
    values = None if codes_in_file else (codes * scale.reshape(shape)).astype(np.float32)
    node.replace_input_with(1, _dequantized(graph, node, name, codes, scale, axis, values))
    if offset is not None and bias is not None:
        error = codes * scale.astype(np.float64).reshape(shape) - weight
        bias = bias + np.einsum("oihw,i->o", error[:, : len(offset)], offset)
        node.replace_input_with(2, register(graph, f"{node.name}.bias:rounded", bias.astype(np.float32)))
    if bias_scale is not None and bias is not None:
        steps = scale.astype(np.float64) * bias_scale
        steps = steps.astype(np.float32)
        int32 = np.rint(bias.astype(np.float64) / steps).astype(np.int32)
        node.replace_input_with(2, _dequantized(graph, node, f"{node.name}.bias", int32, steps, 0))


def _dequantized(
    graph: ir.Graph,
    reader: ir.Node,
    name: str,
    codes: NDArray[np.generic],
    scale: NDArray[np.floating],
    axis: int,
    values: NDArray[np.float32] | None = None,
) -> ir.Value:
    """Codes → DequantizeLinear before a reader; or values → QuantizeLinear → DequantizeLinear."""
    scale_input = register(graph, f"{name}:scale", scale)
    zero_point = register(graph, f"{name}:zero_point", np.zeros(scale.shape, codes.dtype))
    shape = ir.Shape(codes.shape)
    if values is None:
        source = register(graph, f"{name}:codes", codes)
    else:
        floats = register(graph, f"{name}:values", values)
        quantize = ir.node(
            "QuantizeLinear", [floats, scale_input, zero_point], {"axis": axis}, name=f"{reader.name}:{name}:quantize"
        )
        source = quantize.outputs[0]
        source.name, source.dtype, source.shape = f"{reader.name}:{name}:codes", zero_point.dtype, shape
        graph.insert_before(reader, quantize)
    node = ir.node(
        "DequantizeLinear", [source, scale_input, zero_point], {"axis": axis}, name=f"{reader.name}:{name}:dequantize"
    )
    node.outputs[0].name, node.outputs[0].dtype = f"{reader.name}:{name}:grid", ir.DataType.FLOAT
    node.outputs[0].shape = shape
    graph.insert_before(reader, node)
    return node.outputs[0]
