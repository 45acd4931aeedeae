"""Statistics of paired proportions and of few launches, with numpy and the standard library alone.

Throughout, of `n` pictures `b` are those that the reference gets right and the candidate wrong, `c` the reverse, and
the drop is (b - c) / n: positive is worse. Margins and bounds are rates, not percentage points.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Verdict = Literal["pass", "fail", "inconclusive"]

_NORMAL = NormalDist()
_BISECTIONS = 60
"""Halvings of an interval of length 2: the result is exact to 2e-18, below the spacing of doubles near 1."""


def tango_z(b: ArrayLike, c: ArrayLike, n: ArrayLike, margin: ArrayLike) -> NDArray[np.float64]:
    """Score statistic of "the true drop is `margin`" (Tango 1998, Statistics in Medicine 17:891-908).

    Arguments broadcast. The statistic falls as `margin` rises; it is very negative when the observed drop is far
    below the margin.

    Args:
        b: Pictures that only the reference gets right.
        c: Pictures that only the candidate gets right.
        n: All pictures.
        margin: Hypothetical drop, -1 < margin < 1.
    """
    b, c, n, margin = (np.asarray(value, dtype=np.float64) for value in (b, c, n, margin))
    numerator = b - c - n * margin
    variance = n * _null_variance(b, c, n, margin)
    # Without discordant pictures and at margin 0 nothing is known either way: 0 / 0 is taken as 0.
    safe = np.where(variance > 0, variance, 1.0)
    unbounded = np.where(numerator == 0, 0.0, np.copysign(np.inf, numerator))
    return np.where(variance > 0, numerator / np.sqrt(safe), unbounded)


def _null_variance(
    b: NDArray[np.float64], c: NDArray[np.float64], n: NDArray[np.float64], margin: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Variance of one picture's difference if the drop were `margin`: p12 + p21 - margin², at the constrained MLE."""
    quadratic = 2 * n
    linear = -b - c + (2 * n - b + c) * margin
    constant = -c * margin * (1 - margin)
    root = np.sqrt(np.maximum(linear * linear - 4 * quadratic * constant, 0.0))
    # The larger root, in the form that does not subtract two nearly equal numbers.
    positive = linear > 0
    stable = -2 * constant / np.where(positive, linear + root, 1.0)
    p21 = np.where(positive, stable, (root - linear) / (2 * quadratic))
    p21 = np.maximum(p21, np.maximum(0.0, -margin))
    return np.maximum(2 * p21 + margin * (1 - margin), 0.0)


def lower_bound(b: int, c: int, n: int, alpha: float) -> float:
    """One-sided lower confidence bound of the drop at level 1 - `alpha`, by inverting Tango's test."""
    return -upper_bound(c, b, n, alpha)


def upper_bound(b: int, c: int, n: int, alpha: float) -> float:
    """One-sided upper confidence bound of the drop at level 1 - `alpha`, by inverting Tango's test."""
    _check_counts(b, c, n)
    critical = _NORMAL.inv_cdf(alpha)
    return _bisect(lambda margin: float(tango_z(b, c, n, margin)) > critical, (b - c) / n, 1.0)


