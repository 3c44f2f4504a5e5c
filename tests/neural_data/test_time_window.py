"""Windows in time: mouse-vision's own values, every run found, and clear mistakes."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neural_data.time_window import longest_run, mean_over, median_reliability, named_window, reliable_window


@pytest.fixture(scope="module")
def reference(mouse_vision):
    """Responses (repeats, stimuli, time, neurons), reliability (time, neurons), and what mouse-vision made of them."""
    return np.load(mouse_vision / "neural" / "time_avg.npz")


def test_the_reliable_window_of_mouse_vision(reference):
    window = reliable_window(reference["rel"], 0.3)
    assert (window.start, window.stop) == (6, 13)
    found = mean_over(reference["data"].transpose(0, 1, 3, 2), window)
    np.testing.assert_allclose(found, reference["avg"], rtol=1e-14)


def test_the_named_window_of_mouse_vision(reference):
    window = named_window((40, 100), 25, 10)
    assert (window.start, window.stop) == (4, 10)
    found = mean_over(reference["data"].transpose(0, 1, 3, 2), window)
    np.testing.assert_allclose(found, reference["avg_range_40_100ms"], rtol=1e-14)


@given(st.lists(st.booleans(), max_size=12))
def test_the_longest_run_and_the_first_of_several(above):
    runs = [(i, j) for i, j in itertools.combinations(range(len(above) + 1), 2) if all(above[i:j])]
    if not runs:
        with pytest.raises(ValueError, match="no bin is reliable enough"):
            longest_run(np.array(above, bool))
        return
    best = max(j - i for i, j in runs)
    assert longest_run(np.array(above, bool)) == slice(*next(run for run in runs if run[1] - run[0] == best))


def test_a_run_of_one_bin():
    assert longest_run(np.array([False, True, False])) == slice(1, 2)


@given(st.integers(-20, 300), st.integers(0, 200), st.sampled_from([-50, 0, 30]))
def test_named_windows_hold_the_centres_in_them(start, length, first_ms):
    centres = first_ms + 10 * np.arange(25) + 5
    inside = np.flatnonzero((centres >= start) & (centres <= start + length))
    if len(inside):
        window = named_window((start, start + length), 25, 10, first_ms)
        assert (window.start, window.stop) == (inside[0], inside[-1] + 1)
    else:
        with pytest.raises(ValueError, match="holds no centre of a 10-ms bin"):
            named_window((start, start + length), 25, 10, first_ms)


def test_missing_values_do_not_count():
    responses = np.array([[1.0, np.nan, 3.0, 9.0], [np.nan, np.nan, np.nan, 1.0]])
    np.testing.assert_array_equal(mean_over(responses, slice(0, 3)), [2.0, np.nan])
    median = median_reliability(np.array([[0.1, np.nan, 0.5], [np.nan, np.nan, np.nan]]))
    np.testing.assert_array_equal(median, [0.3, np.nan])
