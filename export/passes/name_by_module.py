"""Nodes and tensors get the names of the network's modules, so that plans and reports can be read."""

from __future__ import annotations

import re
from collections import Counter

import onnx_ir as ir

from edgecls.calibration.graph import INPUT, OUTPUT, constant

_SCOPES = "pkg.torch.onnx.name_scopes"
"""Where torch's exporter writes the modules that a node comes from: `['', 'blocks', 'blocks.0', 'add_5']`."""


def name_by_module(model: ir.Model) -> bool:
    """Names a node after its weight (`features.3.block.1.0`), others after module, kind and rank (`blocks.0.Add_1`).

    Where no module is known, kind and rank are the name (`Add_2`). A node's first output has the node's name, the next
    ones a suffix. The graph's input and output keep theirs.

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
            kind = f"{_module(node)}{node.op_type}"
            stem = f"{kind}_{ranks[kind]}"
            ranks[kind] += 1
        while stem in taken:
            stem += "_"
        taken.add(stem)
        node.name = stem
        for index, value in enumerate(node.outputs):
            if value is not model.graph.outputs[0]:
                value.name = stem if index == 0 else f"{stem}:{index}"
    return True


def _module(node: ir.Node) -> str:
    """The module that a node comes from, with a dot behind; empty where that is the network, or unknown."""
    scopes = re.findall(r"'([^']*)'", node.metadata_props.get(_SCOPES, ""))
    return f"{scopes[-2]}." if len(scopes) > 2 and not scopes[0] else ""
