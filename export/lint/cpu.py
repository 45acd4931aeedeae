"""What the linters of both engines for CPUs look for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from edgecls.calibration.graph import constant, origin
from edgecls.calibration.plan import weight_axis
from edgecls.export.lint import Found, dequantize_of, input_of, name_of, producer_of

WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
"""Operations with a weight as their second input that the engines for CPUs compute on integers."""

_LARGEST_CODE = 64
"""Two products of a byte and a weight must fit 16 bits: 255 · 2 · 64 ≤ 32,767."""


def activation_of(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that an activation comes from, directly or through operations that only move values."""
    return dequantize_of(origin(value))


def weights(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Node]]:
    """Every operation with quantized weights, and their DequantizeLinear."""
    for node in model.graph:
        pair = dequantize_of(input_of(node, 1)) if node.op_type in WEIGHTED else None
        if pair is not None and constant(_codes(pair)) is not None:
            yield node, pair


def quantized_nodes(model: ir.Model) -> frozenset[str]:
    """Names of the weighted operations that read codes on both sides."""
    return frozenset(
        name_of(node)
        for node in model.graph
        if node.op_type in WEIGHTED
        and activation_of(node.inputs[0]) is not None
        and activation_of(node.inputs[1]) is not None
    )


def half_quantized(model: ir.Model) -> Found:
    """Weighted operations that read codes on one side only."""
    for node in model.graph:
        if node.op_type not in WEIGHTED:
            continue
        sides = [activation_of(node.inputs[index]) is not None for index in (0, 1)]
        if sides[0] != sides[1]:
            which = "input but not its weight" if sides[0] else "weight but not its input"
            yield name_of(node), f"{node.op_type} has its {which} quantized"


def foreign_channels(model: ir.Model) -> Found:
    """Weights whose scales do not lie along the output channels."""
    for node, pair in weights(model):
        scale, codes = constant(input_of(pair, 1)), constant(_codes(pair))
        if scale is None or codes is None or scale.size == 1:
            continue
        axis = pair.attributes.get_int("axis", 1) % codes.ndim
        if axis != weight_axis(node):
            yield (
                name_of(node),
                f"the weight's {scale.size} scales lie along axis {axis}, not along its output channels (axis "
                f"{weight_axis(node)})",
            )


def scales_per_channel(model: ir.Model) -> Found:
    """Operations whose input has more than one scale."""
    for node in model.graph:
        pair = activation_of(node.inputs[0]) if node.op_type in WEIGHTED else None
        scale = constant(input_of(pair, 1)) if pair is not None else None
        if scale is not None and scale.size > 1:
            yield name_of(node), f"the input of {node.op_type} has {scale.size} scales"


def wide_weights(model: ir.Model) -> Found:
    """Weights whose products can saturate 16 bits."""
    for node, pair in weights(model):
        codes = constant(pair.inputs[0])
        if (
            codes is not None
            and codes.dtype == np.int8
            and (largest := int(np.abs(codes.astype(int)).max())) > _LARGEST_CODE
        ):
            yield name_of(node), f"the weight has the code {largest}: the sum of two products need not fit 16 bits"


def _codes(pair: ir.Node) -> ir.Value | None:
    """What a weight's DequantizeLinear reads: codes, or the floats that a QuantizeLinear makes codes of."""
    source = producer_of(pair.inputs[0])
    return source.inputs[0] if source is not None and source.op_type == "QuantizeLinear" else pair.inputs[0]
