"""What each block of a network loses by quantization, and what it would cost to keep it in float."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence

import msgspec
import onnx_ir as ir

from edgecls.calibration.graph import Graph, constant, is_activation
from edgecls.calibration.plan import WEIGHTED, BlockSensitivity, QuantPlan, Sensitivity
from edgecls.export.trials import Trials
from edgecls.runtime.progress import Progress

_LARGEST = 5
"""Weighted operations of a block at most: an inverted residual with squeeze-and-excitation has as many."""

_FEWEST = 8
"""Where there are fewer blocks, smaller modules are blocks: of two or three, hardly any could stay in float."""

_WEIGHTLESS = frozenset({"MatMul", "Add", "Mul", "Concat", "GlobalAveragePool", "AveragePool", "Sigmoid"})
"""Operations that some target computes on integers though they have no weight."""

REASON = "quantized, it costs more accuracy than its time is worth"


def with_sensitivity(graph: Graph, plan: QuantPlan, trials: Trials, target: str, progress: Progress) -> QuantPlan:
    """The plan with what each block loses: one after the other is kept in float, alone.

    Args:
        graph: The float graph.
        plan: The one that everything else follows.
        trials: On the target.
        target: Its name, for the record.
        progress: Told about every block.
    """
    base = trials.run(plan)
    found = []
    blocks = blocks_of(graph)
    with progress.stage("Measuring the sensitivity of the blocks", len(blocks)) as advance:
        for name, nodes in blocks.items():
            trial = trials.run(with_floats(plan, nodes))
            cost = None if trial.ratio is None or base.ratio is None else trial.ratio - base.ratio
            found.append(BlockSensitivity(name, tuple(nodes), base.kl - trial.kl, base.flips - trial.flips, cost))
            advance(1)
    measured = Sensitivity(target, base.n, base.kl, base.flips, base.ratio, tuple(found))
    return msgspec.structs.replace(plan, sensitivity=measured)


def blocks_of(graph: Graph) -> dict[str, list[str]]:
    """The names of a graph's operations by block, in graph order.

    A block is the largest module with at most five weighted operations, or fewer in a network of a few such modules. A
    quantizable operation that is in none belongs to the block of the nearest weighted operation before it, or else
    stands for itself.
    """
    nodes = [node for node in graph.ir_model().graph if node.name and node.op_type not in {"Cast", "Constant"}]
    for largest in range(_LARGEST, 0, -1):
        blocks = _blocks(nodes, largest)
        if len(blocks) >= _FEWEST:
            break
    return blocks


def _blocks(nodes: Sequence[ir.Node], largest: int) -> dict[str, list[str]]:
    """As `blocks_of`, of modules with at most `largest` weighted operations."""
    weighted: dict[str, int] = defaultdict(int)
    for node in nodes:
        for prefix in _prefixes(node):
            weighted[prefix] += _has_weight(node)
    blocks: dict[str, list[str]] = defaultdict(list)
    found: dict[ir.Node, str] = {}
    for node in nodes:
        block = next((prefix for prefix in _prefixes(node) if 0 < weighted[prefix] <= largest), None)
        if block is not None and _has_weight(node):
            found[node] = block
        if block is None and node.op_type in _WEIGHTLESS and all(map(is_activation, node.inputs)):
            block = _nearest(node, found) or str(node.name)
        if block is not None:
            blocks[block].append(str(node.name))
    return dict(blocks)


def with_floats(plan: QuantPlan, nodes: Sequence[str]) -> QuantPlan:
    """The plan with more operations in float."""
    return msgspec.structs.replace(plan, float_nodes={**plan.float_nodes, **dict.fromkeys(nodes, REASON)})


def _prefixes(node: ir.Node) -> list[str]:
    """The modules that hold a node, the largest first, and the node itself."""
    parts = str(node.name).split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _has_weight(node: ir.Node) -> bool:
    return node.op_type in WEIGHTED and constant(node.inputs[1]) is not None


def _nearest(node: ir.Node, found: Mapping[ir.Node, str]) -> str | None:
    """The block of the nearest operation before a node that has one."""
    ahead, seen = deque([node]), {node}
    while ahead:
        for value in ahead.popleft().inputs:
            producer = value.producer() if value is not None else None
            if producer is None or producer in seen:
                continue
            if producer in found:
                return found[producer]
            seen.add(producer)
            ahead.append(producer)
    return None
