"""zarr stores of both formats, as folders and zipped; pickles in them are refused unread."""

import json
import multiprocessing
import sys

import numpy as np
import pytest

from neural_data import zarr_arrays
from neural_data.stored_array import StoredArray, StoredRows
from neural_data.zarr_arrays import is_zarr, read_zarr
from tests.neural_data.array_files import save_zarr

zarr = pytest.importorskip("zarr")
VALUES = {"x": np.arange(24.0).reshape(3, 4, 2), "area": np.array(["VISp", "", "VISäl"]), "rate": np.array(30.0)}


@pytest.mark.parametrize("kind", ["zarr2", "zarr3", "zarr.zip"])
def test_numbers_and_text(tmp_path, kind):
    path = save_zarr(tmp_path, VALUES | {"truth_x": np.ones(2)}, kind)
    assert is_zarr(path)
    arrays = read_zarr(path, "truth_")
    assert sorted(arrays) == sorted(VALUES)
    for name, expected in VALUES.items():
        np.testing.assert_array_equal(arrays[name], expected)
        assert arrays[name].dtype.kind == expected.dtype.kind


def sums(rows, queue):
    queue.put([float(np.sum(rows[i])) for i in range(len(rows))])


@pytest.mark.parametrize("kind", ["zarr2", "zarr3", "zarr.zip"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_large_arrays_stay_in_the_store_and_other_processes_open_it(tmp_path, monkeypatch, kind, method):
    monkeypatch.setattr(zarr_arrays, "LARGE_BYTES", 100)
    array = read_zarr(save_zarr(tmp_path, VALUES, kind))["x"]
    assert isinstance(array, StoredArray)
    rows = StoredRows(array, np.argwhere(np.ones((3, 4))))
    np.testing.assert_array_equal(rows[[5, 2]], VALUES["x"].reshape(12, 2)[[5, 2]])
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    worker = context.Process(target=sums, args=(rows, queue))
    worker.start()
    found = queue.get(timeout=60)
    worker.join(60)
    assert found == VALUES["x"].reshape(12, 2).sum(axis=1).tolist()


def test_arrays_of_the_only_group(tmp_path):
    inner = zarr.open_group(str(tmp_path / "g.zarr"), mode="w").create_group("session")
    inner.create_array("x", data=np.arange(3))
    assert read_zarr(tmp_path / "g.zarr")["x"].tolist() == [0, 1, 2]


class Harmful:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle was run')",))


@pytest.mark.parametrize(
    "how", [{"dtype": "|O", "filters": [{"id": "pickle", "protocol": 5}], "compressor": None},
            {"dtype": "<f8", "filters": None, "compressor": {"id": "pickle", "protocol": 5}},
            {"dtype": "<f8", "filters": [{"id": "fixedscaleoffset", "offset": 0, "scale": 1, "dtype": "<f8"},
                                         {"id": "pickle", "protocol": 5}], "compressor": None}],
)  # fmt: skip
def test_pickles_are_refused_unread(tmp_path, how):
    import numcodecs

    zarr.open_group(str(tmp_path / "bad.zarr"), mode="w", zarr_format=2)
    folder = tmp_path / "bad.zarr" / "x"
    folder.mkdir()
    chunk = np.array([Harmful()], dtype=object)
    (folder / "0").write_bytes(numcodecs.Pickle().encode(chunk))
    facts = {"zarr_format": 2, "shape": [1], "chunks": [1], "fill_value": None, "order": "C"} | how
    (folder / ".zarray").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=r"bad\.zarr: .*pickle") as caught:
        read_zarr(tmp_path / "bad.zarr")
    assert "\n" not in str(caught.value)


def test_what_is_no_group_of_arrays(tmp_path):
    zarr.create_array(str(tmp_path / "a.zarr"), data=np.ones(3))
    with pytest.raises(ValueError, match=r"a\.zarr: is a single array, expected a group of arrays"):
        read_zarr(tmp_path / "a.zarr")
    root = zarr.open_group(str(tmp_path / "g.zarr"), mode="w")
    root.create_group("a")
    root.create_group("b")
    with pytest.raises(ValueError, match=r"g\.zarr: found the groups a, b, expected arrays, or one group"):
        read_zarr(tmp_path / "g.zarr")
    root = zarr.open_group(str(tmp_path / "c.zarr"), mode="w", zarr_format=3)
    root.create_array("x", data=np.ones(3, complex))
    with pytest.raises(ValueError, match=r"c\.zarr: x: found complex128, expected numbers or text"):
        read_zarr(tmp_path / "c.zarr")
    (tmp_path / "c.zarr" / "x" / "zarr.json").write_text("{")
    with pytest.raises(ValueError, match=r"c\.zarr: "):
        read_zarr(tmp_path / "c.zarr")


def test_without_zarr_it_says_what_to_install(tmp_path, monkeypatch):
    path = save_zarr(tmp_path, VALUES)
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ValueError, match=r"needs zarr: pip install 'murine\[zarr\]'"):
        read_zarr(path)
