"""ONNX Runtime on the CPU."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgecls.runtime.bundle import Manifest
from edgecls.runtime.cpu import Isa, saturates
from edgecls.runtime.engines import EngineInfo
from edgecls.runtime.errors import BundleError, EngineError, MissingExtraError

if TYPE_CHECKING:
    import onnxruntime

PACKAGE = "onnxruntime"

DISABLED_OPTIMIZERS = ["WeightBiasQuantization"]
"""Steps of ONNX Runtime's optimiser that are left out: this one quantizes float weights, with one scale a tensor, where
a plan has left a node in float between two on integers."""

_PROVIDER = "CPUExecutionProvider"


def version() -> str | None:
    """Version of the installed onnxruntime, or None."""
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return None


def import_onnxruntime() -> Any:
    """The package, silent: every import of it in edgecls is this one.

    Since 1.29 the official builds for Linux send names and digests of models to Microsoft, keep an identifier of the
    device in `~/.cache`, and start a thread for it, unless `ORT_DISABLE_TELEMETRY` is set before the import. A value
    that the user has set counts.

    Raises:
        ImportError: It is not installed, or cannot be loaded.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return importlib.import_module(PACKAGE)


def session_options(threads: int, made_for: Isa | None = None) -> Any:
    """Options of a session: silent, for what fails is raised, and with right sums where the graph has integers.

    Args:
        threads: Of one inference.
        made_for: Instruction set that the integers are made for. Where this CPU would saturate, they are computed in
            floats, which is slow and right: an export answers for the CPU that the graph is for.
    """
    options = import_onnxruntime().SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if saturates(made_for):
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def open_engine(artifact: Sequence[bytes], manifest: Manifest, threads: int) -> OnnxRuntimeEngine:
    """Loads `model.onnx` from memory.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        BundleError: ONNX Runtime refuses the graph.
    """
    try:
        onnxruntime = import_onnxruntime()
    except ImportError as error:
        raise MissingExtraError("onnxruntime", f"the bundle {manifest.name}", str(error)) from error
    if len(artifact) != 1:
        raise _foreign(manifest, f"has {len(artifact)} members, not model.onnx alone")
    options = session_options(threads, manifest.passport.isa)
    options.inter_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(
            artifact[0], options, providers=[_PROVIDER], disabled_optimizers=DISABLED_OPTIMIZERS
        )
    except Exception as error:
        raise BundleError(
            f"ONNX Runtime {onnxruntime.__version__} refuses the graph of {manifest.name}: {error}. It was made with "
            f"{manifest.passport.engine_version}; install that version or export again."
        ) from error
    found = [[value.type for value in values] for values in (session.get_inputs(), session.get_outputs())]
    if found != [["tensor(uint8)"], ["tensor(float)"]]:
        raise _foreign(manifest, f"takes {found[0]} and gives {found[1]}, not one tensor(uint8) and one tensor(float)")
    return OnnxRuntimeEngine(session, threads, onnxruntime.__version__)


def _foreign(manifest: Manifest, what: str) -> BundleError:
    return BundleError(f"ONNX Runtime's graph in {manifest.name} {what}: it is none of ours. Export it again.")


class OnnxRuntimeEngine:
    """A session of ONNX Runtime; `infer` may be called from several threads."""

    def __init__(self, session: onnxruntime.InferenceSession, threads: int, version: str) -> None:
        self._session: onnxruntime.InferenceSession | None = session
        self._input = session.get_inputs()[0].name
        self._outputs = [session.get_outputs()[0].name]
        self.info = EngineInfo(
            name="onnxruntime",
            version=version,
            provider_requested=_PROVIDER,
            provider_used=session.get_providers()[0],
            threads=threads,
        )

    def infer(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """As `Engine.infer`."""
        session = self._session  # another thread may close the engine now
        if session is None:
            raise EngineError("the engine is closed; load the bundle again")
        try:
            # Not `run_with_iobinding`: `images` is not copied here either. Bound once it saves 7 µs a call, bound
            # for each buffer it costs 13 (tests/perf/session_ratio.py).
            logits: NDArray[np.float32] = session.run(self._outputs, {self._input: images})[0]
        except Exception as error:
            raise EngineError(f"ONNX Runtime failed on a batch of shape {images.shape}: {error}") from error
        return logits

    def close(self) -> None:
        """As `Engine.close`."""
        self._session = None
