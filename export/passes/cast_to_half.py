"""The body of a graph becomes float16, its input and output stay what they are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgecls.calibration.graph import constant
from edgecls.export.qdq import register

LIMIT = float(np.finfo(np.float16).max)
"""The largest float16, 65504."""

_VANISHES = 2.0**-25
"""Numbers up to this round to zero in float16."""

HEADROOM = 2.0
"""How much larger than on the pictures that were looked at an activation may get before it overflows."""

# fmt: off
_SENSITIVE = frozenset(
    {
        "Softmax", "LogSoftmax", "LayerNormalization", "InstanceNormalization", "GroupNormalization",
        "LpNormalization", "ReduceMean", "ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare",
        "ReduceLogSum", "ReduceLogSumExp", "Pow", "Exp", "Log", "LRN",
    }
)
# fmt: on
"""Operations that sum or exponentiate: their intermediate values leave float16's range or precision first."""

_SCALES = 2
"""Which input of Resize is float32 whatever it resizes."""

_POOLS = frozenset({"GlobalAveragePool", "AveragePool"})


def cast_to_half(model: ir.Model, largest: Mapping[str, float]) -> dict[str, str]:
    """Rewrites every float32 tensor as float16, but for nodes that would overflow or lose their meaning.

    Scales of Q/DQ pairs become float16 too (opset 19), so that a convolution reads its DequantizeLinear directly.
    Where a float32 and a float16 node meet, one Cast stands between them for all readers.

    Requires: types and shapes are inferred, all float32; opset ≥ 19; scales are float16 values already.
    Ensures: the graph's inputs and outputs have their types; no float16 constant is infinite.

    Args:
        model: Changed in place.
        largest: The largest |value| seen of each tensor. A node with a tensor above half of 65504 stays in float32.

    Returns:
        The nodes that stay in float32, each with the reason.
    """
    graph = model.graph
    outputs = {value: value.dtype for value in graph.outputs}
    kept = {node: reason for node in graph if (reason := _reason(node, largest))}
    _keep_pairs_with_readers(graph, kept)
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for node in list(graph):
        wanted = ir.DataType.FLOAT if node in kept else ir.DataType.FLOAT16
        _type_inputs(graph, node, wanted, casts)
        if node.op_type == "Cast" and node.attributes["to"].value == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", wanted)
        if node.op_type == "ConstantOfShape" and node.outputs[0].dtype == ir.DataType.FLOAT:
            fill = node.attributes.get_tensor("value").numpy() if "value" in node.attributes else np.zeros(1)
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(fill.astype(wanted.numpy())))
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT:
                value.dtype = wanted
    for value, dtype in outputs.items():
        _restore_output(graph, value, dtype)
    RemoveUnusedNodesPass()(model)
    return {node.name or "": reason for node, reason in kept.items() if reason}


def _reason(node: ir.Node, largest: Mapping[str, float]) -> str | None:
    """Why a node must compute in float32, or None."""
    if node.op_type in _SENSITIVE:
        return f"{node.op_type} loses too much in float16"
    for value in (*node.inputs, *node.outputs):
        if value is None or value.dtype != ir.DataType.FLOAT:
            continue
        array = constant(value)
        if array is None:
            peak = largest.get(value.name or "", 0.0) * HEADROOM
            terms = _pooled(node) if node.op_type in _POOLS and value in node.inputs else 1
            if peak * terms > LIMIT:
                what = "its sums reach" if terms > 1 else f"{value.name} reaches"
                return f"{what} {peak * terms / HEADROOM:.3g}, too near to float16's largest value, {LIMIT:.0f}"
        elif node.op_type != "Clip" and np.abs(array).max(initial=0) > LIMIT:
            return f"its constant {value.name} holds {np.abs(array).max():.3g}, beyond float16"
        elif array.size == 1 and 0 < abs(array.item()) <= _VANISHES:
            return f"its constant {value.name} = {array.item():.3g} would become zero in float16"
        elif _reads_bytes(node) and (array.astype(np.float16) != array).any():
            return "the channel means are no float16 values"
    return None


def _pooled(node: ir.Node) -> int:
    """How many values an average pooling adds up, at most."""
    kernel = node.attributes.get_ints("kernel_shape", ())
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    sides = kernel or ([side for side in list(shape)[2:] if isinstance(side, int)] if shape is not None else ())
    return int(np.prod(sides, dtype=np.int64))


def _keep_pairs_with_readers(graph: ir.Graph, kept: dict[ir.Node, str]) -> None:
    """Q, DQ and the bytes on their way to the first subtraction have the type of what reads them."""
    for node in reversed(list(graph)):
        readers = [use.node for value in node.outputs for use in value.uses()]
        follows = node.op_type in {"QuantizeLinear", "DequantizeLinear"} or _carries_bytes(node)
        if follows and readers and all(reader in kept for reader in readers):
            kept.setdefault(node, "")


def _carries_bytes(node: ir.Node) -> bool:
    """Whether a node is the Cast of the bytes or the Transpose behind it."""
    source = node.inputs[0] if node.inputs else None
    producer = source.producer() if source is not None else None
    if node.op_type == "Transpose" and producer is not None:
        return _carries_bytes(producer)
    return node.op_type == "Cast" and source is not None and source.dtype == ir.DataType.UINT8


def _reads_bytes(node: ir.Node) -> bool:
    producer = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    return node.op_type == "Sub" and producer is not None and _carries_bytes(producer)


def _type_inputs(
    graph: ir.Graph, node: ir.Node, wanted: ir.DataType, casts: dict[tuple[ir.Value, ir.DataType], ir.Value]
) -> None:
    """Gives a node's float inputs the wanted type: constants are rewritten, activations cast."""
    for index, value in enumerate(node.inputs):
        if value is None or value.dtype not in {ir.DataType.FLOAT, ir.DataType.FLOAT16} or value.dtype == wanted:
            continue
        if node.op_type == "Cast" or (node.op_type == "Resize" and index == _SCALES):
            continue
        key = value, wanted
        if key not in casts:
            array = constant(value)
            if array is not None:
                finite = np.clip(array, -LIMIT, LIMIT).astype(np.float16)
                casts[key] = register(graph, f"{value.name}:half", finite)
            else:
                casts[key] = _cast(graph, value, wanted)
        node.replace_input_with(index, casts[key])


def _cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    suffix = "half" if dtype == ir.DataType.FLOAT16 else "float"
    cast = ir.node("Cast", [value], {"to": dtype}, name=f"{value.name}:{suffix}")
    output = cast.outputs[0]
    output.name, output.dtype, output.shape = cast.name, dtype, value.shape
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], cast)
    else:
        graph.insert_after(producer, cast)
    return output


def _restore_output(graph: ir.Graph, value: ir.Value, dtype: ir.DataType | None) -> None:
    """The graph answers in the type that it had, under the name that it had."""
    if value.dtype == dtype or dtype is None:
        return
    name = value.name
    value.name = f"{name}:half"
    restored = _cast(graph, value, dtype)
    restored.name = name
    graph.outputs[graph.outputs.index(value)] = restored
