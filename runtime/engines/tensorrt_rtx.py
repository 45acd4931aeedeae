"""TensorRT-RTX on an NVIDIA RTX GPU: the code of `tensorrt`, another library."""

from __future__ import annotations

from collections.abc import Sequence

from edgecls.runtime import tensorrt_engine
from edgecls.runtime.bundle import Manifest
from edgecls.runtime.engine_build import BuildOptions, BuiltEngine
from edgecls.runtime.progress import Progress
from edgecls.runtime.tensorrt_api import Library
from edgecls.runtime.tensorrt_engine import TensorRtEngine

PACKAGE = "tensorrt-rtx"

LIBRARY = Library(
    name="tensorrt-rtx",
    title="TensorRT-RTX",
    module="tensorrt_rtx_bindings",
    before=("tensorrt_rtx_libs",),
    distributions=("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings"),
    extra="tensorrt-rtx",
    timing_cache=False,
)


def version() -> str | None:
    """Version of the installed TensorRT-RTX, or None."""
    return LIBRARY.version()


def open_engine(artifact: Sequence[bytes], manifest: Manifest, threads: int) -> TensorRtEngine:
    """As `tensorrt_engine.open_engine`."""
    return tensorrt_engine.open_engine(LIBRARY, artifact, manifest, threads)


def build_engine(graph: bytes, manifest: Manifest, options: BuildOptions, progress: Progress) -> BuiltEngine:
    """As `BuildingEngineModule.build_engine`."""
    return tensorrt_engine.build_engine(LIBRARY, graph, manifest, options, progress)
