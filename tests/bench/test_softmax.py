"""Probabilities and divergences against scipy, and what no probability can be made of."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy.special import log_softmax as scipys

from edgecls.bench.softmax import divergence, log_softmax

LOGITS = npst.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 9)),
    elements=st.floats(allow_nan=False, allow_infinity=False, width=32),
)


@given(LOGITS)
def test_it_is_scipys(logits):
    np.testing.assert_allclose(log_softmax(logits), scipys(logits.astype(np.float64), axis=1), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(log_softmax(logits)[0], log_softmax(logits[0]))


def test_divergence_of_known_distributions():
    same = np.log(np.array([[0.5, 0.5], [0.9, 0.1]], np.float32))
    other = np.log(np.array([[0.25, 0.75], [0.9, 0.1]], np.float32))
    assert divergence(same, same + 7) == pytest.approx([0, 0], abs=1e-6)
    assert divergence(same, other) == pytest.approx([0.5 * np.log(4 / 3), 0], rel=1e-5, abs=1e-6)
    assert (divergence(same, same) >= 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_spoils_only_its_own_picture(value):
    logits = np.array([[1, 2, 3], [value, 0, 0], [3, 2, 1]], np.float32)
    right = np.zeros_like(logits)
    assert np.isnan(log_softmax(logits)).all(axis=1).tolist() == [False, True, False]
    assert np.isnan(divergence(right, logits)).tolist() == [False, True, False]
    assert np.isnan(divergence(logits, right)).tolist() == [False, True, False]
