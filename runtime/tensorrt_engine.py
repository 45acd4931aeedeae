"""A built TensorRT engine on one GPU: buffers allocated once, one stream, the batch of one as a CUDA graph."""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgecls.runtime.bundle import Manifest
from edgecls.runtime.device_memory import DeviceMemory, Gpu, open_device_memory
from edgecls.runtime.engine_build import GRAPH, BuildOptions, BuiltEngine
from edgecls.runtime.engine_cache import CacheFolder, DamagedFileError
from edgecls.runtime.engine_passport import EnginePassport
from edgecls.runtime.engines import EngineInfo
from edgecls.runtime.errors import BundleError, EngineError, InputError, UnsupportedError
from edgecls.runtime.progress import Progress
from edgecls.runtime.tensorrt_api import Library, Reasons, TensorRt, error_log, is_out_of_memory, sides
from edgecls.runtime.tensorrt_builder import Recipe, build_plan, flags_for

if TYPE_CHECKING:
    import tensorrt

HOST_CODE = "EDGECLS_ENGINE_HOST_CODE"
"""Environment variable; `1` lets engines run code of their own on the CPU when they are loaded (version-compatible ones
do). Ours hold none."""


def build_engine(
    library: Library, graph: bytes, manifest: Manifest, options: BuildOptions, progress: Progress
) -> BuiltEngine:
    """As `BuildingEngineModule.build_engine`; two processes that build the same engine at once build it once."""
    trt = library.load(f"the bundle {manifest.name}")
    recipe = Recipe(flags_for(library, trt, manifest), options.max_batch, options.workspace_bytes)
    cache = CacheFolder()
    memory = open_device_memory()
    try:
        digest = hashlib.sha256(graph).hexdigest()
        passport = passport_here(library, trt, memory.gpu, digest, recipe.flags, recipe.max_batch)
        file = f"{passport.key}.engine"
        if (data := _cached(cache, file, progress)) is not None:
            return BuiltEngine(data=data, passport=passport, cached=True)
        if options.cached_only:
            raise UnsupportedError(
                f"{manifest.name} has no engine for {memory.gpu.name} yet, and building one was not allowed here. "
                "Build it once: edgecls build BUNDLE"
            )
        with cache.lock(passport.key, progress), memory.current():
            if (data := _cached(cache, file, progress)) is not None:
                return BuiltEngine(data=data, passport=passport, cached=True)
            progress.note(
                f"building the engine of {manifest.name} for {memory.gpu.name}: this takes minutes, once; from then on "
                f"it is taken from {cache.path}"
            )
            timings = (cache, _timings_file(passport)) if library.timing_cache else None
            data = build_plan(library, trt, graph, recipe, name=manifest.name, timings=timings, progress=progress)
            try:
                cache.write(file, data)
            except InputError as error:  # minutes of work are not thrown away
                progress.note(f"the engine works now but must be built again next time: {error}")
        return BuiltEngine(data=data, passport=passport, cached=False)
    finally:
        memory.close()


def open_engine(library: Library, artifact: Sequence[bytes], manifest: Manifest, threads: int) -> TensorRtEngine:
    """Loads a built engine, after comparing its passport with this machine.

    Raises:
        MissingExtraError, UnsupportedError: The library, a CUDA package, the driver or a GPU is missing.
        BundleError: The engine was built for something else, or is damaged.
        EngineError: The GPU has not enough memory.
    """
    trt = library.load(f"the bundle {manifest.name}")
    memory = open_device_memory()
    try:
        refuse_misfit(library, trt, memory.gpu, manifest)
        return TensorRtEngine(library, trt, memory, artifact[0], manifest.name, threads)
    except BaseException:
        memory.close()
        raise


def refuse_misfit(library: Library, trt: TensorRt, gpu: Gpu, manifest: Manifest) -> None:
    """Compares what an engine was built for with this machine, before a byte of it is parsed.

    Raises:
        BundleError: They differ; the message has both sides and the command that builds it here.
    """
    passport = manifest.passport.tensorrt
    if passport is None or manifest.unbuilt:
        raise BundleError(f"{manifest.name} holds no built engine; build it here: edgecls build BUNDLE")
    if passport.engine is not None:
        theirs, graph = passport.engine, manifest.members.get(GRAPH)
        here = passport_here(
            library, trt, gpu, graph.sha256 if graph else theirs.graph_sha256, theirs.flags, theirs.max_batch
        )
        differences, remedy = theirs.differences(here), "Build it here: edgecls build BUNDLE -o BUILT"
    else:
        differences = _ahead_of_time_differences(library, trt, gpu, manifest, passport.compute_capabilities)
        remedy = f"Export it again with --target {library.name} for this GPU and version"
    if differences:
        raise BundleError(
            f"the engine in {manifest.name} does not fit this machine: {'; '.join(differences)}. {remedy}."
        )


