"""Arrays: the real recording, round trips, and one clear line for every malformed input."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_data.arrays import read_arrays, write_arrays
from neural_data.recording import Recording
from neural_data.reliability import split_half_reliability
from neural_data.simulate import SimulationConfig, simulate
from neural_data.tables import neuron_table, trial_table


def assert_same(one: Recording, other: Recording) -> None:
    np.testing.assert_array_equal(one.stimuli, other.stimuli)
    assert one.stimuli.dtype == other.stimuli.dtype
    np.testing.assert_array_equal(one.responses, other.responses)
    assert one.responses.dtype == other.responses.dtype
    pd.testing.assert_frame_equal(one.trials, other.trials)
    pd.testing.assert_frame_equal(one.neurons, other.neurons)


def plain(stimuli=4, repeats=3, neurons=2):
    rng = np.random.default_rng(0)
    return {
        "images": rng.integers(0, 256, size=(stimuli, 6, 5), dtype=np.uint8),
        "responses": rng.normal(size=(repeats, stimuli, neurons)).astype(np.float32),
    }


def saved(tmp_path, arrays, form="npz"):
    if form == "npz":
        np.savez(tmp_path / "mouse7.npz", **arrays)
        return tmp_path / "mouse7.npz"
    folder = tmp_path / "mouse7"
    folder.mkdir()
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values)
    return folder


def test_the_real_recording(shared):
    path = shared / "data/mouse_v1_natural_images.npz"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    recording, stored = read_arrays(path), np.load(path)
    assert recording.animals == ["region1", "region2", "region3"]
    assert recording.stimuli.shape == (100, 31, 31)
    assert recording.responses.shape == (50 * 10 + 50 * 12, 260)
    for region, median in (("region1", 0.77), ("region2", 0.64), ("region3", 0.77)):
        seen = recording.repeats(region)
        np.testing.assert_array_equal(seen.responses, stored[f"{region}_responses"].astype(np.float64))
        np.testing.assert_array_equal(recording.stimuli[seen.stimuli], stored[f"{region}_images"])
        assert np.median(split_half_reliability(seen.responses)) == pytest.approx(median, abs=0.03)
    assert recording.repeats("region1").stimuli.tolist() == recording.repeats("region2").stimuli.tolist()


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


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**31),
    stimuli=st.integers(1, 5),
    repeats=st.integers(1, 4),
    neurons=st.integers(1, 5),
    colour=st.booleans(),
    texts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\x00")), min_size=5, max_size=5),
)
def test_any_recording_comes_back(tmp_path_factory, seed, stimuli, repeats, neurons, colour, texts):
    rng = np.random.default_rng(seed)
    shape = (stimuli, 4, 3, 3) if colour else (stimuli, 4, 3)
    repeat, stimulus = np.nonzero(rng.uniform(size=(repeats, stimuli)) < 0.8)
    repeat = np.unique(repeat, return_inverse=True)[1]
    responses = rng.normal(size=(len(stimulus), neurons))
    responses[rng.uniform(size=responses.shape) < 0.2] = np.nan
    responses[:, 0] = 1.0
    table = neuron_table(
        range(neurons), rng.choice(["a", "b"], neurons), texts[:neurons], z_um=rng.choice([np.nan, 1.5], neurons)
    )
    tiers = rng.choice(["train", "", "test"], stimuli)
    recording = Recording(
        "any", rng.integers(0, 256, shape, np.uint8), trial_table(stimulus, repeat, tiers[stimulus]), responses, table
    )
    if not len(stimulus):
        return
    assert_same(read_arrays(write_arrays(recording, tmp_path_factory.mktemp("any") / "any")), recording)


def test_trials_of_animals_on_rows_of_their_own_are_joined(tmp_path):
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


@pytest.mark.parametrize("form", ["npz", "folder"])
def test_least_input_and_all_names(tmp_path, form):
    read = read_arrays(saved(tmp_path, plain(), form))
    assert read.animals == ["mouse7"]
    assert read.neurons["neuron_id"].tolist() == ["0", "1"]
    assert read.trials["repeat"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    full = plain() | {
        "neuron_id": np.array([11, 12]),
        "animal": np.array(["x", "y"]),
        "area": np.array(["VISp", "VISl"]),
        "layer": np.array(["4", "2/3"]),
        "x_um": np.array([1, 2]),
        "y_um": np.array([0.5, np.nan]),
        "z_um": np.array([1.0, 2.0]),
        "tier": np.array(["train", "test", "test", "train"]),
        "truth_rates": np.zeros(3),
    }
    (tmp_path / "full").mkdir()
    read = read_arrays(saved(tmp_path / "full", full, form))
    assert read.neurons["neuron_id"].tolist() == ["11", "12"]
    assert read.neurons["layer"].tolist() == ["4", "2/3"]
    assert read.neurons["x_um"].tolist() == [1.0, 2.0]
    assert read.trials["tier"].tolist()[:4] == ["train", "test", "test", "train"]


def test_neurons_as_a_table(tmp_path):
    folder = saved(tmp_path, plain(), "folder")
    (folder / "neurons.csv").write_text("neuron_id,area,x_um\n007,NA,12.5\n8,VISp,\n")
    neurons = read_arrays(folder).neurons
    assert neurons["neuron_id"].tolist() == ["007", "8"]
    assert neurons["area"].tolist() == ["NA", "VISp"]
    np.testing.assert_array_equal(neurons["x_um"], [12.5, np.nan])


@pytest.mark.parametrize(
    ("csv", "message"),
    [
        ("neuron_id,aera\n1,a\n2,b\n", "neurons.csv: aera: is no name of this layout; .*nearest: area"),
        ("x_um\n1\nleft\n", "neurons.csv: x_um: found 'left', expected numbers in µm"),
        ("area\nVISp\n", r"area: found shape \(1,\), expected \(2,\), one per neuron"),
        ("layer\n4\n4\n", "neurons.csv: layer: found also layer.npy, expected one of the two"),
        ("", "neurons.csv: cannot be read as a table with a header"),
    ],
)
def test_malformed_tables(tmp_path, csv, message):
    folder = saved(tmp_path, plain() | {"layer": np.array(["4", "5"])}, "folder")
    (folder / "neurons.csv").write_text(csv)
    with pytest.raises(ValueError, match=message):
        read_arrays(folder)


def test_image_ranges(tmp_path):
    arrays = plain()
    whole = read_arrays(saved(tmp_path, arrays)).stimuli
    for images, dtype in (
        ((arrays["images"] / 255).astype(np.float32), np.float32),
        (arrays["images"].astype(np.float64), np.float64),
        (arrays["images"].astype(np.int64), np.uint8),
    ):
        read = read_arrays(saved(tmp_path, arrays | {"images": images})).stimuli
        assert read.dtype == dtype
        np.testing.assert_allclose(read, whole, atol=1e-4)


def test_spike_counts_as_whole_numbers(tmp_path):
    counts = np.arange(24).reshape(3, 4, 2)
    read = read_arrays(saved(tmp_path, plain() | {"responses": counts}))
    np.testing.assert_array_equal(read.repeats("mouse7").responses, counts)


def test_padding_becomes_no_trial(tmp_path):
    arrays = plain()
    arrays["responses"][2, 1] = np.nan
    read = read_arrays(saved(tmp_path, arrays, "folder"))
    assert len(read.trials) == 11
    np.testing.assert_array_equal(read.repeats("mouse7").responses, arrays["responses"])


def test_animals_with_images_of_their_own(tmp_path):
    images = plain(5)["images"]
    # a has one image twice: two stimuli, of which b shares the first.
    arrays = {
        "a_images": images[[0, 1, 0]],
        "a_responses": np.ones((2, 3, 1)),
        "a_tier": np.array(["test", "train", "test"]),
        "b_2_images": images[[3, 0]],
        "b_2_responses": np.full((3, 2, 2), 2.0),
        "b_2_area": np.array(["VISp", "VISl"]),
    }
    read = read_arrays(saved(tmp_path, arrays))
    assert read.animals == ["a", "b_2"]
    np.testing.assert_array_equal(read.stimuli, images[[0, 1, 0, 3]])
    assert read.neurons["area"].tolist() == ["", "VISp", "VISl"]
    assert read.repeats("a").stimuli.tolist() == [0, 1, 2]
    assert read.repeats("b_2").stimuli.tolist() == [0, 3]
    assert read.repeats("b_2").responses.shape == (3, 2, 2)
    assert dict(zip(read.trials["stimulus"], read.trials["tier"], strict=True)) == {
        0: "test",
        1: "train",
        2: "test",
        3: "",
    }
    arrays["b_2_tier"] = np.array(["train", "train"])
    with pytest.raises(
        ValueError, match="b_2_tier: found 'train' for stimulus 1, expected 'test' as in another animal"
    ):
        read_arrays(saved(tmp_path, arrays))


def without(name):
    return {key: values for key, values in plain().items() if key != name}


TWO = {f"{animal}_{name}": values for animal in "ab" for name, values in plain().items()}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (without("images"), "images: not there; found responses$"),
        (without("responses") | {"respnses": np.ones(3)}, "responses: not there; found .*; nearest: respnses"),
        (TWO | {"c_images": np.ones((4, 6, 5))}, "c_responses: not there; found a_images"),
        (TWO | {"a_aera": np.ones(3)}, "a_aera: is no name of this layout; .*nearest: area"),
        (TWO | {"a_animal": np.array(["x", "y"])}, "a_animal: found beside the prefix 'a'"),
        (TWO | plain(), r"found names without prefix \(images, responses\) and with \(a, b\)"),
        (
            TWO | {"b_images": np.zeros((4, 7, 5), np.uint8)},
            r"b_images: found uint8 images of shape \(7, 5\), expected uint8 of \(6, 5\) as in a_images",
        ),
        (plain() | {"images": np.ones((4, 5))}, r"images: found shape \(4, 5\), expected \(stimuli, height, width\)"),
        (plain() | {"images": np.ones((4, 5, 5, 4))}, r"images: found shape \(4, 5, 5, 4\)"),
        (plain() | {"images": np.full((4, 5, 5), -1.0)}, "images: found values from -1.0 to -1.0, expected 0 to 255"),
        (plain() | {"images": np.full((4, 5, 5), np.nan)}, "images: found values from nan to nan"),
        (plain() | {"images": np.full((4, 5, 5), 300)}, "images: found values from 300 to 300"),
        (plain() | {"images": np.full((4, 5, 5), True)}, "images: found bool, expected uint8 or floats"),
        (plain() | {"responses": np.ones((4, 2))}, r"responses: found shape \(4, 2\), .*first axis of length 1"),
        (plain() | {"responses": np.ones((3, 5, 2))}, r"responses: found 5 stimuli \(second axis\), expected 4"),
        (plain() | {"responses": np.ones((0, 4, 2))}, "expected no empty axis"),
        (plain() | {"responses": np.full((3, 4, 2), np.inf)}, "responses: found infinite values, expected NaN"),
        (plain() | {"responses": np.full((3, 4, 2), "x")}, "responses: found <U1, expected numbers"),
        (plain() | {"area": np.array(["a"] * 3)}, r"area: found shape \(3,\), expected \(2,\), one per neuron"),
        (plain() | {"area": np.ones(2)}, "area: found float64, expected text or whole numbers"),
        (plain() | {"x_um": np.array(["a", "b"])}, "x_um: found <U1, expected numbers"),
        (plain() | {"tier": np.array(["a", "b"])}, r"tier: found shape \(2,\), expected \(4,\), one per stimulus"),
        (plain() | {"area": np.array(["a", None], dtype=object)}, "cannot be read as numbers or text .*bject"),
    ],
)
@pytest.mark.parametrize("form", ["npz", "folder"])
def test_each_malformed_input_is_one_line(tmp_path, arrays, message, form):
    path = saved(tmp_path, arrays, form)
    with pytest.raises(ValueError, match=message) as caught:
        read_arrays(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_paths_that_are_no_recording(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        read_arrays(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match=r"text.npz: is no .npz file"):
        read_arrays(tmp_path / "text.npz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="images: not there; found no arrays"):
        read_arrays(tmp_path / "empty")
    folder = saved(tmp_path, plain(), "folder")
    (folder / "responses.npy").write_bytes(b"\x93NUMPY broken")
    with pytest.raises(ValueError, match=r"responses.npy: cannot be read as numbers or text"):
        read_arrays(folder)


def test_writing_refuses_what_would_be_lost(tmp_path):
    recording = read_arrays(saved(tmp_path, plain()))
    with pytest.raises(ValueError, match="arrays hold no behavior, statistics"):
        write_arrays(dataclasses.replace(recording, behavior=np.ones((12, 1)), statistics={"a": 1}), tmp_path / "w")
    tiers = recording.trials.assign(tier=[str(i) for i in range(12)])
    with pytest.raises(ValueError, match="stimulus 0 has trials of several tiers"):
        write_arrays(dataclasses.replace(recording, trials=tiers), tmp_path / "w")
    assert not (tmp_path / "w").exists()
    with pytest.raises(ValueError, match="exists already; name a new or an empty folder"):
        write_arrays(recording, tmp_path)
    (tmp_path / "empty").mkdir()
    assert_same(read_arrays(write_arrays(recording, tmp_path / "empty")), recording)
