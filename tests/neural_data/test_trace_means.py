"""Means of traces against averaging one stretch after the other."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from neural_data.trace_means import LONGEST_GAP_S, mean_in_bins, stretch_means


@given(st.integers(0, 1000), st.booleans())
def test_stretches(seed, holes):
    rng = np.random.default_rng(seed)
    traces = 1000 + rng.normal(size=(3, 50))
    traces[rng.random(traces.shape) < 0.3 * holes] = np.nan
    starts = rng.integers(-3, 50, (6, 2))
    stops = starts + rng.integers(-1, 8, (6, 2))
    means = stretch_means(traces, starts, stops)
    assert means.shape == (3, 6, 2)
    for trace, found in zip(traces, means.reshape(3, -1), strict=True):
        for first, last, mean in zip(starts.ravel(), stops.ravel(), found, strict=True):
            inside = 0 <= first < last <= 50 and not np.isnan(trace[first:last]).all()
            np.testing.assert_allclose(mean, np.nanmean(trace[first:last]) if inside else np.nan, rtol=1e-12)


@given(st.integers(0, 1000))
def test_bins(seed):
    rng = np.random.default_rng(seed)
    times = np.sort(rng.uniform(0, 5, 200))
    trace = rng.normal(size=200)
    trace[rng.random(200) < 0.1] = np.nan
    edges = rng.uniform(0, 4, (5, 1)) + np.array([0, 0.2, 0.6])
    means = mean_in_bins(times, trace, edges)
    for row, found in zip(edges, means, strict=True):
        for low, high, mean in zip(row[:-1], row[1:], found, strict=True):
            samples = trace[(times >= low) & (times < high)]
            if not np.isnan(samples).all():
                np.testing.assert_allclose(mean, np.nanmean(samples), rtol=1e-10)


def test_bins_without_samples_lie_between_their_neighbours():
    times, trace = np.array([0.0, 0.1, 0.2, 0.2 + 2 * LONGEST_GAP_S]), np.array([0.0, 1.0, 3.0, 9.0])
    edges = np.array([[0.04, 0.06], [0.14, 0.16], [0.3, 0.32], [-0.5, -0.4], [5, 6], [np.nan, 0.3]])
    found = mean_in_bins(times, trace, edges)[:, 0]
    np.testing.assert_allclose(found, [0.5, 2.0, np.nan, np.nan, np.nan, np.nan])
    assert np.isnan(mean_in_bins(np.array([]), np.array([]), edges)).all()


def test_times_need_not_be_in_order():
    times, trace = np.array([0.3, 0.1, 0.2]), np.array([3.0, 1.0, 2.0])
    np.testing.assert_allclose(mean_in_bins(times, trace, np.array([[0.05, 0.25, 0.35]])), [[1.5, 3.0]])
