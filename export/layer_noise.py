"""Where a graph departs from another one: what each quantized layer loses of the signal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgecls.export.emulation import Emulation

_GOOD_DB = 30.0
"""Noise of a thousandth of the signal's power: what 8 bits give."""


class LayerNoise(msgspec.Struct, frozen=True, kw_only=True):
    """A layer: what computes a quantized tensor from the quantized tensors before it."""

    name: str
    """Of the tensor, in the float graph."""
    sqnr_in_db: float | None
    """Signal-to-noise ratio of the noisiest tensor that it reads; null where it reads the exact pixels alone."""
    sqnr_out_db: float | None
    """Signal-to-noise ratio of the tensor; null where both graphs agree to the bit."""
    lost_db: float
    """Signal-to-noise ratio that the layer loses below 30 dB: what is above, no answer hears."""
    kept: tuple[float, float]
    """Ends of the tensor's grid; what is beyond saturates."""
    seen: tuple[float, float]
    """Smallest and largest value that calibration saw."""


def noise_to_signal(
    before: Emulation,
    after: Emulation,
    names: Iterable[str],
    crops: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]],
) -> dict[str, float]:
    """The part of each tensor's power that is a difference between two graphs.

    Args:
        before: Gives the signal's tensors.
        after: Gives the same tensors with noise, in the same order.
        names: What the tensors are called here.
        crops: What each of the two sees of a picture, `uint8 [crop, crop, 3]`.
    """
    names = list(names)
    power, noise = np.zeros(len(names)), np.zeros(len(names))
    for shown_before, shown_after in crops:
        pairs = zip(before.tensors(shown_before), after.tensors(shown_after), strict=True)
        for index, (signal, noisy) in enumerate(pairs):
            exact = signal.astype(np.float64)
            power[index] += np.square(exact).sum()
            noise[index] += np.square(noisy - exact).sum()
    ratios = noise / np.where(power > 0, power, 1.0)
    return dict(zip(names, map(float, ratios), strict=True))


def rank_layers(
    ratios: Mapping[str, float],
    inputs: Mapping[str, frozenset[str]],
    kept: Mapping[str, tuple[float, float]],
    seen: Mapping[str, tuple[float, float]],
) -> tuple[LayerNoise, ...]:
    """The layers, the one that loses most first.

    From 60 to 40 dB nothing is lost, from 26 to 4 dB the picture is; behind that layer, where noise is as strong as the
    signal, every layer's noise varies without a fault of its own, by few decibels.

    Args:
        ratios: As `noise_to_signal` gives them.
        inputs: For each tensor, the quantized tensors that it is computed from.
        kept: The ends of each tensor's grid.
        seen: The smallest and the largest value of each tensor in calibration.
    """
    layers = []
    for name, ratio in ratios.items():
        given = max((ratios[source] for source in inputs[name]), default=0.0)
        layers.append(
            LayerNoise(
                name=name,
                sqnr_in_db=_decibels(given),
                sqnr_out_db=_decibels(ratio),
                lost_db=_capped(given) - _capped(ratio),
                kept=kept[name],
                seen=seen[name],
            )
        )
    return tuple(sorted(layers, key=lambda layer: -layer.lost_db))


def quantized_inputs(pairs: Mapping[str, ir.Node]) -> dict[str, frozenset[str]]:
    """For each quantized tensor, the quantized tensors that it is computed from.

    Args:
        pairs: The DequantizeLinear of each, by name of the float tensor.
    """
    names = {node.outputs[0]: name for name, node in pairs.items()}
    return {name: frozenset(_sources(node, names)) for name, node in pairs.items()}


def _sources(node: ir.Node, names: Mapping[ir.Value, str]) -> Iterable[str]:
    ahead, visited = list(node.inputs), set()
    while ahead:
        value = ahead.pop()
        if value is None or value in visited:
            continue
        visited.add(value)
        if value in names:
            yield names[value]
        elif (producer := value.producer()) is not None:
            ahead += producer.inputs


def _decibels(ratio: float) -> float | None:
    return -10 * math.log10(ratio) if ratio > 0 else None


def _capped(ratio: float) -> float:
    decibels = _decibels(ratio)
    return _GOOD_DB if decibels is None else min(decibels, _GOOD_DB)
