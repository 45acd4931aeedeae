import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgecls.calibration.histogram import Histogram
from edgecls.calibration.ranges import METHODS, entropy_bound, mse_bound, mse_range, propose

RNG = np.random.default_rng(0)
SHAPES = {
    "normal": RNG.normal(size=200_000),
    "relu": np.maximum(RNG.normal(size=200_000), 0),
    "heavy tail": RNG.laplace(size=200_000),
    "one outlier": np.append(RNG.normal(size=200_000), 60.0),
    "all negative": -np.abs(RNG.normal(size=200_000)) - 1,
}


def histogram(values):
    made = Histogram()
    made.add(np.asarray(values, np.float32))
    return made


def quantization_error(values, low, high, steps):
    scale = (high - low) / steps
    codes = np.clip(np.rint(values / scale), np.rint(low / scale), np.rint(high / scale))
    return float(np.mean((codes * scale - values) ** 2))


@pytest.mark.parametrize("name", SHAPES)
def test_asymmetric_range_is_as_good_as_an_exhaustive_search(name):
    values = SHAPES[name]
    low, high = mse_range(histogram(values))
    shrink = np.linspace(0.02, 1, 50)
    lowest, highest = min(values.min(), 0), max(values.max(), 0)
    best = min(
        quantization_error(values, lowest * a, highest * b, 255)
        for a in (shrink if lowest < 0 else [1])
        for b in (shrink if highest > 0 else [1])
    )
    assert quantization_error(values, low, high, 255) <= best * 1.02


@pytest.mark.parametrize("name", SHAPES)
def test_symmetric_bound_is_as_good_as_an_exhaustive_search(name):
    values = SHAPES[name]
    bound = mse_bound(histogram(values))
    largest = np.abs(values).max()
    best = min(quantization_error(values, -largest * a, largest * a, 254) for a in np.linspace(0.02, 1, 200))
    assert quantization_error(values, -bound, bound, 254) <= best * 1.02


@given(hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(-1e4, 1e4, width=32)))
def test_ranges_hold_zero_and_stay_within_what_was_seen(values):
    made = histogram(values)
    low, high = mse_range(made)
    assert low <= 0 <= high
    assert low < high
    assert mse_bound(made) > 0
    if values.any():
        assert low >= min(made.minimum, 0)
        assert high <= max(made.maximum, 0)


def test_a_floor_keeps_the_grid_from_values_that_make_no_difference():
    values = RNG.normal(scale=10, size=100_000)
    low, high = mse_range(histogram(values), floor=-3.0)
    assert low >= -3.0
    assert high > 20
    assert mse_range(histogram(values), -3.0, 3.0)[1] <= 3.0


def test_zeros_alone_still_give_a_grid():
    assert mse_range(histogram([0.0, 0.0])) == (0.0, 1.0)
    assert mse_bound(histogram([0.0])) == 1.0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SHAPES)
def test_every_method_proposes_a_grid_with_zero_on_it(method, name):
    made = histogram(SHAPES[name])
    proposed = propose(method, made)
    low, high = proposed.asymmetric
    assert min(made.minimum, 0) - made.width <= low <= 0 <= high <= max(made.maximum, 0) + made.width
    assert low < high
    assert 0 < proposed.symmetric <= max(-made.minimum, made.maximum) + made.width


def test_minmax_covers_everything_and_percentile_all_but_an_outlier():
    made = histogram(SHAPES["one outlier"])
    assert propose("minmax", made).asymmetric[1] == 60.0
    cut = propose("percentile", made)
    assert 3 < cut.asymmetric[1] < 10
    assert 3 < cut.symmetric < 10


def test_entropy_cuts_a_tail_and_keeps_a_uniform_distribution():
    assert entropy_bound(histogram(SHAPES["heavy tail"])) < 0.9 * np.abs(SHAPES["heavy tail"]).max()
    uniform = histogram(RNG.uniform(-1, 1, 200_000))
    assert entropy_bound(uniform) > 0.95


def test_nothing_but_zeros_gets_some_grid():
    made = histogram(np.zeros(8))
    assert {propose(method, made).asymmetric for method in METHODS} == {(0.0, 1.0)}
