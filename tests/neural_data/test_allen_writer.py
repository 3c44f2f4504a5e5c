"""Simulated sessions come back from the reader as they were: counts, units, behaviour."""

import dataclasses

import h5py
import numpy as np
import pandas as pd
import pytest

from neural_data.allen_neuropixels import read_neuropixels
from neural_data.allen_writer import write_neuropixels_nwb
from neural_data.session_schedule import movie_lengths
from neural_data.simulate import SimulationConfig, VideoConfig, simulate, simulate_videos
from neural_data.trial_files import TrialFiles


@pytest.fixture(scope="module")
def simulated():
    config = SimulationConfig(animals=1, stimuli=12, repeats=7, neurons_per_area=6, size=24)
    recording, _ = simulate(config)
    rng, n = np.random.default_rng(0), len(recording.trials)
    behavior = rng.normal(20, 5, (n, 2)).astype(np.float32)
    names = ("running_speed_cm_s", "pupil_area_px2")
    pupil = rng.normal(300, 5, (n, 2)).astype(np.float32)
    return dataclasses.replace(recording, behavior=behavior, behavior_names=names, pupil_center=pupil)


@pytest.fixture(scope="module")
def written(simulated, tmp_path_factory):
    return write_neuropixels_nwb(simulated, tmp_path_factory.mktemp("simulated") / "deep/sim.nwb", seed=3, poor_units=7)


def in_order(recording):
    """Rows of the trials by repeat, then stimulus."""
    return recording.trials.reset_index(drop=True).sort_values(["repeat", "stimulus"]).index.to_numpy()


def test_it_comes_back(simulated, written):
    read = read_neuropixels(written, rate=False)
    one, other = in_order(simulated), in_order(read)
    np.testing.assert_array_equal(read.responses[other], simulated.responses[one])
    np.testing.assert_array_equal(read.behavior[other], simulated.behavior[one])
    np.testing.assert_array_equal(read.pupil_center[other], simulated.pupil_center[one])
    np.testing.assert_array_equal(read.stimuli, simulated.stimuli)
    assert read.behavior_names == simulated.behavior_names
    assert read.neurons["area"].tolist() == simulated.neurons["area"].tolist()
    np.testing.assert_allclose(read.neurons[["x_um", "y_um", "z_um"]], simulated.neurons[["x_um", "y_um", "z_um"]])
    assert read.animals == simulated.animals
    assert "2 units left out: quality is not good" in read.notes
    assert "3 units left out: amplitude_cutoff is above 0.1 or unknown" in read.notes
    assert "7 presentations grey left out" in read.notes
    assert np.diff(read.trials["start_s"]).min() == pytest.approx(0.25)


def test_bins_add_up_to_the_counts(simulated, written):
    fine = read_neuropixels(written, bin_ms=10, rate=False)
    np.testing.assert_array_equal(fine.responses.sum(axis=2)[in_order(fine)], simulated.responses[in_order(simulated)])


def test_the_seed_decides(simulated, written, tmp_path):
    same = write_neuropixels_nwb(simulated, tmp_path / "same.nwb", seed=3, poor_units=7)
    other = write_neuropixels_nwb(simulated, tmp_path / "other.nwb", seed=4)
    spikes = []
    for path in (written, same, other):
        with h5py.File(path) as file:
            spikes.append(file["units/spike_times"][:])
    np.testing.assert_array_equal(spikes[0], spikes[1])
    assert len(spikes[0]) != len(spikes[2]) or (spikes[0] != spikes[2]).any()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.nwb", "same.nwb"]


def test_a_part_of_the_presentation_and_images_apart(simulated, tmp_path):
    bare = dataclasses.replace(simulated, behavior=None, behavior_names=(), pupil_center=None)
    window = (40.0, 120.0)
    path = write_neuropixels_nwb(bare, tmp_path / "late.nwb", window_ms=window, templates=False)
    np.save(tmp_path / "images.npy", simulated.stimuli)
    read = read_neuropixels(path, window_ms=window, rate=False, stimuli=tmp_path / "images.npy")
    np.testing.assert_array_equal(read.responses[in_order(read)], simulated.responses[in_order(simulated)])
    assert read_neuropixels(path, window_ms=(0, 40), stimuli=tmp_path / "images.npy").responses.sum() == 0


def test_missing_presentations_and_numbered_units(simulated, tmp_path):
    responses = simulated.responses.copy()
    responses[-4:] = np.nan
    neurons = simulated.neurons.assign(neuron_id=[str(950911000 + row) for row in range(len(simulated.neurons))])
    recording = dataclasses.replace(simulated, responses=responses, neurons=neurons)
    read = read_neuropixels(write_neuropixels_nwb(recording, tmp_path / "a.nwb"), rate=False)
    assert len(read.trials) == len(simulated.trials) - 4
    pd.testing.assert_series_equal(read.neurons["neuron_id"], neurons["neuron_id"])
    expected = recording.repeats(recording.animals[0]).responses
    np.testing.assert_array_equal(read.repeats(read.animals[0]).responses, expected)


