"""The bytes become floats before anything else happens to them, for engines that know uint8 as an input only."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgecls.calibration.graph import constant, only_consumer, only_reader
from edgecls.export.qdq import register


def cast_bytes(model: ir.Model) -> bool:
    """Turns Transpose → Cast into Cast → Transpose, and Transpose → DequantizeLinear into Cast → Transpose → Sub.

    Both forms compute the same numbers: small integers and their differences are exact in float32 and in float16.

    Requires: the graph begins as `take_bytes` left it, or as `place` did (the step of a byte is 1).
    Ensures: the only reader of the uint8 input is a Cast, and no other tensor or constant is uint8.

    Returns:
        Whether anything changed.
    """
    graph = model.graph
    image = graph.inputs[0]
    planes = only_reader(image)
    reader = only_consumer(planes.outputs[0]) if planes is not None else None
    if planes is None or reader is None or planes.op_type != "Transpose":
        return False
    if reader.op_type not in {"Cast", "DequantizeLinear"}:
        return False
    cast = ir.node("Cast", [image], {"to": ir.DataType.FLOAT}, name=f"{image.name}:float")
    _describe(cast, image)
    graph.insert_before(planes, cast)
    for use in list(image.uses()):
        if use.node is not cast:
            use.node.replace_input_with(use.idx, cast.outputs[0])
    planes.outputs[0].dtype = ir.DataType.FLOAT
    floats = planes.outputs[0]
    if reader.op_type == "DequantizeLinear":
        zero_point = constant(reader.inputs[2])
        assert zero_point is not None
        if int(zero_point):
            offset = register(graph, f"{image.name}:offset", np.asarray(int(zero_point), np.float32))
            centre = ir.node("Sub", [floats, offset], name=f"{image.name}:centre")
            _describe(centre, floats)
            graph.insert_before(reader, centre)
            floats = centre.outputs[0]
    ir.convenience.replace_all_uses_with(reader.outputs[0], floats)
    graph.remove(reader, safe=True)
    RemoveUnusedNodesPass()(model)
    return True


def _describe(node: ir.Node, source: ir.Value) -> None:
    """Names a node's output after the node; it has the shape of its source and holds float32."""
    output = node.outputs[0]
    output.name, output.dtype, output.shape = node.name, ir.DataType.FLOAT, source.shape
