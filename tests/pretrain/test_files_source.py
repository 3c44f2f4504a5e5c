"""Images of archives and folders through `open_source`: ImageNet's and WebDataset's layouts, labels, signals, depth."""

import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from pretrain import storage
from pretrain.config import ShardsConfig
from pretrain.items import Source
from pretrain.shards import write_shards
from pretrain.sources import open_source
from pretrain.storage import file_system
from tests.pretrain.web_server import WebServer, serving


def jpeg(value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (10, 12), (value, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def tar_bytes(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def opened(place: Path | str, **keys: object) -> Source:
    return open_source(ShardsConfig(source=str(place), **keys))


def labelled(source: Source) -> dict[str, tuple[bytes, int | None]]:
    return {item.name: (item.image.read_bytes(), item.label) for item in source.items(0)}


CLASSES = {f"{name}/{n}.jpg": jpeg(20 * n + k) for k, name in enumerate(("bee", "ant")) for n in range(8)}


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path | str]:
    """The same class folders as a folder, a tar, a zip, and each behind a URL."""
    for name, data in CLASSES.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(data)
    (tmp_path / "a.tar").write_bytes(tar_bytes({f"photos/{name}": data for name, data in CLASSES.items()}))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, data in CLASSES.items():
            archive.writestr(name, data)
    system = fsspec.filesystem("memory")
    system.put(str(tmp_path / "folder"), "/photos", recursive=True)
    for name in ("a.tar", "a.zip"):
        system.put_file(str(tmp_path / name), f"/archives/{name}")
    found: dict[str, Path | str] = {name: tmp_path / name for name in ("folder", "a.tar", "a.zip")}
    return found | {
        "url": "memory://photos",
        "tar url": "memory://archives/a.tar",
        "zip url": "memory://archives/a.zip",
    }


def test_class_folders_are_the_same_wherever_they_lie(places):
    found = {kind: opened(place, seed=3) for kind, place in places.items()}
    expected = {name: (data, int(name.startswith("bee"))) for name, data in CLASSES.items()}
    orders = set()
    for source in found.values():
        assert source.classes == ("ant", "bee")
        assert labelled(source) == expected
        orders.add(tuple(item.name for item in source.items(0)))
        assert [item.name for item in source.items(5)] == [item.name for item in source.items(0)][5:]
    assert len(orders) == len({source.fingerprint for source in found.values()}) == 1


def test_imagenets_training_tars_nested_or_in_a_folder(tmp_path):
    synsets = {
        f"{synset}.tar": tar_bytes({f"{synset}_{n}.JPEG": jpeg(20 * n + k) for n in range(4)})
        for k, synset in enumerate(("n02000000", "n01440764"))
    }
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(tar_bytes(synsets))
    (tmp_path / "train").mkdir()
    for name, data in synsets.items():
        (tmp_path / "train" / name).write_bytes(data)
    for place in ("ILSVRC2012_img_train.tar", "train"):
        source = opened(tmp_path / place)
        assert source.classes == ("n01440764", "n02000000")
        assert labelled(source) == {
            f"{synset}/{synset}_{n}.JPEG": (jpeg(20 * n + k), 1 - k)
            for k, synset in enumerate(("n02000000", "n01440764"))
            for n in range(4)
        }


def test_imagenets_validation_tar_takes_its_labels_from_a_list(tmp_path):
    names = [f"ILSVRC2012_val_{n:08d}.JPEG" for n in range(1, 7)]
    (tmp_path / "val.tar").write_bytes(tar_bytes({name: jpeg(n) for n, name in enumerate(reversed(names))}))
    (tmp_path / "labels.txt").write_text("n03\nn01\nn02\nn01\nn03\nn02\n")
    keys = {"labels": str(tmp_path / "labels.txt")}
    source = opened(tmp_path / "val.tar", **keys)
    assert source.classes == ("n01", "n02", "n03")
    assert [label for _, (_, label) in sorted(labelled(source).items())] == [2, 0, 1, 0, 2, 1]
    assert opened(tmp_path / "val.tar").classes is None
    (tmp_path / "labels.txt").write_text("n01\nn03\nn02\nn01\nn03\nn02\n")
    assert opened(tmp_path / "val.tar", **keys).fingerprint != source.fingerprint


def test_webdataset_tars_one_or_many(tmp_path):
    def sample(n: int) -> dict[str, bytes]:
        return {f"{n % 5:04d}.jpg": jpeg(n), f"{n % 5:04d}.cls": str(n % 3).encode(), f"{n % 5:04d}.txt": b"caption"}

    (tmp_path / "many").mkdir()
    for part in range(2):
        files = {name: data for n in range(5 * part, 5 * part + 5) for name, data in sample(n).items()}
        (tmp_path / "many" / f"{part:05d}.tar").write_bytes(tar_bytes(files))
    found = labelled(opened(tmp_path / "many"))
    assert found == {f"{n // 5:05d}.tar/{n % 5:04d}.jpg": (jpeg(n), n % 3) for n in range(10)}
    one = labelled(opened(tmp_path / "many" / "00001.tar"))
    assert one == {f"{n % 5:04d}.jpg": (jpeg(n), n % 3) for n in range(5, 10)}
    (tmp_path / "many" / "00002.tar").write_bytes(tar_bytes({"0000.jpg": jpeg()}))
    with pytest.raises(ValueError, match=r"1 of 11 samples have no .cls or .json; first: '00002.tar/0000.jpg'"):
        opened(tmp_path / "many")


def test_tars_that_are_parts_have_no_labels_or_class_folders_within(tmp_path):
    for part in range(2):
        (tmp_path / f"{part}.tar").write_bytes(tar_bytes({"1.jpg": jpeg(part), "2.jpg": jpeg(part)}))
    source = opened(tmp_path)
    assert source.classes is None
    assert sorted(labelled(source)) == ["0.tar/1.jpg", "0.tar/2.jpg", "1.tar/1.jpg", "1.tar/2.jpg"]
    for part in range(2):
        (tmp_path / f"{part}.tar").write_bytes(tar_bytes({f"{name}/{part}.jpg": jpeg(part) for name in ("bee", "ant")}))
    assert opened(tmp_path).classes == ("ant", "bee")


def test_shards_of_ours_are_a_source_again(tiny_shards):
    source = opened(tiny_shards)
    assert source.count == 50
    assert {item.label for item in source.items(0)} == {0, 1}
    assert source.kind == "images"


def test_signals_beside_images(tmp_path):
    for n in range(4):
        (tmp_path / f"{n}.jpg").write_bytes(jpeg(n))
        np.savez(tmp_path / f"{n}.npz", behavior=np.array([n, 2.0]), speed=np.float64(n))
        np.save(tmp_path / f"{n}.pupil_center.npy", np.arange(2) + n)
    source = opened(tmp_path)
    assert source.signals == ("behavior", "pupil_center", "speed")
    for item in source.items(0):
        n = int(item.name[0])
        found = {name: signal.read() for name, signal in item.signals.items()}
        assert {values.dtype for values in found.values()} == {np.dtype(np.float32)}
        np.testing.assert_array_equal(found["behavior"], [n, 2])
        np.testing.assert_array_equal(found["pupil_center"], [n, n + 1])
        np.testing.assert_array_equal(found["speed"], [n])
    (tmp_path / "2.npz").unlink()
    lacking = next(item for item in opened(tmp_path).items(0) if item.name == "2.jpg")
    assert lacking.signals["behavior"] is None
    assert opened(tmp_path).fingerprint != source.fingerprint


@pytest.mark.parametrize("name", ["label", "index", "images", "sizes", "video", "frames", "epoch", "views"])
def test_a_signal_that_would_replace_an_entry_of_batches_is_refused(tmp_path, name):
    (tmp_path / "a.jpg").write_bytes(jpeg())
    np.savez(tmp_path / "a.npz", **{name: np.zeros(2)})
    with pytest.raises(ValueError, match=f"signal '{name}' of a.npz: batches have an entry of that name already"):
        opened(tmp_path)
    (tmp_path / "a.npz").unlink()
    np.save(tmp_path / f"a.{name}.npy", np.zeros(2))
    with pytest.raises(ValueError, match=f"signal '{name}' of a.{name}.npy: batches have an entry"):
        opened(tmp_path)


def test_arrays_that_belong_to_no_image_change_nothing(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg())
    before = opened(tmp_path)
    np.save(tmp_path / "other.npy", np.zeros(3))
    np.savez(tmp_path / "b.npz", x=np.zeros(3))
    after = opened(tmp_path)
    assert (before.fingerprint, before.signals) == (after.fingerprint, after.signals) == (after.fingerprint, ())


def test_depth_images_go_with_archives_too(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_bytes({f"{n}.jpg": jpeg(n) for n in range(3)}))
    (tmp_path / "depth").mkdir()
    for n in range(2):
        (tmp_path / "depth" / f"{n}.png").write_bytes(jpeg(n))
    found = {item.name: item.depth for item in opened(tmp_path / "a.tar", depth=str(tmp_path / "depth")).items(0)}
    assert found == {"0.jpg": tmp_path / "depth/0.png", "1.jpg": tmp_path / "depth/1.png", "2.jpg": None}


def test_what_is_left_alone_is_said(tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(jpeg())
    for name in ("b.mp4", "c.parquet", "d.zip", "deep/e.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert opened(tmp_path).count == 1
    said = capsys.readouterr().err
    assert "its 1 .parquet and 1 .zip files are left alone" in said
    assert "its 1 videos are left alone" in said
    assert "the files lie flat; 1 others in folders below are left alone" in said


@pytest.mark.parametrize(
    ("name", "data", "keys", "line"),
    [
        ("a.tar.gz", b"x", {}, "is compressed, and has no random order; decompress it to a .tar first"),
        ("a.tar", tar_bytes({"a.txt": b"x"}), {}, "no images in .*a.tar"),
        ("a.tar", tar_bytes({"a.jpg": b"x"}), {"clip_frames": 3}, "clip_frames and format=encoded are for videos"),
        ("a.tar", tar_bytes({"a.jpg": b"x"}), {"format": "encoded"}, "clip_frames and format=encoded are for videos"),
        ("a.tar", tar_bytes({"a.jpg": b"x"}), {"depth_column": "d"}, "depth_column is for Parquet files"),
        ("a.tar", tar_bytes({"a.jpg": b"x", "a.json": b"{"}), {}, "label file 'a.json' cannot be read"),
        ("a.tar", tar_bytes({"a.jpg": b"x", "a.npz": b"no"}), {}, "a.npz cannot be read as .npz"),
        ("a.tar", tar_bytes({"a.jpg": b"x", "a.Run.npy": b"no"}), {}, "signal 'Run' of a.Run.npy: .* small letters"),
    ],
)
def test_what_cannot_be_a_source_is_one_line(tmp_path, name, data, keys, line):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=line) as error:
        opened(tmp_path / name, **keys)
    assert "\n" not in str(error.value)


def test_a_url_that_leads_nowhere_is_one_line():
    with pytest.raises(FileNotFoundError, match="source 'memory://nowhere' does not exist"):
        opened("memory://nowhere")


@pytest.fixture
def server(places, tmp_path, monkeypatch) -> Iterator[WebServer]:
    """A web server of the class folders, the tar and the zip."""
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(storage, "WAIT_S", 0.001)
    with serving(tmp_path) as found:
        yield found


@pytest.mark.parametrize("place", ["folder", "a.tar", "a.zip"])
def test_a_busy_server_costs_no_image(server, tmp_path, place):
    config = ShardsConfig(source=str(tmp_path / place), out=str(tmp_path / "expected"), size=8, shard_samples=5)
    expected = write_shards(open_source(config), config)
    server.handler.busy_every = 4
    config = ShardsConfig(source=f"{server.url}/{place}", out=str(tmp_path / "out"), size=8, shard_samples=5)
    index = write_shards(open_source(config), config)
    assert (index["shards"], index["unreadable"]) == (expected["shards"], [])


@pytest.mark.parametrize("place", ["folder", "a.tar", "a.zip"])
def test_a_server_that_goes_down_stops_the_run_and_no_image_is_left_out(server, tmp_path, monkeypatch, place):
    # Otherwise fsspec would hold the whole zip, once it is listed.
    monkeypatch.setattr(file_system(server.url)[0], "block_size", 64)
    out = {"out": str(tmp_path / "out"), "max_unreadable": 1.0}
    config = ShardsConfig(source=f"{server.url}/{place}", size=8, shard_samples=5, **out)
    source = open_source(config)
    server.handler.down = True
    with pytest.raises(OSError, match=r"cannot be read, tried 6 times: the server answers 503 Service"):
        write_shards(source, config)
    server.handler.down = False
    index = write_shards(open_source(config), config)
    assert (index["samples"], index["unreadable"]) == (len(CLASSES), [])


def test_an_image_that_is_gone_from_a_server_is_listed(server, tmp_path):
    config = ShardsConfig(source=f"{server.url}/folder", out=str(tmp_path / "out"), size=8, max_unreadable=0.1)
    source = open_source(config)
    (tmp_path / "folder/bee/3.jpg").unlink()
    index = write_shards(source, config)
    assert index["samples"] == len(CLASSES) - 1
    assert index["unreadable"] == [f"bee/3.jpg: FileNotFoundError: {server.url}/folder/bee/3.jpg does not exist"]


def test_labels_and_depth_behind_a_url(server, tmp_path):
    (tmp_path / "labels.txt").write_text("".join(f"{name} {name[0]}\n" for name in CLASSES))
    (tmp_path / "depth").mkdir()
    for name in CLASSES:
        (tmp_path / "depth" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "depth" / name).with_suffix(".png").write_bytes(jpeg(9))
    source = opened(f"{server.url}/folder", labels=f"{server.url}/labels.txt?sig=x", depth=f"{server.url}/depth")
    assert source.classes == ("a", "b")
    assert {item.name: item.label for item in source.items(0)} == {name: int(name[0] == "b") for name in CLASSES}
    assert {item.depth.read_bytes() for item in source.items(0)} == {jpeg(9)}
    with pytest.raises(FileNotFoundError, match=r"http://.*/absent.txt does not exist"):
        opened(f"{server.url}/folder", labels=f"{server.url}/absent.txt")
    with pytest.raises(ValueError, match=r"no images in the depth folder 'http://.*/absent'"):
        opened(f"{server.url}/folder", depth=f"{server.url}/absent")
    with pytest.raises(ValueError, match=r"labels 'http://.*' need the meta.mat beside them; download both first"):
        opened(f"{server.url}/folder", labels=f"{server.url}/ILSVRC2012_validation_ground_truth.txt")


def test_links_with_a_query_are_sources(server):
    for name in ("a.tar", "a.zip"):
        assert set(labelled(opened(f"{server.url}/{name}?sig=a%2Fb"))) == set(CLASSES)


def test_a_source_on_a_server_of_whole_files_is_one_line(server, tmp_path):
    server.handler.parts = False
    config = ShardsConfig(source=f"{server.url}/a.tar", out=str(tmp_path / "out"), size=8, max_unreadable=1.0)
    line = r"a.(tar|zip) does not serve parts of files, .*; download the file first"
    with pytest.raises(OSError, match=line):
        write_shards(open_source(config), config)
    with pytest.raises(OSError, match=line):
        opened(f"{server.url}/a.zip")
    assert len(labelled(opened(f"{server.url}/folder"))) == len(CLASSES)


def test_a_source_that_cannot_be_reached_is_one_line(server):
    server.handler.down = True
    for name in ("folder", "a.tar"):
        with pytest.raises(OSError, match=rf"{name} cannot be read, tried 6 times: the server answers 503") as error:
            opened(f"{server.url}/{name}")
        assert not isinstance(error.value, FileNotFoundError)
