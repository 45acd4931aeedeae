"""OpenVINO on the CPU, always in the precision that the bundle says.

On CPUs with bf16 (and on ARM with f16) OpenVINO computes fp32 models in half precision unless it is told
`INFERENCE_PRECISION_HINT=f32`; every precision is run with that hint, so that the answers are the bundle's everywhere.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgecls.runtime.bundle import Manifest
from edgecls.runtime.cpu import cpu_count
from edgecls.runtime.engines import EngineInfo
from edgecls.runtime.errors import BundleError, EngineError, MissingExtraError

if TYPE_CHECKING:
    import openvino

PACKAGE = "openvino"

_DEVICE = "CPU"

# Of the process that has begun OpenVINO's threads: one pool for all models, which a fork does not copy.
_threads_of: int | None = None


def version() -> str | None:
    """Version of the installed openvino, or None."""
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return None


def open_engine(artifact: Sequence[bytes], manifest: Manifest, threads: int) -> OpenVinoEngine:
    """Loads `model.xml` and `model.bin` from memory.

    Raises:
        MissingExtraError: openvino is not installed.
        EngineError: This is the forked child of a process that has used OpenVINO: begin it with 'spawn'.
        BundleError: OpenVINO refuses the graph.
    """
    global _threads_of
    if _threads_of not in (None, os.getpid()):
        raise EngineError(
            f"process {os.getpid()} was forked from {_threads_of}, which has loaded with OpenVINO; to load here too "
            "might never return: load nothing before the fork, or begin the process with 'spawn'"
        )
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("openvino", f"the bundle {manifest.name}", str(error)) from error
    if len(artifact) != 2:
        raise _foreign(manifest, f"has {len(artifact)} members, not model.xml and model.bin")
    structure, weights = artifact
    # read_model guesses the format, and what it takes for ONNX may name any file of the disk as its weights.
    if not structure.startswith(b"<?xml"):
        raise _foreign(manifest, f"begins with {structure[:5]!r}, not as XML does")
    core, _threads_of = openvino.Core(), os.getpid()
    try:
        model = core.read_model(structure, weights)
        found = [[port.element_type.get_type_name() for port in ports] for ports in (model.inputs, model.outputs)]
        if found != [["u8"], ["f32"]]:
            raise _foreign(manifest, f"takes {found[0]} and gives {found[1]}, not one u8 and one f32")
        return OpenVinoEngine(core, model, threads, openvino.__version__)
    except BundleError:
        raise
    except Exception as error:
        raise BundleError(
            f"OpenVINO {openvino.__version__} refuses the graph of {manifest.name}: {error}. It was made with "
            f"{manifest.passport.engine_version}; install that version or export again."
        ) from error


def _foreign(manifest: Manifest, what: str) -> BundleError:
    return BundleError(f"OpenVINO's graph in {manifest.name} {what}: it is none of ours. Export it again.")


class OpenVinoEngine:
    """A compiled model of OpenVINO; `infer` may be called from several threads.

    Batch 1 is compiled with static shapes, which is 6–17 % faster than one dynamic model for all; the dynamic one is
    compiled when the first other batch size comes. A call has an infer request of its own, which later ones use again.

    A stream of OpenVINO runs one request at a time. There are as many of `threads` threads as the CPUs can hold: one
    alone would let calls from several threads wait for each other, whatever CPUs are idle.
    """

    def __init__(self, core: openvino.Core, model: openvino.Model, threads: int, version: str) -> None:
        self._source: tuple[openvino.Core, openvino.Model] | None = (core, model)
        self._threads, self._streams = threads, max(1, cpu_count() // threads)
        self._lock = threading.Lock()
        self._compiled: dict[bool, openvino.CompiledModel] = {}
        self._idle = _no_requests()
        single = self._compile(single=True)
        devices = single.get_property("EXECUTION_DEVICES")
        self.info = EngineInfo(
            name="openvino",
            version=version.split("-")[0],
            provider_requested=_DEVICE,
            provider_used=devices if isinstance(devices, str) else ",".join(devices),
            threads=threads,
        )

    def infer(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """As `Engine.infer`."""
        import openvino

        single = len(images) == 1
        idle = self._idle[single]
        if self._source is None:
            raise EngineError("the engine is closed; load the bundle again")
        try:
            try:
                request = idle.pop()
            except IndexError:
                request = self._compile(single=single).create_infer_request()
            # OpenVINO wraps no array that may not be written, although it only reads.
            writable = np.require(images, requirements="W")
            request.set_input_tensor(openvino.Tensor(writable, shared_memory=True))
            request.infer()
            # The output buffer belongs to the request and is written again by the next call.
            logits: NDArray[np.float32] = request.get_output_tensor().data.copy()
            idle.append(request)
        except Exception as error:
            raise EngineError(f"OpenVINO failed on a batch of shape {images.shape}: {error}") from error
        return logits

    def close(self) -> None:
        """As `Engine.close`."""
        with self._lock:
            self._source = None
            self._idle = _no_requests()
            self._compiled = {}

    def _compile(self, *, single: bool) -> openvino.CompiledModel:
        with self._lock:
            if self._source is None:  # closed since the call began
                raise EngineError("the engine is closed; load the bundle again")
            core, model = self._source
            if single not in self._compiled:
                shape = model.input(0).partial_shape
                shape[0] = 1 if single else -1
                model.reshape(shape)
                self._compiled[single] = core.compile_model(
                    model,
                    _DEVICE,
                    {
                        "INFERENCE_PRECISION_HINT": "f32",
                        "INFERENCE_NUM_THREADS": self._threads * self._streams,
                        "NUM_STREAMS": self._streams,
                        "PERFORMANCE_HINT": "LATENCY",
                    },
                )
            return self._compiled[single]


def _no_requests() -> dict[bool, deque[openvino.InferRequest]]:
    return {False: deque(), True: deque()}
