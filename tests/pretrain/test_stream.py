"""Reading shards: the order is a function of seed and epoch, nothing is lost or repeated, damage is named."""

import io
import json
import shutil
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from neural_data.natural_images import depth_samples
from pretrain import stream
from pretrain.checkpoint import BackboneSpec
from pretrain.config import ShardsConfig, ViewsConfig
from pretrain.objectives.objective import Wants
from pretrain.shard_set import Damage, open_shards
from pretrain.shards import write_shards
from pretrain.sources import Item, Source
from pretrain.step_timer import StepTimer
from pretrain.stream import EpochBatches, load_batches
from pretrain.views import ViewMaker
from ray_jobs.verbs import shards


def indices(shards: Path, workers: int = 0, **arguments: object) -> list[list[int]]:
    """Global indices, batch by batch."""
    defaults = {"batch_size": 8, "epoch": 0, "buffer": 20}
    batches = EpochBatches(open_shards(shards), **(defaults | arguments))
    return [batch["index"].tolist() for batch in load_batches(batches, workers)]


def indices_of(batches: EpochBatches, workers: int) -> list[list[int]]:
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


def write_with_depth(folder: Path, shapes: list[tuple[int, int]], dtypes: list[type], kind: str = "raw") -> list:
    """Shards of images of these heights and widths with random depth; returns the images and the depths."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]
    depths = [rng.integers(0, np.iinfo(d).max + 1, shape, d) for shape, d in zip(shapes, dtypes, strict=True)]
    items = [Item(str(n), image, depth=depth) for n, (image, depth) in enumerate(zip(images, depths, strict=True))]
    source = Source(len(items), lambda start: iter(items[start:]), "arrays")
    write_shards(source, ShardsConfig(out=str(folder), size=8, format=kind, shard_samples=2, depth="a folder"))
    return [images, depths]


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ([np.uint8] * 3, torch.uint8),
        ([np.uint16] * 3, torch.int32),
        ([np.uint8, np.uint16, np.uint8], torch.int32),
    ],
)
def test_depth_is_padded_like_its_images(tmp_path, kind, dtypes, expected):
    _, depths = write_with_depth(tmp_path / "s", [(8, 13), (11, 8), (8, 8)], dtypes, kind)
    shards = open_shards(tmp_path / "s")
    assert shards.depth
    batch = next(load_batches(EpochBatches(shards, 3, seed=1, epoch=0), workers=0))
    assert batch["depth"].dtype == expected
    assert batch["depth"].shape == (3, 1, *batch["images"].shape[2:])
    for found, (height, width), index in zip(batch["depth"], batch["sizes"].tolist(), batch["index"], strict=True):
        np.testing.assert_array_equal(found[0, :height, :width], depths[index])
        assert not found[0, height:].any()
        assert not found[0, :, width:].any()


def test_shards_without_depth_have_none(tiny_shards, rewritten):
    assert not open_shards(tiny_shards).depth
    assert "depth" not in next(load_batches(EpochBatches(open_shards(tiny_shards), 4), workers=0))
    folder = rewritten()
    index = json.loads((folder / "index.json").read_text())
    del index["depth"]
    (folder / "index.json").write_text(json.dumps(index))
    assert not open_shards(folder).depth


def test_depth_of_another_shape_than_its_image_names_the_sample(tmp_path):
    write_with_depth(tmp_path / "s", [(8, 8)] * 4, [np.uint8] * 4)
    path = tmp_path / "s" / "shard-000001.tar"
    data = path.read_bytes()
    width_and_height = (8).to_bytes(4, "big") * 2
    start = data.index(b"IHDR") + 4
    assert data[start : start + 8] == width_and_height
    header = b"IHDR" + (8).to_bytes(4, "big") + (4).to_bytes(4, "big") + data[start + 8 : start + 13]
    checked = header + zlib.crc32(header).to_bytes(4, "big")
    path.write_bytes(data[: start - 4] + checked + data[start - 4 + len(checked) :])
    with pytest.raises(ValueError, match=r"sample 000000002 .*depth map has shape \(4, 8\), the image \(8, 8\)"):
        list(load_batches(EpochBatches(open_shards(tmp_path / "s"), 4), workers=0))


def test_simulated_shards_have_the_true_depth_of_their_leaves(tmp_path, capsys):
    keys = {"source": "simulated", "depth": "simulated", "images": 20, "size": 24, "seed": 3, "format": "raw"}
    config = ShardsConfig(out=str(tmp_path / "s"), **keys)
    shards(config)
    assert "20 images and depth maps, no labels, 1 shards" in capsys.readouterr().out
    shards(ShardsConfig(verify=str(tmp_path / "s")))
    batch = next(load_batches(EpochBatches(open_shards(tmp_path / "s"), 20, epoch=0), workers=0))
    expected = list(depth_samples(20, 24, seed=3))
    for image, depth, index in zip(batch["images"], batch["depth"], batch["index"], strict=True):
        np.testing.assert_array_equal(image.permute(1, 2, 0), expected[index][1])
        np.testing.assert_array_equal(depth[0], expected[index][2])
    assert "label" not in batch
    for wrong in ({"depth": "folder"}, {"depth_column": "depth"}):
        with pytest.raises(ValueError, match="source=simulated takes no other depth than depth=simulated"):
            shards(ShardsConfig(out=str(tmp_path / "t"), **(keys | wrong)))
    for wrong in ({"label_column": "kind"}, {"clip_frames": 4}, {"labels": "a.csv"}, {"frame_rate_hz": 30.0}):
        (named,) = (f"leave out {key}={value}$" for key, value in wrong.items())
        with pytest.raises(ValueError, match=named):
            shards(ShardsConfig(out=str(tmp_path / "t"), **(keys | wrong)))
    with pytest.raises(FileExistsError, match="depth=True, not None"):
        shards(ShardsConfig(out=str(tmp_path / "s"), **(keys | {"depth": None})))


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


def test_a_few_damaged_samples_are_named_once_and_stood_in_for(tmp_path, capsys):
    images = list(np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8))
    folder = write(tmp_path / "s", images)
    damage(folder, b"\x93NUMPY", b"\0" * 40)
    wanted = EpochBatches(open_shards(folder, damaged_share=0.05), 5, epoch=0, epochs=3)
    counted = Damage(wanted.shards)
    for batch, numbers in zip(load_batches(wanted, 0, damage=counted), wanted.numbers(), strict=True):
        expected = numbers.tolist()
        if 4 in expected:
            place = expected.index(4)
            expected[place] = (expected[place + 1 :] + expected)[0]
        assert batch["index"].tolist() == expected
        for image, index in zip(batch["images"], expected, strict=True):
            np.testing.assert_array_equal(image.permute(1, 2, 0), images[index])
    assert len(counted.named) == 1
    assert capsys.readouterr().err.count("left out: sample 000000004 of") == 1
    with pytest.raises(ValueError, match=r"1 of 20 samples of .* more than data.damaged_share=0.04: sample 000000004"):
        list(load_batches(EpochBatches(open_shards(folder, damaged_share=0.04), 5), 0))


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_of_which_nothing_can_be_read_is_that_of_the_next_good_sample(tmp_path, workers):
    images = list(np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8))
    folder = write(tmp_path / "s", images)
    for _ in range(4):
        damage(folder, b"\x93NUMPY", b"\0" * 40)
    few = open_shards(folder, damaged_share=0.2)
    assert indices_of(EpochBatches(few, 2), workers) == [
        [0, 1],
        [2, 3],
        [8, 8],
        [8, 8],
        *[[n, n + 1] for n in range(8, 20, 2)],
    ]
    with pytest.raises(
        ValueError, match=r"^\d of 20 samples of .* more than data.damaged_share=0.15: sample 000000004"
    ):
        indices_of(EpochBatches(open_shards(folder, damaged_share=0.15), 2), workers)


def test_a_set_of_which_nothing_can_be_read_is_one_line(tmp_path):
    folder = write(tmp_path / "s", [np.zeros((8, 8, 3), np.uint8)] * 4)
    shard = next(folder.glob("*.tar"))
    shard.write_bytes(shard.read_bytes().replace(b"\x93NUMPY", b"\0" * 6))
    with pytest.raises(ValueError, match=r"^no sample of .* can be read; remove the shards, and let the same"):
        list(load_batches(EpochBatches(open_shards(folder, damaged_share=1), 2), 0))


def test_what_could_not_be_read_is_counted_on_when_a_run_goes_on(tiny_shards):
    shards = open_shards(tiny_shards, damaged_share=0.05)
    before, after = Damage(shards), Damage(shards)
    before.note(["sample 1", "sample 2"])
    after.restore(before.state())
    with pytest.raises(ValueError, match="3 of 50 samples"):
        after.note(["sample 2", "sample 3"])


@pytest.mark.parametrize("cut", [0, 3000])
def test_a_shard_that_is_missing_or_cut_is_said_and_left_out(tmp_path, cut, capsys):
    images = list(np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8))
    folder = write(tmp_path / "s", images)
    path = folder / "shard-000002.tar"
    if cut:
        path.write_bytes(path.read_bytes()[:cut])
    else:
        path.unlink()
    with pytest.raises(ValueError, match=r"of 40 samples of .* data.damaged_share=0.001: shard-000002.tar should have"):
        open_shards(folder)
    left = open_shards(folder, damaged_share=0.1)
    assert "samples of" in capsys.readouterr().err
    batches = load_batches(EpochBatches(left, 4, epoch=1, drop_last=False), 0)
    there = sum(left.readable)
    assert sorted(flat([batch["index"].tolist() for batch in batches])) == [*range(there - 28), *range(12, 40)]
    assert there == (37 if cut else 36)
    assert left.samples == 40


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
    with pytest.raises(ValueError, match=r"shard-000000.tar should have 7 bytes, found \d+.* bytes; find all"):
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


CLIP_VIEWS = ViewsConfig(size=12, clip_frames=4, clip_stride=2, speed_min=0.5, speed_max=2.0)


def clip_views(rank: int = 0, world: int = 1) -> ViewMaker:
    spec = BackboneSpec("any", {}, 12, [0.0] * 3, [1.0] * 3)
    return ViewMaker(CLIP_VIEWS, spec, Wants(views=2), 3, torch.device("cpu"), rank, world)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize(("workers", "rank", "world"), [(0, 0, 1), (2, 0, 1), (0, 1, 2)])
def test_of_clips_only_the_frames_that_views_show_are_decoded_and_views_are_the_same(long_clips, workers, rank, world):
    views, step = clip_views(rank, world), 2
    order = {"batch_size": 4, "seed": 1, "epoch": 0, "start": 2, "rank": rank, "world": world, "epochs": 2}
    whole = list(load_batches(EpochBatches(open_shards(long_clips), **order), 0))
    few = list(load_batches(EpochBatches(open_shards(long_clips), **order, times=views.times(step)), workers))
    assert len(whole) == len(few) == 4
    for number, (all_frames, shown) in enumerate(zip(whole, few, strict=True)):
        assert shown["video"].shape[2] == shown["frames"].max() <= 2 * CLIP_VIEWS.clip_frames
        assert torch.equal(shown["index"], all_frames["index"])
        assert torch.equal(shown["frame_rate_hz"], all_frames["frame_rate_hz"])
        expected, found = (views.training(batch, step + number)["views"] for batch in (all_frames, shown))
        assert torch.equal(found, expected)
    joined = list(views.stream(few, step, StepTimer(torch.device("cpu"))))
    assert torch.equal(joined[-1]["views"], found)


def test_signals_are_those_of_the_frames_that_are_shown(long_clips):
    wanted = {"shards": open_shards(long_clips), "batch_size": 4}
    whole = next(load_batches(EpochBatches(**wanted), 0))
    few = next(load_batches(EpochBatches(**wanted, times=clip_views().times(0)), 0))
    for row in range(4):
        for place, frame in enumerate(few["video"][row].unbind(1)[: few["frames"][row]]):
            same = (whole["video"][row] == frame[:, None]).flatten(2).all(2).all(0)
            assert torch.equal(few["gaze"][row][:, place], whole["gaze"][row][:, same].squeeze(1))


def test_clips_that_stand_in_for_damaged_ones_show_what_they_would_decoded_whole(long_clips, tmp_path):
    shutil.copytree(long_clips, tmp_path / "s")
    (path,) = (tmp_path / "s").glob("*.tar")
    data = bytearray(path.read_bytes())
    for number in (1, 2, 8, 9, 10, 11):
        start = data.index(b"\x93NUMPY", data.index(f"{number:09d}.clip.npy".encode()))
        data[start : start + 6] = b"broken"
    path.write_bytes(data)
    shards, views = open_shards(tmp_path / "s", damaged_share=0.6), clip_views()
    whole = list(load_batches(EpochBatches(shards, 4), 0))
    few = list(load_batches(EpochBatches(shards, 4, times=views.times(0)), 0))
    assert [batch["index"].tolist() for batch in few] == [[0, 3, 3, 3], [4, 5, 6, 7], [0, 0, 0, 0]]
    for number, batches in enumerate(zip(whole, few, strict=True)):
        expected, found = (views.training(batch, number)["views"] for batch in batches)
        assert torch.equal(found, expected)


def test_a_clip_that_is_damaged_where_it_would_stand_in_leaves_that_to_the_next(long_clips, monkeypatch):
    """Clip 0 cannot be read, and clip 1 not at the times of the view of clip 0."""
    shards, decode, asked = open_shards(long_clips, damaged_share=0.5), stream.decode, []

    def damaged(sample, times=None):
        index = int(sample["__key__"])
        asked.append(index)
        if index == 0 or (index == 1 and asked.count(1) == 2):
            raise ValueError("cannot be decoded (as it happens)")
        return decode(sample, times)

    monkeypatch.setattr(stream, "decode", damaged)
    batch = next(load_batches(EpochBatches(shards, 4, times=clip_views().times(0)), 0))
    assert batch["index"].tolist() == [2, 2, 2, 3]
