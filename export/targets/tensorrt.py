"""TensorRT: one ONNX file that the device builds into an engine, INT8 as Q/DQ in the dialect that its version reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import onnx
import onnx_ir as ir

from edgecls.calibration.collect import collect_histograms
from edgecls.calibration.graph import Graph
from edgecls.calibration.plan import WEIGHTED, QuantPlan
from edgecls.export.gates import ON_PIXELS, squeezes
from edgecls.export.lint import raise_findings
from edgecls.export.lint.tensorrt import lint
from edgecls.export.lint.tensorrt_rtx import built_by
from edgecls.export.passes.cast_bytes import cast_bytes
from edgecls.export.passes.cast_to_half import cast_to_half
from edgecls.export.passes.lower_opset import lower_opset
from edgecls.export.placement import Rules, place
from edgecls.export.targets import ANY_GPU, Artifact, Gpu
from edgecls.export.trace import probe_pictures
from edgecls.runtime.bundle import Padding, Passport, Precision, TensorRtPassport
from edgecls.runtime.cpu import Isa
from edgecls.runtime.errors import InputError, UnsupportedError
from edgecls.runtime.tensorrt_api import version_tuple

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")

REFUSED: dict[Precision, str] = {}

COMPUTES_IN_HALF = True
"""fp16 is what the GPU computes in, not only what weights are kept in."""

DEFAULT_VERSION = "10.3"
"""What JetPack 6.1 and 6.2 carry."""

GOLDEN_TOLERANCE: Mapping[Precision, float] = {"fp32": 0.005, "fp16": 0.03, "int8": 0.1}
"""Part of the largest logit by which a GPU may differ from ONNX Runtime: sums in another order, float16."""

_MINIMUM_CHANNELS = 16
"""INT8 kernels work on channels in packs; fewer than this are padded with zeros."""


@dataclass(frozen=True)
class Dialect:
    """One of the two ways to write a graph for TensorRT."""

    name: Literal["weak", "strong"]
    minimum_version: str
    """Oldest TensorRT that reads it."""
    opset: int
    """Newest opset that it may use."""


WEAK = Dialect("weak", "8.6", 17)
"""float32 throughout; the builder's flags allow float16 and integers."""
STRONG = Dialect("strong", "10.0", 20)
"""Every tensor has the type that it is computed in."""


@dataclass(frozen=True)
class Emitted:
    """A graph in one of the dialects."""

    graph: Graph
    twin: Graph
    """The same in float32, scales and codes included: ONNX Runtime's optimiser breaks Q/DQ with float16 scales."""
    padding: Padding | None
    notes: tuple[str, ...]


def compile_artifact(
    graph: Graph, precision: Precision, plan: QuantPlan | None, isa: Isa, gpu: Gpu = ANY_GPU
) -> Artifact:
    """As `Target.compile_artifact`.

    Raises:
        InputError: The version of TensorRT is none that we can write for.
        EngineError: The linter or the real builder of TensorRT-RTX refuses the graph: a bug of ours.
    """
    version = gpu.tensorrt_version or DEFAULT_VERSION
    dialect = dialect_of(version)
    emitted = emit(graph, precision, plan, dialect)
    checked = built_by(emitted.graph)
    note = (
        f"checked by the parser and the builder of TensorRT-RTX {checked}"
        if checked
        else "checked by our linter alone; with the extra 'tensorrt-rtx' a real parser and builder check it too"
    )
    tensorrt = TensorRtPassport(
        dialect=dialect.name,
        minimum_version=dialect.minimum_version,
        build="on-device",
        flags=flags(precision, dialect),
    )
    return Artifact(
        files={"model.onnx": emitted.graph.proto},
        padding=emitted.padding,
        passport=passport(emitted.graph, precision, version, tensorrt),
        notes=(*emitted.notes, note, stand_in_note("TensorRT")),
        stand_in=emitted.twin.proto,
        golden_tolerance=GOLDEN_TOLERANCE[precision],
    )


def check_gpu(gpu: Gpu) -> None:
    """Refuses, before any work, what no graph can be made for.

    Raises:
        InputError: The version is none that we write for, or an option has no meaning here.
    """
    dialect_of(gpu.tensorrt_version or DEFAULT_VERSION)
    if gpu.compute_capabilities:
        raise InputError(
            "TensorRT builds on the device, for its GPU: --compute-capabilities is for --target tensorrt-rtx."
        )


def dialect_of(version: str) -> Dialect:
    """The dialect that a version of TensorRT reads.

    Raises:
        InputError: It is no version, or older than 8.6.
    """
    numbers = version_tuple(version)
    if not numbers or not all(part.isdigit() for part in version.split(".")):
        raise InputError(f"--tensorrt-version {version!r} is no version; write it like 10.3 or 8.6")
    if numbers < version_tuple(WEAK.minimum_version):
        raise InputError(
            f"TensorRT {version} is not supported: edgecls writes for 8.6 (JetPack 6.0) and newer. Upgrade JetPack."
        )
    return STRONG if numbers >= version_tuple(STRONG.minimum_version) else WEAK


