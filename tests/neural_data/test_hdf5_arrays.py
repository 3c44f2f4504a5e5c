"""HDF5 and MATLAB 7.3: axes, text, logicals and cells as they are stored; one line for what is not read."""

import h5py
import numpy as np
import pytest
from scipy import io

from neural_data import hdf5_arrays
from neural_data.hdf5_arrays import read_hdf5
from neural_data.stored_array import StoredArray
from tests.neural_data.array_files import put_mat73, save_hdf5, save_mat73


def test_a_file_of_matlab_has_the_axes_that_matlab_shows(tmp_path):
    values = {
        "responses": np.arange(24.0).reshape(3, 4, 2),
        "one_neuron": np.ones((3, 4, 1), np.float32),
        "images": np.arange(60, dtype=np.uint8).reshape(4, 5, 3),
        "withheld": np.array([[True, False], [False, True]]),
        "area": np.array(["VISp", "", "VISäl", "日本"]),
        "rate": np.array(30.0),
        "truth_x": np.ones(3),
    }
    save_mat73(tmp_path / "m.mat", values | {"word": "hello"})
    arrays, matlab = read_hdf5(tmp_path / "m.mat", "truth_")
    assert matlab
    assert sorted(arrays) == sorted((*values.keys() - {"truth_x"}, "word"))
    for name in ("responses", "images", "withheld"):
        np.testing.assert_array_equal(arrays[name], values[name])
        assert arrays[name].dtype == values[name].dtype
    assert arrays["one_neuron"].shape == (3, 4)
    assert arrays["rate"].shape == (1, 1)
    assert arrays["area"].tolist() == ["VISp", "", "VISäl", "日本"]
    assert arrays["word"].tolist() == ["hello"]


def test_the_header_is_the_one_that_scipy_knows(tmp_path):
    save_mat73(tmp_path / "m.mat", {"x": np.ones(3)})
    assert io.matlab.matfile_version(tmp_path / "m.mat")[0] == 2


def test_rows_of_a_char_matrix_are_texts(tmp_path):
    with h5py.File(tmp_path / "m.mat", "w") as file:
        rows = np.array([[ord(c) for c in row] for row in ("VISp ", "VISal", " x   ")], np.uint16)
        file["area"] = rows.T
        file["area"].attrs["MATLAB_class"] = np.bytes_("char")
    assert read_hdf5(tmp_path / "m.mat")[0]["area"].tolist() == ["VISp", "VISal", " x"]


def test_fields_of_the_only_struct_or_group(tmp_path):
    save_mat73(tmp_path / "m.mat", {"recording": {"x": np.arange(6.0).reshape(2, 3), "t": np.array(["a", "b"])}})
    arrays, matlab = read_hdf5(tmp_path / "m.mat")
    assert matlab
    np.testing.assert_array_equal(arrays["x"], [[0, 1, 2], [3, 4, 5]])
    assert arrays["t"].tolist() == ["a", "b"]
    save_hdf5(tmp_path / "g.h5", {"x": np.arange(3)}, "session")
    assert read_hdf5(tmp_path / "g.h5")[0]["x"].tolist() == [0, 1, 2]


def test_all_ways_of_text(tmp_path):
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file.create_dataset("vlen", data=["ä", ""], dtype=h5py.string_dtype())
        file["fixed"] = np.array([b"VISp", b"x"])
        file["scalar"] = "one"
        file["truths"] = np.array([True, False])
    arrays, matlab = read_hdf5(tmp_path / "t.h5")
    assert not matlab
    assert {name: values.tolist() for name, values in arrays.items()} == {
        "vlen": ["ä", ""], "fixed": ["VISp", "x"], "scalar": "one", "truths": [True, False],
    }  # fmt: skip
    assert all(arrays[name].dtype.kind == "U" for name in ("vlen", "fixed", "scalar"))


def test_large_arrays_stay_in_the_file(tmp_path, monkeypatch):
    values = {"responses": np.arange(24.0).reshape(3, 4, 2), "small": np.ones(3)}
    save_mat73(tmp_path / "m.mat", values)
    save_hdf5(tmp_path / "h.h5", values)
    monkeypatch.setattr(hdf5_arrays, "LARGE_BYTES", 100)
    for name in ("m.mat", "h.h5"):
        arrays, _ = read_hdf5(tmp_path / name)
        assert isinstance(arrays["responses"], StoredArray)
        assert isinstance(arrays["small"], np.ndarray)
        np.testing.assert_array_equal(arrays["responses"][1, ::-2], values["responses"][1, ::-2])


def sparse(file):
    group = file.create_group("x")
    group.attrs["MATLAB_sparse"], group.attrs["MATLAB_class"] = np.uint64(3), np.bytes_("double")


def string_object(file):
    file["x"] = np.array([[0xDD000000, 2, 1, 1, 1, 1]], np.uint32)
    file["x"].attrs["MATLAB_class"], file["x"].attrs["MATLAB_object_decode"] = np.bytes_("string"), np.int32(3)


def cell_of_numbers(file):
    inside = put_mat73(file, file.require_group("#refs#"), "a", np.array(5.0))
    file.create_dataset("x", data=np.array([[inside.ref]], dtype=h5py.ref_dtype), dtype=h5py.ref_dtype)
    file["x"].attrs["MATLAB_class"] = np.bytes_("cell")


def references(file):
    file["y"] = np.ones(2)
    file.create_dataset("x", data=np.array([file["y"].ref], dtype=h5py.ref_dtype), dtype=h5py.ref_dtype)


@pytest.mark.parametrize(
    ("put", "message"),
    [
        (sparse, "x: found a sparse matrix, expected a full one; convert it with full"),
        (string_object, "x: found a MATLAB string object, expected numbers, .*cellstr"),
        (cell_of_numbers, "x: found a cell that holds double, expected a cell array of character vectors"),
        (references, "x: found HDF5 type reference, expected numbers or text"),
        (lambda f: (put_mat73(f, f, "x", {"a": np.ones(2)}), put_mat73(f, f, "y", np.ones(2))),
         "x: found a MATLAB struct beside arrays, expected arrays, or one struct that holds all"),
        (lambda f: (f.create_group("a"), f.create_group("b")), "h5: found the groups a, b, expected arrays, or one"),
        (lambda f: f.create_dataset("x", data=np.zeros(2, [("a", int)])), "x: found HDF5 type compound"),
        (lambda f: f.create_dataset("x", (2,), h5py.vlen_dtype(int)), "x: found HDF5 type list of varying length"),
        (lambda f: f.create_dataset("x", data=np.ones(2, complex)), "x: found HDF5 type complex128"),
        (lambda f: f.create_dataset("x", data=h5py.Empty("f")), "x: holds nothing, expected an array"),
        (lambda f: f.__setitem__("x", h5py.SoftLink("/absent")), "x: is a link to something that is not there"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_one_line(tmp_path, put, message):
    path = tmp_path / "bad.h5"
    with h5py.File(path, "w") as file:
        put(file)
    with pytest.raises(ValueError, match=message) as caught:
        read_hdf5(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_a_file_that_was_cut_short(tmp_path):
    save_hdf5(tmp_path / "h.h5", {"x": np.arange(100000.0)})
    (tmp_path / "h.h5").write_bytes((tmp_path / "h.h5").read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"h\.h5: .*truncated"):
        read_hdf5(tmp_path / "h.h5")
