"""Batches of what shards can hold: clips of many sizes with their signals, encoded videos, shards behind URLs."""

import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pretrain import storage, video
from pretrain.checkpoint import BackboneSpec
from pretrain.config import ShardsConfig, ViewsConfig
from pretrain.objectives.objective import Wants
from pretrain.samples import Sample, collate, padded, stacked_signals
from pretrain.shard_cache import ShardCache, ShardUnavailable
from pretrain.shard_set import CLIPS, Damage, open_shards
from pretrain.shards import write_shards
from pretrain.sources import open_source
from pretrain.step_timer import StepTimer
from pretrain.stream import EpochBatches, load_batches
from pretrain.views import ViewMaker
from tests.pretrain.web_server import serving


def write(source: Path, out: Path | str, **keys: object) -> dict:
    config = ShardsConfig(source=str(source), out=str(out), **{"shard_samples": 2, **keys})
    return write_shards(open_source(config), config)


@pytest.fixture
def stacks(tmp_path: Path) -> Path:
    """Three clips of 9, 10 and 11 frames, lying or standing, with signals and labels."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "stacks"
    folder.mkdir()
    for n in range(3):
        np.save(folder / f"{n}.npy", rng.integers(0, 256, (9 + n, 20, 26 + n, 3), np.uint8))
        np.save(folder / f"{n}.behavior.npy", rng.normal(size=(2, 9 + n)).astype(np.float32))
    np.save(folder / "labels.npy", np.array([2, 0, 1]))
    return folder


def test_clips_come_padded_with_their_lengths_rates_and_signals(stacks, tmp_path):
    write(stacks, tmp_path / "s", size=20, frame_rate_hz=30.0)
    shards = open_shards(tmp_path / "s")
    assert shards.kind == CLIPS
    batch = next(load_batches(EpochBatches(shards, 3, epoch=0), workers=0))
    assert batch["video"].shape == (3, 3, 11, 20, 28)
    assert batch["frame_rate_hz"].tolist() == [30.0] * 3
    for row in range(3):
        frames, (height, width) = int(batch["frames"][row]), batch["sizes"][row].tolist()
        stack = np.load(stacks / f"{frames - 9}.npy")
        assert stack.shape == (frames, height, width, 3)
        np.testing.assert_array_equal(batch["video"][row, :, :frames, :height, :width].permute(1, 2, 3, 0), stack)
        assert not batch["video"][row, :, frames:].any()
        signal = batch["behavior"][row]
        np.testing.assert_array_equal(signal[:, :frames], np.load(stacks / f"{frames - 9}.behavior.npy"))
        assert signal[:, frames:].isnan().all()
        assert batch["label"][row] == (2, 0, 1)[frames - 9]


def test_encoded_videos_become_views(tmp_path, write_video, frame_number):
    for number in range(4):
        write_video(tmp_path / "videos" / f"{number}.mp4", frames=20 + number)
    write(tmp_path / "videos", tmp_path / "s", size=48, format="encoded")
    batches = load_batches(EpochBatches(open_shards(tmp_path / "s"), 2, epoch=0), workers=0)
    plain = {"crop_side": 1.0, "flip_probability": 0.0, "grayscale_probability": 0.0, "jitter_probability": 0.0}
    views = ViewMaker(
        ViewsConfig(size=48, clip_frames=5, clip_stride=3, **plain),
        BackboneSpec("any", {}, 48, [0.0] * 3, [1.0] * 3),
        Wants(views=1),
        seed=0,
        device=torch.device("cpu"),
    )
    made = list(views.stream(batches, 0, StepTimer(torch.device("cpu"))))
    assert [one["views"].shape for one in made] == [(1, 2, 3, 5, 48, 48)] * 2
    # The bits of a frame's number are stripes, of which a square shows the six or so in the middle.
    for clip in torch.cat([one["views"][0] for one in made]):
        assert (clip[:, 1:] != clip[:, :-1]).flatten(2).any(2).all()


def test_images_come_with_their_signals(class_folder, tmp_path):
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    for number, path in enumerate(sorted(class_folder.rglob("*.jpg"))[:4]):
        Image.open(path).save(folder / f"{number}.png")
        np.save(folder / f"{number}.speed.npy", np.array([number, 1.5], np.float32))
    write(folder, tmp_path / "s", size=16)
    batch = next(load_batches(EpochBatches(open_shards(tmp_path / "s"), 4), workers=0))
    assert sorted(batch["speed"][:, 0].tolist()) == [0, 1, 2, 3]
    assert (batch["speed"][:, 1] == 1.5).all()


@pytest.fixture
def served(tmp_path: Path, class_folder: Path):
    """The address of a web server with shards, their folder, and the files that were asked for."""
    pytest.importorskip("aiohttp")
    write(class_folder, tmp_path / "www" / "s", size=16, shard_samples=10)
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "www")))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/s", tmp_path / "www" / "s", asked
    server.shutdown()
    server.server_close()


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_shards_behind_a_url_are_read_once_and_give_the_same_batches(served, tmp_path, workers):
    url, folder, asked = served
    remote = open_shards(url, cache=ShardCache(tmp_path / "cache", 2**30))
    order = {"batch_size": 8, "epoch": 1, "seed": 2, "buffer": 20, "epochs": 2}
    found = list(load_batches(EpochBatches(remote, **order), workers))
    expected = list(load_batches(EpochBatches(open_shards(folder), **order), 0))
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in other)
    gets = [path for path in asked if path.endswith(".tar")]
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 5
    # Each download asks for the size, and for the file.
    assert len(gets) <= 2 * 5


def test_a_shard_that_a_server_has_lost_is_named(served, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "WAIT_S", 0.001)
    url, folder, _ = served
    (folder / "shard-000002.tar").unlink()
    few = open_shards(url, damaged_share=0.3, cache=ShardCache(tmp_path / "cache", 2**30))
    seen = [batch["index"] for batch in load_batches(EpochBatches(few, 25, epoch=0), 0)]
    assert not {*range(20, 30)} & set(torch.cat(seen).tolist())
    none = open_shards(url, cache=ShardCache(tmp_path / "cache", 2**30))
    with pytest.raises(ValueError, match=r"more than data.damaged_share=0.001: .*shard-000002.tar"):
        list(load_batches(EpochBatches(none, 25, epoch=0), 0))


def test_a_url_needs_a_cache():
    with pytest.raises(ValueError, match=r"data.shards=http://x/y is a URL, which is read through a cache"):
        open_shards("http://x/y")


@given(shapes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6)), min_size=1, max_size=5))
def test_padding_keeps_every_array_and_adds_zeros(shapes):
    arrays = [torch.full((*shape, 3), 1 + number, dtype=torch.uint8) for number, shape in enumerate(shapes)]
    whole = padded(arrays)
    assert whole.sum() == sum(array.sum() for array in arrays)
    for place, array in zip(whole, arrays, strict=True):
        assert torch.equal(place[tuple(slice(side) for side in array.shape)], array)


def test_signals_of_clips_end_in_nan():
    stacked = stacked_signals([torch.ones(2, 3), torch.ones(2, 5)])
    assert stacked.isnan().sum() == 4
    assert torch.equal(stacked_signals([torch.ones(2), torch.zeros(2)]), torch.tensor([[1.0, 1.0], [0.0, 0.0]]))


def test_a_signal_of_older_shards_replaces_no_entry():
    samples = [Sample(torch.zeros(4, 4, 3, dtype=torch.uint8), n, signals={"index": torch.ones(2)}) for n in (5, 7)]
    assert collate(samples)["index"].tolist() == [5, 7]


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_storage_that_goes_away_is_no_damage(class_folder, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(storage, "WAIT_S", 0.001)
    write(class_folder, tmp_path / "s", size=16, shard_samples=10)
    with serving(tmp_path) as server:
        shards = open_shards(f"{server.url}/s", damaged_share=1, cache=ShardCache(tmp_path / "cache", 2**30))
        damage = Damage(shards)
        batches = load_batches(EpochBatches(shards, 5, epoch=0, epochs=50, buffer=1), workers, damage=damage)
        next(batches)
        server.handler.down = True
        for path in (tmp_path / "cache").glob("*.tar"):
            path.unlink()
        line = r"shard-.*tar cannot be .*, tried 6 times: the server answers 503"
        with pytest.raises(ShardUnavailable, match=line) as found:
            list(batches)
    assert "\n" not in str(found.value)
    assert not damage.named


def test_a_decoder_that_is_not_installed_is_no_damage(tmp_path, write_video, monkeypatch):
    write_video(tmp_path / "v" / "a.mp4")
    write(tmp_path / "v", tmp_path / "s", format="encoded")
    monkeypatch.setattr(video.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ShardUnavailable, match=f"^{re.escape(video.MISSING)}$"):
        next(load_batches(EpochBatches(open_shards(tmp_path / "s", damaged_share=1), 1), 0))
