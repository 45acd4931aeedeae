"""The peers: what onnxruntime.quantization and NNCF make of a graph, as their users would call them.

All of them get our fp32 graph as it is, bytes in and logits out: both quantize from the first convolution on and leave
the Transpose, Cast and Sub before it in float.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgecls.calibration.graph import INPUT, Graph

Files = list[bytes]
"""An ONNX file, or an IR's structure and weights."""

STRIDE = 16
"""Pictures whose activations onnxruntime.quantization holds at a time."""


@dataclass(frozen=True)
class Calibration:
    """What a peer may look at."""

    crops: list[np.ndarray]
    """`uint8 [1, crop, crop, 3]` each."""
    labels: list[int] | None
    """Of the crops; None where they are not known, and accuracy-aware quantization cannot be tried."""


def ort_defaults(graph: Graph, calibration: Calibration, reduce_range: bool) -> bytes:
    """`quantize_static` without options: int8 per-tensor, min-max, no preprocessing."""
    return _quantize_static(graph, calibration, prepared=False)


def ort_per_channel(method: str, symmetric: bool = False) -> Callable[[Graph, Calibration, bool], bytes]:
    """What its documentation advises for CPUs: prepared graph, u8 activations, s8 weights per channel, and a method."""

    def quantize(graph: Graph, calibration: Calibration, reduce_range: bool) -> bytes:
        from onnxruntime.quantization import CalibrationMethod, QuantType

        return _quantize_static(
            graph,
            calibration,
            prepared=True,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[method],
            extra_options={"CalibTensorRangeSymmetric": symmetric, "CalibStridedMinMax": STRIDE},
        )

    return quantize


def nncf_onnx(graph: Graph, calibration: Calibration, reduce_range: bool) -> bytes:
    """`nncf.quantize` on the ONNX graph, all defaults."""
    import nncf
    import onnx

    model = onnx.load_model_from_string(graph.proto)
    return nncf.quantize(model, _dataset(calibration), subset_size=len(calibration.crops)).SerializeToString()


def nncf_openvino(**options: Any) -> Callable[[Graph, Calibration, bool], Files]:
    """`nncf.quantize` on the OpenVINO model."""

    def quantize(graph: Graph, calibration: Calibration, reduce_range: bool) -> Files:
        import nncf

        given = {"preset": nncf.QuantizationPreset(options["preset"])} if "preset" in options else {}
        return ir_files(
            nncf.quantize(
                _openvino(graph.proto), _dataset(calibration), subset_size=len(calibration.crops), **options | given
            )
        )

    return quantize


def nncf_accuracy_aware(graph: Graph, calibration: Calibration, reduce_range: bool) -> Files:
    """`nncf.quantize_with_accuracy_control` to 0.5 points of top-1 on the calibration pictures: others are not his."""
    import nncf

    if calibration.labels is None:
        raise ValueError("the calibration pictures have no labels")

    def top1(model: Any, items: Iterable[tuple[np.ndarray, int]]) -> tuple[float, list[float]]:
        hits = [float(int(model([crop])[0].argmax()) == label) for crop, label in items]
        return float(np.mean(hits)), hits

    pairs = list(zip(calibration.crops, calibration.labels, strict=True))
    return ir_files(
        nncf.quantize_with_accuracy_control(
            _openvino(graph.proto),
            calibration_dataset=_dataset(calibration),
            validation_dataset=nncf.Dataset(pairs),
            validation_fn=top1,
            max_drop=0.005,
            subset_size=len(pairs),
        )
    )


ONNX_PEERS: dict[str, Callable[[Graph, Calibration, bool], bytes]] = {
    "ort defaults": ort_defaults,
    "ort min-max": ort_per_channel("MinMax"),
    "ort percentile": ort_per_channel("Percentile"),
    "ort percentile symmetric": ort_per_channel("Percentile", symmetric=True),
    "ort entropy": ort_per_channel("Entropy"),
    "nncf onnx": nncf_onnx,
}
"""ONNX files, which both engines run."""

OPENVINO_PEERS: dict[str, Callable[[Graph, Calibration, bool], Files]] = {
    "nncf": nncf_openvino(),
    "nncf mixed": nncf_openvino(preset="mixed", fast_bias_correction=False),
    "nncf accuracy-aware": nncf_accuracy_aware,
}
"""IRs, which OpenVINO runs."""


def ir_files(model: Any) -> Files:
    """An OpenVINO model, or a serialised ONNX model, as structure and weights."""
    import openvino

    if isinstance(model, bytes):
        model = _openvino(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        openvino.save_model(model, path, compress_to_fp16=False)
        return [path.read_bytes(), path.with_suffix(".bin").read_bytes()]


def _quantize_static(graph: Graph, calibration: Calibration, *, prepared: bool, **options: Any) -> bytes:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._ahead = iter(calibration.crops)

        def get_next(self) -> dict[str, np.ndarray] | None:
            crop = next(self._ahead, None)
            return None if crop is None else {INPUT: crop}

        def __len__(self) -> int:
            return len(calibration.crops) // STRIDE * STRIDE

        def set_range(self, start_index: int, end_index: int) -> None:
            self._ahead = iter(calibration.crops[start_index:end_index])

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, ready, made = (folder / file for file in ("float.onnx", "ready.onnx", "int8.onnx"))
        source.write_bytes(graph.proto)
        if prepared:
            quant_pre_process(str(source), str(ready))
        quantize_static(str(ready if prepared else source), str(made), Reader(), **options)
        return made.read_bytes()


def _openvino(proto: bytes) -> Any:
    import openvino

    return openvino.Core().read_model(proto)


def _dataset(calibration: Calibration) -> Any:
    import nncf

    return nncf.Dataset(calibration.crops, lambda crop: {INPUT: crop})
