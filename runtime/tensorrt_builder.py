"""Graph to engine, on the GPU that will run it: one code path for TensorRT 8.6 to 11 and TensorRT-RTX."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from edgecls.runtime.bundle import Manifest
from edgecls.runtime.engine_cache import CacheFolder, DamagedFileError
from edgecls.runtime.errors import BundleError, EngineError, InputError, UnsupportedError
from edgecls.runtime.progress import Advance, Progress
from edgecls.runtime.tensorrt_api import (
    Library,
    Reasons,
    TensorRt,
    error_log,
    is_out_of_memory,
    member,
    sides,
    version_tuple,
)

if TYPE_CHECKING:
    import tensorrt

_STRONGLY_TYPED = "STRONGLY_TYPED"


@dataclass(frozen=True)
class Recipe:
    """What decides how an engine is built."""

    flags: tuple[str, ...]
    """Names of the flags to set, sorted."""
    max_batch: int
    """The optimization profile takes 1 to this many pictures; kernels are chosen for one."""
    workspace_bytes: int
    """Scratch memory on the GPU that a layer may take."""
    compute_capabilities: tuple[str, ...] = ()
    """GPUs that TensorRT-RTX builds for ahead of time, without having them: `8.6`, `12.0`."""


def flags_for(library: Library, trt: TensorRt, manifest: Manifest) -> tuple[str, ...]:
    """The flags that a graph must be built with here.

    Raises:
        BundleError: The bundle does not say.
        UnsupportedError: This version cannot build graphs of this dialect; export for it.
    """
    passport = manifest.passport.tensorrt
    if passport is None:
        raise BundleError(
            f"{manifest.name} does not say how {library.title} builds it; export it again with this edgecls"
        )
    installed, here = version_tuple(trt.__version__), f"this machine has {library.title} {trt.__version__}"
    again = library.export_again(trt)
    too_new = f"{manifest.name} needs {library.title} {passport.minimum_version} or newer, and {here}. {again}."
    if installed < version_tuple(passport.minimum_version):
        raise UnsupportedError(too_new)
    if passport.dialect == "strong":
        if member(trt.NetworkDefinitionCreationFlag, _STRONGLY_TYPED) is not None:
            return (_STRONGLY_TYPED,)
        if installed < (11,):  # from 11 on every network is strongly typed, whether or not there is a flag for it
            raise UnsupportedError(too_new)
        return ()
    if removed := [name for name in passport.flags if member(trt.BuilderFlag, name) is None]:
        raise UnsupportedError(
            f"{manifest.name} is of the weak dialect, which wants the flags {', '.join(passport.flags)}; {here}, which "
            f"has no {', '.join(removed)}: the types must stand in the graph. {again}."
        )
    return tuple(sorted(passport.flags))


def build_plan(
    library: Library,
    trt: TensorRt,
    graph: bytes,
    recipe: Recipe,
    *,
    name: str,
    timings: tuple[CacheFolder, str] | None,
    progress: Progress,
) -> bytes:
    """Builds an engine and serializes it.

    Args:
        library: Which of the two it is.
        trt: Its Python API.
        graph: `model.onnx`.
        recipe: How to build.
        name: Of the bundle, for messages.
        timings: Where the timings of earlier builds lie: a folder and the file's name.
        progress: Hears every step of the builder, where this version tells them.

    Raises:
        BundleError: The parser refuses the graph; the message names nodes and reasons.
        EngineError: The builder fails, for lack of memory perhaps.
    """
    log, reasons = error_log(trt), Reasons(trt)
    what = f"{library.title} {trt.__version__}"
    builder = trt.Builder(log)
    network = builder.create_network(_network_flags(trt, recipe))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph):
        raise BundleError(
            f"{what} refuses the graph of {name}: {_parser_errors(parser) or reasons.text()}. "
            f"{library.export_again(trt)}."
        )
    config = _configured(trt, builder, network, recipe)
    if timings is not None:
        _give_timings(config, *timings, progress)
    with progress.stage("Building the engine") as advance:
        steps = _Steps(advance)
        _watch(trt, config, steps)
        failure: BaseException | None = None
        try:
            plan = builder.build_serialized_network(network, config)
        except Exception as error:
            plan, failure = None, error
        if steps.failure is not None:
            raise steps.failure
    if plan is None:
        text = reasons.text(failure)
        if is_out_of_memory(text):
            raise EngineError(
                f"the GPU has not enough memory to build {name}: {text}. Close what else uses it (a Jetson shares its "
                f"memory with the CPU), or ask for less: edgecls build BUNDLE --max-batch 1 --workspace 256MB -o BUILT"
            )
        raise EngineError(f"{what} cannot build an engine of {name}: {text}. Please report this with the bundle.")
    if timings is not None:
        _keep_timings(config, *timings, progress)
    return bytes(plan)


def _network_flags(trt: TensorRt, recipe: Recipe) -> int:
    """The bits by name: their numbers moved between the versions."""
    flags = trt.NetworkDefinitionCreationFlag
    names = [_STRONGLY_TYPED] if _STRONGLY_TYPED in recipe.flags else []
    if version_tuple(trt.__version__) < (10,) and member(flags, _STRONGLY_TYPED) is None:
        names.append("EXPLICIT_BATCH")  # 8.6 still knows implicit ones; later it means nothing, and in 11 it is gone
    return sum(1 << int(bit) for bit in (member(flags, name) for name in names) if bit is not None)


def _configured(
    trt: TensorRt, builder: tensorrt.Builder, network: tensorrt.INetworkDefinition, recipe: Recipe
) -> tensorrt.IBuilderConfig:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, recipe.workspace_bytes)
    for name in recipe.flags:
        if name != _STRONGLY_TYPED:
            config.set_flag(getattr(trt.BuilderFlag, name))
    if (tf32 := member(trt.BuilderFlag, "TF32")) is not None:
        config.clear_flag(tf32)  # on by default, and it would round float32 to 10 bits behind the bundle's back
    image = network.get_input(0)
    profile = builder.create_optimization_profile()
    single, largest = (trt.Dims([batch, *sides(image.shape)[1:]]) for batch in (1, recipe.max_batch))
    profile.set_shape(image.name, single, single, largest)
    config.add_optimization_profile(profile)
    if recipe.compute_capabilities:
        # TensorRT-RTX alone builds for other GPUs; TensorRT's types do not know these names.
        known, ahead = getattr(trt, "ComputeCapability"), cast(Any, config)  # noqa: B009
        ahead.num_compute_capabilities = len(recipe.compute_capabilities)
        for index, capability in enumerate(recipe.compute_capabilities):
            ahead.set_compute_capability(getattr(known, f"SM{capability.replace('.', '')}"), index)
    return config


def _parser_errors(parser: tensorrt.OnnxParser) -> str:
    said = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        # 8.6 knows the node's number alone.
        node, operator = (getattr(error, method, str)() for method in ("node_name", "node_operator"))
        place = f"node {node!r}" if node else f"node number {error.node()}" if error.node() >= 0 else ""
        said.append(
            ": ".join(part for part in (f"{place} ({operator})" if place and operator else place, error.desc()) if part)
        )
    return "; ".join(dict.fromkeys(said))


def _give_timings(config: tensorrt.IBuilderConfig, folder: CacheFolder, file: str, progress: Progress) -> None:
    try:
        known = folder.read(file) or b""
    except DamagedFileError as error:
        progress.note(f"{error}. It is measured anew.")
        known = b""
    cache = config.create_timing_cache(known)
    if not cache or not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _keep_timings(config: tensorrt.IBuilderConfig, folder: CacheFolder, file: str, progress: Progress) -> None:
    cache = config.get_timing_cache()
    if cache is not None:
        try:
            folder.write(file, bytes(cache.serialize()))
        except InputError as error:  # the engine is built, which took minutes
            progress.note(f"the timings of this build are not kept, the next one takes as long: {error}")


class _Steps:
    """Counts the builder's steps.

    TensorRT calls from several threads, and an exception of ours would end the process there.
    """

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._lock = threading.Lock()
        self.failure: BaseException | None = None

    def done(self) -> bool:
        """Tells of one more step; False ends the build."""
        try:
            with self._lock:
                self._advance(1)
        except BaseException as error:  # KeyboardInterrupt above all: the build ends, then it is raised
            self.failure = error
        return self.failure is None


def _watch(trt: TensorRt, config: tensorrt.IBuilderConfig, steps: _Steps) -> None:
    """Lets the builder tell every step that it has done, where this version can (10 and newer)."""
    base: Any = getattr(trt, "IProgressMonitor", None)
    if base is None:
        return
    members = {
        "__init__": lambda self: base.__init__(self),
        "phase_start": lambda self, phase_name, parent_phase, num_steps: None,
        "phase_finish": lambda self, phase_name: None,
        "step_complete": lambda self, phase_name, step: steps.done(),
    }
    config.progress_monitor = type("ProgressMonitor", (base,), members)()
