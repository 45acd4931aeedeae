"""Rules that an engine's graphs must keep: what breaks one is named, with the remedy. A file here is an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from edgecls.calibration.graph import Graph
from edgecls.runtime.errors import EngineError

Found = Iterator[tuple[str, str]]
"""Name of a node (or input), and what is wrong with it."""


@dataclass(frozen=True)
class Finding:
    """One node that breaks one rule."""

    node: str
    """Name of the node, or of the graph's input where there is no node."""
    rule: str
    """`zero-point`, `uint8-inside`, …"""
    problem: str
    """What the engine would say, with the value."""
    remedy: str
    slow: bool = False
    """Whether the graph is right and merely slower than it could be."""

    def __str__(self) -> str:
        return f"{self.node}: {self.problem} [{self.rule}]; {self.remedy}"


@dataclass(frozen=True)
class Rule:
    """Something that a graph must not do."""

    name: str
    remedy: str
    why: str
    """Who forbids it, or what the engine makes of it."""
    find: Callable[[ir.Model], Found]
    only: tuple[str, ...] = ()
    """Dialects or instruction sets that it is about; empty for all."""
    slow: bool = False
    """Whether the engine answers right all the same, with a float kernel."""


def find_all(rules: Iterable[Rule], graph: Graph, variant: str) -> tuple[Finding, ...]:
    """Every node that breaks a rule, in the order of the rules.

    Args:
        variant: The dialect or instruction set that the graph is made for.
    """
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.load_model_from_string(graph.proto)))
    return tuple(
        Finding(node, rule.name, problem, rule.remedy, rule.slow)
        for rule in rules
        if not rule.only or variant in rule.only
        for node, problem in rule.find(model)
    )


def raise_findings(findings: Sequence[Finding], engine: str) -> None:
    """Refuses a graph of our own that breaks rules; those that only make it slower are for `notes`.

    Raises:
        EngineError: There are findings; the first five are listed.
    """
    broken = [finding for finding in findings if not finding.slow]
    if broken:
        listing = "\n".join(f"  {finding}" for finding in broken[:5])
        raise EngineError(
            f"the graph that we made breaks {len(broken)} rules of {engine}; nothing was written. Please report:\n"
            f"{listing}"
        )


def notes(findings: Sequence[Finding], engine: str) -> tuple[str, ...]:
    """What only makes a graph slower, one sentence a rule."""
    by_rule: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.slow:
            by_rule.setdefault(finding.rule, []).append(finding)
    return tuple(
        f"{len(found)} operation{'s' if len(found) > 1 else ''} could be faster on {engine}, for instance {found[0]}"
        for found in by_rule.values()
    )


def disagreements(expected: frozenset[str], executed: frozenset[str], engine: str) -> tuple[str, ...]:
    """Where an engine's optimised graph is not what the linter foretold, one sentence a direction.

    Args:
        expected: Names of the nodes that should compute on integers.
        executed: Names of those that do.
        engine: With its version.
    """
    told = []
    for names, what in (
        (expected - executed, "in float although their kernels exist for integers: they are slower than foretold"),
        (executed - expected, "on integers although they should stay in float: check the accuracy on this very engine"),
    ):
        if names:
            some = ", ".join(sorted(names)[:3]) + ", …" * (len(names) > 3)
            told.append(f"{engine} computes {len(names)} operations ({some}) {what}")
    return tuple(told)


def name_of(node: ir.Node) -> str:
    """What a finding calls a node."""
    return str(node.name or node.outputs[0].name or node.op_type)


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """An input, or None where the node has fewer."""
    return node.inputs[index] if index < len(node.inputs) else None


def producer_of(value: ir.Value | None) -> ir.Node | None:
    """The node that makes a value."""
    return value.producer() if value is not None else None


def dequantize_of(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that makes a value, or None."""
    node = producer_of(value)
    return node if node is not None and node.op_type == "DequantizeLinear" else None
