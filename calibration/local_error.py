"""Which of several ranges hurts a tensor's readers least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgecls.calibration.graph import Graph
from edgecls.calibration.walk import SCALE, ZERO_POINT, Batches, model_of, session_of, walk
from edgecls.runtime.progress import Advance

Range = tuple[float, float]


def local_errors(
    graph: Graph, ranges: Mapping[str, Sequence[Range]], crops: Batches, advance: Advance
) -> dict[str, dict[Range, float]]:
    """What quantizing one tensor alone does to the outputs of the operations that read it.

    An operation's own reading of a range decides: a convolution averages rounding errors that a squared error of the
    tensor would count in full, and a hard-swish does not see what happens below −3.

    Args:
        ranges: By tensor, those to compare: (low, high) of 255 steps, zero on the grid.
        crops: `uint8 [batch, height, width, 3]`, RGB.
        advance: Told about every tensor, when its first reader is looked at.

    Returns:
        By tensor and range: squared error over squared output, summed over the readers. Tensors with one range, or
        without readers that compute floats, are left out.
    """
    model = graph.ir_model()
    wanted = {name: tuple(dict.fromkeys(given)) for name, given in ranges.items() if len(set(given)) > 1}
    errors: dict[str, dict[Range, float]] = {}
    for step in walk(model, crops):
        if step.node.outputs[0].dtype not in {ir.DataType.FLOAT, None}:
            continue
        power = sum(float(np.square(output, dtype=np.float64).sum()) for output in step.outputs)
        for value in step.inputs:
            if value.name not in wanted or not power:
                continue
            if value.name not in errors:
                advance(1)
            session = session_of(model_of(step.node, model, quantized=value))
            mine = errors.setdefault(value.name, dict.fromkeys(wanted[value.name], 0.0))
            for candidate in mine:
                mine[candidate] += _squared_error(session, step.inputs, step.outputs, candidate) / power
    return errors


def _squared_error(session: Any, inputs: Mapping[ir.Value, Batches], outputs: Batches, candidate: Range) -> float:
    low, high = candidate
    scale = np.asarray((high - low) / 255, np.float32)
    grid = {SCALE: scale, ZERO_POINT: np.asarray(np.clip(np.rint(-low / scale), 0, 255), np.uint8)}
    total = 0.0
    for index, expected in enumerate(outputs):
        feeds = {value.name: batches[index] for value, batches in inputs.items()}
        got: NDArray[np.float32] = session.run(None, {**feeds, **grid})[0]
        total += float(np.square(got - expected, dtype=np.float64).sum())
    return total
