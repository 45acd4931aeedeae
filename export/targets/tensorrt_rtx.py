"""TensorRT-RTX: engines that are built here, ahead of time, for GPUs that need not be here."""

from __future__ import annotations

from edgecls.calibration.graph import Graph
from edgecls.calibration.plan import QuantPlan
from edgecls.export.lint.tensorrt_rtx import build_ahead, known_compute_capabilities
from edgecls.export.placement import Rules
from edgecls.export.targets import ANY_GPU, Artifact, Gpu
from edgecls.export.targets.tensorrt import GOLDEN_TOLERANCE, STRONG, dialect_rules, emit, passport, stand_in_note
from edgecls.runtime.bundle import Precision, TensorRtPassport
from edgecls.runtime.cpu import Isa
from edgecls.runtime.engine_build import ENGINE
from edgecls.runtime.engines.tensorrt_rtx import LIBRARY
from edgecls.runtime.errors import InputError, UnsupportedError

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")

REFUSED: dict[Precision, str] = {}

TURING = "7.5"
"""Compute capability for which TensorRT-RTX's builder has no float32 matrix product (seen in 1.7.1)."""

COMPUTES_IN_HALF = True
"""fp16 is what the GPU computes in, not only what weights are kept in."""


def check_gpu(gpu: Gpu) -> None:
    """Refuses, before any work, what no engine can be built for.

    Raises:
        MissingExtraError: TensorRT-RTX is not installed.
        InputError: It knows no GPU of a compute capability that was asked for, or an option has no meaning here.
    """
    known = known_compute_capabilities()
    if unknown := sorted(set(gpu.compute_capabilities) - set(known)):
        raise InputError(
            f"TensorRT-RTX builds no engines for compute capability {', '.join(unknown)}; it knows "
            f"{', '.join(known)}. For other GPUs use --target tensorrt."
        )
    if gpu.tensorrt_version is not None:
        raise InputError(
            "engines of TensorRT-RTX need its own version: --tensorrt-version and --device are for --target tensorrt."
        )


def rules(isa: Isa, gpu: Gpu = ANY_GPU) -> Rules:
    """Those of TensorRT 10."""
    return dialect_rules(STRONG)


def compile_artifact(
    graph: Graph, precision: Precision, plan: QuantPlan | None, isa: Isa, gpu: Gpu = ANY_GPU
) -> Artifact:
    """As `Target.compile_artifact`; the graph is the one that TensorRT 10 gets.

    Raises:
        MissingExtraError: TensorRT-RTX is not installed.
        UnsupportedError: float32 was asked for on Turing.
    """
    capabilities = gpu.compute_capabilities or known_compute_capabilities()
    left_out: tuple[str, ...] = ()
    if precision == "fp32" and TURING in capabilities:
        if gpu.compute_capabilities:
            raise UnsupportedError(
                f"TensorRT-RTX multiplies no float32 matrices on compute capability {TURING} (Turing). Leave it out of "
                "--compute-capabilities, or use --fp16 or --int8."
            )
        capabilities = tuple(capability for capability in capabilities if capability != TURING)
        left_out = (f"not for compute capability {TURING} (Turing): TensorRT-RTX has no float32 matrix product there",)
    emitted = emit(graph, precision, plan, STRONG)
    engine = build_ahead(emitted.graph, capabilities)
    version = LIBRARY.load("building engines for TensorRT-RTX").__version__
    tensorrt = TensorRtPassport(
        dialect=STRONG.name, minimum_version=version, build="ahead-of-time", compute_capabilities=capabilities
    )
    return Artifact(
        files={ENGINE: engine},
        padding=emitted.padding,
        passport=passport(emitted.graph, precision, version, tensorrt),
        notes=(
            *emitted.notes,
            *left_out,
            f"the engine runs on compute capability {', '.join(capabilities)}, with TensorRT-RTX {version} alone",
            stand_in_note("TensorRT-RTX"),
        ),
        stand_in=emitted.twin.proto,
        golden_tolerance=GOLDEN_TOLERANCE[precision],
    )
