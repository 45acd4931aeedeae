"""The first convolution reads the bytes: a pixel is the quantized value, nothing float comes before it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgecls.calibration.graph import constant, only_consumer, only_reader
from edgecls.export.qdq import Grid, register
from edgecls.runtime.bundle import Padding


@dataclass(frozen=True)
class ByteStem:
    """How the bytes enter a graph whose first convolution reads them."""

    conv: ir.Node
    """The convolution; its input is the transposed bytes."""
    grid: Grid
    """What a byte means to it."""
    offset: NDArray[np.float64]
    """Of each channel: the grid's zero point less 255 times the mean. The bias holds the weights' products with it."""
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
    Ensures: the convolution's first input is uint8 `[batch, 3, height, width]`, and whoever writes Q/DQ pairs puts a
        DequantizeLinear with `grid` there. Its step is 1, so that the weights are those that the plan knows. The float
        value of every other tensor changes by rounding only; whoever rounds the weights makes the products with
        `offset` follow them.

    Returns:
        None, and an unchanged model, where the graph does not begin so, where its bias is computed, or where no byte
            means the mean at its border.
    """
    graph = model.graph
    chain = _chain(graph)
    if chain is None:
        return None
    planes, cast, sub, conv = chain
    means, weight = constant(sub.inputs[1]), constant(conv.inputs[1])
    given = conv.inputs[2] if len(conv.inputs) > 2 else None
    bias = constant(given)
    if means is None or means.size != 3 or weight is None or weight.shape[1] != 3:
        return None
    if given is not None and bias is None:
        return None
    mean = means.astype(np.float64).reshape(3)
    red, green, blue = (int(m) for m in np.rint(mean))
    pads = conv.attributes.get_ints("pads", (0, 0, 0, 0))
    automatic = conv.attributes.get_string("auto_pad", "NOTSET") not in {"NOTSET", "VALID"}
    if zero_point is None:
        zero_point = red if red == green == blue and 0 <= red <= 255 else 0
    # Zero padding reads as the code z.
    fits = red == green == blue == zero_point
    if not fits and (automatic or (any(pads) and not all(0 <= m <= 255 for m in (red, green, blue)))):
        return None

    offset = zero_point - mean
    moved = np.einsum("oihw,i->o", weight.astype(np.float64), offset)
    if bias is not None:
        moved = moved + bias.astype(np.float64)
    conv.replace_input_with(0, planes.outputs[0])
    conv.resize_inputs(3)
    conv.replace_input_with(2, register(graph, f"{conv.name}.bias:bytes", moved.astype(np.float32)))
    graph.remove([sub, cast], safe=True)
    padding = None
    if any(pads) and not fits:
        top, left, bottom, right = pads
        conv.attributes["pads"] = ir.AttrInt64s("pads", [0, 0, 0, 0])
        padding = Padding(top_px=top, left_px=left, bottom_px=bottom, right_px=right, value=(red, green, blue))
        _widen(graph.inputs[0], planes.outputs[0], padding)
    return ByteStem(conv, Grid("uint8", 1.0, zero_point), offset, padding)


def _chain(graph: ir.Graph) -> tuple[ir.Node, ir.Node, ir.Node, ir.Node] | None:
    """Transpose, Cast, Sub and Conv, where the graph begins with just these."""
    value = graph.inputs[0]
    chain: list[ir.Node] = []
    for kind in ("Transpose", "Cast", "Sub", "Conv"):
        node = only_consumer(value) if chain else only_reader(value)
        if node is None or node.op_type != kind:
            return None
        chain.append(node)
        value = node.outputs[0]
    planes, cast, sub, conv = chain
    return planes, cast, sub, conv


def _widen(image: ir.Value, planes: ir.Value, padding: Padding) -> None:
    """Gives the graph's input the size of the padded crop."""
    assert image.shape is not None
    batch, side = image.shape[0], int(image.shape[1])
    height = side + padding.top_px + padding.bottom_px
    width = side + padding.left_px + padding.right_px
    image.shape = ir.Shape([batch, height, width, 3])
    planes.shape = ir.Shape([batch, 3, height, width])
