"""An ONNX graph computed as it is written: node by node, in float, without an engine's optimisations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from edgecls.runtime.bundle import Padding
from edgecls.runtime.engines.onnxruntime import import_onnxruntime
from edgecls.runtime.errors import EngineError
from edgecls.runtime.session import Session


class Emulation:
    """ONNX Runtime with every optimisation switched off, so that a Q/DQ pair rounds and everything else is float.

    Args:
        proto: The serialised model: one input of bytes, its first output the logits.
        padding: What stands around the crop, as the bundle says.
        tensors: Names of tensors that are given too.
        threads: Of one inference.

    Raises:
        EngineError: ONNX Runtime does not run the graph.
    """

    def __init__(
        self, proto: bytes, padding: Padding | None, threads: int | None = None, tensors: Sequence[str] = ()
    ) -> None:
        ort = import_onnxruntime()
        model = onnx.load_model_from_string(proto)
        del model.graph.output[1:]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 4  # What fails is raised.
        try:
            self._session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise EngineError(f"ONNX Runtime {ort.__version__} does not run the bundle's graph: {error}") from error
        self._input = self._session.get_inputs()[0].name
        self._padding = padding

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Of one crop `uint8 [crop, crop, 3]`, RGB: `float32 [classes]`."""
        logits: NDArray[np.float32] = self._run(pixels)[0][0]
        return logits

    def tensors(self, pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """The tensors that were asked for, of one crop, in the order in which they were."""
        return self._run(pixels)[1:]

    def _run(self, pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        values: list[NDArray[np.float32]] = self._session.run(
            None, {self._input: Session.pad(pixels[None], self._padding)}
        )
        return values
