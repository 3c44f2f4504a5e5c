"""Statistics gathered trial by trial, beside numpy's of all trials at once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer.frame_statistics import FrameStatistics, Moments

TRACES, VIDEO = -1, 0


def gathered(trials: list[np.ndarray], longest: int, time_axis: int) -> FrameStatistics:
    shape = list(trials[0].shape)
    shape[time_axis] = longest
    found = FrameStatistics(shape, time_axis)
    for trial in trials:
        found.add(trial)
    return found


def padded(trials: list[np.ndarray], longest: int, time_axis: int) -> np.ndarray:
    """(trials, ...) with NaN behind the shorter ones."""
    wide = []
    for trial in trials:
        padding = [(0, 0)] * trial.ndim
        padding[time_axis] = (0, longest - trial.shape[time_axis])
        wide.append(np.pad(trial, padding, constant_values=np.nan))
    return np.stack(wide)


def assert_moments(found: Moments, values: np.ndarray, axes: int | tuple[int, ...] | None) -> None:
    known = {"mean": np.nanmean, "std": np.nanstd, "min": np.nanmin, "max": np.nanmax}
    for name, function in known.items():
        np.testing.assert_allclose(getattr(found, name), function(values, axis=axes), rtol=1e-9, atol=1e-6)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.sampled_from([TRACES, VIDEO]), st.floats(-1e6, 1e6))
def test_moments_are_those_of_all_trials(lengths: list[int], time_axis: int, far: float):
    """Wherever zero is: sums of squares would cancel."""
    rng = np.random.default_rng(len(lengths))
    trials = [far + rng.normal(size=(3, length) if time_axis == TRACES else (length, 2, 4)) for length in lengths]
    found, values = gathered(trials, max(lengths), time_axis), padded(trials, max(lengths), time_axis)
    assert_moments(found.per_frame(), values, 0)
    assert_moments(found.over_time(), values, (0, 2) if time_axis == TRACES else (0, 1))
    assert_moments(found.over_all(), values, None)


def test_frames_that_no_trial_has_are_nan():
    found = gathered([np.ones((2, 3)), np.zeros((2, 2))], 5, TRACES).per_frame()
    for values in vars(found).values():
        assert np.isnan(values[:, 3:]).all()
        assert np.isfinite(values[:, :3]).all()


def test_nan_before_the_end_is_refused():
    statistics = FrameStatistics((2, 4), TRACES)
    with pytest.raises(ValueError, match="NaN before the end"):
        statistics.add(np.array([[1.0, np.nan, 2.0], [1.0, 1.0, 1.0]]))
