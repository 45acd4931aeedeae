"""Checkpoint to graph: export, passes, and the proof that the graph computes what torch computes."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgecls.calibration.graph import INPUT, OUTPUT, Graph
from edgecls.export.passes.free_batch import free_batch
from edgecls.export.passes.name_by_module import name_by_module
from edgecls.export.passes.restore_average_pool import restore_average_pool
from edgecls.export.passes.take_bytes import take_bytes
from edgecls.models.classifier import Classifier
from edgecls.runtime.errors import EngineError, InputError, UnsupportedError
from edgecls.runtime.preprocess import Preprocess

if TYPE_CHECKING:
    from torch import nn

OPSET = 20


@dataclass(frozen=True)
class Trace:
    """A graph that was proven to compute what its network computes."""

    graph: Graph
    parity_max_abs: float
    """Largest |difference| of a logit between graph and network on test pictures."""


def trace(classifier: Classifier) -> Trace:
    """Exports a classifier to a graph from bytes to logits and measures its parity with the source.

    Raises:
        UnsupportedError: The network cannot be exported; the message has the exporter's reason.
        EngineError: The graph computes something else than the network (max |Δ| > 1e-4 × max(1, max |logit|)).
    """
    if isinstance(classifier.source, Path):
        model = _model_from_onnx(classifier.source, classifier.preprocess.crop_px)
    else:
        model = _model_from_module(classifier.source, classifier.preprocess.crop_px)
    reference_model = ir.to_proto(model) if isinstance(classifier.source, Path) else None
    restore_average_pool(model)
    take_bytes(model, classifier.preprocess)
    model.graph.outputs[0].name = OUTPUT
    name_by_module(model)
    RemoveUnusedNodesPass()(model)
    model.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
    model.producer_name, model.producer_version, model.graph.name = "edgecls", None, classifier.name
    graph = Graph.from_ir(model)

    pictures = probe_pictures(classifier.preprocess.crop_px, 4)
    floats = normalized(pictures, classifier.preprocess)
    if reference_model is not None:
        expected = run_onnx(reference_model.SerializeToString(), floats)
    else:
        expected = _run_module(classifier.source, floats)  # type: ignore[arg-type]
    return Trace(graph, _parity(expected, run_onnx(graph.proto, pictures)))


def probe_pictures(crop_px: int, count: int) -> NDArray[np.uint8]:
    """Test crops `uint8 [count, crop, crop, 3]`: smooth colour fields with fine noise, the same everywhere."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (count, 4, 4, 3)).repeat(-(-crop_px // 4), 1).repeat(-(-crop_px // 4), 2)
    field = coarse[:, :crop_px, :crop_px] + rng.normal(0, 20, (count, crop_px, crop_px, 3))
    return np.clip(np.rint(field), 0, 255).astype(np.uint8)


def normalized(pictures: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.float32]:
    """What the source network takes: float32 `[batch, 3, height, width]`, (x / 255 − mean) / std, its colour order."""
    if preprocess.colour == "bgr":
        pictures = pictures[..., ::-1]
    floats = (pictures / 255.0 - np.asarray(preprocess.mean)) / np.asarray(preprocess.std)
    return np.ascontiguousarray(floats.transpose(0, 3, 1, 2), np.float32)


def run_onnx(proto: bytes, images: NDArray[np.generic]) -> NDArray[np.float32]:
    """The first output of an ONNX model in ONNX Runtime.

    Raises:
        UnsupportedError: ONNX Runtime does not run it; the message has its reason.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
        (name, *_) = (given.name for given in session.get_inputs())
        logits: NDArray[np.float32] = session.run(None, {name: images})[0]
    except Exception as error:
        raise UnsupportedError(f"ONNX Runtime does not run the exported graph: {error}") from error
    return logits


def _parity(expected: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    if not np.isfinite(expected).all():
        raise InputError("the network's own logits are not finite on a test picture: its weights are broken")
    difference = float(np.abs(expected - got).max())
    largest = float(np.abs(expected).max())
    if not difference <= 1e-4 * max(1.0, largest):
        raise EngineError(
            f"the exported graph does not compute what the network computes: logits differ by up to {difference:.3g} "
            f"where {1e-4 * max(1.0, largest):.3g} is allowed (largest logit {largest:.3g}). Nothing was written. "
            "Does the network do something else in export than in eval mode, or depend on randomness?"
        )
    return difference


def _run_module(module: nn.Module, floats: NDArray[np.float32]) -> NDArray[np.float32]:
    import torch

    with torch.inference_mode():
        logits: NDArray[np.float32] = module(torch.from_numpy(floats)).numpy()
    return logits


def _model_from_module(module: nn.Module, crop_px: int) -> ir.Model:
    """torch.export's graph with batch norms folded.

    The example batch is 2 because a dimension of 1 would be taken for a constant.
    """
    import torch

    example = torch.zeros(2, 3, crop_px, crop_px)
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        raise UnsupportedError(
            f"torch.onnx.export cannot export this network: {_root_cause(error)}. "
            "Export it to ONNX yourself and pass the .onnx file, with --mean --std --resize --crop."
        ) from error
    assert program is not None
    return program.model


def _root_cause(error: BaseException) -> str:
    """The first line of what the exporter's own, much longer, report began with."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _model_from_onnx(path: Path, crop_px: int) -> ir.Model:
    """A user's ONNX file, its batch dynamic, its constants and batch norms folded, at our opset."""
    from onnxscript import optimizer, rewriter, version_converter

    try:
        model = ir.from_proto(onnx.load(path))
    except Exception as error:
        raise InputError(f"cannot read {path}: {error}") from error
    with _quiet():
        if model.opset_imports.get("", 0) < OPSET:
            version_converter.convert_version(model, OPSET, fallback=True)
        picture = model.graph.inputs[0]
        picture.shape = ir.Shape([picture.shape[0] if picture.shape else None, 3, crop_px, crop_px])
        model = free_batch(model)
        optimizer.optimize(model)
        rewriter.rewrite(model)
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's chatter from the user; what fails is raised, not logged."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
