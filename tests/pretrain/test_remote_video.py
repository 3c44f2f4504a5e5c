"""Videos behind URLs: the same clips as of files here, and a network that fails is no damaged video."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pretrain import storage
from pretrain.config import ShardsConfig
from pretrain.shards import write_shards
from pretrain.sources import open_source
from pretrain.storage import StorageFailed, file_system
from tests.pretrain.web_server import WebServer, serving

VIDEOS, FRAMES = 3, 30


def write_video(path: Path, seed: int) -> None:
    """Noise, so that a file is larger than one read."""
    av = pytest.importorskip("av")
    pixels = np.random.default_rng(seed).integers(0, 256, (FRAMES, 64, 64, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt, stream.bit_rate = "yuv420p", 10**7
        for frame in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[WebServer]:
    """A web server of videos, read in parts of 16 KiB."""
    pytest.importorskip("aiohttp")
    (tmp_path / "videos").mkdir()
    for number in range(VIDEOS):
        write_video(tmp_path / "videos" / f"{number}.mp4", number)
    monkeypatch.setattr(storage, "WAIT_S", 0.001)
    with serving(tmp_path) as found:
        monkeypatch.setattr(file_system(found.url)[0], "block_size", 2**14)
        yield found


def config(source: str, out: Path, **keys: object) -> ShardsConfig:
    return ShardsConfig(source=source, out=str(out), **{"size": 16, "clip_frames": 10, "shard_samples": 4} | keys)


@pytest.mark.parametrize("keys", [{}, {"format": "encoded", "clip_frames": 0}], ids=["frames", "encoded"])
def test_a_busy_server_costs_no_clip(server, tmp_path, keys):
    here = config(str(tmp_path / "videos"), tmp_path / "expected", **keys)
    expected = write_shards(open_source(here), here)
    server.handler.busy_every = 5
    there = config(f"{server.url}/videos", tmp_path / "out", **keys)
    index = write_shards(open_source(there), there)
    assert (index["shards"], index["unreadable"]) == (expected["shards"], [])


def test_a_server_that_goes_down_stops_the_run(server, tmp_path, monkeypatch):
    there = config(f"{server.url}/videos", tmp_path / "out", max_unreadable=1.0)
    source = open_source(there)
    server.handler.down = True
    with pytest.raises(OSError, match=r"mp4 cannot be read, tried 6 times: the server answers 503 Service"):
        write_shards(source, there)
    server.handler.down = False
    index = write_shards(open_source(there), there)
    assert (index["samples"], index["unreadable"]) == (VIDEOS * FRAMES // 10, [])


def test_a_server_that_fails_while_a_video_is_decoded_stops_the_run(server, tmp_path):
    there = config(f"{server.url}/videos", tmp_path / "out", max_unreadable=1.0)
    clip = next(open_source(there).items(0)).clip
    opened = clip.file.open()
    server.handler.down = True
    assert opened.read() == opened.read() == b""
    with pytest.raises(StorageFailed, match=r"mp4 cannot be read, tried 6 times"):
        list(clip.frames())
    with pytest.raises(OSError, match="503"):
        open_source(there)


def test_a_server_of_whole_files_is_one_line(server, tmp_path, capfd):
    server.handler.parts = False
    with pytest.raises(OSError, match=r"mp4 does not serve parts of files, .*; download the file first"):
        open_source(config(f"{server.url}/videos", tmp_path / "out"))
    assert "Traceback" not in capfd.readouterr().err


def test_a_damaged_video_is_listed(server, tmp_path):
    (tmp_path / "videos" / "1.mp4").write_bytes(b"no video" * 9000)
    there = config(f"{server.url}/videos", tmp_path / "out", max_unreadable=0.5)
    index = write_shards(open_source(there), there)
    assert index["samples"] == (VIDEOS - 1) * FRAMES // 10
    assert len(index["unreadable"]) == 1
