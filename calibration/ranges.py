"""From a histogram to the range that an 8-bit grid should cover."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgecls.calibration.histogram import Histogram

_CANDIDATES = 256
"""Ends tried on each side; the error is flat around its minimum, so that more would change nothing."""


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
