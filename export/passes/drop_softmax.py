"""A classifier answers with logits, whatever its file ends with."""

from __future__ import annotations

import onnx_ir as ir


def drop_softmax(model: ir.Model) -> bool:
    """Takes off a Softmax over the classes at the end: sessions apply it to what comes before.

    Probabilities are bad logits: softmax of them is nearly flat, and a tolerance for logits lets any of them pass.

    Requires: one output `[batch, classes]`; opset ≥ 13.

    Returns:
        Whether there was one.
    """
    graph = model.graph
    output = graph.outputs[0]
    node = output.producer()
    if node is None or node.op_type != "Softmax" or node.attributes.get_int("axis", -1) not in {1, -1}:
        return False
    logits = node.inputs[0]
    if logits is None or list(output.uses()) or logits in graph.inputs:
        return False
    logits.shape = logits.shape or output.shape
    logits.dtype = logits.dtype or output.dtype
    graph.outputs[0] = logits
    graph.remove(node, safe=True)
    return True
