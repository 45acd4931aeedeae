"""The graph takes bytes: its float input becomes `image`, uint8 NHWC, and the normalisation moves inside."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgecls.calibration.graph import INPUT, constant, only_consumer
from edgecls.export.qdq import register
from edgecls.runtime.preprocess import Preprocess


def take_bytes(model: ir.Model, preprocess: Preprocess) -> bool:
    """Puts Transpose, Cast, Sub before the network and folds the scale into the first convolution.

    Subtracting 255·mean leaves zero meaning the mean, so that the zero padding of the first convolution stays exact;
    dividing by 255·std is linear and goes into its weights. A network that does not begin with a convolution gets a
    Mul instead. A network trained on BGR has its channels swapped by the same means. Who asks for the size of the batch
    asks the bytes, so that the first convolution is the only reader of the normalised picture.

    Requires: the first input is float32 `[batch, 3, height, width]`, normalised.
    Ensures: the only input is `image`, uint8 `[batch, crop, crop, 3]`, RGB.

    Returns:
        True.
    """
    graph = model.graph
    old = graph.inputs[0]
    mean = 255 * np.asarray(preprocess.mean, np.float64)
    scale = 1 / (255 * np.asarray(preprocess.std, np.float64))
    swap = preprocess.colour == "bgr"

    image = ir.Value(
        name=INPUT,
        type=ir.TensorType(ir.DataType.UINT8),
        shape=ir.Shape([old.shape[0] if old.shape else "batch", preprocess.crop_px, preprocess.crop_px, 3]),
    )
    for use in list(old.uses()):
        if _reads_batch(use.node):
            use.node.replace_input_with(0, image)
    planes = ir.node("Transpose", [image], {"perm": [0, 3, 1, 2]})
    floats = ir.node("Cast", planes.outputs, {"to": ir.DataType.FLOAT})
    nodes = [planes, floats]
    stem = only_consumer(old)
    weight = constant(stem.inputs[1]) if stem is not None and stem.op_type == "Conv" else None
    foldable = weight is not None and weight.shape[1] == 3
    if swap and not foldable:
        nodes.append(
            ir.node("Gather", [nodes[-1].outputs[0], register(graph, "bgr", np.asarray([2, 1, 0]))], {"axis": 1})
        )
    # Before a swap inside the weights, channels are still RGB; mean and std are given in the network's order.
    order = slice(None, None, -1) if swap and foldable else slice(None)
    offset = register(graph, "mean", mean[order].reshape(1, 3, 1, 1).astype(np.float32))
    nodes.append(ir.node("Sub", [nodes[-1].outputs[0], offset]))
    if stem is not None and weight is not None and foldable:
        folded = (weight.astype(np.float64) * scale.reshape(1, 3, 1, 1))[:, order].astype(np.float32)
        _replace_weight(graph, stem, folded)
    else:
        factor = register(graph, "scale", scale.reshape(1, 3, 1, 1).astype(np.float32))
        nodes.append(ir.node("Mul", [nodes[-1].outputs[0], factor]))
    for node in nodes:
        node.outputs[0].dtype = ir.DataType.UINT8 if node is planes else ir.DataType.FLOAT
        node.outputs[0].shape = old.shape
    graph.insert_before(graph[0], nodes)
    ir.convenience.replace_all_uses_with(old, nodes[-1].outputs[0])
    graph.inputs[:] = [image]
    return True


def _reads_batch(node: ir.Node) -> bool:
    """Whether a node asks for the number of pictures, as torch.export's graphs do where they expand a class token."""
    ends = node.attributes.get_int("start", 0), node.attributes.get_int("end", -1)
    return node.op_type == "Shape" and ends == (0, 1)


def _replace_weight(graph: ir.Graph, conv: ir.Node, weight: np.ndarray) -> None:
    """Gives a convolution another weight, under the old one's name unless somebody else still reads that."""
    old = conv.inputs[1]
    name = (old.name if old is not None else None) or "stem.weight"
    conv.replace_input_with(1, None)
    if old is not None and not old.uses():
        graph.initializers.pop(name, None)
    conv.replace_input_with(1, register(graph, name, weight))
