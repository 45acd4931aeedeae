"""ReduceMean over height and width becomes GlobalAveragePool, for which engines have integer kernels."""

from __future__ import annotations

import onnx_ir as ir

from edgecls.calibration.graph import constant


def restore_average_pool(model: ir.Model) -> bool:
    """Rewrites every `ReduceMean(axes = the two spatial ones)` of a `[batch, channels, height, width]` tensor.

    Requires: shapes are inferred.
    Ensures: no such ReduceMean is left; where the axes were not kept a Flatten follows. Both keep its metadata.

    Returns:
        Whether anything changed.
    """
    changed = False
    for node in list(model.graph):
        if node.op_type != "ReduceMean" or node.inputs[0] is None or node.inputs[0].shape is None:
            continue
        axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        if axes is None or len(node.inputs[0].shape) != 4 or sorted(int(a) % 4 for a in axes.ravel()) != [2, 3]:
            continue
        old = node.outputs[0]
        pool = ir.node("GlobalAveragePool", [node.inputs[0]], metadata_props=node.metadata_props)
        new = [pool]
        if not node.attributes.get_int("keepdims", 1):
            flatten = ir.node("Flatten", [pool.outputs[0]], {"axis": 1}, metadata_props=node.metadata_props)
            new.append(flatten)
        batch, channels = node.inputs[0].shape[0], node.inputs[0].shape[1]
        pool.outputs[0].shape = ir.Shape([batch, channels, 1, 1])
        pool.outputs[0].dtype = new[-1].outputs[0].dtype = old.dtype
        new[-1].outputs[0].shape = old.shape
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], new, [old], [new[-1].outputs[0]])
        changed = True
    return changed
