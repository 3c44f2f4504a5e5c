"""One response per presentation: windows, selections, and what is left out."""

import dataclasses

import numpy as np
import pytest

from neural_data.recording import Recording
from neural_data.tables import neuron_table, trial_table
from transfer.config import PredictivityConfig
from transfer.static_responses import static_responses


@pytest.fixture
def in_time() -> Recording:
    """300 stimuli, 6 repeats, 4 neurons of two areas, 10 bins of 10 ms of which bins 4 to 6 tell the stimulus."""
    rng = np.random.default_rng(0)
    signal = np.zeros((1, 300, 4, 10))
    signal[..., 4:7] = 10 * rng.normal(size=(1, 300, 4, 1))
    responses = signal + 0.1 * rng.normal(size=(6, 300, 4, 10))
    return Recording(
        name="psth",
        stimuli=np.zeros((300, 8, 8), np.uint8),
        trials=trial_table(np.tile(np.arange(300), 6), np.repeat(np.arange(6), 300)),
        responses=responses.reshape(1800, 4, 10),
        neurons=neuron_table(range(4), "m", ["VISp", "VISp", "VISl", "LGd"]),
        sampling_rate_hz=100.0,
    )


def test_a_static_recording_stays_as_it_is(in_time):
    static = dataclasses.replace(in_time, responses=in_time.responses[..., 0])
    found, excluded = static_responses(static, PredictivityConfig())
    assert found is static
    assert not len(excluded)


@pytest.mark.parametrize(("window_ms", "bins"), [([], slice(0, 10)), ([40.0, 70.0], slice(4, 7))])
def test_the_mean_over_the_window(in_time, window_ms, bins):
    found, excluded = static_responses(in_time, PredictivityConfig(window_ms=window_ms))
    np.testing.assert_allclose(found.responses, in_time.responses[..., bins].mean(2))
    assert not len(excluded)


def test_the_published_selection_finds_the_window_and_says_who_is_left_out(in_time):
    found, excluded = static_responses(in_time, PredictivityConfig(selection="neuropixels"))
    np.testing.assert_allclose(found.responses, in_time.responses[:, :3, 4:7].mean(2))
    assert excluded["neuron_id"].tolist() == ["3"]
    assert excluded["reason"].tolist() == ["unselected"]
    assert "area is none of" in excluded["detail"].item()


@pytest.mark.parametrize("key", ["bin_ms", "latency_ms", "skip_ms", "block_ms", "gap_ms"])
def test_keys_of_videos_change_nothing_of_images(in_time, key):
    with pytest.raises(ValueError, match=f"psth: stimuli are images, {key} is for videos; leave it out"):
        static_responses(in_time, PredictivityConfig(**{key: 40.0}))


@pytest.mark.parametrize("window_ms", [[40.0], [50.0, 40.0], [1.0, 2.0, 3.0]])
def test_a_window_is_two_numbers(in_time, window_ms):
    with pytest.raises(ValueError, match=r"window_ms is .*, expected \[start,end\] in ms with start before end"):
        static_responses(in_time, PredictivityConfig(window_ms=window_ms))
