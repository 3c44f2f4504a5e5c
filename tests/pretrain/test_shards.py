"""Shards: labels and indices, what cannot be read, interruption, and verification."""

import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pretrain import durable, shard_folder, shards
from pretrain.config import ShardsConfig
from pretrain.shards import read_index, verify_shards, write_shards
from pretrain.sources import Item, Source, open_source
from tests.pretrain.made_images import depth_png, encoded, gradient


def listed(items: list[Item]) -> Source:
    return Source(len(items), lambda start: iter(items[start:]), f"{len(items)} items")


def samples(folder: Path) -> dict[str, dict[str, bytes]]:
    """Every member of every shard, by global index and extension."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                found.setdefault(key, {})[extension] = tar.extractfile(member).read()
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_class_folders_become_shards_with_labels_and_an_index(class_folder, tiny_shards):
    index, found = read_index(tiny_shards), samples(tiny_shards)
    assert index["samples"] == len(found) == 50
    assert [entry["samples"] for entry in index["shards"]] == [16, 16, 16, 2]
    assert index["classes"] == ["green", "red"]
    assert index["labels"] == [0, 1]
    assert index["unreadable"] == []
    assert sorted(p.name for p in tiny_shards.iterdir()) == ["index.json", *(f"shard-{n:06d}.tar" for n in range(4))]
    for sample in found.values():
        red, green = np.asarray(Image.open(io.BytesIO(sample["jpg"])), float).mean((0, 1))[:2]
        assert (red > green) == (sample["cls"] == b"1")


def test_the_global_index_is_contiguous_over_shards_and_unreadable_images(tmp_path):
    items = [Item(f"{n}", b"broken" if n in (0, 5, 6, 11) else encoded(gradient(9, 9))) for n in range(20)]
    config = ShardsConfig(out=str(tmp_path / "s"), size=9, shard_samples=6, max_unreadable=0.5)
    index = write_shards(listed(items), config)
    assert sorted(samples(tmp_path / "s")) == [f"{n:09d}" for n in range(16)]
    assert [entry["samples"] for entry in index["shards"]] == [4, 4, 6, 2]


def test_unreadable_images_are_counted_listed_and_left_out(tmp_path, capsys):
    items = [Item(f"image {n}", b"no image" if n == 70 else encoded(gradient(9, 9))) for n in range(100)]
    index = write_shards(listed(items), ShardsConfig(out=str(tmp_path / "s"), size=9))
    assert index["samples"] == 99
    assert len(index["unreadable"]) == 1
    assert index["unreadable"][0] == "image 70: it is not an image"
    assert "1 unreadable images left out" in capsys.readouterr().err
    assert json.loads((tmp_path / "s" / "index.json").read_text()) == index


def test_more_than_one_per_cent_unreadable_fails_unless_allowed(tmp_path):
    items = [Item(f"image {n}", b"" if n in (3, 70) else encoded(gradient(9, 9))) for n in range(100)]
    keys = {"out": str(tmp_path / "s"), "size": 9, "shard_samples": 30}
    with pytest.raises(
        ValueError, match=r"2 of 100 images cannot be read, more than 1.0%; the first: image 3:.*max_unr"
    ):
        write_shards(listed(items), ShardsConfig(**keys))
    with pytest.raises(FileNotFoundError, match=r"no index.json .* interrupted; run it again"):
        read_index(tmp_path / "s")
    assert write_shards(listed(items), ShardsConfig(**keys, max_unreadable=0.02))["samples"] == 98


def test_nothing_readable_at_all_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="none of the 2 images could be read; the first: a: "):
        write_shards(
            listed([Item("a", b"x"), Item("b", b"y")]), ShardsConfig(out=str(tmp_path / "s"), max_unreadable=1)
        )


@pytest.mark.parametrize("kind", ["jpeg", "raw"])
def test_interrupted_anywhere_and_run_again_gives_the_same_bytes(class_folder, tmp_path, monkeypatch, kind):
    def config(name: str) -> ShardsConfig:
        return ShardsConfig(source=str(class_folder), out=str(tmp_path / name), size=24, shard_samples=9, format=kind)

    write_shards(open_source(config("whole")), config("whole"))
    names = [item.name for item in open_source(config("whole")).items(0)]
    original, stops = shards.encode, {names[place] for place in (4, 13, 29, 49)}

    def failing(item: Item, settings: ShardsConfig) -> shards.Encoded:
        if item.name in stops:
            stops.remove(item.name)
            raise KeyboardInterrupt
        return original(item, settings)

    monkeypatch.setattr(shards, "encode", failing)
    runs = 0
    while not (tmp_path / "stopped" / "index.json").exists():
        runs += 1
        try:
            write_shards(open_source(config("stopped")), config("stopped"))
        except KeyboardInterrupt:
            continue
    assert runs == 5
    assert contents(tmp_path / "whole") == contents(tmp_path / "stopped")


KILLED_WHILE_WRITING = """
import os, signal, sys
from pretrain import durable, shard_folder, shards
from pretrain.config import ShardsConfig
from pretrain.sources import open_source

