"""OpenVINO on the CPU, always in the precision that the bundle says.

On CPUs with bf16 (and on ARM with f16) OpenVINO computes fp32 models in half precision unless it is told
`INFERENCE_PRECISION_HINT=f32`; every precision is run with that hint, so that the answers are the bundle's everywhere.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgecls.runtime.bundle import Manifest
from edgecls.runtime.engines import EngineInfo
from edgecls.runtime.errors import BundleError, EngineError, MissingExtraError

if TYPE_CHECKING:
    import openvino

PACKAGE = "openvino"

_DEVICE = "CPU"


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
        BundleError: OpenVINO refuses the graph.
    """
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("openvino", f"the bundle {manifest.name}", str(error)) from error
    structure, weights = artifact
    core = openvino.Core()
    try:
        model = core.read_model(structure, weights)
        return OpenVinoEngine(core, model, threads, openvino.__version__)
    except Exception as error:
        raise BundleError(
            f"OpenVINO {openvino.__version__} refuses the graph of {manifest.name}: {error}. It was made with "
            f"{manifest.passport.engine_version}; install that version or export again."
        ) from error


class OpenVinoEngine:
    """A compiled model of OpenVINO; `infer` may be called from several threads.

    Batch 1 is compiled with static shapes, which is 6–17 % faster than one dynamic model for all; the dynamic one is
    compiled when the first other batch size comes. Every thread has an infer request of its own.
    """

    def __init__(self, core: openvino.Core, model: openvino.Model, threads: int, version: str) -> None:
        self._core: openvino.Core | None = core
        self._model = model
        self._threads = threads
        self._lock = threading.Lock()
        self._compiled: dict[bool, openvino.CompiledModel] = {}
        self._requests = threading.local()
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

        if self._core is None:
            raise EngineError("the engine is closed; load the bundle again")
        try:
            request = self._request(single=len(images) == 1)
            request.set_input_tensor(openvino.Tensor(images, shared_memory=True))
            request.infer()
            # The output buffer belongs to the request and is written again by the next call.
            logits: NDArray[np.float32] = request.get_output_tensor().data.copy()
        except Exception as error:
            raise EngineError(f"OpenVINO failed on a batch of shape {images.shape}: {error}") from error
        return logits

    def close(self) -> None:
        """As `Engine.close`."""
        self._requests = threading.local()
        self._compiled.clear()
        self._core = None

    def _request(self, *, single: bool) -> openvino.InferRequest:
        name = "single" if single else "batch"
        request = getattr(self._requests, name, None)
        if request is None:
            request = self._compile(single=single).create_infer_request()
            setattr(self._requests, name, request)
        return request

    def _compile(self, *, single: bool) -> openvino.CompiledModel:
        assert self._core is not None
        with self._lock:
            if single not in self._compiled:
                shape = self._model.input(0).partial_shape
                shape[0] = 1 if single else -1
                self._model.reshape(shape)
                self._compiled[single] = self._core.compile_model(
                    self._model,
                    _DEVICE,
                    {
                        "INFERENCE_PRECISION_HINT": "f32",
                        "INFERENCE_NUM_THREADS": self._threads,
                        "NUM_STREAMS": 1,
                        "PERFORMANCE_HINT": "LATENCY",
                    },
                )
            return self._compiled[single]