def confidence_interval(b: int, c: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided score interval of the drop, by inverting Tango's test."""
    tail = (1 - confidence) / 2
    return lower_bound(b, c, n, tail), upper_bound(b, c, n, tail)


def non_inferiority(b: int, c: int, n: int, margin: float, alpha: float = 0.05) -> Verdict:
    """Whether the drop is shown to be below `margin`, shown to be above it, or neither, each one-sided at `alpha`.

    Simulated at the margin with alpha 5 %, 300 to 50,000 pictures: from 20 flips on, some of them in favour, false
    passes and false fails are 4 to 6 %. With fewer, false passes get rarer, and false fails reach 9 % (at 4 flips).
    """
    _check_counts(b, c, n)
    z = float(tango_z(b, c, n, margin))
    critical = _NORMAL.inv_cdf(1 - alpha)
    if z < -critical:
        return "pass"
    return "fail" if z > critical else "inconclusive"


def images_needed(b: int, c: int, n: int, margin: float, alpha: float = 0.05, power: float = 0.8) -> int | None:
    """Pictures like these that a pass would take with probability `power`, were the observed rates the true ones.

    (z_alpha √v0 + z_power √v1)² / (margin - drop)², v0 the variance under the margin and v1 the observed one; with
    v0 = v1 = the flip rate this is the familiar 6.2 · flip rate / (margin - drop)².

    Returns:
        None if the observed drop is not below the margin: more such pictures would not help.
    """
    _check_counts(b, c, n)
    drop = (b - c) / n
    if drop >= margin:
        return None
    under_margin = float(_null_variance(*(np.asarray(value, dtype=np.float64) for value in (b, c, n, margin))))
    observed = (b + c) / n - drop * drop
    spread = _NORMAL.inv_cdf(1 - alpha) * math.sqrt(under_margin) + _NORMAL.inv_cdf(power) * math.sqrt(observed)
    return max(1, math.ceil((spread / (margin - drop)) ** 2))


def mcnemar_mid_p(b: int, c: int) -> float:
    """Two-sided mid-p value of McNemar's test of "no drop" (Fagerland, Lydersen and Laake 2013); 1 without flips."""
    terms = _fair_binomial(b + c, min(b, c))
    return min(1.0, 2 * math.fsum(terms) - terms[-1])


def mcnemar_exact_p(b: int, c: int) -> float:
    """One-sided exact p value of McNemar's test: how probable `b` losses or more of b + c flips are without a drop."""
    return min(1.0, math.fsum(_fair_binomial(b + c, c)))


def _fair_binomial(n: int, last: int) -> list[float]:
    """Probabilities of 0 to `last` heads in `n` throws of a fair coin."""
    log_half = n * math.log(0.5)
    return [
        math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + log_half) for k in range(last + 1)
    ]


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Adjusts the p values of several tests, so that at any level one false alarm in all is as rare as in one test.

    Step-down method of Holm 1979 (Scandinavian Journal of Statistics 6:65-70), whatever depends on what.

    Args:
        p_values: One for each test, `[tests]`.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def student_t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t distribution with a whole number of degrees of freedom, 0.5 ≤ probability < 1."""
    high = 1.0
    while student_t_cdf(high, freedom) < probability:
        high *= 2
    return _bisect(lambda t: student_t_cdf(t, freedom) < probability, 0.0, high)


def student_t_cdf(t: float, freedom: int) -> float:
    """Student's t distribution function by its finite series (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    theta = math.atan2(t, math.sqrt(freedom))
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = freedom % 2 == 1
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    central = 2 / math.pi * (theta + sine * total) if odd else sine * total
    return (1 + central) / 2


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's t interval of a mean; None for fewer than two values."""
    data = np.asarray(values, dtype=np.float64)
    if data.size < 2:
        return None
    half = student_t_quantile((1 + confidence) / 2, data.size - 1) * float(data.std(ddof=1)) / math.sqrt(data.size)
    return float(data.mean()) - half, float(data.mean()) + half


def _check_counts(b: Any, c: Any, n: Any) -> None:
    if n < 1 or b < 0 or c < 0 or b + c > n:
        raise ValueError(f"impossible paired counts b={b}, c={c}, n={n}")


def _bisect(below: Callable[[float], bool], low: float, high: float) -> float:
    """The point of [low, high] where `below` turns from true to false."""
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if below(middle):
            low = middle
        else:
            high = middle
    return (low + high) / 2


def early_stopping_percentile(samples: NDArray[np.float64], share: float, confidence: float = 0.99) -> float | None:
    """A high percentile as MLPerf LoadGen's early stopping estimates it, or None where the sample is too small.

    That is the t-th largest sample, with the largest t for which t or fewer samples above the true percentile are an
    event of probability `1 - confidence` at most: an upper bound that comes down to the percentile as the sample grows.
    The smallest samples that have one are 64 for 0.9, 130 for 0.95, 662 for 0.99 and 6636 for 0.999.

    Args:
        samples: `float64 [n]`, n > 0.
        share: Of the samples below the percentile, 0 < share < 1.
        confidence: That the true percentile is not above the estimate.
    """
    n, above = samples.size, 1 - share
    # The binomial distribution of the number of samples above the true percentile, up to its mean.
    k = np.arange(math.ceil(n * above) + 1)
    steps = np.log((n - k[:-1]) / k[1:]) + math.log(above / share)
    log_mass = n * math.log(share) + np.concatenate([[0.0], np.cumsum(steps)])
    discarded = int(np.searchsorted(np.cumsum(np.exp(log_mass)), 1 - confidence, side="right")) - 1
    return float(np.partition(samples, n - discarded)[n - discarded]) if discarded >= 1 else None
