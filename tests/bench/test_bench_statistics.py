from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecls.bench.statistics import (
    confidence_interval,
    early_stopping_percentile,
    holm,
    images_needed,
    lower_bound,
    mcnemar_exact_p,
    mcnemar_mid_p,
    mean_interval,
    non_inferiority,
    student_t_cdf,
    student_t_quantile,
    tango_z,
    upper_bound,
)


@st.composite
def paired_counts(draw: st.DrawFn) -> tuple[int, int, int]:
    n = draw(st.integers(1, 60_000))
    b = draw(st.integers(0, n))
    c = draw(st.integers(0, n - b))
    return b, c, n


def test_tango_matches_hand_computation() -> None:
    # A = 200; B = -10 + 198 * 0.1 = 9.8; C = -4 * 0.09 = -0.36; q = (sqrt(96.04 + 288) - 9.8) / 400
    q = (math.sqrt(96.04 + 288) - 9.8) / 400
    assert float(tango_z(6, 4, 100, 0.1)) == pytest.approx((2 - 10) / math.sqrt(100 * (2 * q + 0.09)), rel=1e-12)


def test_tango_interval_matches_published_example() -> None:
    # Fagerland, Lydersen and Laake 2014, airway hyper-responsiveness in 21 children: -0.517 .. -0.026.
    low, high = confidence_interval(1, 7, 21)
    assert low == pytest.approx(-0.517, abs=6e-4)
    assert high == pytest.approx(-0.026, abs=6e-4)


def test_at_margin_zero_the_statistic_is_mcnemars() -> None:
    assert float(tango_z(12, 5, 300, 0.0)) == pytest.approx(7 / math.sqrt(17))


def test_without_flips_the_statistic_is_the_exact_variance_form() -> None:
    assert float(tango_z(0, 0, 400, 0.01)) == pytest.approx(-math.sqrt(400 * 0.01 / 0.99))
    assert float(tango_z(0, 0, 400, 0.0)) == 0.0
    assert non_inferiority(0, 0, 267, 0.01) == "inconclusive"
    assert non_inferiority(0, 0, 268, 0.01) == "pass"


@given(paired_counts(), st.floats(-0.99, 0.99))
def test_swapping_the_models_mirrors_the_statistic(counts: tuple[int, int, int], margin: float) -> None:
    b, c, n = counts
    assert float(tango_z(b, c, n, margin)) == pytest.approx(-float(tango_z(c, b, n, -margin)), rel=1e-6, abs=1e-6)


@given(paired_counts(), st.sampled_from([0.01, 0.025, 0.05, 0.2]))
def test_p_value_at_the_bound_is_alpha(counts: tuple[int, int, int], alpha: float) -> None:
    b, c, n = counts
    upper, lower = upper_bound(b, c, n, alpha), lower_bound(b, c, n, alpha)
    assert -1 <= lower <= (b - c) / n <= upper <= 1
    if upper < 1 - 1e-9:
        assert NormalDist().cdf(float(tango_z(b, c, n, upper))) == pytest.approx(alpha, rel=1e-5)
    if lower > -1 + 1e-9:
        assert 1 - NormalDist().cdf(float(tango_z(b, c, n, lower))) == pytest.approx(alpha, rel=1e-5)


@given(paired_counts(), st.floats(0.001, 0.5), st.sampled_from([0.01, 0.05, 0.1]))
def test_verdict_agrees_with_the_bounds(counts: tuple[int, int, int], margin: float, alpha: float) -> None:
    b, c, n = counts
    upper, lower = upper_bound(b, c, n, alpha), lower_bound(b, c, n, alpha)
    if min(abs(upper - margin), abs(lower - margin)) < 1e-9:
        return
    expected = "pass" if upper < margin else "fail" if lower > margin else "inconclusive"
    assert non_inferiority(b, c, n, margin, alpha) == expected


@pytest.mark.parametrize(("b", "c", "n"), [(5, 0, 5), (0, 5, 5), (1, 0, 1), (0, 0, 1), (2, 2, 4)])
def test_extreme_counts_give_finite_ordered_bounds(b: int, c: int, n: int) -> None:
    low, high = confidence_interval(b, c, n)
    assert -1 <= low <= (b - c) / n <= high <= 1
    assert non_inferiority(b, c, n, 0.01) in {"pass", "fail", "inconclusive"}


def test_impossible_counts_are_a_bug_of_the_caller() -> None:
    with pytest.raises(ValueError, match="b=3"):
        upper_bound(3, 3, 5, 0.05)


