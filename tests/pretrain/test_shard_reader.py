"""Reading single samples: what webdataset reads, of any shard at any time, and damage that costs only what it hides."""

import io
import os
import tarfile
from pathlib import Path
from typing import BinaryIO

import pytest
import webdataset as wds

from pretrain.shard_reader import OpenShard, ShardReader

SAMPLES = 12


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "a.tar"
    with wds.TarWriter(str(path), mtime=0) as tar:
        for number in range(SAMPLES):
            sample = {"__key__": f"{number:09d}", "jpg": os.urandom(1 + 97 * number), "cls": b"7"}
            tar.write(sample | ({"depth.png": b""} if number % 3 else {}))
    return path


def by_webdataset(path: Path) -> dict[str, dict[str, bytes]]:
    samples = wds.DataPipeline(wds.SimpleShardList([str(path)]), wds.tarfile_to_samples())
    return {sample["__key__"]: contents(sample) for sample in samples}


def contents(sample: dict) -> dict[str, bytes]:
    return {key: value for key, value in sample.items() if not key.startswith("__")}


def test_samples_are_those_of_webdataset(shard):
    expected, opened = by_webdataset(shard), OpenShard(shard.open("rb"))
    assert set(opened.samples) == set(expected)
    for key in sorted(expected, reverse=True):
        assert contents(opened.read(key)) == expected[key]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_others_are_read_too(tmp_path, form):
    path = tmp_path / "other.tar"
    with tarfile.open(path, "w", format=form) as tar:
        folder = tarfile.TarInfo("sub")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name in ("sub/x.one.jpg", "sub/x.CLS", "README", "sub/y.jpg"):
            info = tarfile.TarInfo(name)
            info.size = len(name)
            info.mtime = 1.5  # which pax keeps in a header of its own
            tar.addfile(info, io.BytesIO(name.encode()))
    opened = OpenShard(path.open("rb"))
    assert contents(opened.read("sub/x")) == {"one.jpg": b"sub/x.one.jpg", "cls": b"sub/x.CLS"}
    assert contents(opened.read("sub/y")) == {"jpg": b"sub/y.jpg"}


def test_a_tar_that_is_cut_keeps_what_lies_before(shard):
    expected = by_webdataset(shard)
    data = shard.read_bytes()
    for length in (0, 100, 512, len(data) // 2, len(data) // 2 + 300):
        shard.write_bytes(data[:length])
        opened = OpenShard(shard.open("rb"))
        for key in list(opened.samples)[:-1]:
            assert contents(opened.read(key)) == expected[key]
        with pytest.raises(KeyError, match=rf"is not there .the shard has {len(opened.samples)} others"):
            opened.read("000000011")


@pytest.mark.parametrize("field", [0, 124], ids=["name", "size"])
def test_a_damaged_header_hides_its_sample_or_the_rest(shard, field):
    expected, data = by_webdataset(shard), bytearray(shard.read_bytes())
    header = data.index(b"000000005.jpg")
    data[header + field : header + field + 4] = b"\xff\xff\xff\xff"
    shard.write_bytes(data)
    opened = OpenShard(shard.open("rb"))
    whole = [key for key in expected if key in opened.samples and contents(opened.read(key)) == expected[key]]
    assert whole == [f"{number:09d}" for number in range(SAMPLES) if (number != 5 if field == 0 else number < 5)]


def test_a_reader_keeps_few_files_open(shard, tmp_path):
    paths = []
    for number in range(5):
        paths.append(tmp_path / f"copy{number}.tar")
        paths[-1].write_bytes(shard.read_bytes())
    fetched: list[str] = []

    def opened(url: str) -> BinaryIO:
        fetched.append(url)
        return Path(url).open("rb")

    reader, before = ShardReader(opened, keep=2), len(os.listdir("/proc/self/fd"))
    for path in [*paths, paths[-1], paths[-2], paths[0]]:
        assert reader.read(str(path), "000000003")["__key__"] == "000000003"
    assert fetched == [str(path) for path in (*paths, paths[0])]
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    fetched.clear()
    for _ in range(3):
        with pytest.raises(OSError, match="absent"):
            reader.read(str(tmp_path / "absent.tar"), "000000003")
    assert len(fetched) == 1, "a shard that cannot be fetched is not asked for at every sample"
