"""Bins of videos as stimuli: which frames and samples belong to them, and what is left out."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neural_data.recording import Recording
from neural_data.tables import neuron_table, trial_table
from neural_data.trial_files import TrialFiles
from transfer import video_bins
from transfer.config import PredictivityConfig
from transfer.video_bins import BinnedClips, bin_timing, binned_recording, common_length

CLIPS, FRAMES, NEURONS = 4, 40, 3


def recording(repeats: tuple[int, ...] = (3, 3, 2, 1), **changes: object) -> Recording:
    """Clips shown so many times at 20 frames a second; a response tells its trial, neuron and sample."""
    stimulus = np.repeat(np.arange(len(repeats)), repeats)
    repeat = np.concatenate([np.arange(number) for number in repeats])
    trial, neuron, time = np.ogrid[: len(stimulus), :NEURONS, :FRAMES]
    rng = np.random.default_rng(0)
    given = {
        "name": "clips",
        "stimuli": rng.integers(0, 256, (len(repeats), FRAMES, 6, 8), np.uint8),
        "trials": trial_table(stimulus, repeat, ["test"] * (len(stimulus) - 1) + ["train"]),
        "responses": (1000 * trial + 100 * neuron + time).astype(np.float32),
        "neurons": neuron_table(range(NEURONS), "m"),
        "sampling_rate_hz": 20.0,
    }
    return Recording(**(given | changes))


def test_responses_are_means_of_the_samples_after_their_frames():
    """Bins of 4 frames; responses 3 samples later, of which the first 40 ms after onset (1 sample) were not kept."""
    config = PredictivityConfig(bin_ms=200.0, latency_ms=200.0)
    source = recording(response_start_ms=50.0)
    found = binned_recording(source, config)
    assert bin_timing(source, config).shift == 3
    assert found.stimuli.bins_per_clip == (FRAMES - 3) // 4 == 9
    assert not found.dynamic
    assert not found.video
    assert len(found.trials) == 8 * 9, "the clip that was shown once is left out"
    row = 9 * 4 + 5  # of trial 4, repeat 1 of clip 1, bin 5
    assert found.trials.iloc[row][["stimulus", "repeat"]].tolist() == [1 * 9 + 5, 1]
    samples = slice(5 * 4 + 3, 5 * 4 + 7)
    np.testing.assert_allclose(found.responses[row], np.asarray(source.responses)[4, :, samples].mean(1))
    frames = found.stimuli.frames(np.array([14]))[0]
    np.testing.assert_array_equal(frames, source.stimuli[1, 20:24])
    np.testing.assert_allclose(found.stimuli[14], frames.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.stimuli[[14, 3]][0], frames.mean(0), rtol=1e-6)


@given(latency=st.integers(-6, 9), each=st.integers(1, 9), skip=st.integers(0, 2))
def test_no_bin_reaches_beyond_a_trial(latency, each, skip):
    source = recording(response_start_ms=-50.0 * latency)
    config = PredictivityConfig(bin_ms=50.0 * each, skip_ms=50.0 * each * skip)
    found = binned_recording(source, config)
    timing = found.stimuli.timing
    assert (timing.frames, timing.shift) == (each, latency)
    _, bin = found.stimuli.places(found.trials["stimulus"])
    first = found.stimuli.first_frame(bin)
    assert bin.min() == skip
    assert first.min() >= 0
    assert (first + each).max() <= FRAMES
    assert (first + latency).min() >= 0
    assert (first + latency + each).max() <= FRAMES
    np.testing.assert_allclose(
        found.responses[:, 0] % 1000, first + latency + (each - 1) / 2, err_msg="mean time of the samples of each bin"
    )


def test_all_trials_of_a_clip_that_count_reach_its_last_bin(capsys):
    """A trial that ends a frame early costs its clip a bin; one that ends in the middle is left out itself."""
    source = recording(repeats=(5, 5, 2, 1))
    frames = np.full(13, FRAMES)
    frames[1], frames[7] = FRAMES - 1, 11
    source = dataclasses.replace(source, trials=source.trials.assign(frames=frames))
    found = binned_recording(source, PredictivityConfig(bin_ms=100.0))
    clip, bin = found.stimuli.places(found.trials["stimulus"])
    shown = [[int((clip[bin == b] == c).sum()) for c in range(3)] for b in (0, 18, 19)]
    assert shown == [[5, 4, 2], [5, 4, 2], [0, 4, 2]]
    said = capsys.readouterr().err
    assert "1 clips that are shown once or are too short and 1 trials that end early are left out" in said
    repeated = found.repeats("m", min_repeats=2)
    missing = np.isnan(repeated.responses).any(2)
    of_clip = found.stimuli.places(repeated.stimuli)[0]
    for number in range(3):
        of_trials = missing[:, of_clip == number]
        assert (of_trials == of_trials[:, :1]).all(), "halves are of trials"


@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=7))
def test_the_common_length_keeps_most(lengths):
    kept = {n: n * sum(length >= n for length in lengths) for n in range(10) if sum(x >= n for x in lengths) >= 2}
    best = max(kept.values(), default=0)
    found = common_length(np.array(lengths))
    assert (kept[found] if found else 0) == best


def test_withheld_responses_and_other_tiers_are_not_read():
    source = recording()
    responses = np.asarray(source.responses).copy()
    responses[[2, 7]] = np.nan
    trials = source.trials.assign(withheld=np.isin(np.arange(9), [2, 7]))
    found = binned_recording(dataclasses.replace(source, responses=responses, trials=trials), PredictivityConfig())
    assert sorted(set(found.stimuli.places(found.trials["stimulus"])[0])) == [0, 1], "clip 2 has one trial left"
    assert np.isfinite(found.responses).all()
    trials = source.trials.assign(tier=np.where(source.trials["stimulus"] == 1, "b", "a"))
    found = binned_recording(dataclasses.replace(source, trials=trials), PredictivityConfig(tier="b"))
    assert set(found.stimuli.places(found.trials["stimulus"])[0]) == {1}
    with pytest.raises(ValueError, match="clips: no tier 'c'; there are 'test', 'train'"):
        binned_recording(source, PredictivityConfig(tier="c"))


def test_missing_samples_are_passed_over_and_missing_bins_are_missing():
    responses = np.asarray(recording().responses).copy()
    responses[0, 0, 1] = responses[1, 1, 4:8] = np.nan
    found = binned_recording(recording(responses=responses), PredictivityConfig(bin_ms=200.0))
    assert found.responses[0, 0] == pytest.approx(5 / 3)
    assert np.isnan(found.responses[10 + 1, 1])
    assert np.isnan(found.responses).sum() == 1


def test_trials_in_files_are_read_once_each_and_clips_once():
    source, read = recording(), []
    values = np.asarray(source.responses)

    def trial(row: int) -> np.ndarray:
        read.append(row)
        return values[row]

    on_disk = dataclasses.replace(
        source,
        responses=TrialFiles(trial, values.shape),
        stimuli=TrialFiles(
            lambda clip: read.append(f"clip {clip}") or source.stimuli[clip], source.stimuli.shape, "u1"
        ),
    )
    found = binned_recording(on_disk, PredictivityConfig())
    assert read == list(range(8))
    expected = binned_recording(source, PredictivityConfig())
    np.testing.assert_array_equal(found.responses, expected.responses)
    del read[:]
    np.testing.assert_array_equal(found.stimuli.frames(np.arange(40)), expected.stimuli.frames(np.arange(40)))
    assert read == ["clip 0", "clip 1"]


def test_of_long_clips_only_the_frames_of_a_bin_are_read(monkeypatch):
    source = recording()
    expected = binned_recording(source, PredictivityConfig()).stimuli.frames(np.arange(30))
    monkeypatch.setattr(video_bins, "CLIP_BYTES", 10)
    clips = binned_recording(source, PredictivityConfig()).stimuli
    assert isinstance(clips, BinnedClips)
    np.testing.assert_array_equal(clips.frames(np.arange(30)), expected)
    assert clips._kept is None


def test_videos_in_colour_give_pictures_in_colour():
    stimuli = np.random.default_rng(0).integers(0, 256, (4, FRAMES, 6, 8, 2), np.uint8)
    found = binned_recording(recording(stimuli=stimuli), PredictivityConfig())
    assert found.stimuli.shape == (4 * 20, 6, 8, 2)
    assert found.stimuli.frames(np.array([3])).shape == (1, 2, 6, 8, 2)


def test_responses_without_time_are_refused():
    static = recording(responses=np.zeros((9, NEURONS)), sampling_rate_hz=None)
    with pytest.raises(ValueError, match=r"clips: responses to videos have shape \(9, 3\), without time; expected"):
        binned_recording(static, PredictivityConfig())


@pytest.mark.parametrize("keys", [{"bin_ms": 2500.0}, {"latency_ms": 2000.0}, {"skip_ms": 2000.0}])
def test_clips_that_are_shorter_than_a_bin_are_refused(keys):
    with pytest.raises(ValueError, match=r"clips: no clip was shown twice for longer than a bin of .* frames; found 9"):
        binned_recording(recording(), PredictivityConfig(**keys))
