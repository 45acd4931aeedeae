"""ONNX Runtime on CPUs: one ONNX file, INT8 as Q/DQ that its optimiser turns into integer kernels."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Literal

import onnx

from edgecls.calibration.graph import Graph
from edgecls.calibration.plan import QuantPlan
from edgecls.export.lint import disagreements, notes, raise_findings
from edgecls.export.lint.onnxruntime import KERNELS, MATRIX, candidates, integer_nodes, lint
from edgecls.export.placement import Rules, place
from edgecls.export.targets import ANY_GPU, Artifact, Gpu
from edgecls.runtime.bundle import Passport, Precision
from edgecls.runtime.cpu import Isa
from edgecls.runtime.engines.onnxruntime import DISABLED_OPTIMIZERS, import_onnxruntime
from edgecls.runtime.errors import EngineError, MissingExtraError

PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")

REFUSED: dict[Precision, str] = {
    "fp16": "its CPU kernels compute in float32 and would convert back and forth. Use fp32 or --int8, or "
    "--target openvino for half-size weights"
}

_MOVES = frozenset({"Transpose", "Reshape", "Flatten", "ReorderInput", "ReorderOutput"})
"""Operations of the optimised graph that compute nothing."""

_ADDED = re.compile(r"(_token_\d+|_nchwc|/MatMulAddFusion)$")
"""What ONNX Runtime appends to the names of nodes that it replaces."""

_ISA: dict[Isa, tuple[Literal["uint8", "int8"], int]] = {
    # x86 kernels exist for uint8 × int8 alone; without VNNI they add pairs of products in 16 bits, which saturates
    # unless the weights keep to 7 bits. ARM multiplies int8 × int8 fastest.
    "x86-vnni": ("uint8", 8),
    "x86": ("uint8", 7),
    "arm64": ("int8", 8),
}


def compile_artifact(
    graph: Graph, precision: Precision, plan: QuantPlan | None, isa: Isa, gpu: Gpu = ANY_GPU
) -> Artifact:
    """As `Target.compile_artifact`.

    Raises:
        EngineError: The linter finds wrong answers, or ONNX Runtime refuses the graph: a bug of ours.
    """
    if precision == "fp32" or plan is None:
        version, kinds = optimised_kinds(graph.proto)
        passport = Passport(engine_version=version, isa=None, activations=None, nodes=kinds.total(), nodes_int8=0)
        return Artifact({"model.onnx": graph.proto}, None, passport, ())

    wanted = rules(isa)
    activations = wanted.activations
    model = graph.ir_model()
    placement = place(model, plan, wanted)
    quantized = Graph.from_ir(model)
    findings = lint(quantized, isa)
    meant = {*plan.float_nodes, *placement.floats}
    unmeant = [finding for finding in findings if finding.node not in meant]
    raise_findings(unmeant, "ONNX Runtime")
    version, nodes = optimised_nodes(quantized.proto, int8_activations=activations == "int8")
    integers = [name for kind, name in nodes if is_integer(kind)]
    passport = Passport(
        engine_version=version, isa=isa, activations=activations, nodes=len(nodes), nodes_int8=len(integers)
    )
    told = (
        *placement.notes(),
        *notes(unmeant, "ONNX Runtime"),
        *disagreements(
            integer_nodes(quantized, findings), candidates(quantized).intersection(integers), f"ONNX Runtime {version}"
        ),
    )
    return Artifact({"model.onnx": quantized.proto}, placement.padding, passport, told)


def rules(isa: Isa, gpu: Gpu = ANY_GPU) -> Rules:
    """What ONNX Runtime wants: Q/DQ on inputs and outputs, so that no float tensor lies between two integer kernels."""
    activations, weight_bits = _ISA[isa]
    return Rules(
        name=f"onnxruntime {isa}",
        quantized=KERNELS,
        # QGemm may return floats; everything else runs in float unless its output is quantized.
        closed=KERNELS - MATRIX,
        share_with_float=True,
        activations=activations,
        weight_bits=weight_bits,
        int32_bias=True,
        stays_float=lambda node: None,
        wide_pixels=True,
    )


def is_integer(kind: str) -> bool:
    """Whether an operation of ONNX Runtime's optimised graph computes on integers."""
    return kind.startswith(("QLinear", "QGemm", "MatMulInteger", "DynamicQuantize")) or kind in {
        "ConvInteger",
        "NhwcMaxPool",
    }


def optimised_kinds(proto: bytes, *, int8_activations: bool = False) -> tuple[str, Counter[str]]:
    """As `optimised_nodes`, but only the number of operations of each kind."""
    version, nodes = optimised_nodes(proto, int8_activations=int8_activations)
    return version, Counter(kind for kind, _ in nodes)


def optimised_nodes(proto: bytes, *, int8_activations: bool = False) -> tuple[str, list[tuple[str, str]]]:
    """What ONNX Runtime makes of a graph on this machine.

    Args:
        int8_activations: Fuse int8 activations too, as an ARM machine does (slow here, but countable).

    Returns:
        Version of ONNX Runtime, and (kind, name in the graph that was given) of each operation in its optimised graph,
        without mere moves of data.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        EngineError: ONNX Runtime refuses the graph: a bug of ours.
    """
    try:
        ort = import_onnxruntime()
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "exporting for onnxruntime", str(error)) from error
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if int8_activations:
        options.add_session_config_entry("session.qdqisint8allowed", "1")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        options.optimized_model_filepath = str(path)
        try:
            ort.InferenceSession(
                proto, options, providers=["CPUExecutionProvider"], disabled_optimizers=DISABLED_OPTIMIZERS
            )
        except Exception as error:
            raise EngineError(f"ONNX Runtime {ort.__version__} refuses the graph that we made: {error}") from error
        nodes = onnx.load(path, load_external_data=False).graph.node
    return ort.__version__, [(node.op_type, _ADDED.sub("", node.name)) for node in nodes if node.op_type not in _MOVES]
