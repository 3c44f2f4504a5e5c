"""Splits: the published ones, and what every split must be."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neural_data.splits import image_splits


def test_published_splits(shared):
    stored = np.load(shared / "reference/values/mouse_vision/neural/splits_118_10_0.5.npz")
    splits = image_splits(118)
    assert len(splits) == 10
    assert np.array_equal([train for train, _ in splits], stored["train"])
    assert np.array_equal([test for _, test in splits], stored["test"])


@given(n=st.integers(2, 300), fraction=st.floats(0.05, 0.95))
def test_every_stimulus_is_in_one_part(n, fraction):
    if not 0 < math.ceil(round(fraction * n, 9)) < n:
        with pytest.raises(ValueError, match="at least one train and one test"):
            image_splits(n, 2, fraction)
        return
    for train, test in image_splits(n, 2, fraction):
        assert sorted([*train, *test]) == list(range(n))
        assert len(train) - 1 < fraction * n + 1e-6
        assert len(train) >= fraction * n - 1e-6


def test_fraction_that_is_inexact_in_binary():
    assert len(image_splits(20, 1, 0.55)[0][0]) == 11


def test_no_splits_is_refused():
    with pytest.raises(ValueError, match="n_splits must be at least 1"):
        image_splits(10, 0)
