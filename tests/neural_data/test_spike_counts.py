"""Spike counts against counting one by one, and against the AllenSDK's own counting."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neural_data.spike_counts import bin_edges, count_spikes

TIMES = st.lists(st.integers(0, 400), max_size=40)


@given(trains=st.lists(TIMES, min_size=1, max_size=4), onsets=st.lists(st.integers(0, 40), max_size=6))
def test_each_spike_is_counted_once(trains, onsets):
    # Whole numbers of 1/64 s, so that spikes fall on edges exactly.
    trains = [np.sort(np.array(train, float)) / 64 for train in trains]
    onsets = np.array(onsets, float) / 8
    edges = onsets[:, None] + np.array([0, 2, 3, 7]) / 64
    counts = count_spikes(iter(trains), len(trains), edges)
    assert counts.shape == (len(onsets), len(trains), 3)
    for window, row in enumerate(edges):
        for unit, train in enumerate(trains):
            by_hand = [sum(low <= spike < high for spike in train) for low, high in itertools.pairwise(row)]
            assert counts[window, unit].tolist() == by_hand


def test_the_allen_counting_away_from_edges():
    rng = np.random.default_rng(0)
    train = np.sort(rng.uniform(0, 60, 5000))
    edges = bin_edges(np.arange(0.5, 59, 0.25), (0, 250), 10)
    # ecephys_session.build_spike_histogram: starts from the left, ends from the right.
    starts, ends = (
        np.searchsorted(train, part, side) for part, side in ((edges[:, :-1], "left"), (edges[:, 1:], "right"))
    )
    np.testing.assert_array_equal(count_spikes([train], 1, edges)[:, 0], ends - starts)


def test_edges():
    np.testing.assert_allclose(bin_edges(np.array([1.0, 2.0]), (0, 250)), [[1, 1.25], [2, 2.25]])
    fine = bin_edges(np.array([1.0]), (-50, 250), 10)
    assert fine.shape == (1, 31)
    np.testing.assert_allclose(np.diff(fine), 0.01)
    with pytest.raises(ValueError, match="window_ms: found 250 to 0, expected an end after the beginning"):
        bin_edges(np.array([1.0]), (250, 0))
    for bin_ms in (0, -10, 33, 500):
        with pytest.raises(ValueError, match=f"bin_ms: found {bin_ms}, expected a part of the window of 250 ms"):
            bin_edges(np.array([1.0]), (0, 250), bin_ms)


def test_as_many_trains_as_units():
    with pytest.raises(ValueError, match="zip"):
        count_spikes([np.zeros(0)], 2, np.zeros((1, 2)))
