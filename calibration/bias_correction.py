"""Sequential bias correction: quantization must not move the mean of any channel.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, in its empirical
form. Sequential: what comes before a layer is quantized and corrected already when the layer is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgecls.calibration.graph import INPUT, Graph, constant, only_consumer
from edgecls.calibration.plan import WEIGHTED
from edgecls.calibration.walk import Batches, session_of, walk
from edgecls.runtime.progress import Advance


def bias_shifts(
    graph: Graph, quantized: ir.Model, crops: Batches, padded: Batches, advance: Advance
) -> dict[str, tuple[float, ...]]:
    """What must be added to every bias so that each channel has the mean that it has in float.

    A mean over few pictures is uncertain: every shift is shrunk by its own standard error (the positive-part estimator
    of James and Stein 1961), so that noise is not learned.

    Args:
        graph: The float graph.
        quantized: Its Q/DQ graph, whose weighted nodes keep their names.
        crops: `uint8 [batch, height, width, 3]`, RGB: pictures for the float graph.
        padded: The same pictures as the quantized graph takes them.
        advance: Told the number of weighted nodes after each.

    Returns:
        By name of a node with quantized weights, one number an output channel.
    """
    expected = _float_means(graph, crops)
    shifts: dict[str, tuple[float, ...]] = {}
    for step in walk(quantized, padded):
        name = step.node.name or ""
        if name not in expected or constant(step.node.inputs[1]) is not None:  # which stays in float
            continue
        got = np.concatenate([_mean(output, step.node) for output in step.outputs])
        shift = _shrunk(expected[name] - got)
        shifts[name] = tuple(map(float, shift))
        for output in step.outputs:
            shape = [1] * output.ndim
            shape[_channel_axis(step.node, output.ndim)] = -1
            output += shift.astype(np.float32).reshape(shape)
        advance(1)
    return shifts


def shift_biases(model: ir.Model, shifts: Mapping[str, tuple[float, ...]]) -> None:
    """Adds shifts to the biases of a float graph; a node without a bias gets one.

    Args:
        model: Changed in place.
        shifts: By node name, as `bias_shifts` gives them.
    """
    for node in list(model.graph):
        if node.name not in shifts:
            continue
        shift = np.asarray(shifts[node.name], np.float64)
        reader, index = _bias_place(node) or (node, 2)
        before = constant(reader.inputs[index]) if index < len(reader.inputs) else None
        bias = (shift if before is None else before.astype(np.float64) + shift).astype(np.float32)
        value = ir.Value(name=f"{node.name}.shifted_bias", const_value=ir.tensor(bias))
        value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape(bias.shape)
        model.graph.register_initializer(value)
        if index >= len(reader.inputs):
            reader.resize_inputs(index + 1)
        reader.replace_input_with(index, value)


def _bias_place(node: ir.Node) -> tuple[ir.Node, int] | None:
    """The node and input that a weighted node's bias is; a MatMul's is what is added to it, or nothing."""
    if node.op_type != "MatMul":
        return node, 2
    reader = only_consumer(node.outputs[0])
    if reader is None or reader.op_type != "Add":
        return None
    index = next((i for i, value in enumerate(reader.inputs) if value is not node.outputs[0]), 0)
    bias, weight = constant(reader.inputs[index]), constant(node.inputs[1])
    return (reader, index) if bias is not None and weight is not None and bias.shape == weight.shape[1:] else None


def _float_means(graph: Graph, crops: Batches) -> dict[str, NDArray[np.float64]]:
    """By weighted node that is corrected: mean of every channel on every picture, `[pictures, channels]`."""
    model = graph.ir_model()
    outputs: list[ir.Value] = []
    names: list[str] = []
    for node in list(model.graph):
        if not _is_corrected(node):
            continue
        value = node.outputs[0]
        assert value.shape is not None
        axes = [axis for axis in range(1, len(value.shape)) if axis != _channel_axis(node, len(value.shape))]
        place = ir.Value(name=f"{node.name}:axes", const_value=ir.tensor(np.asarray(axes, np.int64)))
        model.graph.register_initializer(place)
        mean = ir.node("ReduceMean", [value, place], {"keepdims": 0}, name=f"{node.name}:mean")
        mean.outputs[0].name, mean.outputs[0].dtype = f"{node.name}:mean", ir.DataType.FLOAT
        model.graph.append(mean)
        outputs.append(mean.outputs[0])
        names.append(node.name or "")
    if not outputs:  # a network of matrix products alone
        return {}
    model.graph.outputs[:] = outputs
    session = session_of(ir.to_proto(model))
    rows = [session.run(None, {INPUT: batch}) for batch in crops]
    return {
        name: np.concatenate(column).astype(np.float64)
        for name, column in zip(names, zip(*rows, strict=True), strict=True)
    }


def _is_corrected(node: ir.Node) -> bool:
    """Whether a node has a bias that can be shifted, and more than one value a channel and picture.

    Where it has one (squeeze-and-excitation, the last layer), a few dozen pictures do not show a mean, and the gates
    behind it answer to the noise: correcting them too made MobileNetV3-Small worse than no correction.
    """
    weight = constant(node.inputs[1]) if node.op_type in WEIGHTED else None
    shape = node.outputs[0].shape
    if weight is None or weight.dtype != np.float32 or shape is None or _bias_place(node) is None:
        return False
    channel = _channel_axis(node, len(shape))
    return any(size != 1 for axis, size in enumerate(shape) if axis not in {0, channel})


def _mean(output: NDArray[np.float32], node: ir.Node) -> NDArray[np.float64]:
    """Of every channel on every picture, `float64 [pictures, channels]`."""
    channel = _channel_axis(node, output.ndim)
    axes = tuple(axis for axis in range(1, output.ndim) if axis != channel)
    return output.astype(np.float64).mean(axis=axes) if axes else output.astype(np.float64)


def _shrunk(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the pictures, `[channels]`, less what may be chance."""
    mean = differences.mean(axis=0)
    variance = differences.var(axis=0, ddof=1) / len(differences)
    return np.asarray(mean * np.maximum(0.0, 1.0 - variance / np.maximum(mean * mean, 1e-300)))


def _channel_axis(node: ir.Node, ndim: int) -> int:
    return 1 if node.op_type == "Conv" else ndim - 1
