"""The first convolution reads the bytes: a pixel is the quantized value, nothing float comes before it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgecls.calibration.graph import constant, only_consumer
from edgecls.export.qdq import Grid, register
from edgecls.runtime.bundle import Padding


@dataclass(frozen=True)
class ByteStem:
    """How the bytes enter a graph whose first convolution reads them."""

    conv: ir.Node
    """The convolution; its input is the transposed bytes."""
    grid: Grid
    """What a byte means to it."""
    padding: Padding | None
    """What the session must put around the crop, where the convolution's own padding cannot."""


def feed_bytes(model: ir.Model, zero_point: int | None = None) -> ByteStem | None:
    """Takes Cast and Sub away from before the first convolution.

    conv(x − 255 m) = conv(x − z) + Σ W (z − 255 m): the difference between the channel means and the one zero point
    z that a grid has goes into the bias. What is left is the border, where zero padding must read as the mean. If the
    three rounded means are one number, that is z and the padding stays right to half a code. If not, z is 0, the
    convolution loses its padding, and the session writes the three rounded means around the crop.

    Args:
        zero_point: The z that the engine's grid forces; the padding stays where it is every channel's rounded mean.

    Requires: the graph begins as `take_bytes` left it.
    Ensures: the step of a byte is 1, so that the weights are those that the plan knows. The convolution's first input is uint8 `[batch, 3, height, width]`; a Q/DQ emitter must put a
        DequantizeLinear with `grid` there. The float value of every other tensor changes by rounding only.

    Returns:
        None, and an unchanged model, where the graph does not begin with a convolution.
    """
    graph = model.graph
    planes = only_consumer(graph.inputs[0])
    cast = only_consumer(planes.outputs[0]) if planes else None
    sub = only_consumer(cast.outputs[0]) if cast else None
    conv = only_consumer(sub.outputs[0]) if sub else None
    if planes is None or cast is None or sub is None or conv is None or (sub.op_type, conv.op_type) != ("Sub", "Conv"):
        return None
    mean, weight = constant(sub.inputs[1]), constant(conv.inputs[1])
    if mean is None or weight is None or planes.op_type != "Transpose" or cast.op_type != "Cast":
        return None
    mean = mean.reshape(3).astype(np.float64)
    rounded = np.rint(mean).astype(int)
    top, left, bottom, right = conv.attributes.get_ints("pads", (0, 0, 0, 0))
    if zero_point is None:
        zero_point = int(rounded[0]) if len(set(rounded.tolist())) == 1 else 0
    one = set(rounded.tolist()) == {zero_point} or not any((top, left, bottom, right))

    bias = constant(conv.inputs[2]) if len(conv.inputs) > 2 else None
    moved = (weight.astype(np.float64) * (zero_point - mean).reshape(1, 3, 1, 1)).sum(axis=(1, 2, 3))
    moved = moved if bias is None else moved + bias
    name = conv.name or "stem"
    conv.replace_input_with(0, planes.outputs[0])
    conv.resize_inputs(3)
    conv.replace_input_with(2, register(graph, f"{name}.bias:bytes", moved.astype(np.float32)))
    padding = None
    if not one:
        conv.attributes["pads"] = ir.AttrInt64s("pads", [0, 0, 0, 0])
        value = tuple(int(r) for r in rounded)
        padding = Padding(top_px=top, left_px=left, bottom_px=bottom, right_px=right, value=value)  # type: ignore[arg-type]
        height, width = (int(graph.inputs[0].shape[axis]) for axis in (1, 2))  # type: ignore[index, arg-type]
        batch = graph.inputs[0].shape[0]  # type: ignore[index]
        graph.inputs[0].shape = ir.Shape([batch, height + top + bottom, width + left + right, 3])
        planes.outputs[0].shape = ir.Shape([batch, 3, height + top + bottom, width + left + right])
    graph.remove([sub, cast], safe=True)
    return ByteStem(conv, Grid("uint8", 1.0, zero_point), padding)
