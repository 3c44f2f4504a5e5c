"""write_experanto: what is written comes back, is laid out as the published recordings are, and is whole or absent."""

import dataclasses
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_data import experanto_writer as module
from neural_data.experanto import read_experanto
from neural_data.experanto_folder import open_experanto
from neural_data.experanto_writer import write_experanto
from neural_data.recording import Recording
from neural_data.tables import neuron_table, trial_table
from neural_data.trial_files import TrialFiles

NAMES = ("pupil_dilation", "pupil_dilation_derivative", "running_speed", "pupil_dilation_left", "licks")
TIERS = ("train", "validation", "", "1e3", "émile: #")
recordings = st.fixed_dictionaries(
    {
        "video": st.booleans(),
        "order": st.lists(st.integers(0, 3), min_size=1, max_size=6),
        "lengths": st.lists(st.integers(1, 7), min_size=4, max_size=4),
        "colour": st.booleans(),
        "dtype": st.sampled_from(["uint8", "float32", "float64"]),
        "rate": st.sampled_from([8.0, 29.97, 30.0, 100.0]),
        "tiers": st.lists(st.sampled_from(TIERS), min_size=6, max_size=6),
        "behavior": st.lists(st.sampled_from(NAMES), unique=True),
        "center": st.booleans(),
        "in_time": st.booleans(),
        "marks": st.booleans(),
        "cut": st.lists(st.booleans(), min_size=6, max_size=6),
        "ids": st.sampled_from([["7", "12", "3"], ["007", "a", "9" * 30]]),
        "seed": st.integers(0, 2**16),
    }
)


def made(case: dict) -> Recording:
    """A recording of one animal, its stimuli all different, with NaN where responses are missing or a trial is over."""
    rng = np.random.default_rng(case["seed"])
    video, n = case["video"], len(case["order"])
    # Stimuli in the order in which they are shown: that is how they are numbered when they are read.
    shown = list(dict.fromkeys(case["order"]))
    stimulus = np.array([shown.index(clip) for clip in case["order"]])
    lengths = np.array(case["lengths"])[shown]
    length = int(lengths.max())
    size = (*((length,) if video else ()), 3, 5, *((3,) if case["colour"] else ()))
    dtype = case["dtype"] if not video or (lengths == length).all() else "float32"
    stimuli = rng.integers(0, 256, (len(shown), *size)).astype(dtype)
    stimuli.reshape(len(shown), -1)[:, 0] = np.arange(len(shown))
    repeat = [list(stimulus[:i]).count(s) for i, s in enumerate(stimulus)]
    trials = trial_table(stimulus, repeat, case["tiers"][:n])
    time = (length,) if video else ()
    values = {
        "responses": rng.standard_normal((n, 3, *time)).astype(np.float32),
        "behavior": rng.standard_normal((n, len(case["behavior"]), *(time if case["in_time"] else ()))),
        "pupil_center": rng.standard_normal((n, 2, *(time if case["in_time"] else ()))),
    }
    values["responses"][0, 1] = np.nan
    if video:
        # A repeat may lack its last frame.
        cut = np.array(case["cut"][:n]) & (np.array(repeat) > 0)
        frames = np.maximum(1, lengths[stimulus] - cut)
        trials = trials.assign(frames=frames)
        for row, stop in enumerate(frames):
            clip = lengths[stimulus[row]]
            stimuli[stimulus[row], clip:] = np.nan if clip < length else 0
            for part in values.values():
                part[row, ..., stop:] = np.nan if part.ndim == 3 else part[row, ..., stop:]
    if case["marks"]:
        trials = trials.assign(valid_trial=rng.random(n) < 0.5, withheld=rng.random(n) < 0.5)
        trials = trials.assign(stimulus_class="stimulus.Clip", stimulus_name=[f"{s:05d}" for s in stimulus])
        values["responses"][trials["withheld"]] = np.nan
    return Recording(
        name="m",
        stimuli=stimuli,
        trials=trials,
        responses=values["responses"],
        neurons=neuron_table(case["ids"], "29515-10-12", ["VISp", "", "VISl"], x_um=rng.random(3)),
        behavior=values["behavior"] if case["behavior"] else None,
        behavior_names=tuple(case["behavior"]),
        pupil_center=values["pupil_center"] if case["center"] else None,
        sampling_rate_hz=case["rate"] if video else None,
    )


