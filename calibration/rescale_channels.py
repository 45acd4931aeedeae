"""Moving size between the channels of a tensor and the weights around it, without changing what a graph computes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgecls.calibration.graph import Graph, constant, only_consumer
from edgecls.calibration.plan import WEIGHTED, weight_axis


def rescale_channels(model: ir.Model, scales: Mapping[str, tuple[float, ...]]) -> None:
    """Divides the channels of tensors by positive numbers, and multiplies the weights that read them.

    Args:
        model: Changed in place.
        scales: By name of a tensor for which `rescalable` names the producer: one number a channel.
    """
    for node in list(model.graph):
        for value in node.outputs:
            if value.name not in scales:
                continue
            scale = np.asarray(scales[value.name], np.float64)
            for index in (1, 2):
                _multiply(model, node, index, 1 / scale, _own_axis(node) if index == 1 else 0)
            for reader in readers(value):
                _multiply(model, reader, 1, scale, input_axis(reader))


def rescaled(graph: Graph, scales: Mapping[str, tuple[float, ...]]) -> Graph:
    """The graph with its channels rescaled."""
    if not scales:
        return graph
    model = graph.ir_model()
    rescale_channels(model, scales)
    return Graph.from_ir(model)


def readers(value: ir.Value) -> list[ir.Node]:
    """The weighted operations that read a tensor, through Relu and Transpose perhaps; empty where others do too."""
    producer = value.producer()
    if producer is None or value.shape is None:
        return []
    return _readers(value, 1 if producer.op_type == "Conv" else len(value.shape) - 1)


def _readers(value: ir.Value, axis: int) -> list[ir.Node]:
    """As `readers`, of a tensor whose channels lie along an axis."""
    reader = only_consumer(value)
    if reader is not None and reader.op_type == "Relu":
        return _readers(reader.outputs[0], axis)
    order = reader.attributes.get_ints("perm") if reader is not None and reader.op_type == "Transpose" else None
    if reader is not None and order is not None:
        return _readers(reader.outputs[0], order.index(axis))
    found = [use.node for use in value.uses()]
    fits = bool(found) and not value.is_graph_output() and all(use.idx == 0 for use in value.uses())
    return found if fits and all(_takes_scales(node, axis) for node in found) else []


def is_source(node: ir.Node) -> bool:
    """Whether the channels of a node's output can be divided by dividing its constants."""
    if node.op_type in {"Conv", "Gemm"}:
        bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
        return constant(node.inputs[1]) is not None and (not has_bias or (bias is not None and bias.ndim == 1))
    if node.op_type != "LayerNormalization":
        return False
    constants = [constant(value) for value in node.inputs[1:] if value is not None]
    return all(array is not None and array.ndim == 1 for array in constants)


def input_axis(node: ir.Node) -> int:
    """The axis of a weight's input channels; of a depthwise convolution, those are its outputs."""
    if node.op_type == "Conv":
        return 0 if _groups(node) > 1 else 1
    return 1 - weight_axis(node)


def _takes_scales(node: ir.Node, axis: int) -> bool:
    """Whether a weighted operation multiplies along an axis of its input, and by a constant."""
    weight = constant(node.inputs[1]) if node.op_type in WEIGHTED else None
    if weight is None or (node.op_type == "MatMul" and weight.ndim != 2):
        return False
    rank = len(node.inputs[0].shape or ()) if node.inputs[0] is not None else 0
    if axis != (1 if node.op_type == "Conv" else rank - 1):
        return False
    # A grouped convolution's weight lists the inputs of a group only, unless each group has one.
    groups = _groups(node)
    return groups == 1 or tuple(weight.shape[:2]) == (groups, 1)


def _groups(node: ir.Node) -> int:
    groups: int = node.attributes.get_int("group", 1)
    return groups


def _own_axis(node: ir.Node) -> int:
    return 0 if node.op_type == "LayerNormalization" else weight_axis(node)


def _multiply(model: ir.Model, node: ir.Node, index: int, factors: NDArray[np.float64], axis: int) -> None:
    """Replaces a constant input by its product along an axis; one that the node lacks stays absent."""
    array = constant(node.inputs[index]) if index < len(node.inputs) else None
    if array is None:
        return
    shape = [1] * array.ndim
    shape[axis] = -1
    product = (array.astype(np.float64) * factors.reshape(shape)).astype(np.float32)
    value = ir.Value(name=f"{node.name}:rescaled:{index}", const_value=ir.tensor(product))
    value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape(product.shape)
    model.graph.initializers.pop(str(value.name), None)
    model.graph.register_initializer(value)
    node.replace_input_with(index, value)
