"""Which tensors are quantized where: the part of writing an INT8 graph that every emitter shares.

An emitter states its engine's rules in a `Rules` record; `place` walks the graph once, writes the Q/DQ pairs and says
what stayed in float and why.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgecls.calibration.bias_correction import shift_biases
from edgecls.calibration.graph import SAME_GRID, constant, is_activation, only_consumer
from edgecls.calibration.plan import WEIGHTED, QuantPlan, TensorRange
from edgecls.calibration.rescale_channels import rescale_channels
from edgecls.export.passes.feed_bytes import feed_bytes
from edgecls.export.passes.widen_pixels import widen_pixels
from edgecls.export.qdq import Grid, dequantize_codes, quantize_activation, quantize_weight
from edgecls.runtime.bundle import Padding

_STREAM = SAME_GRID | {"Add", "Concat", "GlobalAveragePool", "ReduceMean"}
"""Operations through which what a layer norm reads is passed on or summed up."""

_SUMMED = "layer norms read what is summed up here; rounded at every block, it would lose too much"


@dataclass(frozen=True)
class Rules:
    """What an engine wants of a Q/DQ graph."""

    name: str
    """Of the engine and what decides among its rules: under it a plan keeps what was corrected for them."""
    quantized: frozenset[str]
    """Operations that compute on integers when their inputs are quantized."""
    closed: frozenset[str]
    """Those of them that must also have their output quantized, or they run in float."""
    share_with_float: bool
    """Whether float readers of a quantized tensor read the quantized value too: the engine then never holds both. Those
    of a residual stream do so only where an integer kernel made the value."""
    activations: Literal["uint8", "int8"]
    weight_bits: int
    int32_bias: bool
    """Whether a bias is written as int32 codes; else it stays float."""
    stays_float: Callable[[ir.Node], str | None]
    """A reason why the engine is better off with this node in float, or None."""
    wide_pixels: bool = False
    """Whether the engine gathers four bytes a pixel faster than three."""
    symmetric: bool = False
    """Whether every zero point is 0: grids come from the symmetric bounds, a byte enters as its distance from 128."""
    add_fuses: bool = False
    """Whether a sum is fused into the convolution before it: that side stays float, only the other one is quantized."""
    half_scales: bool = False
    """Whether scales will be written as float16: they are rounded before the codes are."""
    weight_codes: bool = True
    """Whether the file holds weights as int8 codes; else float values before a QuantizeLinear."""


@dataclass(frozen=True)
class Placement:
    """What `place` did."""

    padding: Padding | None
    """The border that the session must put around the crop."""
    floats: dict[str, str]
    """Weighted nodes, and sums of a residual stream, that stayed in float, each with the reason."""

    def notes(self) -> tuple[str, ...]:
        """What stayed in float, one sentence a reason."""
        reasons: dict[str, list[str]] = {}
        for name, reason in self.floats.items():
            reasons.setdefault(reason, []).append(name)
        return tuple(
            f"{len(names)} operation{' stays' if len(names) == 1 else 's stay'} in float "
            f"({names[0]}{', …' if len(names) > 1 else ''}): {reason}"
            for reason, names in reasons.items()
        )


def place(model: ir.Model, plan: QuantPlan, rules: Rules) -> Placement:
    """Writes the Q/DQ pairs of a plan into a float graph.

    Args:
        model: A fresh copy of the graph that the plan was made from; changed in place.
    """
    graph = model.graph
    rescale_channels(model, plan.channel_scales)
    stream = _residual_stream(graph)
    chosen, floats = _choose(graph, plan, rules, stream)
    # What stays in float has no rounding to make up for.
    integers = {node.name for node in chosen}
    shifts = plan.bias_shifts.get(rules.name, {})
    shift_biases(model, {name: shift for name, shift in shifts.items() if name in integers})
    stem = feed_bytes(model, 128 if rules.symmetric else None)
    padding = stem.padding if stem else None
    if stem is not None and stem.conv in chosen and rules.wide_pixels:
        padding = widen_pixels(model, stem)
    if stem is not None and stem.conv not in chosen:
        # A stem in float still reads the bytes exactly; only its weights stay as they are.
        dequantize_codes(graph, stem.grid, stem.conv)

    quantized_inputs = {node: _quantized_inputs(node, rules) for node in chosen}
    closed = {_after_clamp(node.outputs[0]) for node in chosen if node.op_type in rules.closed}
    grids = _grids(graph, quantized_inputs, closed, plan, rules)
    input_scales: dict[ir.Node, float] = {}
    if stem is not None and stem.conv in quantized_inputs:
        grid = stem.grid
        value = dequantize_codes(graph, grid, stem.conv)
        if rules.activations != grid.dtype:
            # QLinearConv reads and writes one type; the same grid in the other type is exact.
            quantize_activation(graph, value, grid.retyped(rules.activations), [(stem.conv, 0)])
        input_scales[stem.conv] = grid.scale
    for value, grid in grids.items():
        readers = [
            (use.node, use.idx)
            for use in value.uses()
            if use.idx in quantized_inputs.get(use.node, ())
            or use.node.op_type in SAME_GRID
            or (rules.share_with_float and (use.node not in stream or value in closed))
        ]
        for node, index in readers:
            if index == 0:
                input_scales[node] = grid.scale
        quantize_activation(graph, value, grid, readers)
    for node in chosen:
        if node.name in plan.weights:
            scale = input_scales.get(node) if rules.int32_bias else None
            quantize_weight(
                graph,
                node,
                plan.weights[node.name],
                bits=rules.weight_bits,
                bias_scale=scale,
                half=rules.half_scales,
                codes_in_file=rules.weight_codes,
                offset=stem.offset if stem is not None and node is stem.conv else None,
            )
    _absorb_saturation(graph)
    RemoveUnusedNodesPass()(model)
    return Placement(padding, floats)


def _choose(
    graph: ir.Graph, plan: QuantPlan, rules: Rules, stream: Collection[ir.Node]
) -> tuple[list[ir.Node], dict[str, str]]:
    """The nodes that compute on integers, and by name why others do not."""
    chosen: list[ir.Node] = []
    floats = {}
    for node in graph:
        if node.op_type not in rules.quantized:
            continue
        reason = plan.float_nodes.get(node.name or "") or _unfit(node)
        if reason is None and node in stream:
            reason = floats[node.name or ""] = _SUMMED
        reason = reason or rules.stays_float(node)
        if reason is None:
            chosen.append(node)
        elif node.op_type in WEIGHTED:
            floats[node.name or ""] = reason
    return chosen, floats


def _residual_stream(graph: ir.Graph) -> frozenset[ir.Node]:
    """Layer norms, and the sums and concatenations whose values they read: what a transformer's blocks add to.

    A few channels of it are far larger than the others, so that a grid for all of them is too coarse for most.
    """
    stream: set[ir.Node] = set()
    for node in reversed(list(graph)):
        read = any(use.node in stream for value in node.outputs for use in value.uses())
        if node.op_type == "LayerNormalization" or (read and node.op_type in _STREAM):
            stream.add(node)
    return frozenset(stream)


def _unfit(node: ir.Node) -> str | None:
    """Why no engine computes this node on integers, whatever its type."""
    if node.op_type in WEIGHTED:
        weight = constant(node.inputs[1])
        if weight is None:
            if node.op_type != "MatMul":
                return "its weight is computed"
            return None if constant(node.inputs[0]) is None else "its weight is its left side"
        if weight.dtype != np.float32:
            return f"it computes in {weight.dtype}"
        if node.op_type == "MatMul" and weight.ndim != 2:
            return "its weight is not a matrix"
        bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        return "its bias is not one number a channel" if bias is not None and bias.ndim != 1 else None
    inputs = [value for value in node.inputs if value is not None]
    if node.op_type in {"Add", "Mul", "Concat"} and not all(is_activation(value) for value in inputs):
        return "one side is a constant"
    return None


def _quantized_inputs(node: ir.Node, rules: Rules) -> tuple[int, ...]:
    """Which of a chosen node's inputs are quantized (its weight is another matter)."""
    if node.op_type in WEIGHTED and constant(node.inputs[1]) is not None:
        return (0,)
    if node.op_type == "Add" and rules.add_fuses:
        fused = [i for i in (0, 1) if _ends_in_product(node.inputs[i])]
        return (1 - fused[0],) if fused else ()
    return tuple(range(len(node.inputs)))


