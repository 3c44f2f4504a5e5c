"""identical_files, longest_versions: equal arrays share a number, cut ones point at the whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_data import identical_files as module
from neural_data.identical_files import identical_files, longest_versions


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Twelve files: arrays that differ in one element at any place, in shape, in dtype; each of them twice."""
    folder = tmp_path_factory.mktemp("arrays")
    base = np.arange(3 * module.GLANCE * 4, dtype=np.float32).reshape(3, -1)
    arrays = [base, base.reshape(-1, 3), base.astype(np.float64)]
    for place in (0, base.size // 3, base.size - 1):
        other = base.copy()
        other.reshape(-1)[place] += 1
        arrays.append(other)
    paths = []
    for copy in range(2):
        for i, array in enumerate(arrays):
            paths.append(folder / f"{copy}_{i}.npy")
            np.save(paths[-1], array)
    return paths, [*range(6), *range(6)]


@settings(deadline=None)
@given(order=st.permutations(range(12)), again=st.lists(st.integers(0, 11), max_size=5))
def test_numbers_follow_first_appearance(stored, order, again):
    paths, truth = stored
    chosen = [*order, *again]
    numbers: dict[int, int] = {}
    expected = [numbers.setdefault(truth[i], len(numbers)) for i in chosen]
    assert identical_files([paths[i] for i in chosen]).tolist() == expected


def test_an_array_that_is_unlike_all_others_is_not_read_whole(stored, monkeypatch):
    paths, _ = stored
    read = []
    monkeypatch.setattr(module, "_digest", lambda path: read.append(path.name) or b"")
    identical_files([paths[0], paths[1], paths[6]])
    assert read == ["0_0.npy", "1_0.npy"]


def test_no_file_and_a_missing_one(tmp_path):
    assert identical_files([]).shape == (0,)
    with pytest.raises(FileNotFoundError, match=r"none\.npy: no such file"):
        identical_files([tmp_path / "none.npy"])


def test_versions_that_were_cut_short(tmp_path):
    a, b = np.random.default_rng(0).integers(0, 256, (2, 9, 3, 4), np.uint8)
    b[:4] = a[:4]  # the same start: what ends before that may be either
    c = a.copy()
    c[5] += 1
    stored = [a[:6], b, a[:3], a, a[:8], c[:7], a[:6].astype(np.int16), a[:6, :2], b[:5]]
    expected = [3, 1, 2, 3, 3, 5, 6, 7, 1]
    paths = [tmp_path / f"{i}.npy" for i in range(len(stored))]
    for path, array in zip(paths, stored, strict=True):
        np.save(path, array)
    assert longest_versions(paths).tolist() == expected
    assert longest_versions([]).tolist() == []
