"""MATLAB files up to version 7: what scipy's `savemat` and MATLAB write; one line for what is not read."""

import struct

import numpy as np
import pytest
from scipy.io import savemat
from scipy.sparse import csc_array

from neural_data.matlab_arrays import read_matlab


@pytest.mark.parametrize("compressed", [True, False])
def test_axes_text_and_classes(tmp_path, compressed):
    cells = np.empty((1, 3), dtype=object)
    cells[0] = ["VISp", "", "VISäl"]
    values = {
        "responses": np.arange(24.0).reshape(3, 4, 2),
        "images": np.arange(8, dtype=np.uint8).reshape(2, 2, 2),
        "doubles": np.array([[0.0, 1.0]]),
        "withheld": np.array([[True, False]]),
        "area": cells,
        "layer": np.array(["4", "2/3"]),
        "word": "two words ",
        "rate": 30.0,
        "truth_x": 1.0,
    }
    savemat(tmp_path / "m.mat", values, do_compression=compressed)
    arrays = read_matlab(tmp_path / "m.mat", "truth_")
    assert "truth_x" not in arrays
    for name, dtype in (("responses", "f8"), ("images", "u1"), ("doubles", "f8"), ("withheld", "?")):
        np.testing.assert_array_equal(arrays[name], values[name])
        assert arrays[name].dtype == np.dtype(dtype)
    assert arrays["area"].tolist() == ["VISp", "", "VISäl"]
    assert arrays["layer"].tolist() == ["4", "2/3"]
    assert arrays["word"].tolist() == ["two words "]
    assert arrays["rate"].tolist() == [[30.0]]


def test_fields_of_the_only_struct(tmp_path):
    savemat(tmp_path / "m.mat", {"recording": {"x": np.ones((2, 3, 4)), "word": "a", "truth_y": 1.0}})
    arrays = read_matlab(tmp_path / "m.mat", "truth_")
    assert arrays["x"].shape == (2, 3, 4)
    assert arrays["word"].tolist() == ["a"]
    assert sorted(arrays) == ["word", "x"]


def cell(value):
    cells = np.empty((1, 1), dtype=object)
    cells[0, 0] = value
    return cells


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"x": np.ones(2), "s": {"a": 1}}, "s: found a MATLAB struct beside arrays"),
        (
            {"s": {"a": {"b": 1}}},
            "a: found a MATLAB struct beside arrays or in a struct, expected arrays, or one struct",
        ),
        ({"s": [{"a": 1}, {"a": 2}]}, "s: found a cell that holds|s: found a MATLAB struct"),
        ({"x": csc_array(np.eye(3))}, "x: found a sparse matrix, expected a full one; convert it with full"),
        ({"x": cell(np.ones(2))}, "x: found a cell that holds float64, expected a cell array of character vectors"),
        ({"x": cell({"a": 1})}, "x: found a cell that holds .*, expected a cell array of character vectors"),
        ({"x": np.ones(2, complex)}, "cannot be read as a MATLAB file .*imaginary part"),
    ],
)
def test_what_is_not_read_is_one_line(tmp_path, values, message):
    savemat(tmp_path / "m.mat", values)
    with pytest.raises(ValueError, match=message) as caught:
        read_matlab(tmp_path / "m.mat")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "m.mat"))


def element(kind, data):
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def test_a_string_array_is_told_to_become_cells(tmp_path):
    """An object as MATLAB stores it in version 7: class 17, its name, its system, its class, what it refers to."""
    numbers = np.array([0xDD000000, 2, 1, 1, 1, 1], "<u4")
    flags = element(6, struct.pack("<II", 13, 0))
    inner = element(14, flags + element(5, struct.pack("<ii", 6, 1)) + element(1, b"") + element(6, numbers.tobytes()))
    names = b"".join(element(1, text) for text in (b"area", b"MCOS", b"string"))
    outer = element(14, element(6, struct.pack("<II", 17, 0)) + names + inner)
    header = b"MATLAB 5.0 MAT-file, Platform: GLNXA64".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    (tmp_path / "m.mat").write_bytes(header + outer)
    with pytest.raises(ValueError, match=r"m\.mat: area: found a MATLAB object, function or string array, .*cellstr"):
        read_matlab(tmp_path / "m.mat")


@pytest.mark.parametrize(
    "damage", [lambda b: b"hello", lambda b: b[: len(b) // 2], lambda b: b"", lambda b: bytes(500)]
)
def test_files_that_matlab_did_not_write_to_the_end(tmp_path, damage):
    savemat(tmp_path / "m.mat", {"x": np.random.default_rng(0).normal(size=1000)}, do_compression=True)
    (tmp_path / "m.mat").write_bytes(damage((tmp_path / "m.mat").read_bytes()))
    with pytest.raises(ValueError, match=r"m\.mat: cannot be read as a MATLAB file \(.+\)$"):
        read_matlab(tmp_path / "m.mat")
