"""TrialFiles: indexed as the array that its files would make together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import basic_indices

from neural_data.trial_files import TrialFiles, npy_file


@pytest.fixture(scope="module")
def in_files(tmp_path_factory):
    """Five trials (3, 6), the fourth of them only 4 long, in files and as one array that ends in NaN."""
    folder = tmp_path_factory.mktemp("trials")
    whole = np.random.default_rng(0).standard_normal((5, 3, 6)).astype(np.float32)
    whole[3, :, 4:] = np.nan
    for i, trial in enumerate(whole):
        np.save(folder / f"{i}.npy", trial[:, :4] if i == 3 else trial)
    return TrialFiles(lambda row: npy_file(folder / f"{row}.npy"), whole.shape), whole


@given(key=basic_indices((5, 3, 6), allow_newaxis=False, allow_ellipsis=False))
def test_is_indexed_as_an_array(in_files, key):
    files, whole = in_files
    np.testing.assert_array_equal(files[key], whole[key])


@given(rows=st.lists(st.integers(-5, 4)))
def test_trials_in_any_order(in_files, rows):
    files, whole = in_files
    chosen = np.array(rows, int)
    np.testing.assert_array_equal(files[chosen], whole[chosen])
    np.testing.assert_array_equal(files[chosen, 1:, 2], whole[chosen, 1:, 2])


def test_looks_like_an_array(in_files):
    files, whole = in_files
    assert (files.shape, files.ndim, len(files), files.dtype) == (whole.shape, 3, 5, np.float32)
    np.testing.assert_array_equal(files[whole[:, 0, 0] > 0], whole[whole[:, 0, 0] > 0])
    with pytest.raises(IndexError):
        files[5]


def test_a_trial_of_another_shape_is_named(in_files):
    files, _ = in_files
    with pytest.raises(ValueError, match=r"trial 0 has shape \(3, 6\), expected \(3, 5\)"):
        TrialFiles(files.read, (5, 3, 5))[0]


def test_time_can_be_another_axis():
    files = TrialFiles(lambda row: np.ones((2 + row, 4)), (2, 3, 4), time_axis=0)
    assert np.isnan(files[0, 2]).all()
    assert not np.isnan(files[1]).any()


def test_files_are_data(tmp_path):
    np.save(tmp_path / "object.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"object\.npy: cannot be read as an array of numbers or text"):
        npy_file(tmp_path / "object.npy")
    with pytest.raises(FileNotFoundError, match=r"1\.npy: no such file"):
        npy_file(tmp_path / "1.npy")


class Watched:
    """An array that remembers what was asked of it and refuses to be read whole."""

    def __init__(self, values):
        self.values, self.shape, self.ndim, self.asked = values, values.shape, values.ndim, []

    def __getitem__(self, key):
        self.asked.append(key)
        return self.values[key]

    def __array__(self, dtype=None, copy=None):
        raise AssertionError("read whole")


@pytest.mark.parametrize(
    ("key", "asked"),
    [
        ((0, slice(None), slice(1, 3)), (slice(None), slice(1, 3, 1))),
        ((0, 1, slice(2, 6)), (1, slice(2, 4, 1))),
        ((0, slice(0, 2), slice(5, 0, -2)), (slice(0, 2), slice(3, None, -2))),
        ((0, slice(None), slice(4, 6)), None),
    ],
)
def test_of_a_short_trial_only_the_window_is_read(key, asked):
    trial = Watched(np.arange(12.0).reshape(3, 4))
    window = TrialFiles(lambda row: trial, (1, 3, 6))[key]
    np.testing.assert_array_equal(window, np.pad(trial.values, ((0, 0), (0, 2)), constant_values=np.nan)[key[1:]])
    assert trial.asked == ([asked] if asked else [])
