"""The first convolution reads four bytes a pixel, the last of which no weight looks at."""

from __future__ import annotations

import msgspec
import numpy as np
import onnx_ir as ir

from edgecls.calibration.graph import constant
from edgecls.export.passes.feed_bytes import ByteStem
from edgecls.export.qdq import register
from edgecls.runtime.bundle import Padding


def widen_pixels(model: ir.Model, stem: ByteStem) -> Padding:
    """Gives the input a fourth channel and the first convolution a fourth input channel of zero weights.

    Integer kernels gather their input pixel by pixel; four bytes are one load, three are not. ONNX Runtime's first
    convolution takes half the time, for a sum that is the same to the last bit.

    Requires: the graph is as `feed_bytes` left it, and the convolution's weight is still float.
    Ensures: the input is uint8 `[batch, height, width, 4]`.

    Returns:
        What the session must now do to a crop.
    """
    image, conv = model.graph.inputs[0], stem.conv
    planes, weight = conv.inputs[0], constant(conv.inputs[1])
    assert image.shape is not None
    assert planes is not None
    assert weight is not None
    image.shape = ir.Shape([*image.shape[:3], 4])
    planes.shape = ir.Shape([image.shape[0], 4, *image.shape[1:3]])
    wide = np.concatenate([weight, np.zeros_like(weight[:, :1])], axis=1)
    conv.replace_input_with(1, register(model.graph, f"{conv.name}.weight:wide", wide))
    none = Padding(top_px=0, left_px=0, bottom_px=0, right_px=0, value=(0, 0, 0))
    return msgspec.structs.replace(stem.padding or none, pixel_bytes=4)
