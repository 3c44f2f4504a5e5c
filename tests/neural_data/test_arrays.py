"""Arrays: the real recording, the same recording from every kind of file, one clear line for every malformed input."""

import multiprocessing

import numpy as np
import pytest

from neural_data import hdf5_arrays, zarr_arrays
from neural_data.arrays import read_arrays
from neural_data.reliability import split_half_reliability
from neural_data.stored_array import StoredRows
from tests.neural_data.array_files import KINDS, assert_same, dynamic_arrays, save_as, save_npy


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
        ("snr\n1\n", r"neurons_snr: found shape \(1,\), expected \(2,\), one per neuron"),
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


MOVIE = dynamic_arrays()
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
        (
            plain() | {"tier": np.array(["a", "b"])},
            r"tier: found shape \(2,\), expected \(4,\), one per stimulus, or \(3, 4\)",
        ),
        (plain() | {"area": np.array(["a", None], dtype=object)}, "cannot be read as numbers or text .*bject"),
        (plain() | {"videos": np.ones((4, 2, 6, 5))}, "videos: found beside images, expected one of the two"),
        (plain() | {"responses": np.ones((3, 4, 2, 6))}, "sampling_rate_hz: not there, expected with videos or resp"),
        (plain() | {"responses": np.full((3, 4, 2), np.nan)}, "responses: found no response at all, expected numbers"),
        (plain() | {"frames": np.ones(4, int)}, "frames: found beside responses without an axis of time"),
        (plain() | {"neuron_id": np.array(["a", "a"])}, "neuron_id a occurs twice in animal mouse7"),
        (plain() | {"area": np.array([b"VISp", b"\xff"])}, "area: found bytes that are no UTF-8 text"),
        (plain() | {"behavior": np.ones((4, 3, 2))}, r"behavior: found shape \(4, 3, 2\), expected \(3, 4, channels\)"),
        (MOVIE | {"videos": np.ones((4, 6, 5, 3))}, "videos: found a width of 3 pixels, expected 4 or more"),
        (
            MOVIE | {"videos": np.ones((4, 6, 5))},
            r"videos: found shape \(4, 6, 5\), expected \(stimuli, frames, height",
        ),
        (MOVIE | {"videos": np.ones((4, 7, 5, 4))}, "responses: found 6 samples in time, expected 7, one per frame"),
        (MOVIE | {"sampling_rate_hz": np.ones(2)}, r"rate_hz: found float64 of shape \(2,\), expected one number"),
        (MOVIE | {"sampling_rate_hz": np.array(0.0)}, "sampling_rate_hz: found 0.0, expected more than 0"),
        (MOVIE | {"frames": np.full(4, 7)}, "frames: found values from 7 to 7, expected 0 to 6"),
        (MOVIE | {"frames": np.full(4, 5.5)}, "frames: found float64, expected whole numbers"),
        (MOVIE | {"tier": np.full((4, 3), "a")}, r"tier: found shape \(4, 3\), expected \(4,\), .*, or \(3, 4\)"),
        (MOVIE | {"withheld": np.full(4, 2)}, "withheld: found int64, expected true or false, or 0 and 1"),
        (MOVIE | {"start_s": np.full(4, "now")}, "start_s: found <U3, expected numbers"),
        (MOVIE | {"pupil_center": np.ones((3, 4, 3, 6))}, r"pupil_center: .*expected \(3, 4, 2\[, 6\]\)"),
        (MOVIE | {"behavior": np.ones((3, 4, 2, 5))}, r"behavior: found .*expected \(3, 4, channels\[, 6\]\)"),
        (
            MOVIE | {"behavior_names": np.array(["running"])},
            "behavior_names: found 1 names, expected 3 as behavior has",
        ),
        (MOVIE | {"notes": np.ones(2)}, "notes: found float64, expected text"),
        (MOVIE | {"sampling_rate": np.ones(2)}, "sampling_rate: is no name of .*nearest: sampling_rate_hz"),
        (TWO | {"a_withheld": np.ones(4, bool)}, "a_withheld: belongs to one animal; put each animal into a file"),
        (TWO | {"b_sampling_rate_hz": np.array(3.0)}, "b_sampling_rate_hz: is no name .*nearest: sampling_rate_hz"),
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


def static_arrays():
    names = ("neuron_id", "area", "x_um", "tier")
    return plain() | {name: values for name, values in dynamic_arrays().items() if name in names}


ONE_NEURON = {"images": plain()["images"], "responses": plain(neurons=1)["responses"], "neuron_id": np.array([12])}


