"""Padding that an operation leaves to the engine (`auto_pad`) is written out."""

from __future__ import annotations

import onnx_ir as ir

from edgecls.calibration.graph import constant

_PADDED = frozenset({"Conv", "MaxPool", "AveragePool", "LpPool"})


def resolve_auto_pad(model: ir.Model) -> bool:
    """Replaces `auto_pad` by the `pads` that it means, which later passes and every engine read alike.

    Requires: shapes are inferred.
    Ensures: no convolution or pool whose input has a known height and width has `auto_pad`.

    Returns:
        Whether anything changed.
    """
    changed = False
    for node in model.graph:
        kind = node.attributes.get_string("auto_pad", "NOTSET") if node.op_type in _PADDED else "NOTSET"
        shape, kernel = node.inputs[0].shape if node.inputs and node.inputs[0] is not None else None, _kernel(node)
        if kind == "NOTSET" or shape is None or kernel is None:
            continue
        sides = list(shape)[2:]
        if len(sides) != len(kernel) or not all(isinstance(side, int) for side in sides):
            continue
        ones = (1,) * len(kernel)
        strides = node.attributes.get_ints("strides", ones)
        dilations = node.attributes.get_ints("dilations", ones)
        begins, ends = [], []
        for side, size, stride, dilation in zip(sides, kernel, strides, dilations, strict=True):
            # ceil(side / stride) windows, and whatever they reach beyond the side.
            reach = (-(-side // stride) - 1) * stride + (size - 1) * dilation + 1 - side
            total = max(reach, 0) if kind != "VALID" else 0
            begin = total // 2 if kind == "SAME_UPPER" else total - total // 2
            begins.append(begin)
            ends.append(total - begin)
        node.attributes.pop("auto_pad")
        node.attributes["pads"] = ir.AttrInt64s("pads", [*begins, *ends])
        changed = True
    return changed


def _kernel(node: ir.Node) -> list[int] | None:
    if "kernel_shape" in node.attributes:
        return list(node.attributes.get_ints("kernel_shape", ()))
    weight = constant(node.inputs[1]) if node.op_type == "Conv" else None
    return None if weight is None else list(weight.shape[2:])