original, seen = shards.encode, []

def encode(item, config):
    seen.append(item)
    if len(seen) >= 22:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(item, config)

shards.encode = encode
config = ShardsConfig(source=sys.argv[1], out=sys.argv[2], size=24, shard_samples=9)
shards.write_shards(open_source(config), config)
"""


def test_killed_and_run_again_gives_the_same_bytes(class_folder, tmp_path):
    out = tmp_path / "killed"
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, str(class_folder), str(out)]
    killed = subprocess.run(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (out / "index.json").exists()
    assert (out / "shard-000001.tar").exists()
    for name in ("killed", "whole"):
        config = ShardsConfig(source=str(class_folder), out=str(tmp_path / name), size=24, shard_samples=9)
        write_shards(open_source(config), config)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_shard_lost_after_an_interruption_is_written_again(class_folder, tmp_path, monkeypatch):
    config = ShardsConfig(source=str(class_folder), out=str(tmp_path / "s"), size=24, shard_samples=9)
    monkeypatch.setattr(shards, "finish", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_shards(open_source(config), config)
    whole = (tmp_path / "s" / "shard-000001.tar").read_bytes()
    (tmp_path / "s" / "shard-000001.tar").write_bytes(whole[:-1000])
    monkeypatch.undo()
    write_shards(open_source(config), config)
    assert (tmp_path / "s" / "shard-000001.tar").read_bytes() == whole
    assert verify_shards(tmp_path / "s") == []


def test_a_finished_folder_is_left_alone(class_folder, tmp_path, capsys):
    config = ShardsConfig(source=str(class_folder), out=str(tmp_path / "s"), size=24)
    index = write_shards(open_source(config), config)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").iterdir()}
    assert write_shards(open_source(config), config) == index
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "s").iterdir()} == before
    assert "is complete already: 50 images" in capsys.readouterr().err


@pytest.mark.parametrize("left", [0, 1000])
def test_a_shard_lost_since_is_written_again(class_folder, tmp_path, left, capsys):
    config = ShardsConfig(source=str(class_folder), out=str(tmp_path / "s"), size=24, shard_samples=9)
    write_shards(open_source(config), config)
    before = contents(tmp_path / "s")
    for name in ("shard-000001.tar", "shard-000004.tar"):
        path = tmp_path / "s" / name
        if left:
            path.write_bytes(path.read_bytes()[:left])
        else:
            path.unlink()
    write_shards(open_source(config), config)
    assert contents(tmp_path / "s") == before
    assert "writing 2 of 6 shards" in capsys.readouterr().err


def test_a_shard_that_cannot_become_what_it_was_is_one_line(class_folder, tmp_path):
    config = ShardsConfig(source=str(class_folder), out=str(tmp_path / "s"), size=24, shard_samples=9)
    write_shards(open_source(config), config)
    index = json.loads((tmp_path / "s" / "index.json").read_text())
    index["shards"][1]["sha256"] = "0" * 64
    (tmp_path / "s" / "index.json").write_text(json.dumps(index))
    (tmp_path / "s" / "shard-000001.tar").unlink()
    with pytest.raises(ValueError, match=r"^shard-000001.tar of .* does not become what the index says it was;.*out="):
        write_shards(open_source(config), config)
    assert not (tmp_path / "s" / "shard-000001.tar").exists()


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"size": 25}, "size=24, not 25"),
        ({"quality": 50}, "quality=95, not 50"),
        ({"format": "raw"}, "encoding='jpeg', not 'raw'"),
        ({"shard_samples": 8}, "shard_samples=9, not 8"),
        ({"seed": 1}, "another source"),
    ],
)
def test_another_config_into_the_same_folder_is_refused(class_folder, tmp_path, monkeypatch, finished, keys, line):
    keys_of_both = {"source": str(class_folder), "out": str(tmp_path / "s"), "size": 24, "shard_samples": 9}
    config = ShardsConfig(**keys_of_both)
    if not finished:
        monkeypatch.setattr(shards, "finish", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
    try:
        write_shards(open_source(config), config)
    except KeyboardInterrupt:
        monkeypatch.undo()
    other = ShardsConfig(**(keys_of_both | keys))
    with pytest.raises(FileExistsError, match=f"{line}.*choose another out="):
        write_shards(open_source(other), other)


def test_a_folder_with_other_files_is_refused(class_folder, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    config = ShardsConfig(source=str(class_folder), out=str(tmp_path))
    with pytest.raises(FileExistsError, match="is not empty and holds no shards"):
        write_shards(open_source(config), config)


@pytest.fixture
def copied(tiny_shards: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the tiny shards to damage."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in tiny_shards.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    assert verify_shards(folder) == []
    return folder


@settings(deadline=None, max_examples=20)
@given(shard=st.integers(0, 3), place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_verify_finds_any_changed_byte(tiny_shards, tmp_path_factory, shard, place, flip):
    folder = tmp_path_factory.mktemp("flipped")
    for path in tiny_shards.iterdir():
        (folder / path.name).hardlink_to(path)
    path = folder / f"shard-{shard:06d}.tar"
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= flip
    path.unlink()
    path.write_bytes(data)
    problems = verify_shards(folder)
    assert len(problems) == 1
    assert problems[0].startswith(f"{path.name}: SHA-256")


def test_verify_finds_missing_short_and_extra_shards(copied):
    (copied / "shard-000000.tar").unlink()
    short = (copied / "shard-000002.tar").read_bytes()[:-512]
    (copied / "shard-000002.tar").write_bytes(short)
    (copied / "shard-000009.tar").write_bytes(b"")
    problems = verify_shards(copied)
    assert [problem.split(":")[0] for problem in problems] == [
        "shard-000009.tar", "shard-000000.tar", "shard-000002.tar",
    ]  # fmt: skip
    assert "not in the index" in problems[0]
    assert "missing" in problems[1]
    assert f"{len(short):,} bytes" in problems[2]


@pytest.mark.parametrize(
    ("text", "line"),
    [("{", "is not JSON"), ("[]", "has no format"), ('{"format": "other"}', "was not written by `murine shards`")],
)
def test_an_index_that_is_not_ours_is_one_line(tmp_path, text, line):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(ValueError, match=line):
        read_index(tmp_path)


def test_no_index_says_how_to_make_shards(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no index.json in .*: make shards with `murine shards"):
        read_index(tmp_path)
    with pytest.raises(FileNotFoundError, match="absent' does not exist; make it with `murine shards`"):
        read_index(tmp_path / "absent")


def test_arrays_of_a_source_are_stored_exactly_as_raw(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 12, 12, 3), np.uint8)
    items = [Item(str(n), image, n) for n, image in enumerate(pixels)]
    write_shards(listed(items), ShardsConfig(out=str(tmp_path / "s"), size=12, format="raw"))
    for key, sample in samples(tmp_path / "s").items():
        np.testing.assert_array_equal(np.load(io.BytesIO(sample["npy"]), allow_pickle=False), pixels[int(key)])
        assert sample["cls"] == str(int(key)).encode()


def test_unreadable_depth_is_listed_and_indices_stay_contiguous(tmp_path):
    (tmp_path / "depth").mkdir()
    (tmp_path / "rgb").mkdir()
    for number in range(20):
        (tmp_path / "rgb" / f"{number:02d}.png").write_bytes(encoded(np.full((9, 12, 3), number, np.uint8), "PNG"))
        depth = np.full((9, 12), 10 * number, np.uint8)
        if number not in (3, 8):
            (tmp_path / "depth" / f"{number:02d}.png").write_bytes(depth_png(depth)[: 40 if number == 5 else None])
    config = ShardsConfig(
        source=str(tmp_path / "rgb"), depth=str(tmp_path / "depth"), out=str(tmp_path / "s"), size=9, format="raw",
        shard_samples=6, max_unreadable=0.2,
    )  # fmt: skip
    index = write_shards(open_source(config), config)
    assert index["depth"] is True
    assert sorted(line[:13] for line in index["unreadable"]) == ["03.png: depth", "05.png: depth", "08.png: depth"]
    found = samples(tmp_path / "s")
    assert sorted(found) == [f"{n:09d}" for n in range(17)]
    for sample in found.values():
        assert sample.keys() == {"npy", "depth.png"}
        depth = np.asarray(Image.open(io.BytesIO(sample["depth.png"])))
        assert (depth == 10 * np.load(io.BytesIO(sample["npy"]))[..., 0]).all()
    assert verify_shards(tmp_path / "s") == []
    assert write_shards(open_source(config), config) == index


def test_shards_with_and_without_depth_do_not_share_a_folder(tmp_path):
    items = [Item(str(n), gradient(9, 9), depth=np.zeros((9, 9), np.uint8)) for n in range(3)]
    for name, first, second, line in (
        ("a", None, "d", "depth=None, not True"),
        ("b", "d", None, "depth=True, not None"),
    ):
        out = str(tmp_path / name)
        index = write_shards(listed(items), ShardsConfig(out=out, size=9, depth=first))
        assert index["depth"] is (first is not None)
        with pytest.raises(FileExistsError, match=line):
            write_shards(listed(items), ShardsConfig(out=out, size=9, depth=second))


def test_shards_from_before_depth_are_complete_still(copied, class_folder):
    index = json.loads((copied / "index.json").read_text())
    del index["depth"], index["plan"]["depth"]
    (copied / "index.json").write_text(json.dumps(index))
    config = ShardsConfig(source=str(class_folder), out=str(copied), size=40, shard_samples=16)
    assert write_shards(open_source(config), config) == index


FIRST_PLAN = {
    "format": "murine-shards-1", "depth": None, "images": 50, "size": 40, "encoding": "jpeg", "quality": 95,
    "shard_samples": 16, "classes": ["green", "red"],
}  # fmt: skip


def test_the_plan_of_an_image_folder_is_as_it_always_was(tiny_shards, class_folder):
    plan = read_index(tiny_shards)["plan"]
    source = open_source(ShardsConfig(source=str(class_folder)))
    listing = "\n".join(f"{item.name}:{(class_folder / item.name).stat().st_size}" for item in source.items(0))
    assert plan == FIRST_PLAN | {"source": hashlib.sha256(listing.encode()).hexdigest()}


def test_shards_from_before_clips_are_complete_still(copied, class_folder):
    index = json.loads((copied / "index.json").read_text())
    for key in ("kind", "signals", "frame_rates_hz", "frames_left_out"):
        del index[key]
    (copied / "index.json").write_text(json.dumps(index))
    config = ShardsConfig(source=str(class_folder), out=str(copied), size=40, shard_samples=16)
    assert write_shards(open_source(config), config) == index
    assert verify_shards(copied) == []


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_the_bytes_do_not_depend_on_the_number_of_threads(class_folder, tiny_shards, tmp_path, workers):
    config = ShardsConfig(
        source=str(class_folder), out=str(tmp_path / "s"), size=40, shard_samples=16, workers=workers
    )  # fmt: skip
    write_shards(open_source(config), config)
    assert contents(tmp_path / "s") == contents(tiny_shards)


def test_only_a_few_items_are_read_ahead(tmp_path, monkeypatch):
    read, written, most = 0, 0, 0

    def items(start: int) -> Iterator[Item]:
        nonlocal read, most
        for number in range(start, 400):
            read += 1
            most = max(most, read - written)
            yield Item(str(number), gradient(9, 9))

    def add(self: shards.Contents, *arguments: object) -> None:
        nonlocal written
        written += 1
        original(self, *arguments)

    original = shards.Contents.add
    monkeypatch.setattr(shards.Contents, "add", add)
    write_shards(Source(400, items, "counted"), ShardsConfig(out=str(tmp_path / "s"), size=9, workers=2))
    assert (read, written) == (400, 400)
    assert most <= shards.TRIED["images"] + shards.IN_FLIGHT * 2


def test_a_disk_without_room_is_said_before_anything_is_written(class_folder, tmp_path, monkeypatch):
    config = ShardsConfig(source=str(class_folder), out=str(tmp_path / "s"), size=40, shard_samples=16)
    needed = sum((Path(tmp_path / "t") / name).stat().st_size for name in sizes_of(class_folder, tmp_path / "t"))
    for free, fits in ((int(0.8 * needed), False), (int(1.2 * needed), True)):
        usage = type("Usage", (), {"free": free})
        monkeypatch.setattr(shard_folder.shutil, "disk_usage", lambda path, usage=usage: usage)
        if fits:
            assert write_shards(open_source(config), config)["samples"] == 50
            continue
        with pytest.raises(OSError, match=r"the shards need about 0.2 MB in '.*s', 0.1 MB are free; free some, or"):
            write_shards(open_source(config), config)
        assert not list((tmp_path / "s").glob("*.tar"))
    # As the line advises.
    monkeypatch.undo()
    monkeypatch.setattr(shard_folder.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 0}))
    smaller = replace(config, out=str(tmp_path / "u"))
    with pytest.raises(OSError, match="a smaller size="):
        write_shards(open_source(smaller), smaller)
    monkeypatch.undo()
    smaller = replace(smaller, size=20)
    assert write_shards(open_source(smaller), smaller)["samples"] == 50


def sizes_of(class_folder: Path, out: Path) -> list[str]:
    config = ShardsConfig(source=str(class_folder), out=str(out), size=40, shard_samples=16)
    return [entry["file"] for entry in write_shards(open_source(config), config)["shards"]]


def test_a_disk_that_fills_up_keeps_the_finished_shards(class_folder, tiny_shards, tmp_path, monkeypatch):
    config = ShardsConfig(source=str(class_folder), out=str(tmp_path / "s"), size=40, shard_samples=16)
    original, room = durable.HashingFile.write, 0

    def write(self: durable.HashingFile, data: bytes) -> int:
        nonlocal room
        room -= len(data)
        if room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, data)

    monkeypatch.setattr(durable.HashingFile, "write", write)
    room = sum((tiny_shards / f"shard-{n:06d}.tar").stat().st_size for n in (0, 1)) + 20000
    with pytest.raises(OSError, match=r"no space left for shard-000002.tar of .*; the 2 shards before it are complete"):
        write_shards(open_source(config), config)
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == [
        "journal", "shard-000000.tar", "shard-000001.tar",
    ]  # fmt: skip
    monkeypatch.undo()
    write_shards(open_source(config), config)
    assert contents(tmp_path / "s") == contents(tiny_shards)


def test_images_cannot_be_kept_as_encoded_videos(tmp_path):
    config = ShardsConfig(out=str(tmp_path / "s"), format="encoded")
    with pytest.raises(ValueError, match="format=encoded keeps whole videos as they were"):
        write_shards(listed([Item("a", gradient(9, 9))]), config)
    assert not (tmp_path / "s").exists()