CRITICAL = NormalDist().inv_cdf(0.05)


@pytest.mark.parametrize("n", [300, 1000, 5000, 50_000])
@pytest.mark.parametrize("margin", [0.005, 0.01, 0.02, 0.05])
@pytest.mark.parametrize("won", [0.0, 0.002, 0.01, 0.03, 0.1])
def test_wrong_verdicts_at_the_margin_come_at_the_nominal_rate(n: int, margin: float, won: float) -> None:
    lost = margin + won
    counts = np.random.default_rng(7).multinomial(n, [lost, won, 1 - lost - won], size=100_000)
    z = tango_z(counts[:, 0], counts[:, 1], n, margin)
    passes, fails = float(np.mean(z < CRITICAL)), float(np.mean(z > -CRITICAL))
    if won and n * (lost + won) >= 20:
        assert 0.04 < passes < 0.06
        assert 0.04 < fails < 0.06
    else:  # the statistic takes few values
        assert passes < 0.062
        assert fails < 0.095


@pytest.mark.parametrize("n", [1000, 5000])
@pytest.mark.parametrize("accuracy", [0.6, 0.9])
@pytest.mark.parametrize("relative", [0.01, 0.02, 0.05])
@pytest.mark.parametrize("won", [0.01, 0.03])
def test_a_margin_of_the_measured_accuracy_passes_no_more_often(
    n: int, accuracy: float, relative: float, won: float
) -> None:
    lost = relative * accuracy + won
    rates = [lost, won, accuracy - lost, 1 - accuracy - won]
    counts = np.random.default_rng(8).multinomial(n, rates, size=50_000)
    margin = relative * (counts[:, 0] + counts[:, 2]) / n
    assert 0.04 < float(np.mean(tango_z(counts[:, 0], counts[:, 1], n, margin) < CRITICAL)) < 0.06


def test_the_interval_covers_at_the_nominal_rate() -> None:
    n, lost, won = 1000, 0.03, 0.02
    counts = np.random.default_rng(8).multinomial(n, [lost, won, 1 - lost - won], size=100_000)
    covered = np.abs(tango_z(counts[:, 0], counts[:, 1], n, lost - won)) < NormalDist().inv_cdf(0.975)
    assert 0.94 < float(np.mean(covered)) < 0.96


@pytest.mark.parametrize(
    ("b", "c", "n", "margin"), [(8, 6, 1000, 0.01), (30, 20, 1000, 0.02), (5, 15, 500, 0.005), (100, 90, 2000, 0.03)]
)
def test_images_needed_reaches_the_promised_power(b: int, c: int, n: int, margin: float) -> None:
    needed = images_needed(b, c, n, margin)
    assert needed is not None
    counts = np.random.default_rng(9).multinomial(needed, [b / n, c / n, 1 - (b + c) / n], size=50_000)
    power = float(np.mean(tango_z(counts[:, 0], counts[:, 1], needed, margin) < CRITICAL))
    assert 0.76 < power < 0.84


@given(paired_counts(), st.floats(0.002, 0.3))
def test_an_inconclusive_result_needs_more_images_than_it_had(counts: tuple[int, int, int], margin: float) -> None:
    b, c, n = counts
    needed = images_needed(b, c, n, margin)
    if needed is None:
        assert (b - c) / n >= margin
    elif non_inferiority(b, c, n, margin) == "inconclusive":
        assert needed >= n


def test_mcnemar_mid_p_matches_hand_computation() -> None:
    # min = 2 of 7: 2 * (1 + 7 + 21) / 128 - 21 / 128
    assert mcnemar_mid_p(2, 5) == pytest.approx(37 / 128)
    assert mcnemar_mid_p(5, 2) == pytest.approx(37 / 128)
    assert mcnemar_mid_p(0, 0) == 1.0
    assert mcnemar_mid_p(4, 4) == pytest.approx(1.0)
    assert mcnemar_mid_p(0, 10) == pytest.approx(1 / 1024)
    assert 0 <= mcnemar_mid_p(20_000, 21_000) < 1e-3


