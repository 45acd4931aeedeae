"""The quantization plan: what calibration found out, in a file that people can read, edit and give back."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import onnx_ir as ir

from edgecls.calibration.graph import Graph, constant, is_activation, origin
from edgecls.calibration.histogram import Histogram
from edgecls.calibration.local_error import Range, local_errors
from edgecls.calibration.ranges import METHODS, Candidate, Method, propose
from edgecls.calibration.walk import Batches
from edgecls.runtime.bundle import CalibrationRecord
from edgecls.runtime.errors import InputError
from edgecls.runtime.progress import Advance

SCHEMA = "edgecls.plan/1"

WEIGHTED = {"Conv": 0, "Gemm": -1, "MatMul": 1}
"""Operations with a weight as their second input, and the axis of its output channels (Gemm's depends on `transB`)."""

_GATES = frozenset({"Sigmoid", "HardSigmoid"})
"""Operations whose values are gates: what calibration saw of 0..1 is chance."""

_HEADROOM = 1.1
"""Of a Softmax's range over the largest share that was seen. Those of a flat attention are so small that on a grid up
to 1 they would be one code or two."""

_CLEARLY = 0.9
"""Below this part of the error of `mse`, `auto` prefers another method: `mse` is never bad, and what hurts a tensor's
readers is not yet what hurts the answers."""

RangeChoice = Literal["auto", "minmax", "percentile", "mse", "entropy"]
"""How ranges are chosen; `auto` takes for each tensor the method that hurts its readers least."""

Granularity = Literal["per-channel", "per-tensor"]
"""Whether each output channel of a weight has its own grid."""


class TensorRange(msgspec.Struct, frozen=True, kw_only=True):
    """The values of one activation tensor."""

    minimum: float
    """Smallest value seen."""
    maximum: float
    """Largest value seen."""
    asymmetric: tuple[float, float]
    """(low, high) for targets with a zero point; low ≤ 0 ≤ high."""
    symmetric: float
    """Bound of [−bound, bound] for targets without."""
    asymmetric_by: str = "mse"
    """How `asymmetric` was chosen: a method, `gate` for the fixed range of a gate, or `share` for a Softmax's."""
    symmetric_by: str = "mse"


class BlockSensitivity(msgspec.Struct, frozen=True):
    """What changes when one block alone stays in float."""

    name: str
    nodes: tuple[str, ...]
    kl: float
    """Divergence from the float graph that disappears, nats."""
    flips: int
    """Pictures that get their float answer back."""
    cost: float | None
    """What is added to the time of an inference, as part of the float graph's; None where it was not measured."""


class Sensitivity(msgspec.Struct, frozen=True):
    """What each block loses by quantization on one target."""

    target: str
    n: int
    """Pictures."""
    kl: float
    """Mean divergence from the float graph with every block quantized, nats."""
    flips: int
    ratio: float | None
    """Time of an inference over that of the float graph."""
    blocks: tuple[BlockSensitivity, ...]


class QuantPlan(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag=SCHEMA):
    """`plan.json`: everything that the emitters of all targets need to write their INT8 graphs."""

    graph_sha256: str
    """Digest of the float graph; the plan fits no other."""
    calibration: CalibrationRecord
    ranges: str
    """How ranges were chosen: `auto`, or the one method."""
    tensors: dict[str, TensorRange]
    """By tensor name."""
    weights: dict[str, tuple[float, ...]]
    """By node name: largest |weight| that the grid of each output channel covers."""
    float_nodes: dict[str, str]
    """Nodes that stay in float on every target, each with the reason."""
    channel_scales: dict[str, tuple[float, ...]] = {}
    """By tensor: what divides its channels, and multiplies the weights that read them, before anything is quantized.
    The ranges are those of the divided tensors."""
    bias_shifts: dict[str, dict[str, tuple[float, ...]]] = {}
    """By name of the target's rules and by node: what is added to each output channel's bias, because quantization by
    these rules would else move its mean."""
    sensitivity: Sensitivity | None = None
    """Of the blocks, where somebody asked for it."""

    def to_json(self) -> bytes:
        """Indented JSON, the same bytes for the same plan."""
        return msgspec.json.format(msgspec.json.encode(self, order="sorted"), indent=1)

    @property
    def digest(self) -> str:
        """sha256 of `to_json`, hex."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @classmethod
    def read(cls, path: str | os.PathLike[str], graph: Graph) -> QuantPlan:
        """Reads a plan, edited by hand perhaps, and checks that it fits a graph.

        Raises:
            InputError: The file is no plan, belongs to another graph, names nodes or tensors that the graph lacks, or
                holds an impossible range; mend it, or make a new one by exporting with `--calibration`.
        """
        remedy = "Mend it, or make a new one by exporting with --calibration."
        try:
            plan = msgspec.json.decode(Path(path).read_bytes(), type=cls)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the quantization plan {os.fspath(path)}: {error}. {remedy}") from error
        problem = plan._misfit(graph)
        if problem:
            raise InputError(f"the quantization plan {os.fspath(path)} does not fit: {problem}. {remedy}")
        return plan

    def _misfit(self, graph: Graph) -> str | None:
        """The first thing in which the plan does not fit a graph."""
        if self.graph_sha256 != graph.digest:
            return f"it was made from graph {self.graph_sha256[:12]}, this one is {graph.digest[:12]}"
        model = graph.ir_model()
        nodes = {node.name for node in model.graph}
        for name in (*self.float_nodes, *self.weights):
            if name not in nodes:
                return f"the graph has no node {name!r}"
        needed = {value.name: value for value in activations(model)}
        if missing := sorted(set(needed) - set(self.tensors)):
            return f"it has no range for the tensor {missing[0]!r}"
        for name, tensor in self.tensors.items():
            low, high = tensor.asymmetric
            if name not in needed:
                return f"the graph has no tensor {name!r}"
            if not (np.isfinite([low, high, tensor.symmetric]).all() and low <= 0 <= high and low < high):
                return f"tensor {name!r} has the asymmetric range [{low}, {high}]; it must hold zero and be finite"
            if tensor.symmetric <= 0:
                return f"tensor {name!r} has the symmetric bound {tensor.symmetric}; it must be positive"
        bounds = channel_bounds(model)
        for name, expected in bounds.items():
            given = self.weights.get(name)
            if given is None or len(given) != len(expected) or not all(0 < g < np.inf for g in given):
                return f"node {name!r} needs {len(expected)} positive weight bounds"
        return self._wrong_correction({name: len(channels) for name, channels in bounds.items()}, model)

    def _wrong_correction(self, channels: Mapping[str, int], model: ir.Model) -> str | None:
        from edgecls.calibration.rescale_channels import is_source, readers  # which imports this module

        sources = {node.outputs[0].name: node for node in model.graph if is_source(node) and readers(node.outputs[0])}
        for name, scale in self.channel_scales.items():
            if name not in sources:
                return f"the graph has no tensor {name!r} whose channels could be scaled"
            weight = constant(sources[name].inputs[1])
            count = channels.get(str(sources[name].name), 0 if weight is None else weight.size)
            if len(scale) != count or not all(0 < factor < np.inf for factor in scale):
                return f"tensor {name!r} needs {count} positive channel scales"
        for rules, shifts in self.bias_shifts.items():
            for name, shift in shifts.items():
                if len(shift) != channels.get(name) or not np.isfinite(shift).all():
                    return f"node {name!r} needs {channels.get(name, 0)} finite bias shifts for {rules}"
        return None


def make_plan(
    graph: Graph,
    histograms: Mapping[str, Histogram],
    calibration: CalibrationRecord,
    *,
    ranges: RangeChoice = "mse",
    weights: Granularity = "per-channel",
    crops: Batches | None = None,
    advance: Advance = lambda steps: None,
) -> QuantPlan:
    """Solves the ranges of every activation and the bounds of every weight channel.

    Args:
        histograms: One for each tensor that `activations` lists.
        ranges: How.
        weights: `per-tensor` gives all channels of a weight one bound.
        crops: Pictures that `auto` tries the ranges on, `uint8 [batch, height, width, 3]`, RGB; a few are enough.
        advance: Told about every tensor that `auto` looks at.
    """
    model = graph.ir_model()
    values = [value for value in activations(model) if value.name is not None]
    methods: tuple[Method, ...] = METHODS if ranges == "auto" else (ranges,)
    proposed = {str(value.name): _candidates(value, histograms[str(value.name)], methods) for value in values}
    # Of a symmetric grid, code -128 is a value too.
    grids = {
        name: [(c.asymmetric, (-c.symmetric * 128 / 127, c.symmetric)) for c in candidates.values()]
        for name, candidates in proposed.items()
    }
    errors: dict[str, dict[Range, float]] = {}
    if ranges == "auto":
        flat = {name: [grid for pair in pairs for grid in pair] for name, pairs in grids.items()}
        errors = local_errors(graph, flat, crops or [], advance)
    tensors = {}
    for name, candidates in proposed.items():
        pairs = list(zip(candidates.items(), grids[name], strict=True))
        error = errors.get(name, {})
        by, candidate = min(pairs, key=lambda pair: _handicap(pair[0][0]) * error.get(pair[1][0], 0.0))[0]
        symmetric_by, symmetric = min(pairs, key=lambda pair: _handicap(pair[0][0]) * error.get(pair[1][1], 0.0))[0]
        tensors[name] = TensorRange(
            minimum=histograms[name].minimum,
            maximum=histograms[name].maximum,
            asymmetric=candidate.asymmetric,
            symmetric=symmetric.symmetric,
            asymmetric_by=by,
            symmetric_by=symmetric_by,
        )
    bounds = channel_bounds(model)
    if weights == "per-tensor":
        bounds = {name: (max(channels),) * len(channels) for name, channels in bounds.items()}
    return QuantPlan(
        graph_sha256=graph.digest,
        calibration=calibration,
        ranges=ranges,
        tensors=tensors,
        weights=bounds,
        float_nodes={},
    )


def _candidates(value: ir.Value, histogram: Histogram, methods: Sequence[Method]) -> dict[str, Candidate]:
    """The ranges that a tensor may have, by how each was chosen."""
    source = origin(value)
    producer = source.producer() if source is not None else None
    if producer is not None and producer.op_type in _GATES:
        return {"gate": Candidate((0.0, 1.0), 1.0)}
    if producer is not None and producer.op_type == "Softmax":
        largest = min(1.0, _HEADROOM * histogram.maximum)
        return {"share": Candidate((0.0, largest), largest)}
    return {method: propose(method, histogram, *_flat_ends(value)) for method in methods}


def _handicap(method: str) -> float:
    return _CLEARLY if method == "mse" else 1.0


def activations(model: ir.Model) -> list[ir.Value]:
    """The tensors that an emitter may want to quantize, in graph order.

    All float data but the normalised picture's own float forms, the logits, and outputs that only a Relu or Clip reads
    (those are quantized after it).
    """
    graph_output = model.graph.outputs[0]
    found = []
    for node in model.graph:
        for value in node.outputs:
            if value is graph_output or not is_activation(value) or node.op_type == "Cast":
                continue
            uses = value.uses()
            if uses and all(use.node.op_type in {"Relu", "Clip"} for use in uses) and len(uses) == 1:
                continue
            found.append(value)
    return found


def weight_axis(node: ir.Node) -> int:
    """The axis of a weight's output channels."""
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return WEIGHTED[node.op_type]


def channel_bounds(model: ir.Model) -> dict[str, tuple[float, ...]]:
    """For every operation with a constant weight: the largest |weight| of each output channel, never zero."""
    bounds = {}
    for node in model.graph:
        weight = constant(node.inputs[1]) if node.op_type in WEIGHTED else None
        if weight is None or weight.ndim < 2 or (node.op_type == "MatMul" and weight.ndim != 2):
            continue
        axes = tuple(axis for axis in range(weight.ndim) if axis != weight_axis(node))
        largest = np.abs(weight.astype(np.float64)).max(axis=axes)
        # A dead channel gets a step that its (zero) weights do not need but its int32 bias does.
        largest = np.maximum(largest, max(largest.max() * 1e-5, 1e-12))
        assert node.name is not None
        bounds[node.name] = tuple(float(bound) for bound in largest)
    return bounds


def _flat_ends(value: ir.Value) -> tuple[float, float]:
    """The values beyond which every consumer of a tensor is constant."""
    uses = value.uses()
    if not uses or value.is_graph_output():
        return -np.inf, np.inf
    ends = [_flat_ends_of(use.node) for use in uses]
    return min(low for low, _ in ends), max(high for _, high in ends)


def _flat_ends_of(node: ir.Node) -> tuple[float, float]:
    """The inputs beyond which an operation is constant; saturating there costs nothing."""
    alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    if node.op_type == "HardSigmoid" and alpha > 0:
        return -beta / alpha, (1 - beta) / alpha
    return (-3.0 if node.op_type == "HardSwish" else -np.inf), np.inf
