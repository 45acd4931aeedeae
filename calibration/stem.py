"""The first convolutions of a mobile network, which integers hurt most and help least."""

from __future__ import annotations

import onnx_ir as ir

from edgecls.calibration.graph import Graph
from edgecls.calibration.plan import WEIGHTED

_ACTIVATIONS = frozenset({"Relu", "Clip", "HardSwish", "HardSigmoid", "Sigmoid", "Mul", "LeakyRelu", "Elu", "Gelu"})
"""Operations between a convolution and the next; Mul is the last of a swish that is spelled out."""


def depthwise_stem(graph: Graph) -> tuple[str, ...]:
    """The convolution that reads the picture and the depthwise one behind it.

    A depthwise convolution averages no rounding error away: each of its channels hands on its own, and those of the
    stem differ much in size while one grid serves them all. Everything behind sees that error. It has too few channels
    for integer kernels to be faster than float ones.

    Args:
        graph: The float graph.

    Returns:
        Their names, or nothing where what reads the stem first is no depthwise convolution alone.
    """
    model = graph.ir_model()
    first = next((node for node in model.graph if node.op_type in WEIGHTED), None)
    if first is None or first.op_type != "Conv":
        return ()
    readers = _weighted_readers(first)
    if len(readers) != 1 or not _is_depthwise(readers[0]):
        return ()
    return str(first.name), str(readers[0].name)


def _weighted_readers(node: ir.Node) -> list[ir.Node]:
    """The weighted operations that read a node's output through activation functions; sums are no such function."""
    found: dict[ir.Node, None] = {}
    for use in node.outputs[0].uses():
        if use.node.op_type in WEIGHTED:
            found[use.node] = None
        elif use.node.op_type in _ACTIVATIONS:
            found.update(dict.fromkeys(_weighted_readers(use.node)))
    return list(found)


def _is_depthwise(node: ir.Node) -> bool:
    group = node.attributes.get_int("group", 1)
    shape = node.inputs[1].shape if node.inputs[1] is not None else None
    return node.op_type == "Conv" and group > 1 and shape is not None and shape[1] == 1
