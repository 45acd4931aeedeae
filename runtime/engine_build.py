"""Finishes on the device what the workstation began: an unbuilt bundle gets its engine, from the cache or built now."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

import msgspec

from edgecls.runtime.bundle import Bundle, Manifest
from edgecls.runtime.bundle_writer import members_of, write_bundle
from edgecls.runtime.engine_passport import EnginePassport
from edgecls.runtime.engines import EngineModule, engine_module
from edgecls.runtime.errors import BundleError, InputError
from edgecls.runtime.progress import Progress

GRAPH = "model.onnx"
"""The member that an engine is built from; a built bundle keeps it, so that it can be built again elsewhere."""

ENGINE = "model.engine"


class BuildOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a build may be asked for."""

    max_batch: int = 32
    """Largest batch of one engine call; more pictures take several."""
    workspace_bytes: int = 1 << 30
    """Scratch memory on the GPU that a layer may take."""
    cached_only: bool = False
    """Take an engine that was built before, or fail."""


class BuiltEngine(msgspec.Struct, frozen=True, kw_only=True):
    """An engine that fits this machine."""

    data: bytes
    passport: EnginePassport
    cached: bool
    """Whether it had been built before."""


class BuildingEngineModule(EngineModule, Protocol):
    """What a module in `runtime/engines/` offers whose artifacts are finished on the device."""

    def build_engine(self, graph: bytes, manifest: Manifest, options: BuildOptions, progress: Progress) -> BuiltEngine:
        """Builds the engine of a graph for this machine, or takes it from the cache.

        Raises:
            UnsupportedError: The library or a GPU is missing, or too old or too new for the graph; or
                `options.cached_only` and it was not built yet.
            BundleError: The library refuses the graph.
            EngineError: The build fails.
        """
        ...


class BuildResult(msgspec.Struct, frozen=True, kw_only=True):
    """What `edgecls build` did."""

    passport: EnginePassport
    cached: bool
    seconds: float
    engine_bytes: int
    path: str | None
    """The built bundle; None where only the cache was filled."""


def build_bundle(bundle: Bundle, options: BuildOptions, output: Path | None, progress: Progress) -> BuildResult:
    """Builds the engine of a bundle, built before or not, into the cache and into a bundle if one is asked for.

    Raises:
        InputError: The bundle holds no graph to build from.
        UnsupportedError, BundleError, EngineError: As `BuildingEngineModule.build_engine`.
    """
    began = time.monotonic()
    manifest = bundle.manifest
    if manifest.passport.tensorrt is None or GRAPH not in manifest.members:
        raise InputError(
            f"{bundle.path} has nothing to build: "
            + (
                f"{manifest.target} loads it as it is. Try: edgecls verify {bundle.path}"
                if manifest.passport.tensorrt is None
                else "its engine was built where it was exported, and it holds no graph. Export it again for this GPU."
            )
        )
    built = _build(bundle, options, progress)
    if output is not None:
        files = {name: bundle.read(name) for name in manifest.members if name != ENGINE}
        files[ENGINE] = built.data
        write_bundle(output, msgspec.structs.replace(_with_engine(manifest, built), members=members_of(files)), files)
    return BuildResult(
        passport=built.passport,
        cached=built.cached,
        seconds=time.monotonic() - began,
        engine_bytes=len(built.data),
        path=None if output is None else str(output),
    )


def built_artifact(bundle: Bundle, options: BuildOptions, progress: Progress) -> tuple[Manifest, Sequence[bytes]]:
    """The manifest and artifact of an unbuilt bundle as they would be after `edgecls build` here."""
    built = _build(bundle, options, progress)
    return _with_engine(bundle.manifest, built), [built.data]


def _build(bundle: Bundle, options: BuildOptions, progress: Progress) -> BuiltEngine:
    target = bundle.manifest.target
    if not hasattr(engine_module(target), "build_engine"):
        raise BundleError(
            f"{bundle.path} is refused: it wants {target} to build an engine, which that cannot. Export it anew."
        )
    module = cast(BuildingEngineModule, engine_module(target))
    return module.build_engine(bundle.read(GRAPH), bundle.manifest, options, progress)


def _with_engine(manifest: Manifest, built: BuiltEngine) -> Manifest:
    assert manifest.passport.tensorrt is not None
    replace = msgspec.structs.replace
    tensorrt = replace(manifest.passport.tensorrt, engine=built.passport)
    return replace(manifest, artifact=(ENGINE,), passport=replace(manifest.passport, tensorrt=tensorrt))
