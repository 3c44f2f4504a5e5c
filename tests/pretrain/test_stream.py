"""Reading shards: the order is a function of seed and epoch, nothing is lost or repeated, damage is named."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pretrain.config import ShardsConfig
from pretrain.shards import write_shards
from pretrain.sources import Item, Source
from pretrain.stream import EpochBatches, load_batches, open_shards


def indices(shards: Path, workers: int = 0, **arguments: object) -> list[list[int]]:
    """Global indices, batch by batch."""
    defaults = {"batch_size": 8, "epoch": 0, "buffer": 20}
    batches = EpochBatches(open_shards(shards), **(defaults | arguments))
    return [batch["index"].tolist() for batch in load_batches(batches, workers)]


def flat(batches: list[list[int]]) -> list[int]:
    return [index for batch in batches for index in batch]


def write(folder: Path, images: list[np.ndarray], shard_samples: int = 4, kind: str = "raw") -> Path:
    """Shards of arrays that keep their sizes, whose short side must be 8."""
    items = [Item(str(n), image, n % 3) for n, image in enumerate(images)]
    source = Source(len(items), lambda start: iter(items[start:]), "arrays")
    write_shards(source, ShardsConfig(out=str(folder), size=8, format=kind, shard_samples=shard_samples))
    return folder


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("workers", [1, 3])
def test_the_order_does_not_depend_on_the_number_of_workers(tiny_shards, workers):
    assert indices(tiny_shards, workers, seed=3, epoch=5) == indices(tiny_shards, seed=3, epoch=5)
    assert indices(tiny_shards, workers, start=2) == indices(tiny_shards)[2:]


def test_the_order_is_a_function_of_seed_and_epoch(tiny_shards):
    order = indices(tiny_shards, seed=1, epoch=2)
    torch.manual_seed(99)
    np.random.default_rng(99)
    assert indices(tiny_shards, seed=1, epoch=2) == order
    assert indices(tiny_shards, seed=1, epoch=3) != order
    assert indices(tiny_shards, seed=2, epoch=2) != order
    # (seed, epoch) are two numbers and not the digits of one.
    assert indices(tiny_shards, seed=11, epoch=1) != indices(tiny_shards, seed=1, epoch=11)


@settings(deadline=None, max_examples=40)
@given(
    batch_size=st.integers(1, 60),
    epoch=st.integers(0, 5),
    buffer=st.sampled_from([1, 7, 10_000]),
    start=st.integers(0, 9),
)
def test_every_sample_comes_once_and_a_start_skips(tiny_shards, batch_size, epoch, buffer, start):
    whole = indices(tiny_shards, batch_size=batch_size, epoch=epoch, buffer=buffer, drop_last=False)
    assert sorted(flat(whole)) == list(range(50))
    full = indices(tiny_shards, batch_size=batch_size, epoch=epoch, buffer=buffer)
    assert full == whole[: 50 // batch_size]
    assert indices(tiny_shards, batch_size=batch_size, epoch=epoch, buffer=buffer, start=start) == full[start:]


def test_a_small_buffer_still_shuffles_shards_and_a_large_one_everything(tiny_shards):
    shuffled = flat(indices(tiny_shards, buffer=10_000))
    place = {index: position for position, index in enumerate(shuffled)}
    neighbours = sum(abs(place[i + 1] - place[i]) == 1 for i in range(40) if {i, i + 1} <= place.keys())
    assert neighbours < 8
    assert flat(indices(tiny_shards, buffer=1)) != sorted(flat(indices(tiny_shards, buffer=1)))


def test_without_an_epoch_the_order_is_that_of_the_shards(tiny_shards):
    assert flat(indices(tiny_shards, epoch=None, drop_last=False)) == list(range(50))


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_each_batch_without_loss_or_repeat(tiny_shards, world):
    alone = indices(tiny_shards, epoch=1)
    ranks = [indices(tiny_shards, epoch=1, rank=rank, world=world) for rank in range(world)]
    assert {len(batches) for batches in ranks} == {len(alone)}
    for number, batch in enumerate(alone):
        parts = [ranks[rank][number] for rank in range(world)]
        assert {len(part) for part in parts} == {8 // world}
        assert sorted(flat(parts)) == sorted(batch)


@settings(deadline=None, max_examples=25)
@given(sides=st.lists(st.tuples(st.integers(8, 20), st.booleans()), min_size=1, max_size=9), seed=st.integers(0, 99))
def test_ragged_sizes_are_padded_and_told(tmp_path_factory, sides, seed):
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 256, (8, side, 3) if lying else (side, 8, 3), np.uint8) for side, lying in sides]
    folder = write(tmp_path_factory.mktemp("ragged") / "s", images)
    batch = next(load_batches(EpochBatches(open_shards(folder), len(images), epoch=0), workers=0))
    assert batch["images"].dtype == torch.uint8
    assert tuple(batch["images"].shape[2:]) == tuple(batch["sizes"].amax(0).tolist())
    assert batch["label"].tolist() == [index % 3 for index in batch["index"].tolist()]
    for pixels, (height, width), index in zip(batch["images"], batch["sizes"].tolist(), batch["index"], strict=True):
        true = images[index]
        assert (height, width) == true.shape[:2]
        np.testing.assert_array_equal(pixels[:, :height, :width].permute(1, 2, 0), true)
        assert not pixels[:, height:].any()
        assert not pixels[:, :, width:].any()


def test_jpegs_are_decoded_to_rgb_also_from_grey(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), 77, np.uint8)).save(buffer, "JPEG")
    items = [Item("grey", buffer.getvalue()), Item("colour", np.full((8, 8, 3), (200, 10, 10), np.uint8))]
    write_shards(Source(2, lambda start: iter(items[start:]), "two"), ShardsConfig(out=str(tmp_path / "s"), size=8))
    batch = next(load_batches(EpochBatches(open_shards(tmp_path / "s"), 2), workers=0))
    assert batch["images"][0].unique().tolist() == [77]
    assert batch["images"][1].float().mean((1, 2)).tolist() == pytest.approx([200, 10, 10], abs=4)
    assert "label" not in batch


def test_open_shards_knows_samples_and_labels(tiny_shards):
    shards = open_shards(tiny_shards)
    assert (shards.samples, shards.labels, shards.classes, len(shards.urls)) == (50, (0, 1), 2, 4)


def damage(folder: Path, extension: bytes, replace: bytes) -> str:
    """Overwrite the first image of the second shard, keeping the tar whole; returns the shard's name."""
    path = folder / "shard-000001.tar"
    data = bytearray(path.read_bytes())
    start = data.index(extension)
    data[start : start + len(replace)] = replace
    path.write_bytes(data)
    return path.name