def _ends_in_product(value: ir.Value | None) -> bool:
    """Whether a weighted operation makes a value for one reader only."""
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type in WEIGHTED and only_consumer(producer.outputs[0]) is not None


def _grids(
    graph: ir.Graph,
    quantized_inputs: Mapping[ir.Node, tuple[int, ...]],
    closed: Collection[ir.Value],
    plan: QuantPlan,
    rules: Rules,
) -> dict[ir.Value, Grid]:
    """The grid of every tensor that gets a Q/DQ pair, in graph order."""
    wanted = set(closed)
    for node, indices in quantized_inputs.items():
        inputs = [node.inputs[index] for index in indices]
        wanted.update(value for value in inputs if value is not None and is_activation(value))
    grids: dict[ir.Value, Grid] = {}
    for node in graph:
        for value in node.outputs:
            if value.is_graph_output():
                continue
            source = node.inputs[0] if node.op_type in SAME_GRID else None
            if source is not None and source in grids:
                grids[value] = grids[source]
            elif value in wanted and value.name in plan.tensors:
                grids[value] = _grid(plan.tensors[value.name], rules)
    # A tensor that is moved whole, for one reader, is quantized where it comes from. The grid of a part (of a fused
    # query, key and value) would not fit the rest.
    for node in reversed(list(graph)):
        if node.op_type not in SAME_GRID - {"Slice", "Split"} or node.outputs[0] not in grids:
            continue
        source = node.inputs[0]
        if source is None or only_consumer(source) is None or not is_activation(source):
            continue
        if source not in grids and source.name in plan.tensors:
            grids[source] = grids[node.outputs[0]]
    return grids


