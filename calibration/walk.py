"""Running a graph node by node, so that what a node is given and what it makes can be looked at and changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from edgecls.calibration.graph import constant
from edgecls.runtime.cpu import cpu_count
from edgecls.runtime.engines.onnxruntime import import_onnxruntime, session_options

SCALE, ZERO_POINT = "quantized:scale", "quantized:zero_point"
"""Inputs of a model of one node that choose the grid of its quantized input; no tensor of a graph is called so."""

Batches = list[NDArray[Any]]
"""One array a batch of pictures."""


@dataclass(frozen=True)
class Step:
    """A node that has just run."""

    node: ir.Node
    inputs: Mapping[ir.Value, Batches]
    """What it was given; constants are not listed."""
    outputs: Batches
    """Its first output. What is done to these arrays in place is what later nodes are given."""


def walk(model: ir.Model, pictures: Batches) -> Iterator[Step]:
    """Runs a graph over all pictures, one node at a time; memory is that of the tensors that are still needed.

    Args:
        model: A graph without sub-graphs.
        pictures: What its only input is given.
    """
    graph = model.graph
    left = Counter(value for node in graph for value in dict.fromkeys(node.inputs) if _is_computed(value))
    alive: dict[ir.Value, Batches] = {graph.inputs[0]: pictures}
    for node in graph:
        if node.op_type == "Constant":
            continue
        inputs = {value: alive[value] for value in dict.fromkeys(node.inputs) if value is not None and value in left}
        session = session_of(model_of(node, model))
        # What depends on no picture (the float form of quantized weights) is computed once.
        count = len(pictures) if inputs else 1
        columns: list[Batches] = [[] for _ in node.outputs]
        for index in range(count):
            feeds = {value.name: batches[index] for value, batches in inputs.items()}
            for column, array in zip(columns, session.run(None, feeds), strict=True):
                column.append(array)
        columns = [column * (len(pictures) // count) for column in columns]
        yield Step(node, inputs, columns[0])
        alive.update((value, column) for value, column in zip(node.outputs, columns, strict=True) if value in left)
        for value in inputs:
            left[value] -= 1
            if not left[value]:
                del alive[value]


def model_of(node: ir.Node, model: ir.Model, quantized: ir.Value | None = None) -> onnx.ModelProto:
    """A model of one node, its constants inside.

    Args:
        model: That it stands in.
        quantized: One of its inputs, which it then reads through QuantizeLinear and DequantizeLinear to uint8, whose
            `SCALE` (float32) and `ZERO_POINT` (uint8) are two more inputs of the model.
    """
    values = [value for value in dict.fromkeys(node.inputs) if value is not None]
    arrays = {value.name: constant(value) for value in values}
    nodes = [ir.serde.serialize_node(node)]
    inputs = [_info(value) for value in values if arrays[value.name] is None]
    if quantized is not None:
        pair = "quantized:codes", "quantized:grid"
        nodes[0].input[:] = [pair[1] if name == quantized.name else name for name in nodes[0].input]
        nodes = [
            onnx.helper.make_node("QuantizeLinear", [quantized.name, SCALE, ZERO_POINT], [pair[0]]),
            onnx.helper.make_node("DequantizeLinear", [pair[0], SCALE, ZERO_POINT], [pair[1]]),
            *nodes,
        ]
        inputs += [
            onnx.helper.make_tensor_value_info(SCALE, onnx.TensorProto.FLOAT, []),
            onnx.helper.make_tensor_value_info(ZERO_POINT, onnx.TensorProto.UINT8, []),
        ]
    weights = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items() if array is not None]
    graph = onnx.helper.make_graph(nodes, node.op_type, inputs, [_info(value) for value in node.outputs], weights)
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    return onnx.helper.make_model(graph, ir_version=model.ir_version, opset_imports=opsets)


def session_of(model: onnx.ModelProto) -> Any:
    """An ONNX Runtime session of a small model."""
    ort = import_onnxruntime()
    options = session_options(cpu_count())
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def batches_of(pictures: Sequence[NDArray[Any]], size: int) -> Batches:
    """The same pictures in arrays of at most `size`."""
    whole = np.concatenate(pictures)
    return [whole[start : start + size] for start in range(0, len(whole), size)]


def _is_computed(value: ir.Value | None) -> bool:
    return value is not None and constant(value) is None


def _info(value: ir.Value) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(value.name, int(value.dtype or ir.DataType.FLOAT), None)
