"""Recording: its checks, one animal's repeats, its summary."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from neural_data import recording as module
from neural_data.recording import Recording
from neural_data.tables import neuron_table, trial_table


@pytest.fixture
def two_animals():
    """4 stimuli. Animal a: stimuli 0, 2, two repeats; animal b: stimuli 2, 3, of 3 only the last of three repeats."""
    trials = trial_table([2, 0, 2, 0, 3, 3, 3], [1, 0, 0, 1, 2, 0, 1], "test")
    responses = np.arange(7 * 3, dtype=np.float32).reshape(7, 3)
    responses[4:, [0, 2]] = np.nan
    responses[[1, 3, 5, 6], 1] = np.nan
    neurons = neuron_table(["n0", "m0", "n1"], ["a", "b", "a"], ["VISp", "VISl", "VISp"])
    return Recording("small", np.zeros((4, 8, 6), np.uint8), trials, responses, neurons)


def test_repeats_of_each_animal(two_animals):
    assert two_animals.animals == ["a", "b"]
    a = two_animals.repeats("a")
    assert a.stimuli.tolist() == [0, 2]
    assert a.neurons.tolist() == [0, 2]
    assert a.responses.dtype == np.float64
    np.testing.assert_array_equal(a.responses, [[[3, 5], [6, 8]], [[9, 11], [0, 2]]])
    b = two_animals.repeats("b")
    assert b.stimuli.tolist() == [2, 3]
    np.testing.assert_array_equal(b.responses[:, :, 0], [[7, np.nan], [1, np.nan], [np.nan, 13]])


def test_blocks_of_trials_change_nothing(two_animals, monkeypatch):
    whole, text = two_animals.repeats("b").responses, two_animals.summary()
    monkeypatch.setattr(module, "BLOCK_BYTES", 1)
    np.testing.assert_array_equal(two_animals.repeats("b").responses, whole)
    assert two_animals.summary() == text


def test_memory_maps_are_accepted(two_animals, tmp_path):
    np.save(tmp_path / "r.npy", two_animals.responses)
    mapped = dataclasses.replace(two_animals, responses=np.load(tmp_path / "r.npy", mmap_mode="r"))
    assert isinstance(mapped.responses, np.memmap)
    for animal in "ab":
        np.testing.assert_array_equal(mapped.repeats(animal).responses, two_animals.repeats(animal).responses)


def test_summary_says_what_there_is_and_what_is_missing(two_animals):
    text = two_animals.summary()
    assert "\n" not in text
    for part in (
        "small: 2 animals",
        "a: 2 neurons, 2 stimuli, 2 repeats",
        "b: 1 neurons, 2 stimuli, 1 to 2 repeats",
        "VISp 2, VISl 1",
        "4 grey stimuli of 8 x 6 pixels, 7 trials",
        "47.6% of trials x neurons, layer, positions, behavior, pupil center",
    ):
        assert part in text


def test_numbers_as_names_become_text():
    table = neuron_table(np.array([7, 12]), "m", x_um=[1, 2])
    assert table["neuron_id"].tolist() == ["7", "12"]
    assert table["layer"].tolist() == ["", ""]
    assert table["x_um"].tolist() == [1.0, 2.0]
    assert table["z_um"].isna().all()


def test_unknown_animal_and_doubled_trial(two_animals):
    with pytest.raises(ValueError, match="small: no animal 'c'; there are a, b"):
        two_animals.repeats("c")
    doubled = two_animals.trials.assign(repeat=[1, 0, 1, 1, 2, 0, 1])
    with pytest.raises(ValueError, match="trials 0 and 2 of a are the same repeat and stimulus"):
        dataclasses.replace(two_animals, trials=doubled).repeats("a")


def changed(frame, **columns):
    return frame.assign(**columns)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r: {"stimuli": np.zeros((4, 8))},
            r"stimuli have shape \(4, 8\), expected images \(stimuli, height, width",
        ),
        (lambda r: {"stimuli": np.zeros((4, 5, 8, 6, 4))}, r"stimuli have shape \(4, 5, 8, 6, 4\)"),
        (
            lambda r: {"responses": np.zeros((7, 3, 5))},
            "have 5 samples in time, but sampling_rate_hz is None",
        ),
        (lambda r: {"behavior_names": ("pupil",)}, "behavior_names are pupil, expected 0 names"),
        (lambda r: {"trials": changed(r.trials, withheld=1)}, "column withheld is int64, expected true or false"),
        (lambda r: {"stimuli": np.zeros((3, 8, 6))}, "trial 4 shows stimulus 3, expected 0 to 2"),
        (lambda r: {"trials": r.trials.drop(columns="tier")}, "trials lack tier; found stimulus, repeat"),
        (lambda r: {"trials": changed(r.trials, stimulus=0.5)}, "trials column stimulus is float64, expected integers"),
        (lambda r: {"trials": changed(r.trials, repeat=-1)}, "a trial has repeat -1, expected 0 or more"),
        (lambda r: {"trials": changed(r.trials, tier=3)}, "trials column tier is int64, expected text"),
        (
            lambda r: {"responses": r.responses[1:]},
            r"responses have shape \(6, 3\), expected \(trials, neurons\[, time\]\) = \(7, 3\)",
        ),
        (lambda r: {"neurons": r.neurons.drop(columns=["area", "z_um"])}, "neurons lack area, z_um; found neuron_id"),
        (lambda r: {"neurons": changed(r.neurons, area=np.nan)}, "neurons column area is float64, expected text"),
        (lambda r: {"neurons": changed(r.neurons, x_um="left")}, "neurons column x_um is .*, expected µm as numbers"),
        (lambda r: {"neurons": changed(r.neurons, neuron_id="n")}, "neuron_id n occurs twice in animal a"),
        (
            lambda r: {"neurons": r.neurons[:0], "responses": r.responses[:, :0]},
            "the neuron table is empty, expected one row per neuron",
        ),
        (lambda r: {"behavior": np.zeros((6, 2))}, r"behavior has shape \(6, 2\), expected \(7, channels\)"),
        (lambda r: {"pupil_center": np.zeros((7, 3))}, r"pupil_center has shape \(7, 3\), expected \(7, 2\)"),
    ],
)
def test_each_mistake_is_one_line(two_animals, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        dataclasses.replace(two_animals, **change(two_animals))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("small: ")


def test_optional_parts_are_accepted(two_animals):
    full = dataclasses.replace(
        two_animals, behavior=np.zeros((7, 4)), pupil_center=np.zeros((7, 2)), statistics={"mean": 1.0}
    )
    assert "pupil" not in full.summary()
    assert isinstance(full.trials, pd.DataFrame)


@pytest.fixture
def videos():
    """Two videos of 6 frames, shown twice and once; the last trial ends after 4 frames, the second is withheld."""
    trials = trial_table([0, 0, 1], [0, 1, 0], ["test", "test", "train"])
    trials = trials.assign(frames=[6, 6, 4], withheld=[False, True, False])
    responses = np.arange(3 * 2 * 6, dtype=np.float32).reshape(3, 2, 6)
    responses[1], responses[2, :, 4:] = np.nan, np.nan
    return Recording(
        "clips",
        np.arange(2 * 6 * 8 * 5, dtype=np.uint8).reshape(2, 6, 8, 5),
        trials,
        responses,
        neuron_table([1, 2], "m"),
        behavior=np.ones((3, 2, 6)),
        pupil_center=np.zeros((3, 2, 6)),
        sampling_rate_hz=30.0,
        behavior_names=("pupil_size_px", "speed"),
    )


def test_a_trial_ends_where_its_frames_do(videos):
    trial = videos.trial(2)
    shapes = {name: values.shape for name, values in trial.items()}
    assert shapes == {"video": (4, 8, 5), "responses": (2, 4), "behavior": (2, 4), "pupil_center": (2, 4)}
    assert np.isfinite(trial["responses"]).all()
    window = videos.trial(0, 1, 3)
    np.testing.assert_array_equal(window["responses"], videos.responses[0, :, 1:3])
    np.testing.assert_array_equal(window["video"], videos.stimuli[0, 1:3])
    with pytest.raises(ValueError, match="trial 2 has 4 frames, found a window from 2 to 5"):
        videos.trial(2, 2, 5)


def test_repeats_keep_the_axis_of_time(videos):
    repeated = videos.repeats("m")
    assert repeated.responses.shape == (1, 2, 2, 6)  # the withheld repeat is no repeat
    np.testing.assert_array_equal(repeated.responses[0, 0], videos.responses[0])
    assert videos.repeats("m", tier="train").stimuli.tolist() == [1]
    twice = videos.repeats("m", min_repeats=2)
    assert not len(twice.stimuli)
    assert twice.too_few == 2
    with pytest.raises(ValueError, match="no tier 'oracle'; there are 'test', 'train'"):
        videos.repeats("m", tier="oracle")


def test_summary_of_videos(videos):
    text = dataclasses.replace(videos, notes=("one trial was unusable",)).summary()
    for part in (
        "2 grey videos of 8 x 5 pixels and 4 to 6 frames at 30 Hz",
        "3 trials (test 2, train 1)",
        "responses withheld in 1 trials",
        "note: one trial was unusable",
    ):
        assert part in text


def test_videos_and_responses_have_one_sample_per_frame(videos):
    with pytest.raises(ValueError, match="videos have 5 frames and responses 6 samples in time"):
        dataclasses.replace(videos, stimuli=videos.stimuli[:, :5])
    with pytest.raises(ValueError, match="frames holds int64 from 7 to 7, expected whole numbers from 0 to 6"):
        dataclasses.replace(videos, trials=changed(videos.trials, frames=7))


def test_images_may_have_two_colours_and_responses_in_time(videos):
    images = dataclasses.replace(videos, stimuli=np.zeros((2, 8, 5, 2), np.uint8))
    assert not images.video
    assert images.dynamic
    assert images.trial(0)["images"].shape == (8, 5, 2)
    assert "2 colour stimuli of 8 x 5 pixels" in images.summary()
