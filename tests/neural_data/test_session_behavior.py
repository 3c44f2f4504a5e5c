"""Running and pupil of a session: what a trial has is held while it is shown, and nothing is made up in between."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from neural_data.session_behavior import session_behavior
from neural_data.session_schedule import Schedule
from neural_data.simulate import SimulationConfig, simulate

NAMES = ("pupil_dilation", "pupil_dilation_derivative", "running_speed")
# Grey from 1 to 2 s, trial 3 from 2 to 3 s and trial 0 from 4 to 5 s.
SHOWN = pd.DataFrame({"start_time": [1.0, 2.0, 4.0], "stop_time": [2.0, 3.0, 5.0], "trial": [-1, 3, 0], "sample": 0})
TIMES_S = np.array([0.5, 1.5, 2.0, 2.9, 3.0, 3.5, 4.5, 5.0])


@pytest.fixture
def recording():
    recording, _ = simulate(SimulationConfig(animals=1, stimuli=10, repeats=2, neurons_per_area=2, size=24))
    rng, n = np.random.default_rng(0), len(recording.trials)
    return dataclasses.replace(
        recording, behavior=rng.uniform(1, 9, (n, 3)), behavior_names=NAMES, pupil_center=rng.normal(size=(n, 2))
    )


def test_values_are_held_while_a_trial_is_shown(recording):
    found = session_behavior(recording, Schedule(SHOWN, [], {}, 6.0), TIMES_S)
    speed, diameter = recording.behavior[:, 2], recording.behavior[:, 0]
    assert found.running_cm_s.tolist() == [0, 0, speed[3], speed[3], 0, 0, speed[0], 0]
    area = np.pi / 4 * diameter**2
    np.testing.assert_allclose(
        found.pupil_area_px2, [np.nan, np.nan, area[3], area[3], np.nan, np.nan, area[0], np.nan]
    )
    np.testing.assert_array_equal(found.pupil_center[[2, 6]], recording.pupil_center[[3, 0]])
    assert np.isnan(found.pupil_center[[0, 1, 4, 5, 7]]).all()


def test_samples_of_a_trial(recording):
    n, rng = len(recording.trials), np.random.default_rng(1)
    parts = {"behavior": rng.uniform(1, 9, (n, 1, 2)), "behavior_names": ("pupil_area_px2",), "pupil_center": None}
    responses = np.stack([recording.responses] * 2, axis=2)
    resolved = dataclasses.replace(recording, responses=responses, sampling_rate_hz=10.0, **parts)
    shown = SHOWN.assign(trial=[3, 3, 0], sample=[0, 1, 1])
    found = session_behavior(resolved, Schedule(shown, [], {}, 6.0), np.array([1.5, 2.5, 4.5]))
    assert found.pupil_area_px2.tolist() == parts["behavior"][[3, 3, 0], 0, [0, 1, 1]].tolist()
    assert found.running_cm_s is None
    assert found.pupil_center is None


def test_nothing_was_recorded(recording):
    blind = dataclasses.replace(recording, behavior=None, behavior_names=(), pupil_center=None)
    found = session_behavior(blind, Schedule(SHOWN, [], {}, 6.0), TIMES_S)
    assert (found.running_cm_s, found.pupil_area_px2, found.pupil_center) == (None, None, None)