def _ahead_of_time_differences(
    library: Library, trt: TensorRt, gpu: Gpu, manifest: Manifest, capabilities: tuple[str, ...]
) -> tuple[str, ...]:
    version = manifest.passport.engine_version
    found = []
    if gpu.compute_capability not in capabilities:
        found.append(f"built for compute capability {', '.join(capabilities)}, {gpu.name} has {gpu.compute_capability}")
    if version != trt.__version__:
        found.append(f"{library.title} {version} there, {trt.__version__} here")
    return tuple(found)


def passport_here(
    library: Library, trt: TensorRt, gpu: Gpu, graph_sha256: str, flags: tuple[str, ...], max_batch: int
) -> EnginePassport:
    """The passport that an engine would get if it were built now."""
    return EnginePassport(
        library=library.name,
        library_version=trt.__version__,
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        cuda_version=gpu.cuda_version,
        driver_version=gpu.driver_version,
        graph_sha256=graph_sha256,
        flags=flags,
        max_batch=max_batch,
    )


def _timings_file(passport: EnginePassport) -> str:
    """Timings serve every graph, but one GPU and one set of libraries only."""
    parts = (passport.library_version, passport.gpu, passport.compute_capability, passport.cuda_version)
    return f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:32]}.timings"


def _cached(cache: CacheFolder, file: str, progress: Progress) -> bytes | None:
    try:
        return cache.read(file)
    except DamagedFileError as error:
        progress.note(f"{error}. It is built anew.")
        return None


