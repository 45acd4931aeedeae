"""Histograms that grow with the values that they meet, in bounded memory."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

MAX_BINS = 4096


class Histogram:
    """Counts of float values on bins of width 2**exponent that are anchored at zero.

    When the values outgrow `MAX_BINS`, neighbouring bins are merged and the width doubles. Because every width is a
    power of two and every grid passes through zero, the result does not depend on the order or the batches in which
    the values came.

    Attributes:
        count: Values seen.
        zeros: Values that were exactly zero; they cost no rounding error on any grid.
        minimum, maximum: Of the values seen.
    """

    def __init__(self) -> None:
        self.count = 0
        self.zeros = 0
        self.minimum = math.inf
        self.maximum = -math.inf
        self._exponent = -149
        self._start = 0
        self._counts = np.zeros(0, np.int64)

    def add(self, values: NDArray[np.float32]) -> None:
        """Counts more values, `float32`, any shape.

        Raises:
            ValueError: A value is not finite: the network overflows on this input.
        """
        flat = np.ravel(values)
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("a value is not finite")
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        self.count += flat.size
        self.zeros += flat.size - int(np.count_nonzero(flat))
        exponent = max(self._exponent, _smallest_exponent(self.minimum, self.maximum))
        first, last = _bin(low, exponent), _bin(high, exponent)
        # Scaling by a power of two is exact but for denormals: floor() finds the bin that real arithmetic would.
        index = np.floor(np.ldexp(flat, -exponent)).astype(np.int32)
        counts = np.bincount(index - first, minlength=last - first + 1)
        self._coarsen(exponent)
        self._merge(first, counts)

    @property
    def width(self) -> float:
        """Of a bin: a power of two."""
        return math.ldexp(1.0, self._exponent)

    def bins(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Edges, `float64 [bins + 1]`, ascending, and counts, `int64 [bins]`."""
        edges = np.arange(self._start, self._start + len(self._counts) + 1, dtype=np.float64)
        return edges * self.width, self._counts

    def _coarsen(self, exponent: int) -> None:
        shift = exponent - self._exponent
        self._exponent = exponent
        if shift and len(self._counts):
            index = (self._start + np.arange(len(self._counts))) >> shift
            self._start = int(index[0])
            self._counts = np.bincount(index - self._start, self._counts).astype(np.int64)

    def _merge(self, first: int, counts: NDArray[np.int64]) -> None:
        if not len(self._counts):
            self._start, self._counts = first, counts.astype(np.int64)
            return
        start = min(self._start, first)
        end = max(self._start + len(self._counts), first + len(counts))
        merged = np.zeros(end - start, np.int64)
        merged[self._start - start :][: len(self._counts)] += self._counts
        merged[first - start :][: len(counts)] += counts
        self._start, self._counts = start, merged


def _bin(value: float, exponent: int) -> int:
    return math.floor(math.ldexp(value, -exponent))


def _smallest_exponent(low: float, high: float) -> int:
    """The finest power of two on which [low, high] spans at most `MAX_BINS` bins."""
    span = max(high - low, abs(high), abs(low), math.ldexp(1.0, -126))
    exponent = math.frexp(span / MAX_BINS)[1] - 1
    while _bin(high, exponent) - _bin(low, exponent) >= MAX_BINS:
        exponent += 1
    return exponent
