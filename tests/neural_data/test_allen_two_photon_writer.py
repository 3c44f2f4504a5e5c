"""Simulated sessions of two-photon come back from the reader: spikes as events, dF/F through calcium, behaviour."""

import dataclasses

import numpy as np
import pytest

from neural_data.allen_two_photon import read_two_photon
from neural_data.allen_two_photon_writer import DFF_PER_SPIKE, LAYOUTS, write_two_photon_nwb
from neural_data.calcium import Indicator
from neural_data.session_schedule import movie_lengths
from neural_data.simulate import SimulationConfig, VideoConfig, simulate, simulate_videos
from neural_data.write_simulation import single_animals

SWEEP_MS = 7 * 1000 / 30
QUIET = Indicator("calcium", 30.0, rise_ms=50.0, decay_ms=500.0, blur_ms=30.0, noise=0.0)


@pytest.fixture(scope="module")
def seen():
    config = SimulationConfig(animals=1, areas=["VISl"], stimuli=12, repeats=9, neurons_per_area=6, size=24)
    [(recording, truth)] = single_animals(config, *simulate(config))
    return recording, truth


@pytest.fixture(scope="module", params=[30.0, 25.0])
def watched(request):
    videos = VideoConfig(
        height=16, width=20, frames=50, train_clips=2, test_clips=1, repeats=3, frame_rate_hz=request.param
    )
    config = SimulationConfig(dynamic=True, animals=1, areas=["VISp"], neurons_per_area=5, videos=videos)
    [(recording, _)] = simulate_videos(config)
    return recording


def events_of(path, layout):
    return {"events": path.with_name(f"{path.stem}_events.npz")} if layout == "NWB 1" else {}


def in_order(recording):
    return recording.trials.reset_index(drop=True).sort_values(["stimulus", "repeat"]).index.to_numpy()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images(seen, tmp_path, layout):
    recording, truth = seen
    path = write_two_photon_nwb(recording, tmp_path / "a.nwb", layout, indicator=QUIET)
    read = read_two_photon(path, signal="events", window_ms=(0, SWEEP_MS), **events_of(path, layout))
    # The repeats of an image are shown in their order.
    np.testing.assert_allclose(read.responses[in_order(read)] * 7, recording.responses[in_order(recording)], atol=1e-4)
    np.testing.assert_array_equal(read.stimuli, recording.stimuli)
    assert set(read.neurons["area"]) == {"VISl"}
    assert read.animals == ["animal1"]
    assert read.notes[0] == "9 presentations grey left out"
    assert read.behavior_names == ("running_speed_cm_s", "pupil_size_px")
    expected = recording.behavior[in_order(recording)]
    np.testing.assert_allclose(read.behavior[in_order(read)][:, 0], expected[:, 2], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(read.behavior[in_order(read)][:, 1], np.pi / 4 * expected[:, 0] ** 2, rtol=1e-5)
    # Calcium is slow, and the images before are in its baseline; what the cell prefers still stands out.
    sweeps = read_two_photon(path).repeats("animal1").responses.mean(axis=0)
    alive = np.flatnonzero(truth.kind != "dead")
    correlations = [np.corrcoef(sweeps[:, cell], truth.rates[:, cell])[0, 1] for cell in alive]
    assert np.median(correlations) > 0.6
    assert min(correlations) > 0.1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_movies(watched, tmp_path, layout):
    path = write_two_photon_nwb(watched, tmp_path / "a.nwb", layout)
    for name, (row, n) in movie_lengths(watched.trials).items():
        read = read_two_photon(path, name, signal="events", **events_of(path, layout))
        shown = watched.trials[watched.trials["stimulus"] == row].sort_values("start_s").index
        assert len(read.trials) == len(shown)
        assert read.sampling_rate_hz == watched.sampling_rate_hz
        np.testing.assert_array_equal(read.stimuli[0], watched.stimuli[row, :n])
        for at, trial in enumerate(shown):
            found, made = read.trial(at), watched.trial(int(trial), 0, n)
            np.testing.assert_array_equal(found["responses"], made["responses"])
            np.testing.assert_allclose(found["behavior"][0], made["behavior"][1], atol=1e-6)
            np.testing.assert_allclose(found["pupil_center"], made["pupil_center"], rtol=1e-5)


def test_calcium_follows_the_spikes(watched, tmp_path):
    """dF/F without noise is the sum of one transient per spike; of one movie alone spikes before it are unknown."""
    quiet = dataclasses.replace(QUIET, frame_rate_hz=watched.sampling_rate_hz, decay_ms=120.0)
    path = write_two_photon_nwb(watched, tmp_path / "a.nwb", indicator=quiet)
    n = movie_lengths(watched.trials)["natural_movie_one"][1]
    spikes = read_two_photon(path, "natural_movie_one", signal="events").responses
    dff = read_two_photon(path, "natural_movie_one").responses
    expected = DFF_PER_SPIKE * spikes @ quiet.kernel_matrix(n)
    late = slice(round(1.5 * watched.sampling_rate_hz), None)
    np.testing.assert_allclose(dff[..., late], expected[..., late], atol=2e-3 * DFF_PER_SPIKE * spikes.max())
    assert dff[..., late].max() > 0.1


def test_noise_and_neuropil(seen, tmp_path):
    noisy = dataclasses.replace(QUIET, noise=0.5)
    silent = dataclasses.replace(seen[0], responses=np.zeros_like(seen[0].responses))
    path = write_two_photon_nwb(silent, tmp_path / "a.nwb", indicator=noisy)
    dff = read_two_photon(path, signal="dff", resolved=True).responses
    assert dff.std() == pytest.approx(0.5 * DFF_PER_SPIKE, rel=0.05)
    # What is taken from fluorescence again is what was added: sweeps have the noise of 14 samples, nothing more.
    sweeps = read_two_photon(path).responses
    assert sweeps.std() == pytest.approx(100 * 0.5 * DFF_PER_SPIKE * np.sqrt(1 / 14 + 1 / 28), rel=0.1)


def test_what_a_session_cannot_hold(seen, tmp_path):
    recording = seen[0]
    two = recording.neurons.assign(area=["VISp", *recording.neurons["area"][1:]])
    with pytest.raises(ValueError, match="animal1: has the areas VISp, VISl, a two-photon session has one"):
        write_two_photon_nwb(dataclasses.replace(recording, neurons=two), tmp_path / "a.nwb")
    with pytest.raises(ValueError, match="responses are no spike counts"):
        write_two_photon_nwb(dataclasses.replace(recording, responses=recording.responses + 0.5), tmp_path / "a.nwb")
    with pytest.raises(ValueError, match="layout: found 'NWB', expected NWB 1 or NWB 2"):
        write_two_photon_nwb(recording, tmp_path / "a.nwb", "NWB")
    assert not list(tmp_path.iterdir())
