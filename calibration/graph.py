"""The float graph that every target starts from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

INPUT = "image"
"""Name of the graph's input: `uint8 [batch, height, width, 3]`, RGB, 0..255."""
OUTPUT = "logits"
"""Name of the graph's output: `float32 [batch, classes]`."""

SAME_GRID = frozenset({"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split"})
"""Operations that move values without changing them: their outputs lie on their input's grid."""


@dataclass(frozen=True)
class Graph:
    """An ONNX graph from bytes to logits: `image` uint8 NHWC RGB in, `logits` float32 out, dynamic batch.

    The normalisation stands inside, batch norms are folded, and nodes and tensors carry the names of the network's
    modules. The record is immutable; a stage that changes the graph works on its own copy from `ir_model`.
    """

    proto: bytes
    """The serialised model."""

    @classmethod
    def from_ir(cls, model: ir.Model) -> Graph:
        """Serialises and checks a model.

        Raises:
            onnx.checker.ValidationError: The model is not legal ONNX; that is a bug of the pass before.
        """
        proto = ir.to_proto(model)
        onnx.checker.check_model(proto, full_check=True)
        return cls(proto.SerializeToString(deterministic=True))

    def ir_model(self) -> ir.Model:
        """A fresh copy that may be changed."""
        return ir.from_proto(onnx.load_model_from_string(self.proto))

    @cached_property
    def digest(self) -> str:
        """sha256 of the serialised model, hex."""
        return hashlib.sha256(self.proto).hexdigest()


def constant(value: ir.Value | None) -> NDArray[np.generic] | None:
    """The array that a value holds when it is an initializer or a Constant node's output, else None."""
    if value is None or value.const_value is None:
        return None
    return np.asarray(value.const_value.numpy())


def origin(value: ir.Value | None) -> ir.Value | None:
    """The tensor that operations which only move values have made a value of; perhaps itself."""
    while value is not None and (node := value.producer()) is not None and node.op_type in SAME_GRID:
        value = node.inputs[0]
    return value


def is_activation(value: ir.Value | None) -> bool:
    """Whether a value is float data that depends on the picture."""
    return value is not None and constant(value) is None and value.dtype in {ir.DataType.FLOAT, None}


def only_consumer(value: ir.Value) -> ir.Node | None:
    """The one node that reads a value, or None where several do or the graph returns it."""
    uses = value.uses()
    return next(iter(uses)).node if len(uses) == 1 and not value.is_graph_output() else None


def only_reader(value: ir.Value) -> ir.Node | None:
    """As `only_consumer`, but what asks for a value's shape alone does not count."""
    readers = [use.node for use in value.uses() if use.node.op_type != "Shape"]
    return readers[0] if len(readers) == 1 and not value.is_graph_output() else None
