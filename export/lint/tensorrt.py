"""What TensorRT's parser, builder or vendor forbids in a graph, found before a device is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import onnx_ir as ir

from edgecls.calibration.graph import Graph, constant
from edgecls.export.lint import Finding, Found, Rule, find_all, input_of, name_of, producer_of

_PAIR = frozenset({"QuantizeLinear", "DequantizeLinear"})
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_NEWEST_OPSET = {"weak": 17, "strong": 20}

# fmt: off
_MISSING = frozenset(
    {
        "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Compress", "ConcatFromSequence",
        "ConvInteger", "Det", "DynamicQuantizeLinear", "Hardmax", "MatMulInteger", "MaxRoiPool", "MaxUnpool",
        "Multinomial", "QLinearConv", "QLinearMatMul", "SequenceAt", "SequenceConstruct", "SequenceEmpty",
        "SequenceErase", "SequenceInsert", "SequenceLength", "SplitToSequence", "StringNormalizer",
        "TfIdfVectorizer", "Unique",
    }
)
# fmt: on
"""Operations of ONNX that no version's parser imports."""

_KNOWN_TYPES = frozenset(
    {
        ir.DataType.FLOAT,
        ir.DataType.FLOAT16,
        ir.DataType.BFLOAT16,
        ir.DataType.INT8,
        ir.DataType.UINT8,
        ir.DataType.INT32,
        ir.DataType.INT64,
        ir.DataType.BOOL,
    }
)
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


def lint(graph: Graph, dialect: Literal["weak", "strong"]) -> tuple[Finding, ...]:
    """Every node that breaks a rule of a dialect, in the order of the rules."""
    return find_all(RULES, graph, dialect)


def _pairs(model: ir.Model) -> Iterator[ir.Node]:
    return (node for node in model.graph if node.op_type in _PAIR)


def _nonzero_zero_points(model: ir.Model) -> Found:
    for node in _pairs(model):
        zero_point = constant(input_of(node, 2))
        if zero_point is not None and np.any(zero_point != 0):
            yield (
                name_of(node),
                f"{node.op_type} has the zero point {int(zero_point.ravel()[np.argmax(zero_point != 0)])}",
            )


def _unsigned_codes(model: ir.Model) -> Found:
    for node in _pairs(model):
        codes = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
        if codes is not None and codes.dtype is not None and codes.dtype != ir.DataType.INT8:
            yield name_of(node), f"{node.op_type} has codes of type {codes.dtype.name.lower()}"


def _bad_scales(model: ir.Model) -> Found:
    for node in _pairs(model):
        scale = constant(input_of(node, 1))
        if scale is not None and not (np.isfinite(scale) & np.greater(scale, 0)).all():
            yield name_of(node), f"{node.op_type} has the scale {float(np.min(scale)):g}"


def _computed_scales(model: ir.Model) -> Found:
    for node in _pairs(model):
        if constant(input_of(node, 1)) is None:
            yield name_of(node), f"the scale of {node.op_type} is computed"


def _scales_per_channel(model: ir.Model) -> Found:
    for node in _pairs(model):
        scale = constant(input_of(node, 1))
        source = producer_of(node.inputs[0])
        codes = source.inputs[0] if source is not None and source.op_type == "QuantizeLinear" else node.inputs[0]
        if scale is not None and scale.size > 1 and constant(codes) is None:
            yield name_of(node), f"{node.op_type} of an activation has {scale.size} scales"


def _half_quantized(model: ir.Model) -> Found:
    for node in model.graph:
        if node.op_type not in _WEIGHTED:
            continue
        quantized = [(p := producer_of(node.inputs[i])) is not None and p.op_type == "DequantizeLinear" for i in (0, 1)]
        if quantized[0] != quantized[1]:
            which = "input but not its weight" if quantized[0] else "weight but not its input"
            yield name_of(node), f"{node.op_type} has its {which} quantized"


def _bytes_inside(model: ir.Model) -> Found:
    inputs = set(model.graph.inputs)
    for name, value in model.graph.initializers.items():
        if value.dtype == ir.DataType.UINT8:
            yield name, "it is a uint8 constant"
    for node in model.graph:
        for value in node.inputs:
            if value in inputs and value is not None and value.dtype == ir.DataType.UINT8 and node.op_type != "Cast":
                yield name_of(node), f"{node.op_type} reads the uint8 input"
        for value in node.outputs:
            if value.dtype == ir.DataType.UINT8:
                yield name_of(node), f"{node.op_type} makes a uint8 tensor"


def _missing_operations(model: ir.Model) -> Found:
    for node in model.graph:
        if node.domain not in {"", "ai.onnx"}:
            yield name_of(node), f"{node.domain}::{node.op_type} is of a foreign domain"
        elif node.op_type in _MISSING:
            yield name_of(node), f"{node.op_type} is not imported"


def _second_outputs(model: ir.Model) -> Found:
    for node in model.graph:
        if node.op_type == "MaxPool" and len(node.outputs) > 1:
            yield name_of(node), "MaxPool returns indices"


def _unknown_types(model: ir.Model) -> Found:
    for value in (*model.graph.inputs, *(out for node in model.graph for out in node.outputs)):
        if value.dtype is not None and value.dtype not in _KNOWN_TYPES:
            yield value.name or "", f"it is of type {value.dtype.name.lower()}"


