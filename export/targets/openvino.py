"""OpenVINO on CPUs: an IR (`model.xml`, `model.bin`), INT8 as Q/DQ on the inputs of convolutions, products and sums."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgecls.calibration.graph import INPUT, Graph
from edgecls.calibration.plan import QuantPlan
from edgecls.export.gates import squeezes
from edgecls.export.lint import disagreements, notes, raise_findings
from edgecls.export.lint.openvino import candidates, integer_nodes, lint
from edgecls.export.passes.dequantize_bytes import dequantize_bytes
from edgecls.export.placement import Rules, place
from edgecls.export.targets import ANY_GPU, Artifact, Gpu
from edgecls.runtime.bundle import Padding, Passport, Precision
from edgecls.runtime.cpu import Isa, saturates
from edgecls.runtime.errors import EngineError, MissingExtraError, UnsupportedError

if TYPE_CHECKING:
    import openvino

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")

REFUSED: dict[Precision, str] = {}

_MOVES = frozenset({"Const", "Input", "Output", "Reorder", "Reshape", "Transpose", "Convert"})
"""Executed nodes that compute nothing."""

_ADDED = re.compile(r"(_original|/WithoutBiases.*)$")
"""What OpenVINO appends to the names of operations that it splits."""

_WEIGHT_BITS: dict[Isa, int] = {"x86-vnni": 8, "x86": 7, "arm64": 8}


def compile_artifact(
    graph: Graph, precision: Precision, plan: QuantPlan | None, isa: Isa, gpu: Gpu = ANY_GPU
) -> Artifact:
    """As `Target.compile_artifact`; fp16 means half-size weights, the arithmetic stays float32.

    Raises:
        EngineError: The linter finds wrong answers, or OpenVINO refuses the graph: a bug of ours.
    """
    if precision != "int8" or plan is None:
        return _artifact(_read(graph.proto), precision, None, None, ())[0]
    model = graph.ir_model()
    placement = place(model, plan, rules(isa))
    dequantize_bytes(model)
    quantized = Graph.from_ir(model)
    findings = lint(quantized, isa)
    meant = {*plan.float_nodes, *placement.floats}
    unmeant = [finding for finding in findings if finding.node not in meant]
    raise_findings(unmeant, "OpenVINO")
    told = (*placement.notes(), *notes(unmeant, "OpenVINO"))
    artifact, executed = _artifact(_read(quantized.proto), precision, isa, placement.padding, told)
    engine = f"OpenVINO {artifact.passport.engine_version}"
    found = disagreements(integer_nodes(quantized, findings), on_integers(quantized, executed), engine)
    stand_in = quantized.proto if saturates(isa) else None  # whose sums ONNX Runtime can keep in floats
    return replace(artifact, notes=(*artifact.notes, *found), stand_in=stand_in)


def rules(isa: Isa, gpu: Gpu = ANY_GPU) -> Rules:
    """What OpenVINO wants: activations quantized where they are read, so that what precedes fuses into the producer."""
    return Rules(
        name=f"openvino {isa}",
        quantized=frozenset({"Conv", "Gemm", "MatMul", "Add"}),
        closed=frozenset(),
        share_with_float=False,
        activations="uint8",
        weight_bits=_WEIGHT_BITS[isa],
        int32_bias=False,
        stays_float=squeezes,
    )


def quantize_with_nncf(graph: Graph, crops: Sequence[NDArray[np.uint8]], isa: Isa) -> Artifact:
    """Lets NNCF quantize the float graph, for those who ask for it.

    Args:
        crops: Calibration pictures, `uint8 [1, crop, crop, 3]` each.

    Raises:
        MissingExtraError: nncf is not installed.
        UnsupportedError: Its graph cannot be run here.
    """
    if saturates(isa):
        raise UnsupportedError(
            f"this CPU has no VNNI, and NNCF's graph for {isa} would saturate here: export with --isa x86, or on a "
            "machine that has it."
        )
    try:
        import nncf
    except ImportError as error:
        raise MissingExtraError("nncf", "--quantizer nncf", str(error)) from error
    dataset = nncf.Dataset(list(crops), lambda batch: {INPUT: batch})
    # By itself NNCF halves the range of the first layer's weights only, whatever CPU it is on.
    overflow = nncf.OverflowFix.ENABLE if isa == "x86" else nncf.OverflowFix.DISABLE
    quantized = nncf.quantize(
        _read(graph.proto),
        dataset,
        subset_size=len(crops),
        advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=overflow),
    )
    return _artifact(quantized, "int8", isa, None, ())[0]


def _read(proto: bytes) -> openvino.Model:
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("openvino", "exporting for openvino", str(error)) from error
    try:
        return openvino.Core().read_model(proto)
    except Exception as error:
        raise EngineError(f"OpenVINO {openvino.__version__} refuses the graph that we made: {error}") from error


def _artifact(
    model: openvino.Model, precision: Precision, isa: Isa | None, padding: Padding | None, notes: tuple[str, ...]
) -> tuple[Artifact, list[Executed]]:
    import openvino

    # OpenVINO numbers the operations that it adds across the whole process; equal graphs shall be equal files.
    for index, operation in enumerate(model.get_ordered_ops()):
        if re.fullmatch(rf"{operation.get_type_name()}_\d+", operation.get_friendly_name()):
            operation.set_friendly_name(f"{operation.get_type_name()}:{index}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        openvino.save_model(model, path, compress_to_fp16=precision == "fp16")
        files = {"model.xml": path.read_bytes(), "model.bin": path.with_suffix(".bin").read_bytes()}
    executed = executed_nodes(files["model.xml"], files["model.bin"])
    passport = Passport(
        engine_version=openvino.__version__.split("-")[0],
        isa=isa,
        activations="uint8" if precision == "int8" else None,
        nodes=len(executed),
        nodes_int8=sum(node.integer for node in executed),
    )
    return Artifact(files, padding, passport, notes), executed


@dataclass(frozen=True)
class Executed:
    """An operation that OpenVINO executes."""

    kind: str
    """`Convolution`, `FullyConnected`, …"""
    precision: str
    """Type that OpenVINO says it computes in: `u8`, `f32`, …"""
    integer: bool
    """Whether it does: a product of floats and compressed weights says `i8` too."""
    names: frozenset[str]
    """The operations of the given graph that were fused into it."""


def on_integers(graph: Graph, executed: Sequence[Executed]) -> frozenset[str]:
    """Names of a graph's weighted operations that OpenVINO computes on integers."""
    names = {name for node in executed if node.integer for name in node.names}
    last = graph.ir_model().graph.outputs[0]
    if last.name in names and (node := last.producer()) is not None:
        names.add(node.name or "")  # OpenVINO calls the last operation by the output's name.
    return candidates(graph) & names


