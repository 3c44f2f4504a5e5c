"""StoredArray and StoredRows: indexed as the array would be that they read from; alive in other processes."""

import multiprocessing
import pickle
from functools import partial

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, basic_indices

from neural_data.hdf5_arrays import open_dataset
from neural_data.stored_array import StoredArray, StoredRows, blocks

SHAPE = (3, 4, 2, 5)


@pytest.fixture(scope="module")
def whole():
    return np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


@pytest.fixture(scope="module")
def file(whole, tmp_path_factory):
    path = tmp_path_factory.mktemp("stored") / "file.h5"
    with h5py.File(path, "w") as opened:
        opened.create_dataset("plain", data=whole, chunks=(1, 2, 2, 5), compression="gzip")
        opened.create_dataset("matlab", data=whole.T, chunks=(5, 2, 2, 1), compression="gzip")
    return path


def stored(file, name):
    shape = SHAPE[::-1] if name == "matlab" else SHAPE
    return StoredArray(partial(open_dataset, file, name), shape, np.float32, transposed=name == "matlab")


@given(key=basic_indices(SHAPE, allow_newaxis=False), name=st.sampled_from(["plain", "matlab"]))
def test_is_indexed_as_an_array(file, whole, key, name):
    array = stored(file, name)
    assert (array.shape, array.ndim, len(array), array.dtype) == (SHAPE, 4, 3, np.float32)
    np.testing.assert_array_equal(array[key], whole[key])


@given(
    places=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=9),
    rows=st.lists(st.integers(0, 8)),
    rest=basic_indices(SHAPE[2:], allow_newaxis=False),
    name=st.sampled_from(["plain", "matlab", "memory"]),
)
def test_rows_are_places_of_a_grid(file, whole, places, rows, rest, name):
    at = np.array(places, int).reshape(-1, 2)
    array, expected = StoredRows(whole if name == "memory" else stored(file, name), at), whole[at[:, 0], at[:, 1]]
    rows = np.array([row for row in rows if row < len(at)], int)
    rest = rest if isinstance(rest, tuple) else (rest,)
    assert (array.shape, len(array), array.dtype) == (expected.shape, len(at), np.float32)
    np.testing.assert_array_equal(np.asarray(array), expected)
    np.testing.assert_array_equal(array[rows], expected[rows])
    np.testing.assert_array_equal(array[(rows, *rest)], expected[rows][(slice(None), *rest)])
    np.testing.assert_array_equal(array[(slice(None, None, -2), *rest)], expected[::-2][(slice(None), *rest)])
    np.testing.assert_array_equal(array[np.arange(len(at)) % 2 == 1], expected[1::2])
    if len(at):
        np.testing.assert_array_equal(array[(-1, *rest)], expected[(-1, *rest)])


def test_rows_in_another_unit(file, whole):
    rows = StoredRows(stored(file, "plain"), np.arange(3)[:, None], np.float64, 255)
    np.testing.assert_array_equal(rows[[2, 0], 1], whole[[2, 0], 1].astype(float) * 255)
    np.testing.assert_array_equal(rows[1], whole[1].astype(float) * 255)


def test_what_cannot_be_indexed(file):
    with pytest.raises(IndexError, match="found 5 indices for 4 axes"):
        stored(file, "plain")[0, 0, 0, 0, 0]
    rows = StoredRows(stored(file, "plain"), np.arange(3)[:, None])
    with pytest.raises(IndexError, match="by integers and slices"):
        rows[0, [1, 2]]
    with pytest.raises(IndexError):
        rows[3]


@given(shape=array_shapes(max_dims=5, max_side=6), limit=st.integers(1, 400), order=st.sampled_from("CF"))
def test_blocks_cover_every_element_once_and_are_small(shape, limit, order):
    array = np.zeros(shape, np.int16, order=order)
    for key in blocks(array, limit):
        array[key] += 1
        assert array[key].nbytes <= max(limit, 2)
    assert (array == 1).all()


def sums(rows, queue):
    queue.put([float(np.sum(rows[i])) for i in range(len(rows))])


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("name", ["plain", "matlab"])
def test_other_processes_open_the_file_themselves(file, whole, method, name):
    rows = StoredRows(stored(file, name), np.argwhere(np.ones(SHAPE[:2])))
    np.testing.assert_array_equal(rows[0], whole[0, 0])  # so that it is open when the others start
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    workers = [context.Process(target=sums, args=(rows, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = [queue.get(timeout=60) for _ in workers] + [[float(np.sum(row)) for row in rows]]
    for worker in workers:
        worker.join(60)
    np.testing.assert_allclose(found, np.tile(whole.reshape(12, -1).sum(axis=1), (3, 1)), rtol=1e-5)


def test_what_is_open_is_not_pickled(file, whole):
    array = stored(file, "plain")
    assert array[0, 0, 0, 0] == whole[0, 0, 0, 0]
    again = pickle.loads(pickle.dumps(array))
    np.testing.assert_array_equal(np.asarray(again), whole)
