"""TensorRT-RTX's real parser and builder as a judge of graphs: they run without a GPU."""

from __future__ import annotations

from typing import Any

from edgecls.calibration.graph import Graph
from edgecls.runtime.engines.tensorrt_rtx import LIBRARY
from edgecls.runtime.errors import BundleError, EngineError
from edgecls.runtime.progress import SilentProgress
from edgecls.runtime.tensorrt_builder import Recipe, build_plan


def built_by(graph: Graph) -> str | None:
    """Parses a graph and builds an engine of it, which is thrown away.

    Returns:
        Version of the TensorRT-RTX that has built it; None where it is not installed.

    Raises:
        EngineError: It refuses the graph: a bug of ours.
    """
    if (version := LIBRARY.version()) is None:
        return None
    build_ahead(graph, ())
    return version


def build_ahead(graph: Graph, compute_capabilities: tuple[str, ...]) -> bytes:
    """Builds an engine on this machine for GPUs that need not be here.

    Args:
        graph: In the strong dialect.
        compute_capabilities: `8.6`, `12.0`, …; empty for what the builder chooses.

    Raises:
        MissingExtraError: TensorRT-RTX is not installed.
        EngineError: It refuses the graph: a bug of ours.
    """
    trt = LIBRARY.load("building engines for TensorRT-RTX")
    recipe = Recipe(flags=(), max_batch=32, workspace_bytes=1 << 30, compute_capabilities=compute_capabilities)
    try:
        return build_plan(
            LIBRARY, trt, graph.proto, recipe, name="the exported graph", timings=None, progress=SilentProgress()
        )
    except BundleError as error:
        raise EngineError(f"{error} Nothing was written; please report this.") from error


def known_compute_capabilities() -> tuple[str, ...]:
    """GPUs that the installed TensorRT-RTX can build for: `7.5`, …, `12.1`.

    Raises:
        MissingExtraError: TensorRT-RTX is not installed.
    """
    trt: Any = LIBRARY.load("building engines for TensorRT-RTX")
    numbers = [name.removeprefix("SM") for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    return tuple(f"{number[:-1]}.{number[-1]}" for number in sorted(numbers, key=int))
