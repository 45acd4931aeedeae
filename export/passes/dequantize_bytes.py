"""The bytes are dequantized before they are transposed, not after."""

from __future__ import annotations

import onnx_ir as ir

from edgecls.calibration.graph import only_consumer, only_reader


def dequantize_bytes(model: ir.Model) -> bool:
    """Turns image → Transpose → DequantizeLinear into image → DequantizeLinear → Transpose.

    OpenVINO moves the dequantization behind the convolution and transposes bytes all the same; in the other order it
    computes the convolution in float.

    Requires: the scale is one number.
    Ensures: the same values.

    Returns:
        Whether the graph began so.
    """
    transpose = only_reader(model.graph.inputs[0])
    dequantize = only_consumer(transpose.outputs[0]) if transpose is not None else None
    if transpose is None or dequantize is None or transpose.op_type != "Transpose":
        return False
    if dequantize.op_type != "DequantizeLinear":
        return False
    planes, values = transpose.outputs[0], dequantize.outputs[0]
    ir.convenience.replace_all_uses_with(values, planes)
    planes.dtype = values.dtype = ir.DataType.FLOAT
    values.shape = model.graph.inputs[0].shape
    dequantize.replace_input_with(0, model.graph.inputs[0])
    transpose.replace_input_with(0, values)
    model.graph.remove(dequantize)
    model.graph.insert_before(transpose, dequantize)
    return True
