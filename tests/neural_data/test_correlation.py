"""Pearson correlation beside numpy's, and with weights beside arrays in which stimuli stand several times."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_data.correlation import check_weights, pearson, weighted_pearson


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**31), n=st.integers(3, 30), scale=st.sampled_from([1e-200, 1e-8, 1.0, 1e8, 1e200]))
def test_pearson_is_numpys_whatever_the_scale(seed, n, scale):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 4, n, 3))
    found = pearson(a * scale + 0.0, b, axis=1)
    assert found.shape == (4, 3)
    expected = [[np.corrcoef(a[i, :, j], b[i, :, j])[0, 1] for j in range(3)] for i in range(4)]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_pearson_broadcasts_leading_axes():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 10, 3)), rng.normal(size=(10, 3))
    np.testing.assert_allclose(pearson(a, b, axis=-2)[2], pearson(a[2], b))


def test_pearson_of_what_does_not_vary_is_nan_without_a_warning():
    a = np.random.default_rng(0).normal(size=(10, 3))
    a[:, 0] = 0.1  # ten times 0.1, over ten, is not 0.1
    a[4, 1] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = pearson(a, a)
    np.testing.assert_allclose(found, [np.nan, np.nan, 1.0])


def test_pearson_of_unequal_lengths_is_refused():
    with pytest.raises(ValueError, match="equal lengths, at least 1, found 3 and 4"):
        pearson(np.ones((3, 2)), np.ones((4, 2)))


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(2, 20),
    scale=st.sampled_from([1e-200, 1.0, 1e200]),
    offset=st.sampled_from([0.0, 1e5]),
    sparse=st.booleans(),
)
def test_weights_count_stimuli(seed, n, scale, offset, sparse):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 4, n, 3))
    if sparse:  # many resamples of what is mostly one number do not vary at all
        a = np.where(rng.random(a.shape) < 0.2, a, 0.1)
    b[0, 0, 0] = np.nan
    weights = rng.multinomial(n, np.full(n, 1 / n), size=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = weighted_pearson((a + offset) * scale, b, weights)
    assert found.shape == (4, 5, 3)
    for i, counts in enumerate(weights):
        expected = pearson(np.repeat(a, counts, axis=1), np.repeat(b, counts, axis=1), axis=1)
        np.testing.assert_allclose(found[:, i], expected, atol=1e-9)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(4), r"shape \(4,\), expected \(resamples, 4 stimuli\)"),
        (np.ones((2, 3)), r"shape \(2, 3\), expected \(resamples, 4 stimuli\)"),
        (-np.ones((2, 4)), "0 or more"),
        (np.zeros((2, 4)), "not 0 for all of a resample"),
        (np.full((2, 4), np.nan), "0 or more"),
    ],
)
def test_wrong_weights_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        check_weights(weights, 4)
