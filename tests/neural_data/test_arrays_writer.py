"""Written arrays: any recording comes back, images or videos, in memory or on disk."""

import dataclasses
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_data import arrays_writer
from neural_data.arrays import read_arrays, write_arrays
from neural_data.recording import Recording
from neural_data.simulate import SimulationConfig, simulate
from neural_data.tables import neuron_table, trial_table
from neural_data.trial_files import TrialFiles
from tests.neural_data.array_files import assert_same, dynamic_arrays, save_as


def test_the_real_recording_comes_back_from_a_folder(shared, tmp_path):
    recording = read_arrays(shared / "data/mouse_v1_natural_images.npz")
    read = read_arrays(write_arrays(recording, tmp_path / "mouse_v1_natural_images"))
    assert_same(read, recording)


def test_simulation_comes_back_as_memory_maps(tmp_path):
    recording, _ = simulate(SimulationConfig(size=24, stimuli=12, repeats=4, neurons_per_area=5, missing_repeats=1))
    folder = write_arrays(recording, tmp_path / "deep/er")
    read = read_arrays(folder)
    assert_same(read, recording)
    assert isinstance(read.responses, np.memmap)
    assert isinstance(read.stimuli, np.memmap)
    assert [path.name for path in folder.parent.iterdir()] == ["er"]


@pytest.mark.parametrize("block_bytes", [1, 2**28])
def test_trials_of_animals_on_rows_of_their_own_are_joined(tmp_path, monkeypatch, block_bytes):
    monkeypatch.setattr(arrays_writer, "BLOCK_BYTES", block_bytes)
    responses = np.array([[1, np.nan], [np.nan, 2], [3, np.nan]])
    recording = Recording(
        "apart",
        np.zeros((2, 4, 4), np.uint8),
        trial_table([0, 0, 1], [0, 0, 0]),
        responses,
        neuron_table(["0", "1"], ["a", "b"]),
    )
    read = read_arrays(write_arrays(recording, tmp_path / "apart"))
    np.testing.assert_array_equal(read.responses, [[1, 2], [3, np.nan]])
    clash = dataclasses.replace(recording, responses=np.ones((3, 2)))
    with pytest.raises(ValueError, match="a neuron has two responses to one repeat 0 of a stimulus"):
        write_arrays(clash, tmp_path / "clash")
    assert [path.name for path in tmp_path.iterdir()] == ["apart"]


@st.composite
def recordings(draw):
    """Any recording of the layout, its trials ordered by repeat and stimulus."""
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    stimuli, repeats, neurons = (draw(st.integers(1, n)) for n in (5, 4, 5))
    time = draw(st.sampled_from([None, 1, 5]))
    video = draw(st.booleans()) and time is not None
    shape = (stimuli, *((time,) if video else ()), 4, 5, *((3,) if draw(st.booleans()) else ()))
    presented = rng.uniform(size=(repeats, stimuli)) < 0.8
    presented[0, 0] = True
    repeat, stimulus = np.nonzero(presented)
    repeat = np.unique(repeat, return_inverse=True)[1]
    n, times = len(stimulus), () if time is None else (time,)
    responses = rng.normal(size=(n, neurons, *times)).astype(draw(st.sampled_from([np.float32, np.float64])))
    responses[rng.uniform(size=responses.shape) < 0.2] = np.nan
    responses[:, 0] = 1.0
    names = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\x00")), min_size=20, max_size=20)
    texts = np.array(draw(names), dtype=object)
    tier_of_stimulus = rng.choice(["train", "", "test"], stimuli)
    of_trials = rng.choice(["train", "", "test"], n)
    trials = trial_table(stimulus, repeat, of_trials if draw(st.booleans()) else tier_of_stimulus[stimulus])
    if time is not None:
        frames = rng.integers(1, time + 1, n)
        responses[np.broadcast_to((np.arange(time) >= frames[:, None])[:, None], responses.shape)] = np.nan
        trials["frames"] = frames
    if draw(st.booleans()):
        trials["withheld"] = rng.uniform(size=n) < 0.3
        responses[trials["withheld"]] = np.nan
    if draw(st.booleans()):
        trials = trials.assign(trial_id=[f"t{i}" for i in range(n)], start_s=rng.normal(size=n), block=np.arange(n))
    table = neuron_table(
        range(neurons), rng.choice(["a", "b"], neurons), texts[:neurons], z_um=rng.normal(size=neurons)
    )
    if draw(st.booleans()):
        table = table.assign(
            snr=rng.normal(size=neurons), n=np.arange(neurons), good=rng.random(neurons) < 0.5, why="x"
        )
    behavior = rng.normal(size=(n, 2, *(times if draw(st.booleans()) else ()))) if draw(st.booleans()) else None
    return Recording(
        "any",
        rng.integers(0, 256, shape, np.uint8),
        trials,
        responses,
        table,
        behavior=behavior,
        pupil_center=rng.normal(size=(n, 2, *times)) if draw(st.booleans()) else None,
        sampling_rate_hz=None if time is None else 29.97,
        statistics={"mean": np.arange(3.0), "what": np.array("text")} if draw(st.booleans()) else {},
        behavior_names=("running", "pupil") if behavior is not None else (),
        response_start_ms=draw(st.sampled_from([0.0, -12.5])),
        notes=tuple(text for text in texts[:2] if text),
    )


