"""Inference engines behind one small Protocol. A file here is an engine; the folder lists itself."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import Protocol, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgecls.runtime.bundle import Manifest
from edgecls.runtime.errors import InputError


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What actually runs the graph."""

    name: str
    version: str
    provider_requested: str
    """`CPUExecutionProvider`, `CPU`, …"""
    provider_used: str
    """As the engine reports it after loading; differs from the request only when the engine fell back."""
    threads: int
    device: str | None = None
    """What computes instead of the CPU: `Orin, driver 540.4.0, CUDA 12.6`; null where nothing does, and in reports of
    earlier versions."""


class Engine(Protocol):
    """A loaded graph."""

    info: EngineInfo

    def infer(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Runs the graph; safe to call from several threads.

        Args:
            images: `uint8 [batch, height, width, 3]`, RGB, 0..255, contiguous, padded as the manifest says.

        Returns:
            Logits, `float32 [batch, classes]`.
        """
        ...

    def close(self) -> None:
        """Frees the engine; `infer` must not be called again."""
        ...


class EngineModule(Protocol):
    """What a module in this folder offers."""

    PACKAGE: str
    """Distribution that brings the engine, also the name of the pip extra."""

    def version(self) -> str | None:
        """Version of the installed engine without importing it, or None where it is not installed."""
        ...

    def open_engine(self, artifact: Sequence[bytes], manifest: Manifest, threads: int) -> Engine:
        """Loads an artifact from memory.

        Raises:
            MissingExtraError: The engine is not installed.
            BundleError: The engine refuses the artifact.
        """
        ...


def engine_names() -> tuple[str, ...]:
    """Names of the engines that edgecls knows, installed or not, sorted; `tensorrt_rtx.py` is `tensorrt-rtx`."""
    return tuple(sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__)))


def engine_module(name: str) -> EngineModule:
    """The module of an engine.

    Raises:
        InputError: There is no engine of that name.
    """
    if name not in engine_names():
        raise InputError(f"no engine is called {name!r}; edgecls knows {', '.join(engine_names())}")
    return cast(EngineModule, importlib.import_module(f"{__name__}.{name.replace('-', '_')}"))
