"""A Gemm with constants becomes x · W + b, with no factors and one bias a channel."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgecls.calibration.graph import constant
from edgecls.calibration.plan import weight_axis
from edgecls.export.qdq import register


def fold_gemm_factors(model: ir.Model) -> bool:
    """Multiplies `alpha` into the weight and `beta` into the bias, and spreads the bias to `[channels]`.

    Requires: nothing.
    Ensures: a Gemm with a constant weight has no factors, and its bias, if any, one axis. One whose bias is computed,
        or differs between pictures, stays as it is.

    Returns:
        Whether anything changed.
    """
    changed = False
    for node in model.graph:
        weight = constant(node.inputs[1]) if node.op_type == "Gemm" else None
        if weight is None:
            continue
        channels = weight.shape[weight_axis(node)]
        bias = constant(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(channels, np.float32)
        if bias is None or bias.size not in {1, channels} or bias.size != (bias.shape[-1] if bias.ndim else 1):
            continue
        alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
        if alpha != 1.0:
            node.replace_input_with(
                1, register(model.graph, f"{node.inputs[1].name}:alpha", weight.astype(np.float32) * alpha)
            )
            changed = True
        if len(node.inputs) > 2 and (beta != 1.0 or bias.shape != (channels,)):
            row = np.broadcast_to(bias.astype(np.float32).reshape(-1) * beta, channels)
            node.replace_input_with(2, register(model.graph, f"{node.inputs[2].name}:beta", row.copy()))
            changed = True
        node.attributes.pop("alpha", None)
        node.attributes.pop("beta", None)
    return changed
