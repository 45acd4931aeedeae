"""A constant that is split becomes its parts."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import onnx_ir as ir

from edgecls.calibration.graph import constant
from edgecls.export.qdq import register


def split_constants(model: ir.Model) -> bool:
    """Cuts constants where the graph would, which constant folding leaves, for it has several outputs.

    An attention whose three biases are packed (CLIP's ResNets) splits them at run time; quantization would take the
    parts for activations.

    Requires: nothing.
    Ensures: no Split has a constant input, unless its sizes are computed.

    Returns:
        Whether anything changed.
    """
    changed = False
    for node in model.graph:
        whole = constant(node.inputs[0]) if node.op_type == "Split" else None
        if whole is None:
            continue
        axis, parts = node.attributes.get_int("axis", 0), len(node.outputs)
        if len(node.inputs) > 1 and node.inputs[1] is not None:
            sizes = constant(node.inputs[1])
            if sizes is None:
                continue
        else:
            size = -(-whole.shape[axis] // parts)
            sizes = np.array([size] * (parts - 1))
        ends = [int(end) for end in accumulate(sizes)][: parts - 1]
        for output, part in zip(node.outputs, np.split(whole, ends, axis), strict=True):
            ir.convenience.replace_all_uses_with(output, register(model.graph, str(output.name), part.copy()))
        model.graph.remove(node, safe=True)
        changed = True
    return changed
