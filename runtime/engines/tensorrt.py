"""TensorRT on an NVIDIA GPU. ONNX Runtime's TensorRT and CUDA providers never take its place."""

from __future__ import annotations

from collections.abc import Sequence

from edgecls.runtime import tensorrt_engine
from edgecls.runtime.bundle import Manifest
from edgecls.runtime.engine_build import BuildOptions, BuiltEngine
from edgecls.runtime.progress import Progress
from edgecls.runtime.tensorrt_api import Library
from edgecls.runtime.tensorrt_engine import TensorRtEngine

PACKAGE = "tensorrt"

INSTALL = "comes with JetPack; pip install tensorrt on a PC"

LIBRARY = Library(
    name="tensorrt",
    title="TensorRT",
    module="tensorrt",
    before=(),
    distributions=("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    extra=None,
    timing_cache=True,
)


def version() -> str | None:
    """Version of the installed TensorRT, or None."""
    return LIBRARY.version()


def open_engine(artifact: Sequence[bytes], manifest: Manifest, threads: int) -> TensorRtEngine:
    """As `tensorrt_engine.open_engine`."""
    return tensorrt_engine.open_engine(LIBRARY, artifact, manifest, threads)


def build_engine(graph: bytes, manifest: Manifest, options: BuildOptions, progress: Progress) -> BuiltEngine:
    """As `BuildingEngineModule.build_engine`."""
    return tensorrt_engine.build_engine(LIBRARY, graph, manifest, options, progress)
