"""Squeeze-and-excitation: products of one number a channel, whose result weighs all pixels of a channel."""

from __future__ import annotations

import onnx_ir as ir

from edgecls.calibration.graph import SAME_GRID, constant
from edgecls.calibration.plan import WEIGHTED

ON_PIXELS = "it works on single pixels (squeeze-and-excitation), where float is faster"


def squeezes(node: ir.Node) -> str | None:
    """Why a weighted operation of a gate stays in float: conversions would cost more than the products.

    A product of single pixels that gates nothing (a head) is one like any other.
    """
    if node.op_type not in WEIGHTED or constant(node.inputs[1]) is None or not _is_vector(node.inputs[0]):
        return None
    ahead, seen = [node.outputs[0]], set()
    while ahead:
        value = ahead.pop()
        for use in value.uses():
            output = use.node.outputs[0]
            if use.node.op_type == "Mul" and _is_pixel(value) and output.shape is not None and not _is_pixel(output):
                return ON_PIXELS
            if (use.node.op_type in SAME_GRID | {"Softmax"} or _is_vector(output)) and output not in seen:
                seen.add(output)
                ahead.append(output)
    return None


def _is_vector(value: ir.Value | None) -> bool:
    """Whether a tensor is `[batch, channels]`, or that with sides of 1 behind."""
    shape = list(value.shape) if value is not None and value.shape is not None else []
    return len(shape) > 1 and all(size == 1 for size in shape[2:])


def _is_pixel(value: ir.Value) -> bool:
    """Whether a tensor is `[…, channels, 1, 1]`."""
    shape = list(value.shape) if value.shape is not None else []
    return len(shape) > 3 and shape[-2:] == [1, 1]
