"""A factor for each channel goes into the convolution before it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgecls.calibration.graph import constant, only_consumer
from edgecls.export.qdq import register


def fold_layer_scale(model: ir.Model) -> bool:
    """Multiplies the weight and the bias of a convolution by what its output is multiplied by (ConvNeXt's layer scale).

    Requires: nothing.
    Ensures: within the graph, no Mul by one constant a channel is the only reader of a convolution with a constant
        weight and bias.

    Returns:
        Whether anything changed.
    """
    graph, changed = model.graph, False
    for conv in list(graph):
        mul = only_consumer(conv.outputs[0]) if conv.op_type == "Conv" else None
        if mul is None or mul.op_type != "Mul" or mul.outputs[0].is_graph_output():
            continue
        side = 1 if mul.inputs[0] is conv.outputs[0] else 0
        factor, weight = constant(mul.inputs[side]), constant(conv.inputs[1])
        if factor is None or weight is None or weight.dtype != np.float32:
            continue
        shape = (len(weight), *[1] * (weight.ndim - 2))
        indices = [index for index, value in enumerate(conv.inputs) if index > 0 and value is not None]
        if factor.shape not in {shape, (1, *shape)} or any(constant(conv.inputs[index]) is None for index in indices):
            continue
        for index in indices:
            _multiply(graph, conv, index, factor.astype(np.float64).ravel())
        ir.convenience.replace_all_uses_with(mul.outputs[0], conv.outputs[0])
        graph.remove(mul, safe=True)
        changed = True
    return changed


def _multiply(graph: ir.Graph, conv: ir.Node, index: int, factors: np.ndarray) -> None:
    """Replaces a constant by its product along the first axis; under its own name, which names the module."""
    old, array = conv.inputs[index], constant(conv.inputs[index])
    assert old is not None
    assert array is not None
    product = array.astype(np.float64) * factors.reshape(-1, *[1] * (array.ndim - 1))
    conv.replace_input_with(index, None)
    if not old.uses():
        graph.initializers.pop(old.name or "", None)
    conv.replace_input_with(index, register(graph, old.name or "scaled", product.astype(np.float32)))
