"""Correlation of what comes trial by trial is that of everything at once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer.streamed_correlation import StreamedCorrelation


@given(st.lists(st.integers(0, 7), min_size=1, max_size=6), st.integers(0, 99), st.floats(-1e5, 1e5))
def test_trials_of_any_length_are_one_series(lengths, seed, offset):
    rng = np.random.default_rng(seed)
    total = sum(lengths) + 3
    predicted, measured = rng.standard_normal((2, 4, total)) + offset
    streamed = StreamedCorrelation(4)
    for part in np.split(np.arange(total), np.cumsum(lengths)):
        streamed.add(predicted[:, part], measured[:, part])
    expected = [np.corrcoef(p, m)[0, 1] for p, m in zip(predicted, measured, strict=True)]
    np.testing.assert_allclose(streamed.correlations(), expected, atol=1e-6)


def test_a_neuron_that_never_fires_scores_nothing():
    streamed = StreamedCorrelation(1)
    streamed.add(np.arange(5.0)[None], np.zeros((1, 5)))
    assert streamed.correlations() == 0


def test_nothing_is_no_score():
    with pytest.raises(ValueError, match="no samples to correlate"):
        StreamedCorrelation(3).correlations()
