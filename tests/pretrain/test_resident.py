"""Sets that live decoded: the same batches as the reader's, from whatever memory, and read again only if they fit."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain import resident
from pretrain.config import ShardsConfig
from pretrain.resident import Pixels, estimated_pixels, free_memory_bytes, open_resident, read_all
from pretrain.shard_set import Damage, open_shards
from pretrain.shards import write_shards
from pretrain.sources import Item, Source
from pretrain.stream import EpochBatches, load_batches

CPU = torch.device("cpu")


@dataclass
class Gaze:
    """A signal beside an image."""

    values: np.ndarray

    def read(self) -> np.ndarray:
        return self.values


def decoded(folder: Path, **arguments: float) -> resident.ResidentSet | None:
    shards = open_shards(folder, damaged_share=1)
    keys = {"device_share": 0.5, "memory_share": 0.5, "workers": 0, "damage": Damage(shards)} | arguments
    return open_resident(shards, CPU, **keys)


def require_same_batches(folder: Path, **order: object) -> None:
    wanted = EpochBatches(open_shards(folder, damaged_share=1), **order)
    streamed = list(load_batches(wanted, workers=0))
    held = list(decoded(folder).batches(wanted))
    assert len(held) == len(streamed) > 0
    for one, other in zip(held, streamed, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            assert torch.equal(one[key], other[key]), key


def write_depth(folder: Path) -> Path:
    """Images of several sizes with depth maps of 8 or 16 bits, some of them with a signal."""
    rng = np.random.default_rng(0)
    shapes = [(8, 9), (12, 8), (8, 8), (8, 30), (8, 8)]
    items = [
        Item(
            str(n),
            rng.integers(0, 256, (*shape, 3), np.uint8),
            depth=rng.integers(0, 60_000 if n == 1 else 256, shape, np.uint16 if n == 1 else np.uint8),
            signals={"gaze": Gaze(rng.random(2, np.float32))} if n > 1 else {},
        )
        for n, shape in enumerate(shapes)
    ]
    config = ShardsConfig(out=str(folder), size=8, format="raw", shard_samples=2, depth="a folder")
    write_shards(Source(len(items), lambda start: iter(items[start:]), "arrays"), config)
    return folder


@pytest.mark.parametrize("rank", [0, 1])
def test_batches_are_those_of_the_reader(tiny_shards, tmp_path, rank):
    order = {"batch_size": 8, "seed": 3, "epoch": 1, "buffer": 20, "start": 2, "epochs": 2}
    require_same_batches(tiny_shards, **order, rank=rank, world=2)
    require_same_batches(write_depth(tmp_path / "depth"), batch_size=2, epoch=0, drop_last=False)


def test_damaged_samples_are_stood_in_for_as_in_the_reader(tiny_shards, tmp_path):
    for path in tiny_shards.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shard = tmp_path / "shard-000001.tar"
    data = bytearray(shard.read_bytes())
    for _ in range(3):
        start = data.index(b"\xff\xd8\xff")
        data[start : start + 40] = bytes(40)
    shard.write_bytes(data)
    held = decoded(tmp_path)
    assert (held.sizes[:, 0] == 0).nonzero()[:, 0].tolist() == [16, 17, 18]
    require_same_batches(tmp_path, batch_size=5, epoch=0, drop_last=False)


def test_a_batch_of_which_nothing_can_be_read_is_that_of_the_reader(tiny_shards, tmp_path):
    for path in tiny_shards.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shard = tmp_path / "shard-000003.tar"
    shard.write_bytes(shard.read_bytes().replace(b"\xff\xd8\xff", bytes(3)))
    held = decoded(tmp_path)
    assert (held.sizes[:, 0] == 0).nonzero()[:, 0].tolist() == [48, 49]
    assert held.batch(np.array([48, 49]))["index"].tolist() == [0, 0]
    require_same_batches(tmp_path, batch_size=2, epoch=None, drop_last=False)


def test_a_set_larger_than_its_share_is_not_held(tiny_shards, monkeypatch):
    needed = 3 * estimated_pixels(open_shards(tiny_shards))
    monkeypatch.setattr(resident, "free_memory_bytes", lambda: 2 * needed)
    assert decoded(tiny_shards) is not None
    assert decoded(tiny_shards, memory_share=0.49) is None
    assert decoded(tiny_shards, processes=2) is None


def test_an_estimate_that_is_too_small_only_costs_a_copy(tiny_shards):
    shards = open_shards(tiny_shards)
    exact = int(decoded(tiny_shards).sizes.prod(1).sum())
    assert estimated_pixels(shards) == pytest.approx(exact, rel=0.05)
    small = read_all(shards, 10, CPU, 0, Damage(shards))
    large = read_all(shards, exact, CPU, 0, Damage(shards))
    assert small.pixels.filled == large.pixels.filled == 3 * exact
    assert torch.equal(small.pixels.values[: 3 * exact], large.pixels.values[: 3 * exact])


def test_gathering_by_computed_places_equals_copying():
    """The way of a GPU, on the CPU."""
    rng = np.random.default_rng(1)
    sizes = torch.tensor([[3, 5], [4, 2], [1, 7]])
    arrays = [torch.from_numpy(rng.integers(0, 256, (*size, 3), np.uint8)) for size in sizes.tolist()]
    pixels = Pixels(3, torch.uint8, 0, CPU, pin=False)
    for array in arrays:
        pixels.add(array.flatten())
    areas = sizes.prod(1)
    starts = (areas.cumsum(0) - areas) * 3
    rows = torch.tensor([2, 0, 0, 1])
    copied = pixels.gather(starts[rows], sizes[rows])
    assert torch.equal(pixels.indexed(starts[rows], sizes[rows], 4, 7), copied)
    assert torch.equal(copied[1, :3, :5], arrays[0])
    assert not copied[1, 3:].any()
    same = pixels.gather(starts[[0, 0]], sizes[[0, 0]])
    assert torch.equal(pixels.evenly(starts[[0, 0]], 3, 5), same)


def test_free_memory_is_some_of_this_machine():
    installed = resident.os.sysconf("SC_PHYS_PAGES") * resident.os.sysconf("SC_PAGE_SIZE")
    assert 2**20 < free_memory_bytes() <= installed
