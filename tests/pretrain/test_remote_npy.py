"""`.npy` files behind URLs: parts of arrays as numpy gives them, what is asked of a server, and what is refused."""

import multiprocessing
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import fsspec
import numpy as np
import pytest

from pretrain import storage
from pretrain.remote_npy import GAP_BYTES, HEADER_BYTES, READ_BYTES, RemoteNpy, remote_npy, together
from pretrain.signals import SignalFile
from pretrain.storage import RemoteFile, StorageFailed
from tests.pretrain.web_server import WebServer, serving

SIDE = 64
ROWS = np.random.default_rng(0).integers(0, 256, (500, SIDE, SIDE), np.uint8)


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[WebServer]:
    """A web server of a stack of 2 MB, `rows.npy`."""
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(storage, "WAIT_S", 0.001)
    np.save(tmp_path / "rows.npy", ROWS)
    with serving(tmp_path) as found:
        yield found


def saved(folder: Path, array: np.ndarray) -> RemoteNpy:
    """The array, opened as a file in memory."""
    np.save(folder / "a.npy", array, allow_pickle=True)
    return in_memory((folder / "a.npy").read_bytes())


def in_memory(data: bytes) -> RemoteNpy:
    fsspec.filesystem("memory").pipe_file("/npy/a.npy", data)
    return remote_npy(RemoteFile("memory://npy/a.npy", 0))


@pytest.mark.parametrize(
    "part",
    [
        3, 0, slice(None), slice(2, 5), slice(2, 99), slice(4, 4), (), (3, slice(1, 3)), (slice(None), slice(1, 3)),
        (2, 1), (slice(1, 4), 2),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.uint8).reshape(6, 4),
        np.asfortranarray(np.arange(24.0).reshape(6, 4)),
        np.arange(24, dtype=">i4").reshape(6, 4),
        np.arange(120, dtype=np.int16).reshape(6, 4, 5),
        np.arange(360, dtype=np.float32).reshape(6, 4, 5, 3),
    ],
    ids=["uint8", "fortran", "big-endian", "3 axes", "4 axes"],
)
def test_a_part_is_what_numpy_gives_of_the_array(tmp_path, array, part):
    found = saved(tmp_path, array)
    assert (found.shape, found.dtype, found.ndim, len(found)) == (array.shape, array.dtype, array.ndim, 6)
    assert (found.name, found.size) == ("a.npy", (tmp_path / "a.npy").stat().st_size)
    np.testing.assert_array_equal(found[part], array[part], strict=True)


def test_arrays_of_one_axis_and_of_none(tmp_path):
    np.testing.assert_array_equal(saved(tmp_path, np.arange(5))[2:4], [2, 3])
    assert saved(tmp_path, np.arange(5))[4] == 4
    assert saved(tmp_path, np.float32(7.5))[()] == 7.5
    with pytest.raises(IndexError):
        saved(tmp_path, np.arange(5))[5]
    with pytest.raises(IndexError, match="has steps"):
        saved(tmp_path, np.arange(5))[::2]


def test_a_header_is_read_once_and_of_the_rest_what_is_wanted(server):
    opened = remote_npy(RemoteFile(f"{server.url}/rows.npy", 0))
    assert sum(server.handler.sent) < 3 * HEADER_BYTES
    server.handler.sent.clear()
    for number in (499, 0, 7):
        np.testing.assert_array_equal(opened[number], ROWS[number])
    np.testing.assert_array_equal(opened[3, 5:9], ROWS[3, 5:9])
    assert server.handler.sent == [SIDE * SIDE] * 3 + [4 * SIDE]


def test_runs_that_lie_near_are_read_by_one_request(server, tmp_path):
    near, far = np.zeros((300, 100), np.uint8), np.zeros((3, 2 * GAP_BYTES), np.uint8)
    near[:, 6] = far[:, 6] = 5
    for array, sent in ((near, [299 * 100 + 4]), (far, [4, 4, 4])):
        np.save(tmp_path / "a.npy", array)
        opened = remote_npy(RemoteFile(f"{server.url}/a.npy", 0))
        server.handler.sent.clear()
        np.testing.assert_array_equal(opened[:, 5:9], array[:, 5:9])
        assert server.handler.sent == sent


