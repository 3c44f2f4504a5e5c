"""Archives: what they hold, read from where it lies, and never followed out of them."""

import io
import os
import random
import tarfile
import zipfile
from pathlib import Path

import fsspec
import pytest

from pretrain.archive_listing import MemberLabel, archive_listing, member_labels
from pretrain.storage import RemoteFile, remote_file
from tests.pretrain.web_server import serving


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    path.write_bytes(tar_bytes(files, mode))
    return path


def tar_bytes(files: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def write_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def contents(path: Path | RemoteFile) -> dict[str, bytes | int | str]:
    return {
        name: file.label if isinstance(file, MemberLabel) else file.read_bytes()
        for name, file in archive_listing(path).items()
    }


FILES = {f"{folder}/{n}.jpg": f"{folder} {n}".encode() * (n + 1) for folder in ("ant", "bee") for n in range(3)}


@pytest.mark.parametrize("prefix", ["", "./", "photos/", "./photos/of/"])
def test_images_of_a_tar_and_a_zip(tmp_path, prefix):
    files = {prefix + name: data for name, data in FILES.items()}
    ignored = {prefix + "readme.txt": b"x", prefix + "ant/._1.jpg": b"shadow", prefix + ".thumbnails/1.jpg": b"x"}
    ignored |= {prefix + "ant/._1.cls": b"\0\xff shadow", prefix + "ant/.1.json": b"{", prefix + "._a.tar": b"shadow"}
    assert contents(write_tar(tmp_path / "a.tar", files | ignored)) == FILES
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        assert contents(write_zip(tmp_path / f"{method}.zip", files | ignored, method)) == FILES


def test_files_in_any_order_and_opened_like_files(tmp_path):
    for path in (write_tar(tmp_path / "a.tar", FILES), write_zip(tmp_path / "a.zip", FILES)):
        listing = archive_listing(path)
        for name in reversed(FILES):
            assert listing[name].read_bytes() == FILES[name]
            assert listing[name].size == len(FILES[name])
            assert listing[name].open().read(3) == FILES[name][:3]


def test_a_tar_of_tars_is_a_folder_of_folders(tmp_path):
    inner = {
        f"n0000000{k}.tar": tar_bytes({f"n0000000{k}_{n}.JPEG": f"{k} {n}".encode() for n in range(3)}) for k in (1, 2)
    }
    found = contents(write_tar(tmp_path / "ILSVRC2012_img_train.tar", inner))
    assert found == {f"n0000000{k}/n0000000{k}_{n}.JPEG": f"{k} {n}".encode() for k in (1, 2) for n in range(3)}


def test_labels_of_webdataset_samples(tmp_path):
    files = {"a/0.jpg": b"x", "a/0.cls": b"7\n", "a/1.jpg": b"y", "a/1.json": b'{"label": "cat", "url": "u"}'}
    files |= {"a/2.jpg": b"z", "a/2.json": b'{"url": "u"}', "a/3.jpg": b"w", "a/3.cls": b"1", "a/3.json": b"9"}
    listing = archive_listing(write_tar(tmp_path / "a.tar", files))
    assert member_labels(listing) == {"0": 7, "1": "cat", "3": 1}


def test_hard_links_are_the_files_they_link_to(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        member = tarfile.TarInfo("a.jpg")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
        for name, kind in (("b.jpg", tarfile.LNKTYPE), ("c.jpg", tarfile.SYMTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "a.jpg"
            tar.addfile(link)
    assert contents(tmp_path / "a.tar") == {"a.jpg": b"abc", "b.jpg": b"abc"}


@pytest.mark.parametrize("name", ["../a.jpg", "x/../../a.jpg", "/etc/a.jpg"])
def test_names_that_lead_out_are_refused(tmp_path, name):
    for path in (write_tar(tmp_path / "a.tar", {name: b"x"}), write_zip(tmp_path / "a.zip", {name: b"x"})):
        with pytest.raises(ValueError, match=r"holds .*a name that leads out of it"):
            archive_listing(path)


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_compressed_tar_is_one_line(tmp_path, mode):
    with pytest.raises(ValueError, match=r"a.tar' cannot be read as .tar: it is compressed, .*; decompress it first"):
        archive_listing(write_tar(tmp_path / "a.tar", FILES, mode))


def test_damaged_archives_are_one_line(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", {"a.jpg": b"x" * 5000}).read_bytes()
    for name, data in (("a.tar", b"no tar" * 500), ("b.tar", whole[:2000]), ("c.zip", b"PK no"), ("d.tar", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"{name}' cannot be read as .(tar|zip): "):
            archive_listing(tmp_path / name)


def test_an_encrypted_zip_is_one_line(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"a.jpg": b"x"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"'a.jpg' in it is encrypted"):
        archive_listing(path)


def test_an_archive_behind_a_url_is_read_by_ranges(tmp_path):
    system = fsspec.filesystem("memory")
    for path in (write_tar(tmp_path / "r.tar", FILES), write_zip(tmp_path / "r.zip", FILES)):
        system.pipe_file(f"/archives/{path.name}", path.read_bytes())
        assert contents(RemoteFile(f"memory://archives/{path.name}", path.stat().st_size)) == FILES


def test_members_of_a_zip_behind_a_url_do_not_bring_the_rest_along(tmp_path):
    pytest.importorskip("aiohttp")
    files = {f"{number:02d}.jpg": os.urandom(400_000) for number in range(20)}
    whole = write_zip(tmp_path / "a.zip", files)
    with serving(tmp_path) as server:
        listing = archive_listing(remote_file(f"{server.url}/a.zip"))
        for name in random.Random(0).sample(sorted(files), len(files)):
            assert listing[name].read_bytes() == files[name]
        assert sum(server.handler.sent) < 2 * whole.stat().st_size
