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
from onnx_ir.passes.common import RemoveInitializersFromInputsPass, RemoveUnusedNodesPass
from onnxscript.optimizer import fold_constants
from onnxscript.rewriter.rules.common import fuse_hardswish_rules

from edgecls.bench.softmax import log_softmax
from edgecls.calibration.graph import INPUT, OUTPUT, Graph
from edgecls.export.passes.drop_softmax import drop_softmax
from edgecls.export.passes.fold_gemm_factors import fold_gemm_factors
from edgecls.export.passes.fold_layer_scale import fold_layer_scale
from edgecls.export.passes.free_batch import free_batch
from edgecls.export.passes.name_by_module import name_by_module
from edgecls.export.passes.resolve_auto_pad import resolve_auto_pad
from edgecls.export.passes.restore_average_pool import restore_average_pool
from edgecls.export.passes.split_constants import split_constants
from edgecls.export.passes.take_bytes import take_bytes
from edgecls.models.classifier import Classifier
from edgecls.models.normalize import normalized
from edgecls.runtime.cpu import cpu_count
from edgecls.runtime.engines.onnxruntime import import_onnxruntime, session_options
from edgecls.runtime.errors import EngineError, InputError, UnsupportedError

if TYPE_CHECKING:
    from torch import nn

OPSET = 20
_REMEDY = "Export it to ONNX with a dynamic batch axis and the newest opset that you can, and pass that .onnx file."
_IR_VERSION = 10
_NO_LIMIT = 1 << 62
_QUANTIZED = frozenset(
    {"QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}
)


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
    with _quiet():
        # Whatever its size: what does not depend on the picture (standardised weights, position biases) is a constant.
        fold_constants(model, onnx_shape_inference=False, input_size_limit=_NO_LIMIT, output_size_limit=_NO_LIMIT)
        # A hard-swish that is spelled out would be four operations, each with a grid of its own.
        fuse_hardswish_rules().apply_to_model(model)
    split_constants(model)
    answers_probabilities = drop_softmax(model)
    restore_average_pool(model)
    resolve_auto_pad(model)
    fold_gemm_factors(model)
    fold_layer_scale(model)
    take_bytes(model, classifier.preprocess)
    model.graph.outputs[0].name = OUTPUT
    name_by_module(model)
    RemoveUnusedNodesPass()(model)
    model.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
    model.producer_name, model.producer_version, model.graph.name = "edgecls", None, classifier.name
    try:
        graph = Graph.from_ir(model)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UnsupportedError(f"no legal ONNX graph can be made of {classifier.model}: {error}. {_REMEDY}") from error
    pictures = probe_pictures(classifier.preprocess.crop_px, 4)
    floats = normalized(pictures, classifier.preprocess)
    # The source sees one picture at a time and the graph all at once: a batch must not change what a picture gives.
    if isinstance(classifier.source, Path):
        expected = run_onnx(classifier.source, floats, singly=True)
    else:
        expected = _run_module(classifier.source, floats)
    try:
        got = run_onnx(graph.proto, pictures)
    except UnsupportedError as error:
        raise UnsupportedError(
            f"{classifier.model} does not work on a batch of {len(pictures)}: {error}. {_REMEDY}"
        ) from error
    if answers_probabilities:
        got = np.exp(log_softmax(got)).astype(np.float32)
    return Trace(graph, _parity(expected, got))


def probe_pictures(crop_px: int, count: int) -> NDArray[np.uint8]:
    """Test crops `uint8 [count, crop, crop, 3]`: smooth colour fields with fine noise, the same everywhere."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (count, 4, 4, 3)).repeat(-(-crop_px // 4), 1).repeat(-(-crop_px // 4), 2)
    field = coarse[:, :crop_px, :crop_px] + rng.normal(0, 20, (count, crop_px, crop_px, 3))
    return np.clip(np.rint(field), 0, 255).astype(np.uint8)


def run_onnx(model: bytes | Path, images: NDArray[np.generic], *, singly: bool = False) -> NDArray[np.float32]:
    """The first output of an ONNX model in ONNX Runtime.

    Args:
        singly: One image at a time, repeated where the model's batch is fixed.

    Raises:
        UnsupportedError: ONNX Runtime does not run it; the message has its reason.
    """
    ort = import_onnxruntime()

    try:
        session = ort.InferenceSession(model, session_options(cpu_count()), providers=["CPUExecutionProvider"])
        given = session.get_inputs()[0]
        if not singly:
            return np.asarray(session.run(None, {given.name: images})[0])
        batch = given.shape[0] if isinstance(given.shape[0], int) else 1
        rows = [session.run(None, {given.name: image[None].repeat(batch, 0)})[0][:1] for image in images]
    except Exception as error:
        raise UnsupportedError(f"ONNX Runtime does not run it: {error}") from error
    return np.concatenate(rows)


def _parity(expected: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    if not np.isfinite(expected).all():
        raise InputError("the network's own logits are not finite on a test picture: its weights are broken")
    difference = float(np.abs(expected - got).max())
    largest = float(np.abs(expected).max())
    if not difference <= 1e-4 * max(1.0, largest):
        raise EngineError(
            f"the exported graph does not compute what the network computes: logits differ by up to {difference:.3g} "
            f"where {1e-4 * max(1.0, largest):.3g} is allowed (largest logit {largest:.3g}). Nothing was written. "
            "Does the network do something else in export than in eval mode, depend on randomness, or on the other "
            "pictures of a batch?"
        )
    return difference


def _run_module(module: nn.Module, floats: NDArray[np.float32]) -> NDArray[np.float32]:
    import torch

    with torch.inference_mode():
        return np.concatenate([module(torch.from_numpy(picture[None])).numpy() for picture in floats])


def _model_from_module(module: nn.Module, crop_px: int) -> ir.Model:
    """torch.export's graph with batch norms folded.

    The example batch is 2 because a dimension of 1 would be taken for a constant.
    """
    import torch

    example = torch.zeros(2, 3, crop_px, crop_px)
    try:
        with _quiet():
            program = torch.onnx.export(
                _single_branched(module),
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


def _single_branched(module: nn.Module) -> nn.Module:
    """A copy in which timm's networks that train with parallel branches (RepVGG, MobileOne, FastViT) have merged them.

    The branches compute one convolution; apart they cost several, and their sum quantizes badly.
    """
    if not type(module).__module__.startswith("timm."):
        return module
    from timm.utils.model import reparameterize_model

    merged: nn.Module = reparameterize_model(module)
    return merged.eval()


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
    quantized = sorted({node.op_type for node in model.graph} & _QUANTIZED)
    if quantized:
        raise InputError(f"{path} is quantized already (it has {', '.join(quantized)}): pass the float model.")
    # Before version 4 of the format, weights were inputs too.
    model.ir_version = max(model.ir_version, _IR_VERSION)
    RemoveInitializersFromInputsPass()(model)
    picture = model.graph.inputs[0]
    picture.shape = ir.Shape([picture.shape[0] if picture.shape else None, 3, crop_px, crop_px])
    try:
        with _quiet():
            if model.opset_imports.get("", 0) < OPSET:
                version_converter.convert_version(model, OPSET, fallback=True)
            model = free_batch(model)
            optimizer.optimize(model)
            rewriter.rewrite(model)
    except Exception as error:
        raise UnsupportedError(f"{path} cannot be brought to opset {OPSET}: {_root_cause(error)}. {_REMEDY}") from error
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