@pytest.mark.parametrize(("kind", "magic", "workers"), [("jpeg", b"\xff\xd8\xff", 1), ("raw", b"\x93NUMPY", 0)])
def test_a_damaged_image_names_its_sample_and_shard(tmp_path, kind, magic, workers):
    images = list(np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8))
    folder = write(tmp_path / "s", images, kind=kind)
    name = damage(folder, magic, b"\0" * 40)
    batches = EpochBatches(open_shards(folder), 4, epoch=None)
    with pytest.raises(ValueError, match=rf"sample 000000004 of .*{name} cannot be decoded.*murine shards verify="):
        list(load_batches(batches, workers))


@pytest.mark.parametrize("overwrite", [bytes(512), b"\xff" * 512])
def test_samples_hidden_by_a_damaged_tar_are_not_lost_in_silence(tmp_path, overwrite):
    images = list(np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8))
    folder = write(tmp_path / "s", images)
    path = folder / "shard-000001.tar"
    data = bytearray(path.read_bytes())
    header = data.index(b"000000006.")
    data[header : header + 512] = overwrite
    path.write_bytes(data)
    with pytest.raises((ValueError, tarfile.TarError), match=r"shard-000001|gave 6 samples, its index says 8"):
        list(load_batches(EpochBatches(open_shards(folder), 2, epoch=0), workers=0))


def test_an_array_of_objects_is_refused(tmp_path):
    images = list(np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8))
    folder = write(tmp_path / "s", images)
    path = folder / "shard-000001.tar"
    path.write_bytes(path.read_bytes().replace(b"'descr': '|u1'", b"'descr': '|O' ", 1))
    with pytest.raises(ValueError, match=r"sample 000000004 .*allow_pickle=False"):
        list(load_batches(EpochBatches(open_shards(folder), 4), workers=0))


@pytest.fixture
def rewritten(tiny_shards: Path, tmp_path: Path):
    """A copy of the tiny shards whose first entry in the index is changed."""

    def change(**entry: object) -> Path:
        for path in tiny_shards.iterdir():
            (tmp_path / path.name).hardlink_to(path)
        index = json.loads((tmp_path / "index.json").read_text())
        index["shards"][0] |= entry
        (tmp_path / "index.json").unlink()
        (tmp_path / "index.json").write_text(json.dumps(index))
        return tmp_path

    return change


@pytest.mark.parametrize("file", ["../secret.tar", "/etc/passwd", "sub/shard.tar", "pipe:cat x.tar", "pipe:id"])
def test_an_index_cannot_lead_out_of_its_folder(rewritten, file):
    with pytest.raises(ValueError, match=r"is not a shard beside it|should have .* bytes, found nothing"):
        open_shards(rewritten(file=file))


def test_a_shard_of_another_size_is_named(rewritten):
    with pytest.raises(ValueError, match=r"shard-000000.tar should have 7 bytes, found \d+.* bytes; write it again"):
        open_shards(rewritten(bytes=7))


def test_shards_that_are_not_named_are_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"data.labelled is not set; make shards"):
        open_shards(None, "data.labelled")
    with pytest.raises(FileNotFoundError, match="absent' does not exist"):
        open_shards(tmp_path / "absent")


def test_folders_with_odd_names_are_read(tiny_shards, tmp_path):
    folder = tmp_path / "a {0..3} #1 ?x=1 %20"
    folder.mkdir()
    for path in tiny_shards.iterdir():
        (folder / path.name).hardlink_to(path)
    assert len(indices(folder)) == 6