@pytest.mark.parametrize("large", [1, 2**28])
@pytest.mark.parametrize("arrays", [dynamic_arrays(), static_arrays(), ONE_NEURON], ids=["dynamic", "static", "one"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_recording(tmp_path, monkeypatch, kind, arrays, large):
    monkeypatch.setattr(hdf5_arrays, "LARGE_BYTES", large)
    monkeypatch.setattr(zarr_arrays, "LARGE_BYTES", large)
    (tmp_path / "npz").mkdir()
    read = read_arrays(save_as(kind, tmp_path, arrays))
    assert_same(read, read_arrays(save_as("npz", tmp_path / "npz", arrays)))
    read.summary()
    if large == 1 and kind in ("mat73", "struct73", "h5", "zarr2", "zarr3", "zarr.zip"):
        # MATLAB leaves out the axis of a single neuron: it is put back in memory.
        assert isinstance(read.responses, StoredRows) or (arrays is ONE_NEURON and kind.endswith("73"))
        assert isinstance(read.stimuli, StoredRows)


def test_what_a_recording_in_time_is_read_as(tmp_path):
    arrays = dynamic_arrays()
    read = read_arrays(save_as("npz", tmp_path, arrays))
    # Stimulus 1 of repeat 0 ends after 4 samples, 2 of repeat 1 is withheld, 0 of repeat 2 was never shown.
    assert list(zip(read.trials["repeat"], read.trials["stimulus"], strict=True)) == [
        (0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3),
    ]  # fmt: skip
    assert read.frames.tolist() == [6, 4, *[6] * 9]
    assert np.flatnonzero(read.withheld).tolist() == [6]
    assert read.trials["block"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11]
    assert read.trials["stimulus_class"].tolist()[:4] == ["natural", "gabor", "noise", "natural"]
    assert (read.sampling_rate_hz, read.response_start_ms) == (30.0, 16.5)
    assert read.behavior_names == ("pupil", "d pupil/dt", "running")
    assert read.notes == ("made by hand", "twice")
    assert list(read.statistics) == ["splithalf_r_mean"]
    assert read.neurons["snr"].tolist() == [0, 1 / 3]
    trial = read.trial(1)
    np.testing.assert_array_equal(trial["video"], arrays["videos"][1, :4])
    for name in ("responses", "behavior", "pupil_center"):
        np.testing.assert_array_equal(trial[name], arrays[name][0, 1, :, :4])


def test_frames_are_believed_and_nothing_is_looked_through(tmp_path):
    arrays = dynamic_arrays()
    arrays["responses"][0, 0, 0, 0] = np.inf  # would be found
    arrays["frames"] = np.array([[6, 5, 6, 6], [6, 0, 0, 6], [0, 6, 6, 3]])
    read = read_arrays(save_as("npz", tmp_path, arrays))
    assert read.frames.tolist() == [6, 5, 6, 6, 6, 0, 6, 6, 6, 3]  # the withheld one stays
    with pytest.raises(ValueError, match="responses: found infinite values"):
        read_arrays(save_as("npz", tmp_path, arrays | {"frames": np.full(4, 6)}))
    arrays["responses"][0, 0, 0, 0] = 0
    read = read_arrays(save_as("npz", tmp_path, arrays | {"frames": np.array([6, 3, 6, 6])}))
    assert read.frames.tolist() == [6, 3, 6, 6, 6, 3, 6, 6, 3, 6, 6]


def test_a_folder_in_the_form_of_packaged_allen_data(tmp_path):
    """Responses in time to images, further columns and notes in text files."""
    rng = np.random.default_rng(0)
    responses = rng.random((3, 4, 2, 5)).astype(np.float32)
    responses[2, 1] = np.nan
    arrays = {
        "images": rng.integers(0, 256, (4, 6, 5), np.uint8),
        "responses": responses,
        "sampling_rate_hz": np.float64(100.0),
        "response_start_ms": np.float64(-10.0),
        "extra_splithalf_r_mean": rng.random((5, 2)),
    }
    folder = save_npy(tmp_path / "neuropixels", arrays)
    (folder / "neurons.csv").write_text(
        "neuron_id,animal,area,layer,x_um,y_um,z_um,snr,hemisphere,aera\n9,m1,VISp,,,,,0.1,left,\n9,m2,VISl,,,,,,right,\n"
    )
    (folder / "notes.txt").write_text("converted from a.pkl\nthe coordinate x is left out\n")
    read = read_arrays(folder)
    assert read.animals == ["m1", "m2"]
    np.testing.assert_array_equal(read.neurons["snr"], [0.1, np.nan])
    assert read.neurons["hemisphere"].tolist() == ["left", "right"]
    assert read.notes == ("converted from a.pkl", "the coordinate x is left out")
    assert len(read.trials) == 11
    assert isinstance(read.responses, StoredRows)
    np.testing.assert_array_equal(read.repeats("m2").responses[:, :, 0], responses[:, :, 1].astype(float))
    np.testing.assert_array_equal(read.statistics["splithalf_r_mean"], arrays["extra_splithalf_r_mean"])


def test_a_column_that_is_close_to_one_of_the_layout_is_kept_and_said(tmp_path):
    folder = save_npy(tmp_path / "m", plain())
    (folder / "neurons.csv").write_text("neuron_id,aera\n1,a\n2,b\n")
    read = read_arrays(folder)
    assert read.neurons["aera"].tolist() == ["a", "b"]
    assert read.notes == ("neurons: aera is kept as it is; is area meant?",)


def test_stacks_that_are_stored_the_other_way_round_stay_on_disk(tmp_path):
    arrays = plain() | {"images": np.asfortranarray(plain()["images"] / np.float32(255))}
    arrays["responses"] = np.asfortranarray(arrays["responses"])
    read = read_arrays(save_npy(tmp_path / "m", arrays))
    assert isinstance(read.responses, StoredRows)
    assert isinstance(read.stimuli, StoredRows)
    np.testing.assert_array_equal(read.repeats("m").responses, arrays["responses"])
    np.testing.assert_allclose(np.asarray(read.stimuli), plain()["images"], atol=1e-4)


def test_animals_with_videos_of_their_own(tmp_path):
    movies = dynamic_arrays()["videos"]
    rng = np.random.default_rng(0)
    arrays = {"sampling_rate_hz": np.array(30.0), "extra_x": np.ones(3), "notes": np.array(["both"])}
    for animal, rows in (("a", [0, 1]), ("b", [1, 2, 3])):
        arrays[f"{animal}_videos"] = movies[rows]
        arrays[f"{animal}_responses"] = rng.normal(size=(2, len(rows), 2, 6))
        arrays[f"{animal}_neurons_snr"] = np.array([1.0, 2.0])
        arrays[f"{animal}_stimulus_class"] = np.array(["n", "g", "r", "m"])[rows]
    read = read_arrays(save_as("npz", tmp_path, arrays))
    np.testing.assert_array_equal(read.stimuli, movies)
    assert len(read.trials) == 8
    assert read.trials["stimulus_class"].tolist()[:4] == ["n", "g", "r", "m"]
    assert read.neurons["snr"].tolist() == [1, 2, 1, 2]
    assert (list(read.statistics), read.notes) == (["x"], ("both",))
    for animal in "ab":
        np.testing.assert_array_equal(read.repeats(animal).responses, arrays[f"{animal}_responses"])
    longer = {"b_videos": np.tile(movies[:3], (1, 2, 1, 1)), "b_responses": np.ones((2, 3, 2, 12))}
    with pytest.raises(ValueError, match="responses: found 6, 12 samples in time, expected as many of every animal"):
        read_arrays(save_as("npz", tmp_path, arrays | longer))


def trial_of(recording, row, queue):
    queue.put(recording.trial(row))


@pytest.mark.parametrize(("kind", "method"), [("mat73", "fork"), ("zarr3", "fork"), ("folder", "spawn")])
def test_trials_are_read_in_other_processes(tmp_path, monkeypatch, kind, method):
    monkeypatch.setattr(hdf5_arrays, "LARGE_BYTES", 1)
    monkeypatch.setattr(zarr_arrays, "LARGE_BYTES", 1)
    read = read_arrays(save_as(kind, tmp_path, dynamic_arrays()))
    expected = [read.trial(row) for row in (1, 8)]
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    for row, trial in zip((1, 8), expected, strict=True):
        worker = context.Process(target=trial_of, args=(read, row, queue))
        worker.start()
        found = queue.get(timeout=60)
        worker.join(60)
        assert sorted(found) == sorted(trial)
        for name, values in trial.items():
            np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize("name", ["text.h5", "text.mat", "text.zarr", "text"])
def test_files_that_are_not_what_their_name_says(tmp_path, name):
    (tmp_path / name).write_text("hello")
    with pytest.raises(ValueError, match=rf"{name}: .*(is no|cannot be read)"):
        read_arrays(tmp_path / name)


def test_whole_numbers_that_matlab_holds_as_doubles(tmp_path):
    from scipy.io import savemat

    arrays = plain() | {"neuron_id": np.array([7.0, 12.0]), "images": plain()["images"].astype(float)}
    savemat(tmp_path / "mouse7.mat", arrays)
    read = read_arrays(tmp_path / "mouse7.mat")
    assert read.neurons["neuron_id"].tolist() == ["7", "12"]
    assert read.stimuli.dtype == np.float64
    savemat(tmp_path / "mouse7.mat", arrays | {"neuron_id": np.array([7.5, 12.0])})
    with pytest.raises(ValueError, match="neuron_id: found float64, expected text or whole numbers"):
        read_arrays(tmp_path / "mouse7.mat")