def test_what_a_session_cannot_hold(simulated, written, tmp_path):
    def refused(expected, window_ms=(0.0, 250.0), **changed):
        with pytest.raises(ValueError, match=expected):
            write_neuropixels_nwb(dataclasses.replace(simulated, **changed), tmp_path / "no.nwb", window_ms=window_ms)
        assert not list(tmp_path.iterdir())

    refused("responses are no spike counts", responses=simulated.responses + 0.5)
    refused("responses are no spike counts", responses=simulated.responses - 1)
    holes = simulated.responses.copy()
    holes[0, 0] = np.nan
    refused("part of the neurons lack a response to trial 0", responses=holes)
    animal = ["a", *simulated.neurons["animal"][1:]]
    refused("has 2 animals, a session has one", neurons=simulated.neurons.assign(animal=animal))
    refused("a neuron has no area", neurons=simulated.neurons.assign(area=""))
    refused("window_ms: found 0 to 400, expected a part of the 250 ms shown", window_ms=(0, 400))
    refused("grey images", stimuli=np.zeros((12, 24, 24, 3), np.uint8))
    with pytest.raises(ValueError, match=r"sim\.nwb: exists already; name a new file"):
        write_neuropixels_nwb(simulated, written)


MOVIES = VideoConfig(
    height=16,
    width=20,
    frames=300,
    train_clips=8,
    test_clips=1,
    repeats=4,
    missing_repeats=1,
    features=3,
    classes=["noise"],
    behavior_gain=0.0,
    gaze_shift=0.0,
)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A session of simple cells that see noise, which neither running nor gaze changes."""
    kinds = {"complex_cells": 0.0, "dead_neurons": 0.0, "reliability": 0.9}
    config = SimulationConfig(dynamic=True, animals=1, areas=["VISp"], neurons_per_area=6, videos=MOVIES, **kinds)
    [(recording, truth)] = simulate_videos(config)
    path = write_neuropixels_nwb(recording, tmp_path_factory.mktemp("movies") / "animal1.nwb", seed=1)
    movies = movie_lengths(recording.trials)
    return (
        recording,
        truth,
        {name: (row, read_neuropixels(path, name, rate=False)) for name, (row, _) in movies.items()},
    )


def test_movies_come_back(watched):
    recording, _, movies = watched
    assert len(movies) == len(recording.stimuli)
    assert sum(len(read.trials) for _, read in movies.values()) == len(recording.trials)
    for row, read in movies.values():
        n = read.stimuli.shape[1]
        np.testing.assert_array_equal(read.stimuli[0], recording.stimuli[row, :n])
        assert read.sampling_rate_hz == recording.sampling_rate_hz
        assert read.behavior_names == ("running_speed_cm_s", "pupil_area_px2")
        assert read.notes == ()
        shown = recording.trials[recording.trials["stimulus"] == row].sort_values("start_s").index
        assert len(read.trials) == len(shown)
        for at, trial in enumerate(shown):
            found, made = read.trial(at), recording.trial(int(trial), 0, n)
            np.testing.assert_array_equal(found["responses"], made["responses"])
            np.testing.assert_allclose(found["behavior"][0], made["behavior"][1], atol=1e-6)
            np.testing.assert_allclose(found["behavior"][1], np.pi / 4 * made["behavior"][0] ** 2, rtol=1e-5)
            np.testing.assert_allclose(found["pupil_center"], made["pupil_center"], rtol=1e-5)


def test_the_known_rates_are_recovered(watched):
    _, truth, movies = watched
    for row, read in movies.values():
        expected = truth.rates_of_clip(row)[:, : read.stimuli.shape[1]]
        mean = np.asarray(read.responses).mean(axis=(0, 2))
        # Spikes are Poisson: the mean over so many frames is near the rate's.
        n = len(read.trials) * read.stimuli.shape[1]
        np.testing.assert_array_less(np.abs(mean - expected.mean(axis=1)), 5 * np.sqrt(expected.mean(axis=1) / n))
    row, read = movies["natural_movie_one"]
    counts = read.responses.mean(axis=0)
    expected = truth.rates_of_clip(row)[:, : counts.shape[1]]
    correlations = [np.corrcoef(*pair)[0, 1] for pair in zip(counts, expected, strict=True)]
    assert min(correlations) > 0.6


def test_the_known_receptive_fields_are_recovered(watched):
    """Averages of the noise before spikes: near the field of the neuron, and of no other."""
    _, truth, movies = watched
    fields = truth.receptive_fields()
    n, lags = fields.shape[:2]
    averages = np.zeros((n, fields[0].size))
    for _, read in movies.values():
        video = np.asarray(read.stimuli[0], float) / 127.5 - 1
        before = np.concatenate([np.zeros((lags - 1, *video.shape[1:])), video])
        past = np.lib.stride_tricks.sliding_window_view(before, lags, axis=0)[..., ::-1]
        counts = read.responses.mean(axis=0)
        counts -= counts.mean(axis=1, keepdims=True)
        averages += counts @ past.transpose(0, 3, 1, 2).reshape(len(video), -1)
    together = np.corrcoef(averages, fields.reshape(n, -1))[:n, n:]
    assert together.diagonal().min() > 0.25
    assert np.median(together.diagonal()) > 0.35
    assert (together.argmax(axis=1) == np.arange(n)).all()


def test_movies_need_spikes(watched, tmp_path):
    recording = watched[0]
    calcium = TrialFiles(lambda row: recording.responses.read(row) + 0.25, recording.responses.shape)
    with pytest.raises(ValueError, match="animal1: responses are no spike counts"):
        write_neuropixels_nwb(dataclasses.replace(recording, responses=calcium), tmp_path / "no.nwb")
    assert not list(tmp_path.iterdir())
