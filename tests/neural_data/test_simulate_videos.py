"""Simulated videos as recordings: whole, made when asked for, the same for the same config, missing what was asked."""

import copy
import pickle
import tracemalloc

import numpy as np
import pytest

from neural_data.behavior_state import BEHAVIOR_NAMES
from neural_data.simulate_videos import simulate_videos
from neural_data.simulation_config import SimulationConfig, VideoConfig
from neural_data.trial_files import TrialFiles

TINY = {"height": 18, "width": 24, "frames": 60, "train_clips": 4, "features": 3, "repeats": 3, "test_clips": 1}


def config(videos=None, **keys):
    keys = {"animals": 1, "neurons_per_area": 6, "dead_neurons": 0.0} | keys
    return SimulationConfig(dynamic=True, videos=VideoConfig(**(TINY | (videos or {}))), **keys)


@pytest.fixture(scope="module")
def animals():
    return simulate_videos(
        config({"short_clips": 0.3, "bonus_clips": 1, "unusable_trials": 1}, animals=2, dead_neurons=0.2)
    )


def test_one_recording_for_each_animal(animals):
    names = [recording.name for recording, _ in animals]
    assert names == ["animal1", "animal2"]
    for recording, truth in animals:
        n_trials = 4 + 3 * 5 + 1
        assert recording.animals == [recording.name]
        assert recording.video
        assert recording.dynamic
        assert recording.stimuli.shape == (4 + 5 + 1, 60, 18, 24)
        assert recording.responses.shape == (n_trials, 12, 60)
        assert recording.behavior.shape == recording.pupil_center.shape == (n_trials, 2, 60)
        assert recording.behavior_names == BEHAVIOR_NAMES
        assert recording.neurons["area"].tolist() == ["VISp"] * 6 + ["VISl"] * 6
        assert recording.neurons["neuron_id"].str.isdecimal().all()
        assert len(truth.neurons) == 12
        assert "20 trials (" in recording.summary()


def test_trials_end_where_the_table_says_and_everything_is_there_before(animals):
    recording, _ = animals[0]
    assert recording.trials["frames"].nunique() > 1
    for row in range(0, len(recording.trials), 5):
        frames, trial = recording.trials["frames"].iat[row], recording.trial(row)
        assert trial["video"].shape == (frames, 18, 24)
        assert trial["video"].dtype == np.uint8
        for name in ("responses", "behavior", "pupil_center"):
            assert trial[name].shape[-1] == frames
            assert trial[name].dtype == np.float32
            assert not np.isnan(trial[name]).any()
            assert np.isnan(getattr(recording, name)[row, :, frames:]).all()


def test_dead_neurons_are_silent_and_the_others_fire(animals):
    recording, truth = animals[1]
    total = sum(recording.trial(row)["responses"].sum(axis=1) for row in range(len(recording.trials)))
    np.testing.assert_array_equal(total > 0, truth.neurons["kind"] != "dead")
    assert (truth.neurons["kind"] == "dead").sum() == 2
    assert (truth.weights.sum(axis=1) > 0.99).sum() == 10


def test_neurons_read_features_of_their_area_and_kind(animals):
    for recording, truth in animals:
        neuron, feature = np.nonzero(truth.weights)
        read = truth.core.features.iloc[feature]
        assert (read["area"].to_numpy() == recording.neurons["area"].to_numpy()[neuron]).all()
        assert (read["kind"].to_numpy() == truth.neurons["kind"].to_numpy()[neuron]).all()
        assert (np.bincount(neuron) <= 2).all()


def test_any_trial_is_the_same_however_often_and_in_whatever_order_it_is_made():
    (one, truth), (again, _) = (simulate_videos(config())[0] for _ in range(2))
    rows = [5, 0, 9]
    np.testing.assert_array_equal(one.responses[rows], np.stack([again.responses[row] for row in rows[::-1]])[::-1])
    np.testing.assert_array_equal(one.stimuli[1], again.stimuli[1])
    np.testing.assert_array_equal(one.behavior, again.behavior)
    assert not np.array_equal(one.responses[5], simulate_videos(config(seed=1))[0][0].responses[5])
    stimulus = one.trials["stimulus"].to_numpy()
    repeated = np.flatnonzero(stimulus == stimulus[one.trials["tier"] == "oracle"][0])
    assert not np.array_equal(one.responses[repeated[0]], one.responses[repeated[1]], equal_nan=True)
    elsewhere = pickle.loads(pickle.dumps(copy.copy(one.responses)))
    np.testing.assert_array_equal(elsewhere[5], one.responses[5])
    assert isinstance(truth.rates, TrialFiles)


def test_withheld_responses_are_not_there_and_not_even_made(monkeypatch):
    recording, truth = simulate_videos(config({"withheld": ["final_test_main"]}))[0]
    withheld = np.flatnonzero(recording.withheld)
    assert len(withheld) == 3
    monkeypatch.setattr(type(truth), "rates_of_trial", lambda *_: pytest.fail("made"))
    assert np.isnan(recording.responses[withheld]).all()
    assert "responses withheld in 3 trials" in recording.summary()


def test_behavior_that_is_not_recorded_is_absent_and_said():
    recording, truth = simulate_videos(config({"record_behavior": False, "record_pupil_center": False}))[0]
    assert recording.behavior is None
    assert recording.pupil_center is None
    assert recording.notes[0] == "behavior was not recorded, although it acts on the neurons"
    assert truth.gain(0).std() > 0
    assert np.nanstd(truth.gaze) > 0


@pytest.mark.parametrize("response", ["calcium", "deconvolved"])
def test_responses_through_calcium(response):
    spikes, other = (simulate_videos(config({"response": kind}))[0][0] for kind in ("spikes", response))
    trace, counts = other.trial(0)["responses"], spikes.trial(0)["responses"]
    assert (counts == np.round(counts)).all()
    assert (trace != np.round(trace)).any()
    assert (trace < 0).any() == (response == "calcium")
    autocorrelation = [
        np.mean([np.corrcoef(neuron[1:], neuron[:-1])[0, 1] for neuron in values if neuron.std() > 0])
        for values in (trace, counts)
    ]
    assert autocorrelation[0] > autocorrelation[1]


def test_neurons_that_answer_to_all_clips_alike_are_told(monkeypatch):
    def nothing(core, video):
        return np.zeros((6, len(core.rows), len(core.columns), len(video)), np.float32)

    monkeypatch.setattr("neural_data.motion_energy.MotionEnergy.maps", nothing)
    with pytest.raises(ValueError, match=r"12 neurons of animal1 answer to all oracle clips alike; raise"):
        simulate_videos(config())


def test_a_published_size_is_ready_in_a_moment_and_holds_no_trial():
    """8000 neurons, 711 trials of 300 frames: 6.8 GB of responses, of which one trial is made."""
    size = {"train_clips": 351, "test_clips": 6, "bonus_clips": 9, "repeats": 10, "frames": 300} | {"features": 2}
    settings = config(size, areas=["VISp"], neurons_per_area=8000)
    settings.videos.height, settings.videos.width = 18, 24
    tracemalloc.start()
    recording, _ = simulate_videos(settings)[0]
    trial = recording.trial(3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert recording.responses.shape == (351 + 180 + 180, 8000, 300)
    assert trial["responses"].shape[0] == 8000
    assert peak < 300e6
