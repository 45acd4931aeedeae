"""Nodes and tensors get the names of the network's modules, so that plans and reports can be read."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from edgecls.calibration.graph import INPUT, OUTPUT, constant


def name_by_module(model: ir.Model) -> bool:
    """Names a node after its weight (`features.3.block.1.0`), others after their kind and rank (`Add_2`).

    A node's first output has the node's name, the next ones a suffix. The graph's input and output keep theirs.

    Requires: nothing.
    Ensures: names are unique and depend on the graph alone, so that equal graphs have equal plans.

    Returns:
        True.
    """
    for name in {INPUT, OUTPUT} & set(model.graph.initializers):
        model.graph.initializers[name].name = f"{name}.constant"
    ranks: Counter[str] = Counter()
    taken = {INPUT, OUTPUT, *model.graph.initializers}
    for node in model.graph:
        weight = next((v for v in node.inputs[1:] if constant(v) is not None and v is not None and v.name), None)
        stem = ""
        if weight is not None and weight.name and weight.name.endswith(".weight"):
            stem = weight.name.removesuffix(".weight")
        if not stem or stem in taken:
            stem = f"{node.op_type}_{ranks[node.op_type]}"
            ranks[node.op_type] += 1
        while stem in taken:
            stem += "_"
        taken.add(stem)
        node.name = stem
        for index, value in enumerate(node.outputs):
            if value is not model.graph.outputs[0]:
                value.name = stem if index == 0 else f"{stem}:{index}"
    return True
