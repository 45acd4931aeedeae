"""One streaming pass of the calibration pictures through the float graph."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterable, Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgecls.calibration.graph import INPUT, Graph
from edgecls.calibration.histogram import Histogram
from edgecls.calibration.plan import activations
from edgecls.runtime.cpu import cpu_count
from edgecls.runtime.engines.onnxruntime import import_onnxruntime, session_options
from edgecls.runtime.errors import EngineError, InputError
from edgecls.runtime.imageset import ImageSet
from edgecls.runtime.preprocess import Preprocess
from edgecls.runtime.progress import Advance

MINIMUM = 16
"""Fewer pictures than this do not show what the activations of a network are like."""

_BATCH = 4
"""Pictures at a time: all activations of the batch are in memory together."""


def calibration_set(pictures: ImageSet, count: int, seed: int) -> ImageSet:
    """Draws the pictures that calibrate, stratified and seeded, and decodes each once to be sure of it.

    Raises:
        InputError: There are fewer than 16, or some cannot be read; all of those are listed.
    """
    if count < MINIMUM:
        raise InputError(f"a calibration set of {count} pictures is too small; --calibration-size must be ≥ {MINIMUM}")
    drawn = pictures.take(count, seed=seed)
    if len(drawn.images) < MINIMUM:
        raise InputError(
            f"{pictures.root} holds {len(drawn.images)} pictures; calibration needs at least {MINIMUM} (256 to 500 are "
            "better). Add real pictures of the kind that the device will see."
        )
    if broken := drawn.unreadable():
        listing = "\n".join(f"  {image.path}: {reason}" for image, reason in broken)
        raise InputError(
            f"{len(broken)} of {len(drawn.images)} calibration pictures cannot be read; nothing was calibrated. "
            f"Remove or replace:\n{listing}"
        )
    return drawn


def crops(pictures: ImageSet, preprocess: Preprocess, batch: int = _BATCH) -> Iterator[NDArray[np.uint8]]:
    """The pictures' pixels in batches `uint8 [≤ batch, crop, crop, 3]`, RGB, decoded ahead in threads."""
    paths = [pictures.root / image.path for image in pictures.images]
    with concurrent.futures.ThreadPoolExecutor(cpu_count()) as pool:
        for start in range(0, len(paths), batch):
            yield np.stack(list(pool.map(preprocess.pixels, paths[start : start + batch])))


def collect_histograms(
    graph: Graph, batches: Iterable[NDArray[np.uint8]], advance: Advance, threads: int | None = None
) -> dict[str, Histogram]:
    """Runs pictures through the float graph and counts the values of every tensor that may be quantized.

    Memory is that of one batch and the histograms, however many pictures there are.

    Args:
        batches: `uint8 [batch, height, width, 3]`, RGB.
        advance: Told the number of pictures after each batch.

    Raises:
        InputError: An activation is not finite: the checkpoint is broken.
    """
    ort = import_onnxruntime()
    model = graph.ir_model()
    names = [value.name for value in activations(model) if value.name]
    model.graph.outputs[:] = activations(model)
    options = session_options(threads or cpu_count())
    try:
        session = ort.InferenceSession(_bytes_of(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise EngineError(f"ONNX Runtime does not load the float graph: {error}") from error
    histograms = {name: Histogram() for name in names}

    def count(name: str, values: NDArray[np.float32]) -> None:
        try:
            histograms[name].add(values)
        except ValueError as error:
            raise InputError(
                f"calibration: the activation {name!r} is not finite. The checkpoint's weights are broken, or the "
                "mean and std are not those of its training."
            ) from error

    with concurrent.futures.ThreadPoolExecutor(options.intra_op_num_threads) as pool:
        for batch in batches:
            values = session.run(names, {INPUT: batch})
            list(pool.map(count, names, values))
            advance(len(batch))
    return histograms


def _bytes_of(model: ir.Model) -> bytes:
    return bytes(ir.to_proto(model).SerializeToString())
