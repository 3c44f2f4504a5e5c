"""`.npy` stacks: images and clips of every shape, their labels and signals, here and behind URLs, what is refused."""

import hashlib
import pickle
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from pretrain import stack_source, storage
from pretrain.config import ShardsConfig
from pretrain.items import Source
from pretrain.remote_npy import HEADER_BYTES
from pretrain.shards import write_shards
from pretrain.sources import open_source
from tests.pretrain.web_server import WebServer, serving


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, np.uint8)


def opened(place: Path | str, **keys: object) -> Source:
    return open_source(ShardsConfig(source=str(place), **keys))


@pytest.mark.parametrize("shape", [(7, 5, 6), (7, 5, 6, 3)])
def test_images_of_a_stack_with_labels_and_signals(tmp_path, shape):
    stack, running = pixels(*shape), np.arange(14.0).reshape(7, 2)
    np.save(tmp_path / "a.npy", stack)
    np.save(tmp_path / "labels.npy", np.arange(7) % 3)
    np.save(tmp_path / "a.running.npy", running)
    for place in (tmp_path, tmp_path / "a.npy"):
        source = opened(place)
        assert (source.count, source.kind, source.signals) == (7, "images", ("running",))
        items = list(source.items(0))
        assert sorted(item.name for item in items) == [f"a.npy {n}" for n in range(7)]
        assert [item.name for item in items] != sorted(item.name for item in items)
        for item in items:
            number = int(item.name.split()[1])
            np.testing.assert_array_equal(item.image, stack[number])
            np.testing.assert_array_equal(item.signals["running"].read(), running[number])
            assert item.label == number % 3
        assert [item.name for item in source.items(3)] == [item.name for item in items][3:]


@pytest.mark.parametrize("shape", [(10, 5, 6), (10, 5, 6, 3), (4, 10, 5, 6), (4, 10, 5, 6, 3)])
@pytest.mark.parametrize("clip_frames", [0, 4])
def test_clips_of_a_stack_whole_or_cut(tmp_path, capsys, shape, clip_frames):
    stack = pixels(*shape)
    many = stack if shape[0] == 4 else stack[None]
    signal = np.random.default_rng(1).normal(size=(len(many), 2, 10)).astype(np.float32)
    np.save(tmp_path / "a.npy", stack)
    np.save(tmp_path / "a.behavior.npy", signal if shape[0] == 4 else signal[0])
    source = opened(tmp_path, frame_rate_hz=30.0, clip_frames=clip_frames)
    assert source.kind == "clips"
    assert source.count == len(many) * (2 if clip_frames else 1)
    assert source.frames_left_out == (2 * len(many) if clip_frames else 0)
    assert ("fill no clip" in capsys.readouterr().err) == bool(clip_frames)
    found = {}
    for item in source.items(0):
        number = int(item.name.split()[1]) if shape[0] == 4 else 0
        first = item.clip.first
        frames = np.stack(list(item.clip.frames()))
        found[number, first] = frames
        np.testing.assert_array_equal(frames, many[number, first : first + (clip_frames or 10)])
        np.testing.assert_array_equal(
            item.signals["behavior"].read(), signal[number][:, first : first + (clip_frames or 10)]
        )
        assert item.clip.frame_rate_hz == 30
    assert sorted(found) == [(n, first) for n in range(len(many)) for first in ((0, 4) if clip_frames else (0,))]


def test_a_folder_of_stacks_is_one_sequence(tmp_path):
    for n in range(3):
        np.save(tmp_path / f"{n}.npy", np.full((n + 1, 4, 4), 10 * n, np.uint8))
    np.save(tmp_path / "labels.npy", np.arange(6))
    items = {item.name: (int(np.asarray(item.image)[0, 0]), item.label) for item in opened(tmp_path).items(0)}
    assert items == {
        "0.npy 0": (0, 0), "1.npy 0": (10, 1), "1.npy 1": (10, 2), "2.npy 0": (20, 3), "2.npy 1": (20, 4),
        "2.npy 2": (20, 5),
    }  # fmt: skip


def test_the_fingerprint_changes_with_whatever_changes_the_items(tmp_path):
    np.save(tmp_path / "a.npy", pixels(6, 8, 8))
    np.save(tmp_path / "labels.npy", np.arange(6))
    prints = {opened(tmp_path, **keys).fingerprint for keys in ({}, {"seed": 1})}
    np.save(tmp_path / "labels.npy", np.arange(6)[::-1].copy())
    prints.add(opened(tmp_path).fingerprint)
    np.save(tmp_path / "b.npy", pixels(6, 8, 8))
    (tmp_path / "labels.npy").unlink()
    clips = {"frame_rate_hz": 5.0, "clip_frames": 2}
    prints |= {opened(tmp_path, **keys).fingerprint for keys in ({}, clips, clips | {"clip_frames": 3})}
    prints.add(opened(tmp_path, frame_rate_hz=6.0).fingerprint)
    assert len(prints) == 7


