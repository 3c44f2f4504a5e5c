"""Packaged Allen recordings: converted whole, once, without unpickling; gone on with after a stop; clear mistakes."""

import shutil

import numpy as np
import pytest

from neural_data import allen_packaged
from neural_data.allen_packaged import convert_packaged
from neural_data.arrays import read_arrays
from neural_data.pickle_writer import Call, pickled
from neural_data.pickled_xarray_writer import data_array
from tests.neural_data.old_pickles import packaged, write_packaged


@pytest.fixture
def package(tmp_path):
    package = packaged()
    return package | {"path": write_packaged(tmp_path / "mouse_neuropixels.pkl", package)}


def test_neuropixels(package, tmp_path):
    recording = read_arrays(convert_packaged(package["path"], tmp_path / "deep/er/neuropixels"))
    values = package["values"].astype(np.float32)  # (repeats, images, bins, units)
    assert recording.dynamic
    assert isinstance(recording.responses, np.memmap)
    assert isinstance(recording.stimuli, np.memmap)
    assert recording.sampling_rate_hz == 100.0
    assert recording.response_start_ms == 0.0
    np.testing.assert_array_equal(recording.stimuli, package["stimuli"])
    assert recording.animals == ["71", "82"]
    for animal, units, repeats in (("71", slice(0, 3), 4), ("82", slice(3, 5), 3)):
        seen = recording.repeats(animal)
        np.testing.assert_array_equal(seen.responses, values[:repeats, :, :, units].transpose(0, 1, 3, 2))
    assert recording.neurons["neuron_id"].tolist() == ["951", "952", "953", "954", "955"]
    assert recording.neurons["area"].tolist() == ["VISp", "VISp", "VISl", "VISp", "VISl"]
    for name in ("image_selectivity_ns", "run_pval_ns"):
        np.testing.assert_array_equal(recording.neurons[name], package["units"][name])
    np.testing.assert_array_equal(recording.statistics["splithalf_r_mean"], package["reliability"])
    np.testing.assert_array_equal(recording.statistics["splithalf_r_std"], 0.1 * package["reliability"])
    assert recording.notes[0].startswith("converted from mouse_neuropixels.pkl (")
    assert "6 grey stimuli of 8 x 9 pixels, 24 trials" in recording.summary()


def test_two_photon(tmp_path):
    rng = np.random.default_rng(1)
    units = {
        "area": np.array(["VISp", "VISl", "VISp"], object),
        "p_run_mod_ns": np.array([0.2, np.nan, 0.01]),
        "specimen_id": np.array([5, 5, 6]),
        "cell_specimen_id": np.array([517, 518, 517]),
        "visual_area": np.array(["VISp", "VISl", "VISp"], object),
        "reliability_mean": np.array([0.9, 0.8, 0.7]),
    }
    values = rng.normal(size=(4, 3, 3)) * 30
    # The images were not in order, and are floats in some files.
    labels = {"trials": np.arange(4) + 1, "frame_id": np.array([2, 0, 1])}
    data = data_array(("trials", "frame_id", "units"), values, labels, units)
    stimuli = rng.integers(0, 256, (3, 5, 4)).astype(np.float64)
    path = write_packaged(tmp_path / "calcium.pkl", {"stimuli": stimuli, "neural_data": data})
    recording = read_arrays(convert_packaged(path, tmp_path / "calcium"))
    assert not recording.dynamic
    assert recording.stimuli.dtype == np.uint8
    np.testing.assert_array_equal(recording.stimuli, stimuli[[2, 0, 1]])
    np.testing.assert_array_equal(recording.repeats("5").responses, values.astype(np.float32)[:, :, :2])
    assert recording.neurons["area"].tolist() == ["VISp", "VISl", "VISp"]
    assert recording.neurons["reliability_mean"].tolist() == [0.9, 0.8, 0.7]
    assert set(recording.neurons) == {
        *("neuron_id", "animal", "area", "layer", "x_um", "y_um", "z_um", "p_run_mod_ns", "reliability_mean")
    }


def test_axes_are_found_by_their_names(tmp_path):
    package = packaged()
    order = (3, 1, 0, 2)
    data = package["neural_data"].state[1]["_variable"].state[1]
    data["_dims"] = tuple(data["_dims"][axis] for axis in order)
    data["_data"] = package["values"].transpose(order)
    path = write_packaged(tmp_path / "turned.pkl", package, framed=True)
    recording = read_arrays(convert_packaged(path, tmp_path / "turned"))
    expected = package["values"].astype(np.float32)[:, :, :, :3].transpose(0, 1, 3, 2)
    np.testing.assert_array_equal(recording.repeats("71").responses, expected)


def test_units_that_share_a_number_stay_apart(tmp_path):
    package = packaged()
    package["neural_data"] = packaged()["neural_data"]
    levels = package["neural_data"].state[1]["_coords"]["units"].state[1]["_data"].state[1]["array"].args[1]
    levels["codes"][0] = np.zeros(5, np.int8)
    recording = read_arrays(convert_packaged(write_packaged(tmp_path / "a.pkl", package), tmp_path / "a"))
    assert recording.neurons["neuron_id"].tolist() == ["951", "951 (2)", "951 (3)", "951", "951 (2)"]