class TensorRtEngine:
    """Runs batches of any size, in parts of at most the largest that the engine takes.

    `infer` may be called from several threads: a lock lets one of them use the GPU.
    """

    def __init__(
        self, library: Library, trt: TensorRt, memory: DeviceMemory, plan: bytes, name: str, threads: int
    ) -> None:
        self._trt = trt
        self._memory = memory
        self._lock = threading.Lock()
        self._reasons = Reasons(trt)
        self._what = f"{library.title} {trt.__version__}"
        gpu = memory.gpu
        with memory.current():
            self._runtime: tensorrt.Runtime | None = trt.Runtime(error_log(trt))
            if hasattr(self._runtime, "engine_host_code_allowed"):
                self._runtime.engine_host_code_allowed = os.environ.get(HOST_CODE) == "1"
            engine = self._runtime.deserialize_cuda_engine(plan)
            if engine is None:
                raise self._refusal(f"refuses the engine of {name}", BundleError)
            self._engine: tensorrt.ICudaEngine | None = engine
            self._input, self._output = self._tensors(trt, engine, name)
            _, _, largest = engine.get_tensor_profile_shape(self._input, 0)
            self.max_batch, self._sides = sides(largest)[0], sides(largest)[1:]
            self._classes = sides(engine.get_tensor_shape(self._output))[-1]
            self._image_bytes, self._row_bytes = math.prod(self._sides), 4 * self._classes
            self._device_input = memory.allocate(self.max_batch * self._image_bytes)
            self._device_output = memory.allocate(self.max_batch * self._row_bytes)
            self._host_input = memory.allocate_pinned(self.max_batch * self._image_bytes)
            self._host_output = memory.allocate_pinned(self.max_batch * self._row_bytes)
            self._single = self._context(1)
            self._batch: tensorrt.IExecutionContext | None = None
            self._batch_size = 0
            self._replay = self._captured()
        self.info = EngineInfo(
            name=library.name,
            version=trt.__version__,
            provider_requested=library.title,
            provider_used=library.title,
            threads=threads,
            device=f"{gpu.name}, driver {gpu.driver_version or 'unknown'}, CUDA {gpu.cuda_version}",
        )

    @property
    def cuda_graph(self) -> bool:
        """Whether single pictures run as one captured CUDA graph."""
        return self._replay is not None

    def infer(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """As `Engine.infer`."""
        if images.shape[1:] != self._sides:
            raise EngineError(
                f"the engine takes uint8 [batch, {', '.join(map(str, self._sides))}], not {list(images.shape)}: export"
                " it again"
            )
        logits = np.empty((len(images), self._classes), np.float32)
        with self._lock:
            if self._engine is None:
                raise EngineError("the engine is closed; load the bundle again")
            with self._memory.current():
                for start in range(0, len(images), self.max_batch):
                    part = images[start : start + self.max_batch]
                    count = len(part)
                    np.copyto(self._host_input[: part.nbytes].reshape(part.shape), part)
                    self._launch(count)()
                    self._memory.synchronize()
                    logits[start : start + count] = self._rows(count).view(np.float32).reshape(count, -1)
        return logits

    def timed_ms(self, images: NDArray[np.uint8]) -> float:
        """Time of one batch on the GPU, copies included, between CUDA events."""
        self.infer(images)
        with self._lock, self._memory.current():
            return self._memory.timed_ms(self._launch(len(images)))

    def close(self) -> None:
        """As `Engine.close`."""
        with self._lock:
            if self._engine is None:
                return
            with self._memory.current():
                self._replay = self._single = self._batch = self._engine = self._runtime = None
            del self._host_input, self._host_output
            self._memory.close()

    def _tensors(self, trt: TensorRt, engine: tensorrt.ICudaEngine, name: str) -> tuple[str, str]:
        """The one input and the one output, of the types that our buffers have."""
        found: dict[bool, list[tuple[str, str]]] = {True: [], False: []}
        for index in range(engine.num_io_tensors):
            tensor = engine.get_tensor_name(index)
            is_input = engine.get_tensor_mode(tensor) == trt.TensorIOMode.INPUT
            found[is_input].append((tensor, engine.get_tensor_dtype(tensor).name))
        inputs, outputs = found[True], found[False]
        if [kind for _, kind in inputs] != ["UINT8"] or [kind for _, kind in outputs] != ["FLOAT"]:
            raise BundleError(
                f"the engine of {name} takes {inputs} and gives {outputs}, where one UINT8 and one FLOAT are expected: "
                "it is none of ours. Build it here: edgecls build BUNDLE -o BUILT"
            )
        return inputs[0][0], outputs[0][0]

    def _context(self, batch: int) -> tensorrt.IExecutionContext | None:
        assert self._engine is not None
        context = self._created_context(fixed=batch == 1)
        if context is None:
            raise self._refusal("cannot create an execution context", EngineError)
        context.set_tensor_address(self._input, self._device_input)
        context.set_tensor_address(self._output, self._device_output)
        self._set_batch(context, batch)
        return context

    def _created_context(self, *, fixed: bool) -> tensorrt.IExecutionContext | None:
        assert self._engine is not None
        strategies: Any = getattr(self._trt, "DynamicShapesKernelSpecializationStrategy", None)
        if strategies is None or not fixed:
            return self._engine.create_execution_context()
        # TensorRT-RTX runs a new shape on makeshift kernels until better ones are compiled; a graph would keep those.
        config: Any = self._engine.create_runtime_config()
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        return self._engine.create_execution_context(config)

    def _set_batch(self, context: tensorrt.IExecutionContext, batch: int) -> None:
        if not context.set_input_shape(self._input, (batch, *self._sides)):
            raise self._refusal(f"refuses a batch of {batch}", EngineError)

    def _captured(self) -> Callable[[], None] | None:
        """The batch of one as a CUDA graph, recorded after a first run, which may still load kernels."""
        self._enqueue(self._single, 1)
        self._memory.synchronize()
        capturable = getattr(self._single, "is_stream_capturable", None)
        if capturable is not None and not capturable(self._memory.stream):
            return None
        return self._memory.capture(lambda: self._enqueue(self._single, 1))

    def _launch(self, count: int) -> Callable[[], None]:
        """What enqueues a batch. Other sizes have a context of their own: changing a shape would spoil the graph."""
        if count == 1:
            return self._replay or (lambda: self._enqueue(self._single, 1))
        if self._batch is None:
            self._batch = self._context(count)
        elif self._batch_size != count:
            self._set_batch(self._batch, count)
        self._batch_size = count
        return lambda: self._enqueue(self._batch, count)

    def _enqueue(self, context: tensorrt.IExecutionContext | None, count: int) -> None:
        assert context is not None
        self._memory.upload(self._device_input, self._host_input[: count * self._image_bytes])
        if not context.execute_async_v3(self._memory.stream):
            raise self._refusal(f"failed on a batch of {count}", EngineError)
        self._memory.download(self._rows(count), self._device_output)

    def _rows(self, count: int) -> NDArray[np.uint8]:
        return self._host_output[: count * self._row_bytes]

    def _refusal(self, what: str, kind: type[BundleError] | type[EngineError]) -> BundleError | EngineError:
        text = self._reasons.text()
        self._reasons = Reasons(self._trt)
        if is_out_of_memory(text):
            return EngineError(
                f"the GPU has not enough memory: {self._what} {what}: {text}. Close what else uses it (a Jetson shares "
                "its memory with the CPU), or build for a smaller batch: edgecls build BUNDLE --max-batch 1 -o BUILT"
            )
        return kind(f"{self._what} {what}: {text}. Build it here again: edgecls build BUNDLE -o BUILT")
