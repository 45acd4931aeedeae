"""From a histogram to the range that an 8-bit grid should cover."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edgecls.calibration.histogram import Histogram

Method = Literal["minmax", "percentile", "mse", "entropy"]
"""How a range is chosen from a histogram."""

METHODS: tuple[Method, ...] = get_args(Method)

_CANDIDATES = 256
"""Ends tried on each side; the error is flat around its minimum, so that more would change nothing."""

_TAILS = 1e-4
"""Share of the values that `percentile` lets saturate, half of them on each side."""

_LEVELS = 128
"""Steps of a grid on one side of zero."""

_BOUNDS = 128
"""Bounds that `entropy` tries."""


@dataclass(frozen=True)
class Candidate:
    """What a method proposes for one tensor."""

    asymmetric: tuple[float, float]
    """(low, high) of a grid of 255 steps; low ≤ 0 ≤ high, low < high."""
    symmetric: float
    """Bound of a grid of 254 steps around zero."""


def propose(method: Method, histogram: Histogram, floor: float = -np.inf, ceiling: float = np.inf) -> Candidate:
    """The range that a method chooses.

    `minmax` covers all that was seen; `percentile` all but one value in ten thousand; `mse` has the least mean squared
    error; `entropy` the least divergence between the histograms before and after (Migacz, "8-bit Inference with
    TensorRT", GTC 2017), around zero also where the grid has a zero point.

    Args:
        floor, ceiling: Values beyond these make no difference to what follows.
    """
    if method == "mse":
        return Candidate(mse_range(histogram, floor, ceiling), mse_bound(histogram, floor, ceiling))
    low = max(min(histogram.minimum, 0.0), min(floor, 0.0))
    high = min(max(histogram.maximum, 0.0), max(ceiling, 0.0))
    bound = max(-low, high)
    if method == "percentile":
        edges, counts = histogram.bins()
        below = np.concatenate(([0], np.cumsum(counts))) / max(1, histogram.count)
        low = max(low, min(0.0, float(np.interp(_TAILS / 2, below, edges))))
        high = min(high, max(0.0, float(np.interp(1 - _TAILS / 2, below, edges))))
        magnitudes = _magnitudes(histogram)
        within = np.cumsum(magnitudes) / max(1, histogram.count)
        bound = min(bound, float(np.searchsorted(within, 1 - _TAILS) + 1) * histogram.width)
    elif method == "entropy":
        bound = min(bound, entropy_bound(histogram))
        low, high = max(low, -bound), min(high, bound)
    if not low < high:  # Nothing but zeros was seen.
        low, high, bound = 0.0, 1.0, 1.0
    return Candidate((low, high), bound)


def entropy_bound(histogram: Histogram) -> float:
    """The bound whose grid of 127 steps keeps most of the magnitudes' distribution; see `propose`."""
    magnitudes = _magnitudes(histogram).astype(np.float64)
    if histogram.zeros:
        magnitudes[0] = max(0.0, magnitudes[0] - histogram.zeros)  # On every grid: they say nothing.
    if len(magnitudes) <= _LEVELS or not magnitudes.any():
        return len(magnitudes) * histogram.width
    beyond = magnitudes.sum() - np.cumsum(magnitudes)
    best, least = len(magnitudes), np.inf
    for bound in np.unique(np.linspace(_LEVELS, len(magnitudes), _BOUNDS).astype(int)):
        kept = magnitudes[:bound]
        before = kept.copy()
        before[-1] += beyond[bound - 1]
        level = np.arange(bound) * _LEVELS // bound
        used = kept > 0
        share = np.bincount(level, kept, _LEVELS) / np.maximum(np.bincount(level, used, _LEVELS), 1)
        after = np.where(used, share[level], 0.0)
        if not kept.any():
            continue
        before, after = before / before.sum(), after / after.sum()
        seen = before > 0
        # A bin that only the saturated values fill has no counterpart: it counts as almost impossible.
        divergence = float(np.sum(before[seen] * np.log(before[seen] / np.maximum(after[seen], 1e-9))))
        if divergence < least:
            best, least = int(bound), divergence
    return best * histogram.width


def _magnitudes(histogram: Histogram) -> NDArray[np.int64]:
    """Counts of |value|, on bins of the histogram's width from zero."""
    edges, counts = histogram.bins()
    start = round(edges[0] / histogram.width)
    places = np.arange(start, start + len(counts))
    return np.bincount(np.where(places < 0, -places - 1, places), counts).astype(np.int64)


def mse_range(histogram: Histogram, floor: float = -np.inf, ceiling: float = np.inf) -> tuple[float, float]:
    """The asymmetric range of 255 steps with the least mean squared error.

    The error of a range is the rounding error of the values inside, step²/12 each (uniform within a step; exact zeros
    cost nothing, zero is on every grid), plus the squared distance of the values outside to its nearer end.

    Args:
        floor, ceiling: Values beyond these make no difference to what follows (hard-swish is flat below −3), so
            saturating there costs nothing.

    Returns:
        (low, high) with low ≤ 0 ≤ high and low < high.
    """
    edges, clipped_low, clipped_high, inside = _clipping(histogram, floor, ceiling)
    lows = _thin(np.unique(np.minimum(edges, 0.0)))
    highs = _thin(np.unique(np.maximum(edges, 0.0)))
    step = (highs[None, :] - lows[:, None]) / 255
    error = (
        np.interp(lows, edges, clipped_low)[:, None]
        + np.interp(highs, edges, clipped_high)[None, :]
        + inside * step**2 / 12
    )
    error[step <= 0] = np.inf
    if not np.isfinite(error).any():  # Nothing but zeros was seen.
        return 0.0, 1.0
    row, column = np.unravel_index(int(np.argmin(error)), error.shape)
    return float(lows[row]), float(highs[column])


def mse_bound(histogram: Histogram, floor: float = -np.inf, ceiling: float = np.inf) -> float:
    """The bound of the symmetric range [−bound, bound] of 254 steps with the least mean squared error."""
    edges, clipped_low, clipped_high, inside = _clipping(histogram, floor, ceiling)
    bounds = _thin(np.unique(np.abs(edges)))
    bounds = bounds[bounds > 0]
    if not len(bounds):
        return 1.0
    error = (
        np.interp(-bounds, edges, clipped_low, left=0.0)
        + np.interp(bounds, edges, clipped_high, right=0.0)
        + inside * (bounds / 127) ** 2 / 12
    )
    return float(bounds[int(np.argmin(error))])


def _clipping(
    histogram: Histogram, floor: float, ceiling: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], int]:
    """For every edge: the squared error of saturating below it, and above it; and how many values round at all."""
    edges, counts = histogram.bins()
    edges = np.clip(edges, min(floor, 0.0), max(ceiling, 0.0))
    # The outermost edges are where values were seen, not where a bin happens to end.
    edges = np.clip(edges, max(histogram.minimum, edges[0]), min(histogram.maximum, edges[-1]))
    centres = (edges[:-1] + edges[1:]) / 2

    def beyond(sign: int) -> NDArray[np.float64]:
        # Σ counts (c − t)² over the centres beyond t, from three running sums.
        order = slice(None, None, sign)
        sums = [np.concatenate(([0.0], np.cumsum((counts * centres**power)[order]))) for power in (0, 1, 2)]
        n, first, second = (s[order] for s in sums)
        return np.maximum(second - 2 * edges * first + n * edges**2, 0.0)

    return edges, beyond(1), beyond(-1), histogram.count - histogram.zeros


def _thin(values: NDArray[np.float64]) -> NDArray[np.float64]:
    if len(values) <= _CANDIDATES:
        return values
    thinned: NDArray[np.float64] = values[np.unique(np.linspace(0, len(values) - 1, _CANDIDATES).round().astype(int))]
    return thinned
