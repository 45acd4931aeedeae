"""Quantized activations become float again: rounding goes, and of saturation stays what is asked for."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping

import numpy as np
import onnx_ir as ir

from edgecls.calibration.graph import constant
from edgecls.export.qdq import Grid, register

_GRID = ":grid"
"""What `quantize_activation` appends to the name of a tensor whose quantized form it makes."""


def gridded(name: str) -> str:
    """What the quantized form of a tensor is called, and the Clip's output in its place."""
    return f"{name}{_GRID}"


def quantized_tensors(model: ir.Model, planned: Container[str]) -> dict[str, ir.Node]:
    """The activations that have a Q/DQ pair: name of the float tensor to its DequantizeLinear, in graph order.

    Args:
        planned: The names that the plan has a range for; the pixels, exact on their grid, are not among them.
    """
    found = {}
    for node in model.graph:
        name = node.outputs[0].name or ""
        if node.op_type == "DequantizeLinear" and name.endswith(_GRID) and name.removesuffix(_GRID) in planned:
            found[name.removesuffix(_GRID)] = node
    return found


def clip_activations(model: ir.Model, ends: Mapping[str, tuple[float, float]]) -> bool:
    """Puts a Clip in the place of activations' QuantizeLinear and DequantizeLinear.

    Args:
        ends: (low, high) by name of the float tensor, infinite where nothing shall be cut off. With the ends of the
            grids, values saturate as the codes do but are not rounded.

    Requires: Q/DQ pairs and names as `quantize_activation` writes them.
    Ensures: every other tensor keeps its name, a Clip's output has that of the DequantizeLinear; weights stay
        quantized.

    Returns:
        Whether there was any such pair.
    """
    graph, pairs = model.graph, quantized_tensors(model, ends)
    for name, dequantize in pairs.items():
        codes, old = dequantize.inputs[0], dequantize.outputs[0]
        quantize = codes.producer() if codes is not None else None
        assert quantize is not None
        kind = np.float16 if old.dtype == ir.DataType.FLOAT16 else np.float32
        limits = [
            register(graph, f"{name}:{side}", np.asarray(end, kind))
            for side, end in zip(("low", "high"), ends[name], strict=True)
        ]
        clip = ir.node("Clip", [quantize.inputs[0], *limits], name=f"{name}:clip")
        value = clip.outputs[0]
        value.dtype, value.shape = old.dtype, old.shape
        graph.insert_before(quantize, clip)
        ir.convenience.replace_all_uses_with(old, value)
        graph.remove([dequantize, quantize], safe=True)
        value.name = gridded(name)
    return bool(pairs)


def grid_ends(dequantize: ir.Node) -> tuple[float, float]:
    """The smallest and the largest value on a DequantizeLinear's grid."""
    scale, zero_point = constant(dequantize.inputs[1]), constant(dequantize.inputs[2])
    assert scale is not None
    assert zero_point is not None
    grid = Grid("int8" if zero_point.dtype == np.int8 else "uint8", float(scale), int(zero_point))
    return grid.low, grid.high


def clamp_ends_seen(minimum: float, maximum: float) -> tuple[float, float]:
    """The ends of the Relu or Clip that made a tensor, guessed from the smallest and the largest value ever seen.

    Placement lets a grid's saturation do the work of a Relu or Clip, so that the node is gone. An end of it was met
    exactly and is a whole number (0, 6); an end that is none was merely the largest value on those pictures.
    """
    return (minimum if minimum.is_integer() else -math.inf), (maximum if maximum.is_integer() else math.inf)
