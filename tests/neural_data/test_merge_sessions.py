"""Sessions of several animals as one recording: each response at its own place, and only what can be merged is."""

import dataclasses

import numpy as np
import pytest

from neural_data.merge_sessions import merge_sessions
from neural_data.recording import Recording
from neural_data.tables import neuron_table, trial_table

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 6)).astype(np.uint8)


def session(name, repeats, neurons, seed, bins=None):
    """A session whose presentations come in a random order, and lack one."""
    rng = np.random.default_rng(seed)
    stimulus, repeat = np.tile(np.arange(5), repeats), np.repeat(np.arange(repeats), 5)
    order = rng.permutation(len(stimulus))[:-1]
    shape = (len(order), neurons, *([bins] if bins else []))
    return Recording(
        name=name,
        stimuli=IMAGES.copy(),
        trials=trial_table(stimulus[order], repeat[order]).assign(start_s=np.arange(len(order))),
        responses=rng.normal(size=shape).astype(np.float32),
        neurons=neuron_table(range(neurons), name, "VISp").assign(snr=1.5),
        behavior=rng.normal(size=(len(order), 1)) if bins is None else None,
        sampling_rate_hz=100.0 if bins else None,
        source=f"session {name}",
        notes=(f"note of {name}",),
    )


@pytest.mark.parametrize("bins", [None, 3])
def test_each_animal_keeps_its_responses(bins):
    sessions = [session("a", 3, 4, 1, bins), session("b", 5, 2, 2, bins), session("c", 2, 3, 3, bins)]
    merged = merge_sessions(iter(sessions), "all")
    assert merged.animals == ["a", "b", "c"]
    assert len(merged.trials) in (24, 25)
    assert merged.trials.sort_values(["repeat", "stimulus"]).index.tolist() == list(range(len(merged.trials)))
    assert merged.responses.shape[1:] == (9, *([bins] if bins else []))
    for one in sessions:
        np.testing.assert_array_equal(merged.repeats(one.name).responses, one.repeats(one.name).responses)
    assert merged.neurons["snr"].tolist() == [1.5] * 9
    assert merged.source == "session a; session b; session c"
    assert "b: note of b" in merged.notes
    left_out = "behaviour and pupil left out: they belong to single sessions"
    assert (merged.notes[-1] == left_out) == (bins is None)


def test_videos():
    def video(name, seed):
        one = session(name, 3, 2, seed, bins=200)
        rng = np.random.default_rng(0)
        return dataclasses.replace(one, stimuli=rng.integers(0, 256, (5, 200, 4, 6)).astype(np.uint8))

    one, other = video("a", 1), video("b", 2)
    merged = merge_sessions([one, other], "all")
    assert merged.video
    np.testing.assert_array_equal(merged.repeats("b").responses, other.repeats("b").responses)
    stimuli = other.stimuli.copy()
    stimuli[4, 199, 0, 0] += 1
    with pytest.raises(ValueError, match="b: shows other images than a"):
        merge_sessions([one, dataclasses.replace(other, stimuli=stimuli)], "all")


def test_what_cannot_be_merged():
    one = session("a", 3, 4, 1)
    with pytest.raises(ValueError, match="there are no sessions to merge"):
        merge_sessions([], "all")
    with pytest.raises(ValueError, match=r"b: found bins in time \(3,\), expected \(\) as in a"):
        merge_sessions([one, session("b", 3, 4, 2, bins=3)], "all")
    fast = dataclasses.replace(session("b", 3, 4, 2, bins=3), sampling_rate_hz=30.0)
    with pytest.raises(ValueError, match="b: bins of 30 Hz, expected 100 Hz as in a"):
        merge_sessions([session("a", 3, 4, 2, bins=3), fast], "all")
    with pytest.raises(ValueError, match=r"b: found stimuli of shape \(5, 4, 5\), expected \(5, 4, 6\) as in a"):
        merge_sessions([one, dataclasses.replace(session("b", 3, 4, 2), stimuli=IMAGES[:, :, 1:])], "all")
    with pytest.raises(ValueError, match="b: shows other images than a"):
        merge_sessions([one, dataclasses.replace(session("b", 3, 4, 2), stimuli=IMAGES[::-1])], "all")
    twice = session("b", 3, 4, 2)
    trials = twice.trials.assign(repeat=0, stimulus=1)
    with pytest.raises(ValueError, match="b: two trials are the same repeat of a stimulus"):
        merge_sessions([one, dataclasses.replace(twice, trials=trials)], "all")
    with pytest.raises(ValueError, match="neuron_id 0 occurs twice in animal a"):
        merge_sessions([one, one], "all")
