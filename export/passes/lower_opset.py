"""The graph in an older operator set, for engines that read no newer one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgecls.calibration.graph import constant
from edgecls.export.qdq import register
from edgecls.runtime.errors import UnsupportedError


def lower_opset(model: ir.Model, opset: int) -> bool:
    """Rewrites a graph for an older opset; what that opset lacks is spelled out in operations that it has.

    Requires: no subgraphs.
    Ensures: the model imports `opset` at most, in the IR version that came with it, and no node uses an attribute or an
        input that came later.

    Returns:
        Whether anything changed.

    Raises:
        UnsupportedError: An operation has no equivalent there; the message names the node.
    """
    current = model.graph.opset_imports[""]
    opset = min(current, opset)
    # Parsers compare the IR version too, and nothing in our graphs needs a newer one than the opset does.
    ir_version = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    if current == opset and model.ir_version <= ir_version:
        return False
    for node in list(model.graph) if current > opset else ():
        newer, rewrite = _REWRITES.get(node.op_type, (0, None))
        if rewrite is not None and opset < newer:
            rewrite(model.graph, node)
        else:
            _drop_defaults(node, opset)
    model.graph.opset_imports[""] = opset
    model.ir_version = min(model.ir_version, ir_version)
    RemoveUnusedNodesPass()(model)
    return True


def _drop_defaults(node: ir.Node, opset: int) -> None:
    """Removes attributes that the old opset does not know and that say what it does anyway."""
    try:
        known = onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError as error:
        raise _unsupported(node, opset, "the operation came later") from error
    newest = onnx.defs.get_schema(node.op_type)
    for name in set(node.attributes) - set(known.attributes):
        default = onnx.helper.get_attribute_value(newest.attributes[name].default_value)
        value = node.attributes[name].value
        default = default.decode() if isinstance(default, bytes) else default  # as onnx gives a string
        ones = name == "dilations" and set(value) == {1}
        if not ones and value != default:
            raise _unsupported(node, opset, f"its attribute {name} = {value} came later")
        del node.attributes[name]
    if len(node.inputs) > known.max_input:
        raise _unsupported(node, opset, "one of its inputs came later")


def _unsupported(node: ir.Node, opset: int, reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"{node.op_type} {node.name!r} cannot be written in opset {opset}: {reason}. Export for a newer engine."
    )


def _axes_as_attribute(graph: ir.Graph, node: ir.Node) -> None:
    """Reductions took their axes as an attribute before opset 18."""
    if len(node.inputs) > 1:
        axes = constant(node.inputs[1])
        if axes is None:
            raise UnsupportedError(f"{node.op_type} {node.name!r} has computed axes; export for a newer engine.")
        node.attributes["axes"] = ir.AttrInt64s("axes", [int(axis) for axis in axes.ravel()])
        node.resize_inputs(1)
    node.attributes.pop("noop_with_empty_axes", None)


def _multiply_gate(graph: ir.Graph, node: ir.Node) -> None:
    """HardSwish(x) = x · HardSigmoid(x; 1/6, 1/2): older parsers know the second only."""
    x = node.inputs[0]
    assert x is not None
    gate = _node("HardSigmoid", [x], f"{node.name}:gate", {"alpha": 1 / 6, "beta": 0.5})
    _replace(graph, node, [gate, _node("Mul", [x, gate.outputs[0]], node.name)])


def _expand_gelu(graph: ir.Graph, node: ir.Node) -> None:
    """Gelu(x) = x/2 · (1 + erf(x/√2)), or with tanh(√(2/π) (x + 0.044715 x³)) in the place of erf."""
    x = node.inputs[0]
    assert x is not None
    name = node.name or "Gelu"

    def number(suffix: str, value: float) -> ir.Value:
        return register(graph, f"{name}:{suffix}", np.asarray(value, np.float32))

    if node.attributes.get_string("approximate", "none") == "tanh":
        square = _node("Mul", [x, x], f"{name}:square")
        cube = _node("Mul", [square.outputs[0], x], f"{name}:cube")
        small = _node("Mul", [cube.outputs[0], number("c", 0.044715)], f"{name}:small")
        inner = _node("Add", [x, small.outputs[0]], f"{name}:inner")
        scaled = _node("Mul", [inner.outputs[0], number("s", np.sqrt(2 / np.pi))], f"{name}:scaled")
        tanh = _node("Tanh", [scaled.outputs[0]], f"{name}:tanh")
        nodes = [square, cube, small, inner, scaled, tanh]
    else:
        scaled = _node("Mul", [x, number("s", np.sqrt(0.5))], f"{name}:scaled")
        nodes = [scaled, _node("Erf", [scaled.outputs[0]], f"{name}:erf")]
    plus = _node("Add", [nodes[-1].outputs[0], number("one", 1.0)], f"{name}:plus")
    half = _node("Mul", [x, number("half", 0.5)], f"{name}:halved")
    _replace(graph, node, [*nodes, plus, half, _node("Mul", [half.outputs[0], plus.outputs[0]], name)])


def _split_evenly(graph: ir.Graph, node: ir.Node) -> None:
    """Before opset 18 an even split was told by the number of outputs alone."""
    node.attributes.pop("num_outputs", None)


def _node(kind: str, inputs: list[ir.Value], name: str | None, attributes: dict[str, float] | None = None) -> ir.Node:
    node = ir.node(kind, inputs, attributes, name=name)
    node.outputs[0].name, node.outputs[0].dtype, node.outputs[0].shape = name, inputs[0].dtype, inputs[0].shape
    return node


def _replace(graph: ir.Graph, node: ir.Node, new: list[ir.Node]) -> None:
    ir.convenience.replace_nodes_and_values(graph, node, [node], new, [node.outputs[0]], [new[-1].outputs[0]])


_REWRITES: dict[str, tuple[int, Callable[[ir.Graph, ir.Node], None]]] = {
    "ReduceMean": (18, _axes_as_attribute),
    "ReduceMax": (18, _axes_as_attribute),
    "ReduceMin": (18, _axes_as_attribute),
    "ReduceProd": (18, _axes_as_attribute),
    "ReduceL1": (18, _axes_as_attribute),
    "ReduceL2": (18, _axes_as_attribute),
    "ReduceLogSum": (18, _axes_as_attribute),
    "ReduceLogSumExp": (18, _axes_as_attribute),
    "ReduceSumSquare": (18, _axes_as_attribute),
    "HardSwish": (18, _multiply_gate),
    "Gelu": (20, _expand_gelu),
    "Split": (18, _split_evenly),
}
"""Below which opset an operation is rewritten, and how."""