def executed_kinds(structure: bytes, weights: bytes) -> Counter[tuple[str, str]]:
    """As `executed_nodes`, but only the number of each (kind, precision)."""
    return Counter((node.kind, node.precision) for node in executed_nodes(structure, weights))


def executed_nodes(structure: bytes, weights: bytes) -> list[Executed]:
    """What OpenVINO executes on this machine, without mere moves.

    Raises:
        EngineError: OpenVINO does not compile the graph: a bug of ours or of its.
    """
    import openvino

    core = openvino.Core()
    try:
        compiled = core.compile_model(core.read_model(structure, weights), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    except Exception as error:
        raise EngineError(
            f"OpenVINO {openvino.__version__} does not compile the graph that we made: {error}"
        ) from error
    executed = []
    for operation in compiled.get_runtime_model().get_ordered_ops():
        info = operation.get_rt_info()
        kind, precision, names = (_text(info[key]) for key in ("layerType", "runtimePrecision", "originalLayersNames"))
        if kind in _MOVES:
            continue
        reads = operation.input(0).get_element_type().get_type_name() if operation.get_input_size() else precision
        executed.append(
            Executed(
                kind,
                precision,
                integer={precision, reads} <= {"u8", "i8"},
                names=frozenset(_ADDED.sub("", name) for name in names.split(",")),
            )
        )
    return executed


def _text(value: object) -> str:
    return str(value.astype(str)) if hasattr(value, "astype") else str(value)
