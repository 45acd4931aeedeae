import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgecls.calibration.histogram import MAX_BINS, Histogram

FLOATS = hnp.arrays(np.float32, st.integers(1, 200), elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False))


def histogram(*batches):
    made = Histogram()
    for batch in batches:
        made.add(batch)
    return made


@given(FLOATS, st.integers(0, 200), st.randoms())
def test_order_and_batches_make_no_difference(values, cut, random):
    shuffled = values.tolist()
    random.shuffle(shuffled)
    shuffled = np.asarray(shuffled, np.float32)
    whole, parts = histogram(values), histogram(shuffled[:cut], shuffled[cut:])
    for one, other in zip(whole.bins(), parts.bins(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (whole.count, whole.zeros, whole.minimum, whole.maximum) == (
        parts.count,
        parts.zeros,
        parts.minimum,
        parts.maximum,
    )


@given(FLOATS)
def test_every_value_lies_in_its_bin_and_memory_is_bounded(values):
    made = histogram(values)
    edges, counts = made.bins()
    assert len(counts) <= MAX_BINS
    assert counts.sum() == len(values) == made.count
    expected, _ = np.histogram(values.astype(np.float64), np.append(edges[:-1], np.inf))
    np.testing.assert_array_equal(counts, expected)


def test_a_far_value_coarsens_what_was_counted():
    near = np.linspace(0, 1, 1000, dtype=np.float32)
    made = histogram(near, np.asarray([1e5], np.float32))
    edges, counts = made.bins()
    assert counts.sum() == 1001
    assert counts[0] == 1000
    assert edges[-1] > 1e5


def test_zeros_are_counted_apart():
    assert histogram(np.asarray([0.0, -0.0, 1e-9, 2.0], np.float32)).zeros == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="not finite"):
        histogram(np.asarray([0.0, bad], np.float32))


def test_nothing_is_not_an_error():
    assert histogram(np.zeros(0, np.float32)).count == 0
