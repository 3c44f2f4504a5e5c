"""State of an animal: traces in the ranges of real ones, gaze behind the place of the pupil, arousal behind both."""

import numpy as np
import pytest

from neural_data.behavior_state import arousal, log_gain, simulate_behavior

RATE_HZ, SAMPLES = 30.0, 60000


@pytest.fixture(scope="module", params=[0, 1, 2])
def state(request):
    return simulate_behavior(SAMPLES, RATE_HZ, 2.0, np.random.default_rng(request.param))


def test_traces_are_like_recorded_ones(state):
    dilation, speed = state.behavior
    assert (state.behavior >= 0).all()
    assert dilation.mean() == pytest.approx(54, abs=1)
    assert dilation.std() == pytest.approx(15, abs=1)
    assert 0.02 < (speed > 1).mean() < 0.7
    assert speed.std() > 0.8 * speed.mean()  # heavy-tailed: rest and bouts
    assert np.abs(np.diff(dilation)).max() < 15
    assert np.corrcoef(dilation, speed)[0, 1] > 0.2
    assert np.abs(state.pupil_center.mean(axis=1) - 120).max() < 4
    assert (state.pupil_center.std(axis=1) > 1).all()
    assert (state.pupil_center.std(axis=1) < 10).all()


def test_gaze_stays_jumps_and_moves_more_along_the_horizon(state):
    assert state.gaze.std(axis=1) == pytest.approx([2.0, 1.0], rel=0.1)
    assert np.abs(state.gaze).max() < 9
    steps = np.abs(np.diff(state.gaze[0]))
    jumps = steps > 0.5
    assert jumps.mean() * RATE_HZ == pytest.approx(0.5 * 0.86, abs=0.1)  # the others of 0.5 per second are smaller
    assert np.median(steps) < 0.1


def test_the_map_from_camera_to_gaze_is_what_a_regression_finds(state):
    regressors = np.vstack([state.pupil_center, np.ones(SAMPLES)]).astype(np.float64)
    found = np.linalg.lstsq(regressors.T, state.gaze.T, rcond=None)[0].T
    np.testing.assert_allclose(found[:, :2], state.camera_to_gaze[:, :2], atol=0.01)
    np.testing.assert_allclose(state.camera_to_gaze @ regressors, state.gaze, atol=0.25)


def test_arousal_follows_from_what_is_recorded(state):
    np.testing.assert_allclose(arousal(state.behavior.astype(np.float64)), state.arousal, atol=1e-4)
    assert state.arousal.mean() == pytest.approx(0, abs=1e-3)
    assert state.arousal.std() == pytest.approx(1, abs=1e-3)
    for trace in state.behavior:
        assert np.corrcoef(trace, state.arousal)[0, 1] > 0.5


def test_gain_is_one_on_average_of_gaussian_arousal():
    aroused = np.random.default_rng(0).standard_normal(200000)
    gain = np.exp(log_gain(np.array([0.0, 0.3, 0.6]), aroused))
    assert gain.mean(axis=1) == pytest.approx([1, 1, 1], abs=0.01)
    assert np.log(gain).std(axis=1) == pytest.approx([0, 0.3, 0.6], abs=0.01)


def test_without_gaze_the_pupil_only_jitters():
    state = simulate_behavior(3000, RATE_HZ, 0.0, np.random.default_rng(0))
    assert not state.gaze.any()
    assert state.pupil_center.std() < 0.2
