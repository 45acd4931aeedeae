"""What keeps ONNX Runtime's CPU kernels from computing on integers, or makes them compute something else.

Seen in ONNX Runtime 1.32, whose optimised graph the tests hold every rule to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from edgecls.calibration.graph import SAME_GRID, Graph, constant, is_activation, only_consumer
from edgecls.export.lint import Finding, Found, Rule, dequantize_of, find_all, input_of, name_of
from edgecls.export.lint.cpu import (
    WEIGHTED,
    activation_of,
    foreign_channels,
    half_quantized,
    scales_per_channel,
    weights,
    wide_weights,
)
from edgecls.export.placement import absorbs
from edgecls.runtime.cpu import Isa

MATRIX = frozenset({"Gemm", "MatMul"})
"""Operations whose integer kernels may return floats."""

KERNELS = MATRIX | {"Conv", "Add", "Mul", "Concat", "GlobalAveragePool", "AveragePool", "Sigmoid"}
"""Operations that classifiers are made of and that have integer kernels."""

_X86: tuple[Isa, ...] = ("x86-vnni", "x86")


def lint(graph: Graph, isa: Isa) -> tuple[Finding, ...]:
    """Every node that breaks a rule for an instruction set, in the order of the rules."""
    return find_all(RULES, graph, isa)


def integer_nodes(graph: Graph, findings: Sequence[Finding]) -> frozenset[str]:
    """Names of the operations that ONNX Runtime will compute on integers, as far as the rules know.

    Args:
        findings: What `lint` found in it.
    """
    slow = {finding.node for finding in findings if finding.slow}
    return frozenset(name_of(node) for node in _quantized(graph.ir_model())) - slow


def candidates(graph: Graph) -> frozenset[str]:
    """Names of the operations for which ONNX Runtime has integer kernels."""
    return frozenset(name_of(node) for node in _candidates(graph.ir_model()))


def _candidates(model: ir.Model) -> Iterator[ir.Node]:
    for node in model.graph:
        if node.op_type in WEIGHTED or (node.op_type in KERNELS and all(map(is_activation, node.inputs))):
            yield node


def _quantized(model: ir.Model) -> Iterator[ir.Node]:
    """Operations that have an integer kernel and read codes."""
    for node in _candidates(model):
        if any(activation_of(value) is not None for value in node.inputs):
            yield node


def _wrong_biases(model: ir.Model) -> Found:
    for node, weight in weights(model):
        pairs = [activation_of(node.inputs[0]), weight, dequantize_of(input_of(node, 2))]
        if pairs[0] is None or pairs[2] is None:
            continue
        given, of_weight, of_bias = (constant(input_of(pair, 1)) for pair in pairs if pair is not None)
        zero_point = constant(input_of(pairs[2], 2))
        if zero_point is not None and np.any(zero_point != 0):
            yield name_of(node), f"the bias has the zero point {int(zero_point.ravel()[np.argmax(zero_point != 0)])}"
        if given is None or of_weight is None or of_bias is None or given.size > 1:
            continue
        ratio = np.asarray(of_bias / (given.ravel()[0] * of_weight))
        off = float(ratio.ravel()[np.argmax(np.abs(ratio - 1))])
        if abs(off - 1) > 1e-3:
            yield name_of(node), f"the bias' scale is {off:.3g} × that of the input × that of the weight"


def _float_biases(model: ir.Model) -> Found:
    for node in _quantized(model):
        bias = input_of(node, 2)
        if node.op_type in {"Conv", "Gemm"} and bias is not None and dequantize_of(bias) is None:
            yield name_of(node), f"{node.op_type} reads codes but its bias is float"
        reader = only_consumer(node.outputs[0])
        added = reader is not None and reader.op_type == "Add" and not all(map(is_activation, reader.inputs))
        if node.op_type == "MatMul" and _is_matrix(node.inputs[0]) and added:
            yield name_of(node), "ONNX Runtime makes one Gemm of MatMul and Add, and its bias is float"


def _is_matrix(value: ir.Value | None) -> bool:
    return value is not None and value.shape is not None and len(value.shape) == 2


def _factors(model: ir.Model) -> Found:
    for node in _quantized(model):
        for name in ("alpha", "beta") if node.op_type == "Gemm" else ():
            if (factor := node.attributes.get_float(name, 1.0)) != 1:
                yield name_of(node), f"Gemm has {name} = {factor:g}"


def _open_outputs(model: ir.Model) -> Found:
    for node in _quantized(model):
        if node.op_type in MATRIX and only_consumer(node.outputs[0]) is None:
            continue
        reader = only_consumer(node.outputs[0])
        clamp = None
        if reader is not None and reader.op_type in {"Relu", "Clip"}:
            clamp, reader = reader, only_consumer(reader.outputs[0])
        quantized = reader is not None and reader.op_type == "QuantizeLinear"
        if quantized and clamp is not None and not absorbs(reader, clamp):
            yield name_of(node), f"the grid after {name_of(clamp)} reaches beyond the {clamp.op_type}"
        elif not quantized and node.op_type not in MATRIX:
            count = len(node.outputs[0].uses())
            who = (
                f"{count} operations read"
                if count > 1
                else f"{reader.op_type} reads"
                if reader
                else "the graph returns"
            )
            yield name_of(node), f"{who} the float output of {node.op_type}"


def _half_quantized(model: ir.Model) -> Found:
    yield from half_quantized(model)
    for node in _quantized(model):
        sides = [activation_of(value) is not None for value in node.inputs]
        if node.op_type not in WEIGHTED and not all(sides):
            yield name_of(node), f"{node.op_type} has {sum(sides)} of its {len(sides)} inputs quantized"


def _unequal_grids(model: ir.Model) -> Found:
    for node in model.graph:
        before = dequantize_of(node.inputs[0]) if node.op_type in SAME_GRID else None
        after = only_consumer(node.outputs[0]) if before is not None else None
        if before is None or after is None or after.op_type != "QuantizeLinear":
            continue
        parameters = [(constant(input_of(before, i)), constant(input_of(after, i))) for i in (1, 2)]
        if not all(
            np.array_equal(ours, theirs) for ours, theirs in parameters if ours is not None and theirs is not None
        ):
            yield name_of(node), f"{node.op_type} reads one grid and its output is quantized to another"


def _signed_activations(model: ir.Model) -> Found:
    for node in _quantized(model):
        if node.op_type == "Gemm":
            continue
        reader = only_consumer(node.outputs[0])
        pairs = [activation_of(node.inputs[0]), reader if reader and reader.op_type == "QuantizeLinear" else None]
        for pair in pairs:
            if pair is not None and _is_signed(pair) and _is_shared(pair):
                yield name_of(node), f"several operations read int8 codes beside {node.op_type}"
                break


def _is_signed(pair: ir.Node) -> bool:
    zero_point = constant(input_of(pair, 2))
    return zero_point is not None and zero_point.dtype == np.int8


def _is_shared(pair: ir.Node) -> bool:
    """Whether codes have several readers: each gets a DequantizeLinear of its own."""
    value = pair.outputs[0]
    if pair.op_type == "QuantizeLinear":
        reader = only_consumer(value)
        return reader is None or len(reader.outputs[0].uses()) > 1
    return len(value.uses()) > 1


_SEEN = "ONNX Runtime 1.32's optimised graph"

RULES: tuple[Rule, ...] = (
    Rule(
        "channel-axis",
        "give a weight one scale an output channel: axis 0 for Conv, the axis of N for Gemm and MatMul",
        f"{_SEEN}: QLinearConv and QGemm scale output channels, whatever the axis; other answers, no error",
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
        "bias",
        "write the bias as int32 codes of zero point 0 and scale input · weight",
        f"{_SEEN}: QLinearConv and QGemm add the codes as they are; other answers, no error",
        _wrong_biases,
    ),
    Rule(
        "activation-scales",
        "give activations one scale; only weights have one a channel",
        f"{_SEEN}: QLinearConv and MatMulIntegerToFloat are made all the same, and fail at the first picture",
        scales_per_channel,
    ),
    Rule(
        "float-bias",
        "write the bias as int32 codes of scale input · weight",
        f"{_SEEN}: Conv and Gemm compute in float",
        _float_biases,
        slow=True,
    ),
    Rule("factor", "fold alpha and beta into weight and bias", f"{_SEEN}: Gemm computes in float", _factors, slow=True),
    Rule(
        "half-quantized",
        "quantize all inputs or none: this runs in float, after a conversion for nothing",
        f"{_SEEN}: it computes in float, or on weights that ONNX Runtime itself quantizes, with one scale a tensor",
        _half_quantized,
        slow=True,
    ),
    Rule(
        "open-output",
        "let one QuantizeLinear be the only reader, or a Relu or Clip that saturates no earlier than its grid",
        f"{_SEEN}: every integer kernel but those of matrices returns codes; else it computes in float",
        _open_outputs,
        slow=True,
    ),
    Rule(
        "unequal-grids",
        "quantize before and after with one scale and zero point",
        f"{_SEEN}: it runs between a DequantizeLinear and a QuantizeLinear, in float",
        _unequal_grids,
        slow=True,
    ),
    Rule(
        "int8-activations",
        "use uint8 with the zero point + 128: the same grid",
        f"{_SEEN}: on x86 it retypes codes that one operation reads; beside others it computes in float",
        _signed_activations,
        only=_X86,
        slow=True,
    ),
)