@pytest.mark.parametrize(
    ("arrays", "keys", "line"),
    [
        ({"a": np.zeros((3, 4, 4))}, {}, "a.npy holds float64; pixels of a stack are uint8"),
        ({"a": pixels(4, 4)}, {}, r"a.npy has shape \(4, 4\); images are \(N, H, W\)"),
        ({"a": pixels(3, 4, 4, 5)}, {}, r"a.npy has shape \(3, 4, 4, 5\); .* clips, with frame_rate_hz=<rate>"),
        ({"a": pixels(0, 4, 4)}, {}, "a.npy has shape"),
        ({"a": pixels(2, 3, 4, 4, 4)}, {"frame_rate_hz": 1.0}, "a.npy has shape"),
        ({"a": np.array([object()])}, {}, "a.npy' cannot be read as .npy: .*Python objects"),
        ({"a": pixels(3, 4, 4), "labels": np.arange(2)}, {}, "labels.npy should have 3 whole numbers from 0, found"),
        ({"a": pixels(3, 4, 4), "labels": np.arange(3) - 1}, {}, "labels.npy should have 3 whole numbers from 0"),
        ({"a": pixels(3, 4, 4), "a.Run": np.arange(3)}, {}, "signal 'Run' of a.Run.npy: .* small letters"),
        ({"a": pixels(3, 4, 4), "a.label": np.arange(3)}, {}, "signal 'label' of a.label.npy: batches have an entry"),
        ({"a": pixels(3, 4, 4), "a.gaze": np.zeros((6, 2))}, {}, r"a.gaze.npy has shape \(6, 2\), should have 3 rows"),
        ({"a": pixels(3, 4, 4), "a.gaze": np.zeros((2, 2))}, {}, r"a.gaze.npy has shape \(2, 2\), should have 3 rows"),
        (
            {"a": pixels(2, 5, 4, 4), "a.gaze": np.zeros((3, 2, 5))},
            {"frame_rate_hz": 1.0},
            r"a.gaze.npy has shape \(3, 2, 5\), should have 2 rows, one for each of a.npy",
        ),
        ({"labels": np.arange(3)}, {}, "no stack in .*, only labels.npy; put the .npy stacks beside it"),
        ({"a": pixels(3, 4, 4)}, {"clip_frames": 2}, "say frame_rate_hz=<rate> if these stacks are clips"),
        ({"a": pixels(3, 4, 4)}, {"clip_frames": 9, "frame_rate_hz": 1.0}, "no clip in .* has clip_frames=9 frames"),
        ({"a": pixels(3, 4, 4)}, {"depth": "d"}, "depth is not for .npy stacks"),
        ({"a": pixels(3, 4, 4)}, {"labels": "l"}, "labels is not for .npy stacks; their labels lie beside them"),
        ({"a": pixels(3, 4, 4)}, {"format": "encoded", "frame_rate_hz": 1.0}, "stacks have none, choose format=raw"),
    ],
)
def test_what_is_no_stack_is_one_line(tmp_path, arrays, keys, line):
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=line):
        opened(tmp_path, **keys)


SHARDS = {"size": 8, "shard_samples": 5}
CLIPS = {"frame_rate_hz": 30.0, "format": "raw"}


def write_images(folder: Path) -> None:
    """Two stacks of images, grey and in colour, with a signal and labels."""
    for name, shape in (("a", (7, 40, 50)), ("b", (6, 40, 50, 3))):
        np.save(folder / f"{name}.npy", pixels(*shape))
        np.save(folder / f"{name}.running.npy", np.asfortranarray(np.arange(14.0).reshape(7, 2)[: shape[0]]))
    np.save(folder / "labels.npy", np.arange(13) % 3)


def write_clips(folder: Path) -> None:
    """A stack of many clips and one of a single clip, with a signal and labels."""
    gaze = np.random.default_rng(1).normal(size=(4, 2, 10))
    for name, shape, of_stack in (("a", (4, 10, 40, 50), gaze), ("b", (10, 40, 50), gaze[0])):
        np.save(folder / f"{name}.npy", pixels(*shape))
        np.save(folder / f"{name}.gaze.npy", of_stack)
    np.save(folder / "labels.npy", np.arange(5))


def write_single(folder: Path) -> None:
    """One stack, which a source may name itself."""
    np.save(folder / "a.npy", pixels(7, 40, 50))
    np.save(folder / "a.running.npy", np.arange(7.0))
    np.save(folder / "labels.npy", np.arange(7) % 3)


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[WebServer]:
    """A web server of an empty folder `stacks`."""
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(storage, "WAIT_S", 0.001)
    (tmp_path / "stacks").mkdir()
    with serving(tmp_path) as found:
        yield found


