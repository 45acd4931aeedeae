"""Probabilities from logits, and how far one answer is from another; many pictures at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Logarithms of the probabilities, `float64 [..., classes]`; NaN for a picture with a logit that is not finite.

    Args:
        logits: `float32 [..., classes]`.
    """
    finite = np.isfinite(logits).all(axis=-1, keepdims=True)
    shifted = np.where(finite, logits, np.float32(0)).astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    result = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return np.where(finite, result, np.nan)


def divergence(reference: NDArray[np.float32], candidate: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL(softmax(reference) || softmax(candidate)) of each picture, nats, `float64 [...]`; NaN as in `log_softmax`.

    Args:
        reference: Logits, `float32 [..., classes]`.
        candidate: Others of the same shape.
    """
    log_p, log_q = log_softmax(reference), log_softmax(candidate)
    # Rounding can take the sum of equals a hair below 0.
    result: NDArray[np.float64] = np.maximum(0.0, np.sum(np.exp(log_p) * (log_p - log_q), axis=-1))
    return result
