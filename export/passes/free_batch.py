"""A graph of fixed batch takes any batch."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from edgecls.calibration.graph import constant
from edgecls.export.qdq import register


def free_batch(model: ir.Model) -> ir.Model:
    """Makes the first dimension of the input and the output symbolic, and of every Reshape that had it baked in.

    Requires: one input and one output, whose first dimension is the batch.
    Ensures: shapes are inferred anew, with the batch symbolic throughout.

    Returns:
        A new model.
    """
    graph = model.graph
    fixed = graph.inputs[0].shape[0] if graph.inputs[0].shape is not None else None
    of_picture = {graph.inputs[0]}
    for node in graph:
        if not any(value in of_picture for value in node.inputs):
            continue  # a constant's leading 1 is no batch
        of_picture.update(node.outputs)
        if node.op_type != "Reshape" or not isinstance(fixed, int):
            continue
        shape = constant(node.inputs[1])
        if shape is None or not shape.size or int(shape.ravel()[0]) != fixed or (shape == 0).any():
            continue
        free = shape.astype(np.int64)
        free[0] = 0  # Copies the dimension from the input, unless `allowzero` says that it means an empty one.
        node.attributes.pop("allowzero", None)
        node.replace_input_with(1, register(graph, f"{node.outputs[0].name}:shape", free))
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))