def test_mcnemars_p_values_are_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    b, c = (grid.ravel() for grid in np.mgrid[0:41, 0:41])
    flips, fewer = b + c, np.minimum(b, c)
    one_sided = stats.binom.sf(b - 1, flips, 0.5)
    two_sided = np.minimum(1.0, 2 * stats.binom.cdf(fewer, flips, 0.5))
    # Twice the one-sided mid-p: half the mass of what was observed, of either side. A tie counts its mass once.
    mid = np.where(b == c, 1.0, two_sided - stats.binom.pmf(fewer, flips, 0.5))
    pairs = list(zip(b.tolist(), c.tolist(), strict=True))
    np.testing.assert_allclose([mcnemar_exact_p(*pair) for pair in pairs], one_sided, rtol=1e-11)
    np.testing.assert_allclose([mcnemar_mid_p(*pair) for pair in pairs], mid, rtol=1e-11)
    exact = [stats.binomtest(lost, lost + won, 0.5).pvalue for lost, won in ((3, 9), (17, 4), (250, 300))]
    np.testing.assert_allclose(
        [mcnemar_mid_p(*pair) + stats.binom.pmf(min(pair), sum(pair), 0.5) for pair in ((3, 9), (17, 4), (250, 300))],
        exact,
        rtol=1e-11,
    )


def test_holm_matches_hand_computation() -> None:
    # 4 · 0.005, 3 · 0.01, 2 · 0.03; then 1 · 0.04 is less than what stands before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4, 0.6]).tolist() == [0.8, 0.8]
    assert holm([0.9, 0.9]).tolist() == [1.0, 1.0]
    assert holm([0.03]).tolist() == [0.03]
    assert holm([]).size == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_keeps_the_order_and_lies_between_none_and_bonferroni(p_values: list[float]) -> None:
    p, adjusted = np.array(p_values), holm(p_values)
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(1, p * p.size) + 1e-15).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()


def test_of_many_classes_that_lost_nothing_hardly_ever_one_is_accused() -> None:
    rng, classes, flips = np.random.default_rng(10), 20, 40
    p_of = np.array([mcnemar_exact_p(b, flips - b) for b in range(flips + 1)])
    lost = rng.binomial(flips, 0.5, size=(20_000, classes))
    assert 0.01 < np.mean([holm(p).min() < 0.05 for p in p_of[lost]]) < 0.05
    # One class truly lost: it is found, and the others are still accused as rarely.
    lost[:, 0] = rng.binomial(flips, 0.85, size=len(lost))
    accused = np.array([holm(p) < 0.05 for p in p_of[lost]])
    assert accused[:, 0].mean() > 0.8
    assert accused[:, 1:].any(axis=1).mean() < 0.05


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (9, 2.26216), (30, 2.04227)]
)
def test_student_t_quantile_matches_tables(freedom: int, expected: float) -> None:
    assert student_t_quantile(0.975, freedom) == pytest.approx(expected, abs=5e-5)
    assert student_t_cdf(expected, freedom) == pytest.approx(0.975, abs=1e-6)
    assert student_t_cdf(-expected, freedom) == pytest.approx(0.025, abs=1e-6)


def test_mean_interval_needs_two_values() -> None:
    assert mean_interval([1.0]) is None
    assert mean_interval([1.0, 1.0]) == (1.0, 1.0)
    interval = mean_interval([1.0, 2.0, 3.0])
    assert interval is not None
    assert interval[1] - 2.0 == pytest.approx(4.30265 / math.sqrt(3), abs=1e-4)


@pytest.mark.parametrize(("share", "floor"), [(0.9, 64), (0.95, 130), (0.99, 662), (0.999, 6636)])
def test_percentiles_need_their_sample(share: float, floor: int) -> None:
    assert early_stopping_percentile(np.arange(floor - 1, dtype=np.float64), share) is None
    assert early_stopping_percentile(np.arange(floor, dtype=np.float64), share) == floor - 1


@pytest.mark.parametrize(("queries", "discarded"), [(2048, 172), (2116, 178), (2145, 181)])
def test_as_many_samples_are_discarded_as_loadgen_says(queries: int, discarded: int) -> None:
    # "Processed at least 64 queries (2048). Would discard 172 highest latency queries." of published results.
    samples = np.random.default_rng(0).permutation(queries).astype(np.float64)
    assert early_stopping_percentile(samples, 0.9) == queries - 1 - discarded


def test_the_true_percentile_is_rarely_above_its_estimate() -> None:
    rng = np.random.default_rng(0)
    runs = rng.exponential(size=(4000, 500))
    misses = np.mean([early_stopping_percentile(run, 0.9) < math.log(10) for run in runs])
    assert 0.002 < misses < 0.015
    large = early_stopping_percentile(rng.exponential(size=1_000_000), 0.9)
    assert large == pytest.approx(math.log(10), rel=0.005)