def emit(graph: Graph, precision: Precision, plan: QuantPlan | None, dialect: Dialect) -> Emitted:
    """Writes the graph in a dialect and lints it.

    Raises:
        EngineError: The linter finds something: a bug of ours.
        UnsupportedError: An operation cannot be written in the dialect's opset.
    """
    model = graph.ir_model()
    strong = dialect is STRONG
    padding, notes = None, []
    if precision == "int8" and plan is not None:
        placement = place(model, plan, dialect_rules(dialect))
        padding = placement.padding
        notes += _by_reason(placement.floats, "stays in float")
    cast_bytes(model)
    twin = Graph.from_ir(model)
    if strong and precision != "fp32":
        kept = cast_to_half(model, _largest(graph, plan))
        notes += _by_reason(kept, "computes in float32")
    lower_opset(model, dialect.opset)
    try:
        emitted = Graph.from_ir(model)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UnsupportedError(
            f"{precision} for TensorRT cannot be written in opset {dialect.opset}: {error}. Use fp32, or export the "
            "network with other operations."
        ) from error
    raise_findings(lint(emitted, dialect.name), "TensorRT")
    return Emitted(emitted, twin, padding, tuple(notes))


def rules(isa: Isa, gpu: Gpu = ANY_GPU) -> Rules:
    """What the version of TensorRT that a graph is made for wants."""
    return dialect_rules(dialect_of(gpu.tensorrt_version or DEFAULT_VERSION))


def dialect_rules(dialect: Dialect) -> Rules:
    """What TensorRT wants: symmetric grids, Q/DQ on inputs only, and of a residual sum on the skip side only.

    NVIDIA's guide: quantize all inputs of weighted operations, not their outputs; leave the bias; quantize the skip
    side of a residual sum, so that convolution and sum become one kernel.
    """
    strong = dialect is STRONG
    return Rules(
        name=f"tensorrt {dialect.name}",
        quantized=frozenset({"Conv", "Gemm", "MatMul", "Add"}),
        closed=frozenset(),
        share_with_float=False,
        activations="int8",
        weight_bits=8,
        int32_bias=False,
        stays_float=_stays_float,
        symmetric=True,
        add_fuses=True,
        half_scales=strong,
        # TensorRT 8 takes the weights of Q/DQ graphs as float32 only.
        weight_codes=strong,
    )


def flags(precision: Precision, dialect: Dialect) -> tuple[str, ...]:
    """The builder's flags that a weakly typed build needs, by name."""
    if dialect is STRONG:
        return ()
    return {"fp32": (), "fp16": ("FP16",), "int8": ("FP16", "INT8")}[precision]


def passport(graph: Graph, precision: Precision, version: str, tensorrt: TensorRtPassport) -> Passport:
    """What a graph is made of, as far as it can be told before it is built."""
    moves = {"QuantizeLinear", "DequantizeLinear", "Cast", "Transpose", "Reshape", "Flatten"}
    nodes = [node for node in graph.ir_model().graph if node.op_type not in moves]
    integers = [node for node in nodes if node.op_type in WEIGHTED and _reads_codes(node)]
    return Passport(
        engine_version=version,
        isa=None,
        activations="int8" if precision == "int8" else None,
        nodes=len(nodes),
        nodes_int8=len(integers),
        tensorrt=tensorrt,
    )


def stand_in_note(engine: str) -> str:
    """What the user must know of golden samples that another engine has answered."""
    return (
        "the golden samples were answered by ONNX Runtime on the same graph in float32 arithmetic; "
        f"`edgecls verify` holds {engine} to them"
    )


def _by_reason(reasons: Mapping[str, str], what: str) -> list[str]:
    """A note for each reason, not for each of the hundred layer norms that it keeps in float."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return [f"{_listed(nodes)} {what}: {reason}" for reason, nodes in names.items()]


def _listed(nodes: list[str]) -> str:
    return (
        nodes[0]
        if len(nodes) == 1
        else f"each of {len(nodes)} nodes ({', '.join(nodes[:2])}{', …' * (len(nodes) > 2)})"
    )


def _reads_codes(node: ir.Node) -> bool:
    producers = [value.producer() for value in node.inputs[:2] if value is not None]
    return all(producer is not None and producer.op_type == "DequantizeLinear" for producer in producers)


def _stays_float(node: ir.Node) -> str | None:
    """What integers would slow down: gates, convolutions on single pixels or on few channels (but for the picture)."""
    if reason := squeezes(node):
        return reason
    if node.op_type != "Conv" or node.inputs[0] is None or node.inputs[0].shape is None:
        return None
    shape = list(node.inputs[0].shape)
    if shape[2:] == [1, 1]:
        return ON_PIXELS
    output = node.outputs[0].shape
    channels = [shape[1]] if shape[1] != 3 else []
    channels += [list(output)[1]] if output is not None else []
    if fewest := min((c for c in channels if isinstance(c, int) and c < _MINIMUM_CHANNELS), default=None):
        return f"it has {fewest} channels, fewer than the {_MINIMUM_CHANNELS} that an integer kernel packs"
    return None


def _largest(graph: Graph, plan: QuantPlan | None) -> dict[str, float]:
    """The largest |value| of each tensor: on the calibration pictures, else on test pictures."""
    if plan is not None:
        return {name: max(-tensor.minimum, tensor.maximum) for name, tensor in plan.tensors.items()}
    side = graph.ir_model().graph.inputs[0].shape
    assert side is not None
    pictures = probe_pictures(int(side[1]), 8)
    histograms = collect_histograms(graph, [pictures[:4], pictures[4:]], lambda steps: None)
    return {name: max(-histogram.minimum, histogram.maximum) for name, histogram in histograms.items()}