def test_runs_read_together_are_never_many_bytes():
    starts = list(range(0, 5 * READ_BYTES, GAP_BYTES // 2))
    found = together(starts, 8)
    assert list(chain.from_iterable(found)) == starts
    assert 5 <= len(found) <= 6
    assert max(near[-1] + 8 - near[0] for near in found) <= READ_BYTES


def damaged(data: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "text": b"no array at all, but some text that goes on",
        "header cut": data[:40],
        "header text": data.replace(b"'shape': (6, 4)", b"'shape': ((6, 4"),
        "negative": data.replace(b"(6, 4)", b"(-6,4)"),
        "version": data[:6] + b"\x09" + data[7:],
    }


@pytest.mark.parametrize("kind", damaged(b""))
def test_what_is_no_array_is_one_line(tmp_path, kind):
    np.save(tmp_path / "a.npy", np.zeros((6, 4)))
    with pytest.raises(ValueError, match=r"'memory://npy/a.npy' cannot be read as .npy: .") as error:
        in_memory(damaged((tmp_path / "a.npy").read_bytes())[kind])
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:Stored array in format 3.0")
@pytest.mark.parametrize(
    ("array", "line"),
    [
        (np.array([object()]), "cannot be read as .npy: it holds Python objects, which are never unpickled"),
        (np.zeros(3, [("a", "O")]), "cannot be read as .npy: it holds Python objects, which are never unpickled"),
        (np.zeros(3, [("速", "f4")]), "cannot be read as .npy: it has version 3.0 of the format; arrays of numbers"),
        (np.asfortranarray(np.zeros((3, 4, 5))), "lies in Fortran order, .*; save it again with np.save"),
    ],
)
def test_arrays_that_are_refused(tmp_path, array, line):
    with pytest.raises(ValueError, match=line):
        saved(tmp_path, array)


def test_a_file_that_is_cut_short_is_one_line(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((6, 4)))
    data = (tmp_path / "a.npy").read_bytes()
    with pytest.raises(ValueError, match=r"'memory://npy/a.npy' is cut short: 319 of 320 bytes; bring the file again"):
        in_memory(data[:-1])
    opened = in_memory(data)
    fsspec.filesystem("memory").pipe_file("/npy/a.npy", data[:-1])
    np.testing.assert_array_equal(opened[4], np.zeros(4))
    with pytest.raises(ValueError, match=r"memory://npy/a.npy has become shorter than its header says"):
        opened[5]
    fsspec.filesystem("memory").rm("/npy/a.npy")
    with pytest.raises(FileNotFoundError, match=r"memory://npy/a.npy does not exist"):
        opened[0]


def test_a_server_of_whole_files_is_one_line_before_it_sends_one(server):
    server.handler.parts = False
    with pytest.raises(StorageFailed, match=r"rows.npy does not serve parts of files, .*; download the file first"):
        remote_npy(RemoteFile(f"{server.url}/rows.npy", 0))


def test_a_busy_server_is_asked_again_and_one_that_is_down_is_no_damaged_file(server):
    server.handler.busy_every = 2
    opened = remote_npy(RemoteFile(f"{server.url}/rows.npy", 0))
    np.testing.assert_array_equal(opened[9:11], ROWS[9:11])
    server.handler.down = True
    for read in (lambda: opened[3], lambda: remote_npy(opened.file)):
        with pytest.raises(StorageFailed, match=r"rows.npy cannot be read, tried 6 times: the server answers 503"):
            read()


def test_other_processes_read_the_same(server):
    opened = remote_npy(RemoteFile(f"{server.url}/rows.npy", 0))
    np.testing.assert_array_equal(opened[0], ROWS[0])
    for method in ("spawn", "fork"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            found = pool.map_async(opened.__getitem__, range(1, 9)).get(timeout=60)
        np.testing.assert_array_equal(found, ROWS[1:9])


def test_of_a_signal_beside_a_video_the_frames_of_the_clip_are_read(server, tmp_path):
    frames = GAP_BYTES
    values = np.random.default_rng(1).normal(size=(2, frames)).astype(np.float32)
    for array, sent in ((values, [64, 64]), (np.asfortranarray(values), [128])):
        np.save(tmp_path / "walk.gaze.npy", array)
        file = RemoteFile(f"{server.url}/walk.gaze.npy", 0)
        part = SignalFile(file, first=70, count=16, total=frames)
        server.handler.sent.clear()
        np.testing.assert_array_equal(part.read(), values[:, 70:86])
        assert server.handler.sent[-len(sent) :] == sent
        assert sum(server.handler.sent) < 3 * HEADER_BYTES
        whole = SignalFile(file, first=0, count=frames, total=frames)
        np.testing.assert_array_equal(whole.read(), values)
    with pytest.raises(ValueError, match=rf"walk.gaze.npy has shape \(2, {frames}\), should be \(channels, 9\)"):
        SignalFile(file, first=0, count=3, total=9).read()