def _mixed_types(model: ir.Model) -> Found:
    for node in model.graph:
        if node.op_type in {"Cast", *_PAIR}:
            continue
        inputs = node.inputs[:1] if node.op_type == "Resize" else node.inputs  # its scales are always float32
        kinds = {value.dtype for value in inputs if value is not None and value.dtype in _FLOATS}
        if len(kinds) > 1:
            yield (
                name_of(node),
                f"{node.op_type} reads {' and '.join(sorted(kind.name.lower() for kind in kinds if kind))}",
            )


def _mismatched_scales(model: ir.Model) -> Found:
    for node in _pairs(model):
        scale = input_of(node, 1)
        value = node.inputs[0] if node.op_type == "QuantizeLinear" else node.outputs[0]
        if (
            scale is not None
            and value is not None
            and None not in {scale.dtype, value.dtype}
            and scale.dtype != value.dtype
        ):
            yield name_of(node), f"{node.op_type} of {value.dtype.name.lower()} has a {scale.dtype.name.lower()} scale"


def _computed_weights(model: ir.Model) -> Found:
    for node in model.graph:
        source = input_of(node, 1)
        while (producer := producer_of(source)) is not None and producer.op_type in _PAIR | {"Cast"}:
            source = producer.inputs[0]
        if node.op_type in {"Conv", "ConvTranspose"} and constant(source) is None:
            yield name_of(node), f"the weight of {node.op_type} is computed"


def _dynamic_sides(model: ir.Model) -> Found:
    for value in model.graph.inputs:
        sides = list(value.shape or [])[1:]
        if any(not isinstance(side, int) for side in sides):
            yield value.name or "", f"its shape is {list(value.shape or [])}, dynamic beyond the batch"


def _codes_as_weights(model: ir.Model) -> Found:
    for node in _pairs(model):
        if node.op_type == "DequantizeLinear" and constant(node.inputs[0]) is not None:
            yield name_of(node), "DequantizeLinear reads int8 weights from the file"


def _half_tensors(model: ir.Model) -> Found:
    for node in model.graph:
        if any(value.dtype == ir.DataType.FLOAT16 for value in node.outputs):
            yield name_of(node), f"{node.op_type} makes a float16 tensor"


def _newer_than(opset: int) -> Callable[[ir.Model], Found]:
    def find(model: ir.Model) -> Found:
        if (found := model.graph.opset_imports.get("", 0)) > opset:
            yield "the graph", f"it imports opset {found}"

    return find


# `parser`: that of TensorRT-RTX refuses it; `profile`: its builder has no profile for it. Else who forbids it.
RULES: tuple[Rule, ...] = (
    Rule("zero-point", "use symmetric grids", "parser", _nonzero_zero_points),
    Rule("scale", "make every scale positive and finite", "parser", _bad_scales),
    Rule("uint8-inside", "let a Cast be the only reader of the bytes", "parser", _bytes_inside),
    Rule("operation", "rewrite it in operations that TensorRT imports", "parser", _missing_operations),
    Rule("second-output", "drop the indices", "parser", _second_outputs),
    Rule("type", "cast it to a type that TensorRT has", "parser", _unknown_types),
    Rule("computed-weight", "fold the weight into a constant", "parser", _computed_weights),
    Rule("dynamic-side", "fix height and width; only the batch may vary", "profile", _dynamic_sides),
    Rule(
        "codes",
        "use int8 codes; leave biases in float",
        # For int32 the parser itself. For uint8 it warns and quantizes to int8, that is to another range.
        "parser",
        _unsigned_codes,
    ),
    Rule("mixed-types", "put a Cast between them", "ONNX checker", _mixed_types),
    Rule(
        "scale-type",
        "give the scale the type of the tensor (opset ≥ 19 for float16)",
        "ONNX checker",
        _mismatched_scales,
    ),
    Rule(
        "computed-scale",
        "write the scale as a constant",
        "TensorRT operator reference, Quantize and Dequantize: the scale must be a build-time constant",
        _computed_scales,
    ),
    Rule(
        "channel-scales",
        "give activations one scale; only weights have one a channel",
        "TensorRT developer guide, Explicit Quantization: per-channel quantization is for weights only",
        _scales_per_channel,
    ),
    Rule(
        "half-quantized",
        "quantize both or neither: this runs in float, after a conversion for nothing",
        "TensorRT developer guide, Q/DQ Layer-Placement Recommendations: quantize all inputs of weighted operations",
        _half_quantized,
    ),
    Rule(
        "opset",
        "lower the graph to opset 20",
        "ONNX-TensorRT's operators.md: TensorRT 10 supports operators up to opset 20",
        _newer_than(_NEWEST_OPSET["strong"]),
        ("strong",),
    ),
    Rule(
        "opset",
        "lower the graph to opset 17",
        "ONNX-TensorRT's operators.md: TensorRT 8.6 supports operators up to opset 17",
        _newer_than(_NEWEST_OPSET["weak"]),
        ("weak",),
    ),
    Rule(
        "weight-codes",
        "write the weights as float32 before a QuantizeLinear",
        "TensorRT 8 developer guide, Quantized Weights: weights of Q/DQ models must be specified as FP32",
        _codes_as_weights,
        ("weak",),
    ),
    Rule(
        "float16-body",
        "leave the body in float32; the flag FP16 does it",
        "TensorRT 8.6 operator reference, Quantize: its scale is float32; a float16 body would need Casts",
        _half_tensors,
        ("weak",),
    ),
)