def _grid(tensor: TensorRange, rules: Rules) -> Grid:
    if rules.symmetric:
        return Grid.symmetric(tensor, half=rules.half_scales)
    return Grid.from_range(tensor, rules.activations)


def _after_clamp(value: ir.Value) -> ir.Value:
    """A Relu's or Clip's output where that is all that reads a value, else the value."""
    reader = only_consumer(value)
    if reader is not None and reader.op_type in {"Relu", "Clip"}:
        return reader.outputs[0]
    return value


def _absorb_saturation(graph: ir.Graph) -> None:
    """Removes every Relu and Clip whose only reader quantizes to a grid that saturates at least as early."""
    for node in list(graph):
        if node.op_type not in {"Relu", "Clip"}:
            continue
        reader = only_consumer(node.outputs[0])
        if reader is None or reader.op_type != "QuantizeLinear":
            continue
        if absorbs(reader, node):
            reader.replace_input_with(0, node.inputs[0])
            graph.remove(node, safe=True)


def absorbs(quantize: ir.Node, clamp: ir.Node) -> bool:
    """Whether the grid of a QuantizeLinear saturates at least as early as the Relu or Clip before it."""
    scale, zero_point = constant(quantize.inputs[1]), constant(quantize.inputs[2])
    if scale is None or zero_point is None or scale.size > 1:
        return False
    low, high = clamp_ends(clamp)
    grid = Grid("int8" if zero_point.dtype == np.int8 else "uint8", float(scale), int(zero_point))
    slack = grid.scale * 1e-3  # float32 rounding of the scale
    return grid.low >= low - slack and grid.high <= high + slack


def clamp_ends(node: ir.Node) -> tuple[float, float]:
    """The ends that a Relu or Clip limits values to."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    ends = [constant(node.inputs[i]) if len(node.inputs) > i else None for i in (1, 2)]
    return (-np.inf if ends[0] is None else float(ends[0])), (np.inf if ends[1] is None else float(ends[1]))