@settings(deadline=None, max_examples=60)
@given(recording=recordings())
def test_any_recording_comes_back(tmp_path_factory, recording):
    assert_same(read_arrays(write_arrays(recording, tmp_path_factory.mktemp("any") / "any")), recording)


@pytest.mark.parametrize("kind", ["npz", "mat73", "zarr3"])
def test_files_of_other_kinds_become_a_folder(tmp_path, kind):
    recording = read_arrays(save_as(kind, tmp_path, dynamic_arrays()))
    read = read_arrays(write_arrays(recording, tmp_path / "folder"))
    assert_same(read, recording)
    assert isinstance(read.stimuli, np.memmap)
    assert not isinstance(read.responses, np.ndarray) or isinstance(read.responses, np.memmap)


@pytest.mark.parametrize(("block_bytes", "at_once"), [(1, 1), (2 * 12 * 4, 2), (2**28, 6)])
def test_trials_are_read_block_by_block(tmp_path, monkeypatch, block_bytes, at_once):
    responses = np.random.default_rng(0).normal(size=(6, 3, 4)).astype(np.float32)
    asked = []

    class Counted(TrialFiles):
        def __getitem__(self, key):
            asked.append(list(key))
            return super().__getitem__(key)

    monkeypatch.setattr(arrays_writer, "BLOCK_BYTES", block_bytes)
    files = Counted(lambda row: responses[row], responses.shape)
    trials = trial_table([0, 1, 0, 1, 1, 0], [0, 0, 1, 1, 2, 2])
    images = np.zeros((2, 4, 4), np.uint8)
    recording = Recording("files", images, trials, files, neuron_table(range(3), "m"), sampling_rate_hz=10.0)
    read = read_arrays(write_arrays(recording, tmp_path / "f"))
    np.testing.assert_array_equal(np.asarray(read.responses), responses[[0, 1, 2, 3, 5, 4]])
    assert asked == np.array([0, 1, 2, 3, 5, 4]).reshape(-1, at_once).tolist()


def test_tiers_of_repeats(tmp_path):
    recording = read_arrays(save_as("npz", tmp_path, dynamic_arrays()))
    tiers = recording.trials.assign(tier=[str(i) for i in range(11)])
    recording = dataclasses.replace(recording, trials=tiers)
    assert_same(read_arrays(write_arrays(recording, tmp_path / "tiers")), recording)


def test_nested_statistics_come_back_flat(tmp_path):
    recording = read_arrays(save_as("npz", tmp_path, dynamic_arrays()))
    nested = {"responses": {"all/mean": np.ones(2), "std": 2.0}, "n": 3}
    read = read_arrays(write_arrays(dataclasses.replace(recording, statistics=nested), tmp_path / "w"))
    assert sorted(read.statistics) == ["n", "responses.all.mean", "responses.std"]
    assert float(read.statistics["responses.std"]) == 2.0


def test_writing_refuses_what_would_be_lost(tmp_path, monkeypatch):
    recording = read_arrays(save_as("npz", tmp_path, dynamic_arrays()))
    for change, message in (
        ({"statistics": {"a": object()}}, "mouse7: statistics a: found object, expected numbers or text"),
        ({"neurons": recording.neurons.assign(**{"a/b": 1})}, "mouse7: found the name 'a/b', expected one that a file"),
        ({"trials": recording.trials.assign(stimulus=0, repeat=0)}, "trial 0 has tier 'train', expected 'test' as in|"
         "trial .* has .*, expected .* as in another trial of the same repeat and stimulus; write each animal"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            write_arrays(dataclasses.replace(recording, **change), tmp_path / "w")
    clash = trial_table(np.zeros(11, int), np.zeros(11, int))
    with pytest.raises(ValueError, match="a neuron has two responses to one repeat 0 of a stimulus"):
        write_arrays(dataclasses.replace(recording, trials=clash), tmp_path / "w")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    with pytest.raises(ValueError, match=r"0\.0 GB are free, mouse7 needs 0\.1 as 3 repeats of 4 stimuli"):
        write_arrays(recording, tmp_path / "w")
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mouse7.npz"]
    with pytest.raises(ValueError, match="exists already; name a new or an empty folder"):
        write_arrays(recording, tmp_path)
    (tmp_path / "empty").mkdir()
    assert_same(read_arrays(write_arrays(recording, tmp_path / "empty")), recording)
