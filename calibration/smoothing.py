"""SmoothQuant: a few huge channels behind a layer norm become the business of the weights that read them.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", ICML 2023, with
its strength chosen for every layer by the error of what the layer makes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgecls.calibration.graph import Graph, constant
from edgecls.calibration.plan import weight_axis
from edgecls.calibration.rescale_channels import input_axis, is_source, readers
from edgecls.calibration.walk import Batches, walk
from edgecls.runtime.progress import Advance

STRENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""The paper's alpha: 0 leaves all difficulty to the activations, 1 gives it to the weights."""

_ROWS = 512
"""Rows of activations that judge a strength."""


def smoothing_scales(graph: Graph, crops: Batches, advance: Advance) -> dict[str, tuple[float, ...]]:
    """What divides the outputs of layer norms so that they and the weights that read them quantize best together.

    Args:
        crops: `uint8 [batch, height, width, 3]`, RGB.
        advance: Told about every layer norm.

    Returns:
        By tensor, as `rescale_channels` takes it; layer norms that are best as they are are left out.
    """
    scales: dict[str, tuple[float, ...]] = {}
    model = graph.ir_model()
    for step in walk(model, crops):
        if step.node.op_type != "LayerNormalization":
            continue
        advance(1)
        value = step.node.outputs[0]
        following = readers(value) if is_source(step.node) else []
        if not following or not all(_is_product(reader) for reader in following):
            continue
        rows = np.concatenate([output.reshape(-1, output.shape[-1]) for output in step.outputs]).astype(np.float64)
        best = _best_scale(rows, [_matrix(reader) for reader in following])
        if best is not None:
            scales[str(value.name)] = tuple(map(float, best))
    return scales


def _best_scale(rows: NDArray[np.float64], weights: Sequence[NDArray[np.float64]]) -> NDArray[np.float64] | None:
    """The scale with the least error of rows @ weight, or None where no scale is better than ones."""
    largest = np.abs(rows).max(axis=0)
    heaviest = np.maximum.reduce([np.abs(weight).max(axis=1) for weight in weights])
    low, high = rows.min(axis=0), rows.max(axis=0)
    sample = rows[np.linspace(0, len(rows) - 1, min(_ROWS, len(rows))).astype(int)]
    expected = [sample @ weight for weight in weights]

    def error(scale: NDArray[np.float64]) -> float:
        step = ((high / scale).max() - (low / scale).min()) / 255
        seen = np.rint(sample / scale / step) * step
        return sum(
            float(np.square(seen @ _quantized(weight * scale[:, None]) - goal).sum())
            for weight, goal in zip(weights, expected, strict=True)
        )

    best, least = None, error(np.ones(len(largest)))
    for strength in STRENGTHS:
        scale = np.maximum(largest, 1e-5) ** strength / np.maximum(heaviest, 1e-5) ** (1 - strength)
        scale /= np.exp(np.log(scale).mean())
        if (mine := error(scale)) < least:
            best, least = scale, mine
    return best


def _quantized(weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """On the int8 grids of its output channels; `[inputs, outputs]`."""
    step = np.maximum(np.abs(weight).max(axis=0), 1e-12) / 127
    return np.asarray(np.rint(weight / step) * step)


def _is_product(node: ir.Node) -> bool:
    """Whether a weighted operation is a matrix product of channels; a convolution of single pixels is one."""
    weight = constant(node.inputs[1])
    return weight is not None and (weight.ndim == 2 or (set(weight.shape[2:]) == {1} and input_axis(node) == 1))


def _matrix(node: ir.Node) -> NDArray[np.float64]:
    """The weight of a product, `[inputs, outputs]`."""
    weight = constant(node.inputs[1])
    assert weight is not None
    weight = weight.reshape(weight.shape[:2])
    return weight.astype(np.float64) if weight_axis(node) == 1 else weight.astype(np.float64).T