def check_same(found: Recording, expected: Recording) -> None:
    np.testing.assert_array_equal(found.stimuli[:], expected.stimuli)
    assert found.stimuli.dtype == expected.stimuli.dtype
    columns = list(expected.trials.columns)
    assert found.trials[columns].to_dict("list") == expected.trials.to_dict("list")
    np.testing.assert_array_equal(found.responses[:], expected.responses)
    assert found.neurons.drop(columns=["x_um", "y_um", "z_um"]).equals(
        expected.neurons.drop(columns=["x_um", "y_um", "z_um"])
    )
    np.testing.assert_array_equal(found.neurons["x_um"], expected.neurons["x_um"])
    assert found.sampling_rate_hz == expected.sampling_rate_hz
    assert found.animals == expected.animals
    assert set(found.behavior_names) == set(expected.behavior_names)
    for name in expected.behavior_names:
        check_signal(found, found.behavior[:, found.behavior_names.index(name)], name, expected)
    assert (found.pupil_center is None) == (expected.pupil_center is None)
    for axis in range(2 if expected.pupil_center is not None else 0):
        check_signal(found, found.pupil_center[:, axis], axis, expected)


def check_signal(found: Recording, values: np.ndarray, of: str | int, expected: Recording) -> None:
    """A signal without an axis of time holds during its whole trial."""
    if isinstance(of, str):
        truth = expected.behavior[:, expected.behavior_names.index(of)]
    else:
        truth = expected.pupil_center[:, of]
    if truth.ndim < values.ndim:
        over = np.arange(values.shape[1]) >= found.frames[:, None]
        truth = np.where(over, np.nan, truth[:, None])
    np.testing.assert_array_equal(values, truth.astype(np.float32))


@settings(max_examples=30, deadline=None)
@given(
    case=recordings,
    memmap=st.booleans(),
    blank_ms=st.sampled_from([0.0, 70.0, 500.0]),
    start_s=st.sampled_from([0.0, 999.7, 1.7e9, -3.21]),
    interpolation=st.sampled_from(["nearest", "linear"]),
)
def test_what_is_written_comes_back(case, memmap, blank_ms, start_s, interpolation):
    recording = made(case | ({} if case["video"] else {"in_time": False}))
    image_ms = max(500.0, 620.0 - blank_ms)
    with tempfile.TemporaryDirectory() as folder:
        path = write_experanto(recording, Path(folder) / "m", memmap, blank_ms, image_ms, start_s=start_s)
        found = read_experanto(path, interpolation=interpolation)
        check_same(found, recording)
        assert found.name == "m"
        with pytest.raises(ValueError, match="m: exists already; name a new or an empty folder"):
            write_experanto(recording, path)


@pytest.fixture
def clips():
    """Two videos of 4 frames at 10 Hz, the second shown twice."""
    case = {"video": True, "order": [0, 1, 1], "lengths": [4] * 4, "colour": False, "dtype": "uint8", "rate": 10.0}
    case |= {
        "tiers": list(TIERS),
        "behavior": list(NAMES[:3]),
        "center": True,
        "in_time": True,
        "marks": False,
        "cut": [False] * 6,
    }
    return made(case | {"ids": ["1", "2", "3"], "seed": 1})


def test_laid_out_as_the_published_ones_are(clips, tmp_path):
    path = write_experanto(clips, tmp_path / "m", memmap=True, blank_ms=200, start_s=100.0)
    files = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    trials = [f"screen/meta/{n:05d}.yml" for n in range(7)]
    pixels = [f"screen/data/{n:05d}.npy" for n in (1, 3, 5)]
    devices = ("responses", "eye_tracker", "treadmill")
    parts = ("data.mem", "meta.yml", "meta/means.npy", "meta/stds.npy")
    sequences = [f"{device}/{part}" for device in devices for part in parts]
    neurons = [f"responses/meta/{name}.npy" for name in ("area", "cell_motor_coordinates", "unit_ids")]
    screen = [f"screen/{name}" for name in ("meta.yml", "timestamps.npy", "meta/means.npy", "meta/stds.npy")]
    assert files == sorted(["meta.json", *trials, *pixels, *sequences, *neurons, *screen])
    assert json.loads((path / "meta.json").read_text()) == {"data_key": "29515-10-12"}
    times = np.load(path / "screen" / "timestamps.npy")
    whole = [100.0, 100.2, 100.3, 100.4, 100.5, 100.6, 100.8]  # a blank, four frames, a blank, the next frame
    np.testing.assert_allclose(times[:7], whole)
    assert len(times) == 3 * 5 + 1
    blank, video = (yaml.safe_load((path / "screen" / "meta" / f"0000{n}.yml").read_text()) for n in (2, 3))
    assert blank == {
        "modality": "blank",
        "interleave_value": 128.0,
        "first_frame_idx": 5,
        "num_frames": 1,
        "image_size": [3, 5],
    }
    assert video == {
        "modality": "video",
        "first_frame_idx": 6,
        "num_frames": 4,
        "image_size": [3, 5],
        "tier": "validation",
    }
    eye = yaml.safe_load((path / "eye_tracker" / "meta.yml").read_text())
    assert eye == {
        "dtype": "float32",
        "end_time": 101.9,
        "is_mem_mapped": True,
        "modality": "sequence",
        "n_signals": 4,
        "n_timestamps": 20,
        "phase_shift_per_signal": False,
        "sampling_rate": 10.0,
        "start_time": 100.0,
        "signal_names": ["pupil_dilation", "pupil_dilation_derivative", "pupil_x", "pupil_y"],
    }
    assert (path / "eye_tracker" / "data.mem").stat().st_size == 20 * 4 * 4
    assert np.load(path / "responses" / "meta" / "unit_ids.npy").tolist() == [1, 2, 3]