def test_the_same_file_gives_the_same_folder(package, tmp_path):
    one, other = (convert_packaged(package["path"], tmp_path / name) for name in ("one", "other"))
    files = sorted(file.name for file in one.iterdir())
    assert files == sorted(file.name for file in other.iterdir())
    assert "progress.json" not in files
    for name in files:
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_a_stopped_conversion_is_gone_on_with(package, tmp_path, monkeypatch):
    out, written = tmp_path / "out", allen_packaged._write_progress

    def stop(folder, path, repeats):
        written(folder, path, repeats)
        if repeats == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(allen_packaged, "_write_progress", stop)
    with pytest.raises(KeyboardInterrupt):
        convert_packaged(package["path"], out)
    assert not out.exists()
    monkeypatch.setattr(allen_packaged, "_write_progress", written)
    # What is done is not done again: a mark in the first repeat stays.
    stored = np.load(tmp_path / ".out.unfinished/responses.npy", mmap_mode="r+")
    np.testing.assert_array_equal(stored[1], package["values"].astype(np.float32)[1].transpose(0, 2, 1))
    stored[0, 0, 0, 0] = -1
    stored.flush()
    recording = read_arrays(convert_packaged(package["path"], out))
    found = np.array(recording.responses).reshape(4, 6, 5, 5)
    expected = package["values"].astype(np.float32).transpose(0, 1, 3, 2)
    expected[0, 0, 0, 0] = -1
    np.testing.assert_array_equal(found, expected)
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_another_file_begins_anew(package, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(allen_packaged, "_write_rest", stop)
        with pytest.raises(KeyboardInterrupt):
            convert_packaged(package["path"], tmp_path / "out")
    other = packaged(seed=9)
    path = write_packaged(tmp_path / "other.pkl", other)
    recording = read_arrays(convert_packaged(path, tmp_path / "out"))
    expected = other["values"].astype(np.float32)[:, :, :, :3].transpose(0, 1, 3, 2)
    np.testing.assert_array_equal(recording.repeats("71").responses, expected)


def test_nothing_is_overwritten(package, tmp_path):
    out = convert_packaged(package["path"], tmp_path / "out")
    before = (out / "responses.npy").stat().st_mtime_ns
    assert convert_packaged(package["path"], out) == out
    assert (out / "responses.npy").stat().st_mtime_ns == before
    other = write_packaged(tmp_path / "other.pkl", packaged(seed=1, repeats=3))
    with pytest.raises(ValueError, match=r"out: exists already and was not converted from .*other\.pkl"):
        convert_packaged(other, out)
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        convert_packaged(package["path"], tmp_path / "mine")


def test_space_is_looked_at_first(package, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**40, 2**40, 2**20))
    with pytest.raises(ValueError, match=r"0\.0 GB are free, the conversion needs 0\.1"):
        convert_packaged(package["path"], tmp_path / "full")
    assert not (tmp_path / "full").exists()
    assert not (tmp_path / ".full.unfinished").exists()


def changed(what):
    package = packaged()
    what(package)
    return {name: package[name] for name in ("stimuli", "neural_data") if name in package}


def slots_of(package):
    return package["neural_data"].state[1]


def rename_level(package, old, new):
    parts = slots_of(package)["_coords"]["units"].state[1]["_data"].state[1]["array"].args[1]
    parts["names"] = [new if name == old else name for name in parts["names"]]


def set_time(package, seconds):
    index = slots_of(package)["_coords"]["time_relative_to_stimulus_onset"].state[1]["_data"].state[1]["array"]
    index.args[1]["data"] = np.array(seconds)


MALFORMED = {
    "no stimuli": (changed(lambda p: p.pop("stimuli")), "found neural_data, expected a dictionary with stimuli"),
    "a list": ([1, 2], "found list, expected a dictionary"),
    "no array": (changed(lambda p: p.update(neural_data=3)), "neural_data: found int, expected an xarray.DataArray"),
    "colour": (
        changed(lambda p: p.update(stimuli=np.zeros((6, 4, 4, 3)))),
        r"stimuli are float64 of shape \(6, 4, 4, 3\)",
    ),
    "too few": (changed(lambda p: p.update(stimuli=np.zeros((5, 4, 4)))), "frame_id holds 0 to 5, expected 0 to 4"),
    "dark": (
        changed(lambda p: p.update(stimuli=np.full((6, 4, 4), -1.0))),
        "values from -1.0 to -1.0, expected 0 to 255",
    ),
    "dims": (
        changed(lambda p: slots_of(p)["_variable"].state[1].update(_dims=("trials", "frame_id", "units", "bins"))),
        "dimensions trials, frame_id, units, bins, expected trials, frame_id, units|coordinate",
    ),
    "no unit": (changed(lambda p: rename_level(p, "unit_id", "unit")), "units lack unit_id or cell_specimen_id; found"),
    "no animal": (changed(lambda p: rename_level(p, "specimen_id", "mouse")), "units lack specimen_id"),
    "uneven": (changed(lambda p: set_time(p, [0.0, 0.1, 0.3, 0.4, 0.5])), "in unequal steps"),
    "stranger": (changed(lambda p: p.update(stimuli=Call("os", "system", ("true",)))), r"names os\.system"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_are_told_in_one_line(tmp_path, case):
    value, expected = MALFORMED[case]
    path = tmp_path / "bad.pkl"
    path.write_bytes(pickled(value))
    with pytest.raises(ValueError, match=expected) as caught:
        convert_packaged(path, tmp_path / "out")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["bad.pkl"]


def test_an_absent_file_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.pkl: no such file"):
        convert_packaged(tmp_path / "no.pkl", tmp_path / "out")