def index_sha256(source: str, out: Path, **keys: object) -> str:
    config = ShardsConfig(source=source, out=str(out), **SHARDS | keys)
    write_shards(open_source(config), config)
    return hashlib.sha256((out / "index.json").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("write", "place", "keys"),
    [
        (write_images, "", {}),
        (write_images, "", {"format": "raw"}),
        (write_clips, "", CLIPS),
        (write_clips, "", CLIPS | {"clip_frames": 4}),
        (write_single, "", {}),
        (write_single, "/a.npy", {}),
        (write_single, "/a.npy", CLIPS | {"clip_frames": 3}),
    ],
)
def test_shards_of_stacks_behind_a_url_are_those_of_stacks_here(server, tmp_path, monkeypatch, write, place, keys):
    write(tmp_path / "stacks")
    if "frame_rate_hz" in keys and place:
        (tmp_path / "stacks" / "labels.npy").unlink()
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "stacks"), f"/{tmp_path.name}", recursive=True)
    expected = index_sha256(f"{tmp_path}/stacks{place}", tmp_path / "here", **keys)
    server.handler.busy_every = 5
    monkeypatch.setattr(stack_source, "FRAME_BYTES", 3 * 40 * 50)
    for name, url in (("web", f"{server.url}/stacks"), ("memory", f"memory://{tmp_path.name}")):
        assert index_sha256(f"{url}{place}", tmp_path / name, **keys) == expected, name


def test_labels_and_signals_are_found_beside_the_one_stack_of_a_url(tmp_path, server):
    write_single(tmp_path / "stacks")
    for name in ("other.gaze.npy", "ab.npy", "a.npy.txt"):
        (tmp_path / "stacks" / name).write_bytes(b"nothing of this stack")
    for source in (f"{server.url}/stacks/a.npy", f"{server.url}/stacks/a.npy?sig=a/b"):
        found = {int(item.name.split()[1]): item for item in opened(source).items(0)}
        assert [found[n].label for n in range(7)] == [n % 3 for n in range(7)]
        assert [float(found[n].signals["running"].read()[0]) for n in range(7)] == list(range(7))


def test_a_server_that_lists_nothing_has_the_stack_alone(tmp_path, server, capsys):
    write_single(tmp_path / "stacks")
    server.handler.lists = False
    source = opened(f"{server.url}/stacks/a.npy")
    assert (source.count, source.signals) == (7, ())
    assert f"what lies beside {server.url}/stacks/a.npy is not listed there; its labels" in capsys.readouterr().err


def test_of_a_stack_behind_a_url_only_what_is_wanted_is_sent(server, tmp_path, monkeypatch):
    stack = pixels(6, 90, 32, 40)
    np.save(tmp_path / "stacks" / "a.npy", stack)
    source = opened(f"{server.url}/stacks", frame_rate_hz=10.0, clip_frames=30)
    assert sum(server.handler.sent) < 3 * HEADER_BYTES
    server.handler.sent.clear()
    monkeypatch.setattr(stack_source, "FRAME_BYTES", 13 * 32 * 40)
    clip = pickle.loads(pickle.dumps(next(source.items(4)))).clip
    assert server.handler.sent == []
    frames = np.stack(list(clip.frames()))
    np.testing.assert_array_equal(frames, stack[clip.index, clip.first : clip.first + 30])
    assert server.handler.sent == [13 * 32 * 40, 13 * 32 * 40, 4 * 32 * 40]


def test_images_of_a_stack_behind_a_url_are_read_when_they_are_encoded(server, tmp_path):
    np.save(tmp_path / "stacks" / "a.npy", pixels(50, 32, 40))
    items = list(opened(f"{server.url}/stacks").items(0))
    server.handler.sent.clear()
    image = pickle.loads(pickle.dumps(items[3].image))
    np.testing.assert_array_equal(image, pixels(50, 32, 40)[int(items[3].name.split()[1])])
    assert server.handler.sent == [32 * 40]


def test_a_server_that_goes_down_stops_the_run_and_nothing_is_left_out(server, tmp_path):
    write_images(tmp_path / "stacks")
    expected = index_sha256(f"{tmp_path}/stacks", tmp_path / "here")
    config = ShardsConfig(source=f"{server.url}/stacks", out=str(tmp_path / "out"), max_unreadable=1.0, **SHARDS)
    source = open_source(config)
    server.handler.down = True
    with pytest.raises(OSError, match=r"npy cannot be read, tried 6 times: the server answers 503 Service"):
        write_shards(source, config)
    with pytest.raises(OSError, match="503"):
        open_source(config)
    server.handler.down = False
    assert index_sha256(f"{server.url}/stacks", tmp_path / "out", max_unreadable=1.0) == expected


@pytest.mark.parametrize(
    ("array", "line"),
    [
        (pixels(3, 4, 4).astype(float), "a.npy holds float64; pixels of a stack are uint8"),
        (np.array([object()]), r"stacks/a.npy' cannot be read as .npy: it holds Python objects, which are never"),
        (np.asfortranarray(pixels(3, 4, 5)), r"stacks/a.npy' lies in Fortran order, .*; save it again"),
        (b"\x93NUMPY", r"stacks/a.npy' cannot be read as .npy"),
    ],
)
def test_what_is_no_stack_behind_a_url_is_one_line(server, tmp_path, array, line):
    if isinstance(array, bytes):
        (tmp_path / "stacks" / "a.npy").write_bytes(array)
    else:
        np.save(tmp_path / "stacks" / "a.npy", array, allow_pickle=True)
    for place in ("stacks", "stacks/a.npy"):
        with pytest.raises(ValueError, match=line) as error:
            opened(f"{server.url}/{place}")
        assert "\n" not in str(error.value)
