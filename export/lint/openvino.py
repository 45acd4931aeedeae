"""What keeps OpenVINO's CPU plugin from computing on integers, or makes it compute something else.

Seen in OpenVINO 2026.4, whose executed graph the tests hold every rule to.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgecls.calibration.graph import Graph, constant
from edgecls.export.lint import Finding, Found, Rule, find_all, input_of, name_of, producer_of
from edgecls.export.lint.cpu import (
    WEIGHTED,
    activation_of,
    foreign_channels,
    half_quantized,
    quantized_nodes,
    scales_per_channel,
    weights,
    wide_weights,
)
from edgecls.runtime.cpu import Isa


def lint(graph: Graph, isa: Isa) -> tuple[Finding, ...]:
    """Every node that breaks a rule for an instruction set, in the order of the rules."""
    return find_all(RULES, graph, isa)


def integer_nodes(graph: Graph, findings: Sequence[Finding]) -> frozenset[str]:
    """Names of the weighted operations that OpenVINO will compute on integers, as far as the rules know.

    Args:
        findings: What `lint` found in it.
    """
    return quantized_nodes(graph.ir_model()) - {found.node for found in findings if found.rule != "weight-range"}


def candidates(graph: Graph) -> frozenset[str]:
    """Names of the operations that the engine's executed graph is compared in: those with weights."""
    return frozenset(name_of(node) for node in graph.ir_model().graph if node.op_type in WEIGHTED)


def _weight_grids(model: ir.Model) -> Found:
    for node, pair in weights(model):
        codes, zero_point = constant(pair.inputs[0]), constant(input_of(pair, 2))
        if codes is not None and codes.dtype != np.int8:
            yield name_of(node), f"the weight has codes of type {codes.dtype}"
        elif zero_point is not None and np.any(zero_point != 0):
            value = int(zero_point.ravel()[np.argmax(zero_point != 0)])
            yield name_of(node), f"the weight has the zero point {value}"


def _transposed_codes(model: ir.Model) -> Found:
    for node in model.graph:
        pair = activation_of(node.inputs[0]) if node.op_type in WEIGHTED else None
        source = producer_of(pair.inputs[0]) if pair is not None else None
        if source is not None and source.op_type == "Transpose" and source.inputs[0] in model.graph.inputs:
            yield name_of(node), "a DequantizeLinear reads the transposed bytes"


_SEEN = "OpenVINO 2026.4's executed graph"

RULES: tuple[Rule, ...] = (
    Rule(
        "channel-axis",
        "give a weight one scale an output channel: axis 0 for Conv, the axis of N for Gemm and MatMul",
        f"{_SEEN}: a convolution computes in float; a matrix product gives other answers, without an error",
        foreign_channels,
    ),
    Rule(
        "weight-range",
        "use 7 bits (−64..64), or export for --isa x86-vnni",
        "AVX2's vpmaddubsw saturates: 255 · 127 · 2 > 32,767; other answers, no error",
        wide_weights,
        only=("x86",),
    ),
    Rule(
        "half-quantized",
        "quantize the input where it is read, and the weight: this runs in float",
        f"{_SEEN}: it computes in float; but for moves, nothing may stand between it and the DequantizeLinear",
        half_quantized,
        slow=True,
    ),
    Rule(
        "activation-scales",
        "give activations one scale; only weights have one a channel",
        f"{_SEEN}: it computes in float",
        scales_per_channel,
        slow=True,
    ),
    Rule(
        "weight-grid",
        "use int8 codes with the zero point 0",
        f"{_SEEN}: it computes in float",
        _weight_grids,
        slow=True,
    ),
    Rule(
        "transposed-codes",
        "let the DequantizeLinear read the bytes and the Transpose the floats",
        f"{_SEEN}: the Transpose is done on bytes all the same, but the first convolution computes in float otherwise",
        _transposed_codes,
        slow=True,
    ),
)