def test_statistics_are_of_what_was_recorded(clips, tmp_path):
    path = write_experanto(clips, tmp_path / "m")
    found = read_experanto(path).statistics
    flat = clips.responses.astype(float).transpose(1, 0, 2).reshape(3, -1)
    np.testing.assert_allclose(found["responses"]["mean"], np.nanmean(flat, axis=1))
    np.testing.assert_allclose(found["responses"]["std"], np.nanstd(flat, axis=1), rtol=1e-6)
    shown = clips.stimuli[clips.trials["stimulus"]]
    assert found["screen"]["mean"] == pytest.approx(shown.mean())
    assert found["screen"]["std"] == pytest.approx(shown.std())
    assert np.load(path / "responses" / "meta" / "means.npy").shape == (1, 3)


def test_a_late_response_is_written_late(clips, tmp_path):
    late = dataclasses.replace(clips, response_start_ms=130.0)
    path = write_experanto(late, tmp_path / "m", start_s=1e9)
    check_same(read_experanto(path, response_start_ms=130.0), clips)
    devices = open_experanto(path).devices
    assert devices["responses"].start_s - devices["screen"].timestamps_s[0] == pytest.approx(0.13)


def test_trials_are_read_one_by_one(clips, tmp_path):
    """Stimuli and responses that are in files themselves are never held together."""
    asked = []

    def read(row):
        asked.append(row)
        return clips.responses[row]

    lazy = dataclasses.replace(clips, responses=TrialFiles(read, clips.responses.shape))
    check_same(read_experanto(write_experanto(lazy, tmp_path / "m")), clips)
    assert asked == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r: {"neurons": r.neurons.assign(animal=["a", "b", "b"])},
            "m: experanto holds one animal each, found a, b",
        ),
        (
            lambda r: {"stimuli": r.stimuli[:, 0]},
            "m: experanto holds videos with responses in time, or images with one response each; found images with",
        ),
        (
            lambda r: {"stimuli": np.zeros((2, 4, 3, 5, 2))},
            "m: experanto holds stimuli that are grey or have 3 channels, found 2",
        ),
        (
            lambda r: {"trials": r.trials.assign(frames=[4, 0, 4])},
            "m: experanto holds trials of at least one frame, found none in trial 1",
        ),
        (
            lambda r: {"behavior_names": ("pupil_x", "b", "c")},
            "m: experanto holds one signal of each name, found pupil_x twice",
        ),
        (
            lambda r: (
                {"trials": r.trials[:0], "responses": r.responses[:0], "behavior": None, "behavior_names": ()}
                | {"pupil_center": None}
            ),
            "m: experanto holds at least one trial, found none",
        ),
    ],
)
def test_what_the_format_cannot_hold_is_refused(clips, tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        write_experanto(dataclasses.replace(clips, **change(clips)), tmp_path / "m")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_images_must_last_until_their_response_is_over(tmp_path):
    recording = made(
        {"video": False, "order": [0, 1], "lengths": [1] * 4, "colour": False, "dtype": "uint8", "rate": 10.0}
        | {"tiers": list(TIERS), "behavior": [], "center": False, "in_time": False, "marks": False, "cut": []}
        | {"ids": ["1", "2", "3"], "seed": 1}
    )
    with pytest.raises(ValueError, match="image_ms and blank_ms: found 500 ms together, expected at least 550"):
        write_experanto(recording, tmp_path / "m", blank_ms=0)


def test_a_failure_leaves_nothing_behind(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(module.ScreenFiles, "finish", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_experanto(clips, tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_signals_without_a_name_get_one(clips, tmp_path):
    unnamed = dataclasses.replace(clips, behavior_names=())
    found = read_experanto(write_experanto(unnamed, tmp_path / "m"))
    assert found.behavior_names == ("behavior_0", "behavior_1", "behavior_2")
    np.testing.assert_array_equal(found.behavior, clips.behavior.astype(np.float32))
