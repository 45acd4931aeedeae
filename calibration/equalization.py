"""Cross-layer equalisation, for weights that have one grid for all channels.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgecls.calibration.graph import Graph, constant
from edgecls.calibration.plan import weight_axis
from edgecls.calibration.rescale_channels import input_axis, is_source, readers, rescale_channels

_ROUNDS = 40
"""A chain of layers settles within a few; each round moves size one layer along."""

_SETTLED = 1e-3


def equalizing_scales(graph: Graph) -> dict[str, tuple[float, ...]]:
    """What divides the channels between two layers so that both weights have the same largest value in each.

    Only where nothing but a Relu lies between them: other activations do not commute with a factor.

    Returns:
        By tensor, as `rescale_channels` takes it.
    """
    model = graph.ir_model()
    total: dict[str, NDArray[np.float64]] = {}
    for _ in range(_ROUNDS):
        moved = 0.0
        for node in list(model.graph):
            following = readers(node.outputs[0]) if is_source(node) and node.op_type != "LayerNormalization" else []
            if not following:
                continue
            before = _largest(node, weight_axis(node))
            after = np.maximum.reduce([_largest(reader, input_axis(reader)) for reader in following])
            # A dead channel on either side has no size to move.
            scale = np.where((before > 0) & (after > 0), np.sqrt(before / np.where(after > 0, after, 1.0)), 1.0)
            scale = np.where(scale > 0, scale, 1.0)
            name = str(node.outputs[0].name)
            rescale_channels(model, {name: tuple(map(float, scale))})
            total[name] = total.get(name, np.ones_like(scale)) * scale
            moved = max(moved, float(np.abs(np.log(scale)).max()))
        if moved < _SETTLED:
            break
    return {name: tuple(map(float, scale)) for name, scale in total.items()}


def _largest(node: ir.Node, axis: int) -> NDArray[np.float64]:
    weight = constant(node.inputs[1])
    assert weight is not None
    axes = tuple(other for other in range(weight.ndim) if other != axis)
    return np.asarray(np.abs(weight.astype(np.float64)).max(axis=axes))
