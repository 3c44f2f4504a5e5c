"""Rows of numbers in one file: what rounding may change, and what is noticed."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from neural_data.row_file import RowFile, RowWriter, as_written

BEGINNING = {"crc32": [], "halved": []}


def written(path: Path, rows: list[np.ndarray], dtype: str) -> RowFile:
    frames = np.array([len(row) for row in rows])
    file = RowFile(path, np.dtype(dtype), rows[0].shape[1:], frames, np.zeros(len(rows), int))
    writer = RowWriter(path, file, BEGINNING)
    for row in rows:
        writer.append(row)
    writer.close()
    entry = file.entry() | writer.done
    return RowFile.from_index(path.parent, entry)


def test_rows_come_back_in_their_type(tmp_path: Path):
    rng = np.random.default_rng(0)
    rows = [rng.random((length, 3, 4)).astype(np.float32) for length in (5, 0, 900, 1)]
    file = pickle.loads(pickle.dumps(written(tmp_path / "rows.bin", rows, "float32")))
    file.check_size()
    for number, row in enumerate(rows):
        file.check_row(number)
        found = file.read(number)
        assert found.dtype == np.float32
        assert not found.flags.writeable or not found.size
        np.testing.assert_array_equal(found, row)


@given(arrays(np.float32, (4, 5), elements=st.floats(0, 2**22, width=32)))
def test_float16_is_off_by_what_is_said(values: np.ndarray):
    stored, halved, _ = as_written(values, np.dtype(np.float16))
    found = np.ldexp(stored.astype(np.float32), halved)
    assert np.isfinite(stored).all()
    assert (np.abs(found - values) <= np.maximum(values * 2.0**-11, 3e-8 * 2.0**halved)).all()
    assert halved == 0 or values.max() > 65504


def test_what_is_too_large_for_float16_is_halved(tmp_path: Path):
    rows = [np.array([[1.5, 199_936.0]]), np.array([[0.25, np.nan]])]
    file = written(tmp_path / "rows.bin", rows, "float16")
    assert file.halved.tolist() == [2, 0]
    np.testing.assert_array_equal(file.read(0), rows[0])
    np.testing.assert_array_equal(file.read(1), rows[1])


def test_grey_levels_are_rounded_and_said(tmp_path: Path):
    stored, _, change = as_written(np.array([0.2, 254.75, 7.0]), np.dtype(np.uint8))
    assert stored.tolist() == [0, 255, 7]
    assert change == 0.25
    for wrong in (256.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="expected grey levels from 0 to 255"):
            as_written(np.array([3.0, wrong]), np.dtype(np.uint8))


def test_a_damaged_row_is_named(tmp_path: Path):
    file = written(tmp_path / "rows.bin", [np.ones((2, 3)), np.zeros((4, 3))], "float32")
    with open(file.path, "r+b") as stream:
        stream.seek(30)
        stream.write(b"x")
    file.check_row(0)
    with pytest.raises(ValueError, match="row 1 is damaged"):
        file.check_row(1)
    with open(file.path, "ab") as stream:
        stream.write(b"more")
    with pytest.raises(ValueError, match="found 76 bytes, expected 72"):
        file.check_size()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dtype": "object"}, "object in"),
        ({"file": "../rows.bin"}, "in a file here"),
        ({"halved": []}, "2 rows, 0 scales"),
    ],
)
def test_an_index_that_makes_no_sense_is_refused(change: dict, said: str, tmp_path: Path):
    entry = written(tmp_path / "rows.bin", [np.ones((2, 3)), np.zeros((4, 3))], "float32").entry()
    with pytest.raises(ValueError, match=said):
        RowFile.from_index(tmp_path, entry | change)
