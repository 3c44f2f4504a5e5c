"""Shards behind URLs: written, interrupted, read and verified as in a local folder."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest

from pretrain import shards, storage
from pretrain.config import ShardsConfig
from pretrain.shard_cache import ShardCache
from pretrain.shard_folder import LocalFolder, RemoteFolder, open_folder
from pretrain.shard_set import open_shards
from pretrain.shards import encode, read_index, verify_shards, write_shards
from pretrain.sources import open_source
from tests.pretrain.web_server import WebServer, serving


@pytest.fixture
def remote() -> str:
    """A URL of a folder in memory that no other test has."""
    return f"memory://{uuid4().hex}/shards"


def write(class_folder: Path, out: Path | str, **keys: object) -> dict:
    config = ShardsConfig(source=str(class_folder), out=str(out), **{"size": 24, "shard_samples": 9, **keys})
    return write_shards(open_source(config), config)


def contents(url: str) -> dict[str, bytes]:
    system = fsspec.filesystem("memory")
    root = "/" + url.removeprefix("memory://") + "/"
    return {path.removeprefix(root): system.cat_file(path) for path in system.find(root)}


def test_a_url_gets_the_same_bytes_as_a_folder(class_folder, tmp_path, remote, capsys):
    index = write(class_folder, tmp_path / "local")
    assert write(class_folder, remote) == index
    assert contents(remote) == {path.name: path.read_bytes() for path in (tmp_path / "local").iterdir()}
    assert read_index(remote) == read_index(remote + "/") == index
    assert verify_shards(remote) == []
    assert write(class_folder, remote) == index
    assert "is complete already" in capsys.readouterr().err
    with pytest.raises(FileExistsError, match="size=24, not 25"):
        write(class_folder, remote, size=25)


def test_interrupted_and_run_again_at_a_url(class_folder, tmp_path, remote, monkeypatch, capsys):
    write(class_folder, tmp_path / "local")
    stops = [4, 30, 47]
    names = [item.name for item in open_source(ShardsConfig(source=str(class_folder))).items(0)]

    def failing(item, config):
        if stops and item.name == names[stops[0]]:
            stops.pop(0)
            raise KeyboardInterrupt
        return encode(item, config)

    monkeypatch.setattr(shards, "encode", failing)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            write(class_folder, remote)
        with pytest.raises(FileNotFoundError, match=r"no index.json in 'memory://.*: their writing was interrupted"):
            read_index(remote)
    write(class_folder, remote)
    assert "going on after 5 of 6 shards in memory://" in capsys.readouterr().err
    assert contents(remote) == {path.name: path.read_bytes() for path in (tmp_path / "local").iterdir()}


def test_a_shard_lost_at_a_url_is_written_again(class_folder, remote, capsys):
    index = write(class_folder, remote)
    before, system = contents(remote), fsspec.filesystem("memory")
    root = "/" + remote.removeprefix("memory://")
    system.rm(f"{root}/shard-000001.tar")
    system.pipe_file(f"{root}/shard-000003.tar", b"cut short")
    assert write(class_folder, remote) == index
    assert "writing 2 of 6 shards of memory://" in capsys.readouterr().err
    assert contents(remote) == before


def test_folders_are_made_where_there_are_any_and_buckets_never():
    assert [storage.has_folders(url) for url in ("sftp://host/a", "memory://a", "s3://a/b", "gs://a/b")] == [
        True, True, False, False,
    ]  # fmt: skip


def test_a_url_with_other_files_is_refused(class_folder, remote):
    fsspec.filesystem("memory").pipe_file(f"/{remote.removeprefix('memory://')}/thesis.tex", b"x")
    with pytest.raises(FileExistsError, match="is not empty and holds no shards"):
        write(class_folder, remote)


def test_verify_finds_damage_behind_a_url(class_folder, remote):
    write(class_folder, remote)
    system, root = fsspec.filesystem("memory"), "/" + remote.removeprefix("memory://")
    data = bytearray(system.cat_file(f"{root}/shard-000001.tar"))
    data[1000] ^= 1
    system.pipe_file(f"{root}/shard-000001.tar", bytes(data))
    system.pipe_file(f"{root}/shard-000002.tar", b"short")
    system.rm(f"{root}/shard-000003.tar")
    system.pipe_file(f"{root}/shard-000009.tar", b"")
    problems = verify_shards(remote)
    assert [problem.split(":")[0] for problem in problems] == [
        "shard-000009.tar", "shard-000001.tar", "shard-000002.tar", "shard-000003.tar",
    ]  # fmt: skip


@pytest.fixture
def server(tiny_shards: Path, tmp_path: Path, monkeypatch) -> Iterator[WebServer]:
    """A web server of a copy of the tiny shards."""
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(storage, "WAIT_S", 0.001)
    shutil.copytree(tiny_shards, tmp_path / "served")
    with serving(tmp_path / "served") as found:
        yield found


@pytest.fixture
def served(server: WebServer) -> str:
    return server.url


def test_shards_on_a_web_server_are_read_and_verified(served, tiny_shards):
    assert read_index(served) == read_index(tiny_shards) == json.loads((tiny_shards / "index.json").read_text())
    assert verify_shards(served) == []
    with pytest.raises(FileNotFoundError, match=r"no index.json in 'http://.*/absent': make shards"):
        read_index(f"{served}/absent")


def test_writing_to_a_web_server_is_refused(served, class_folder):
    with pytest.raises(ValueError, match="http only reads; write to a folder or to s3:// and the like"):
        write(class_folder, f"{served}/new")


def test_the_two_kinds_of_folder_do_the_same(tmp_path, remote):
    for folder in (open_folder(tmp_path / "local"), open_folder(remote)):
        assert not folder.exists()
        assert folder.names() == []
        assert folder.size("a/b") is None
        digest = folder.write("a/b", lambda file: file.write(b"abc"))
        assert digest.startswith("ba7816bf")
        folder.write("c", lambda file: file.write(b""))
        assert (folder.size("a/b"), folder.read("a/b"), folder.open("a/b").read()) == (3, b"abc", b"abc")
        assert folder.names() == ["a", "c"]
        assert folder.size("a") in (None, 0)
        folder.remove("a")
        assert folder.names() == ["c"]
        needed, free, _ = folder.free_bytes(100, 10)
        assert needed == (100 if isinstance(folder, LocalFolder) else 10)
        assert free > 0
    assert isinstance(open_folder(remote), RemoteFolder)


def test_a_busy_server_ends_neither_reading_nor_verifying(server, tiny_shards):
    server.handler.busy_every = 3
    assert read_index(server.url) == read_index(tiny_shards)
    assert verify_shards(server.url) == []


def test_a_server_that_is_down_or_away_is_one_line(server):
    server.handler.down = True
    for ask in (read_index, verify_shards):
        with pytest.raises(OSError, match=r"index.json cannot be read, tried 6 times: the server answers 503") as error:
            ask(server.url)
        assert not isinstance(error.value, FileNotFoundError)
    server.server.shutdown()
    server.server.server_close()
    with pytest.raises(OSError, match=r"index.json cannot be reached, tried 6 times: .*Cannot connect to host"):
        read_index(server.url)


def test_shards_that_were_written_anew_at_a_url_are_read_anew(server, tmp_path):
    cache = ShardCache(tmp_path / "cache", 2**30)
    before = open_shards(server.url, cache=cache)
    first = before.read(before.reader(), 0)
    path, index = server.folder / "shard-000000.tar", json.loads((server.folder / "index.json").read_text())
    data = path.read_bytes()
    start = data.index(first["jpg"])
    path.write_bytes(data[:start] + bytes(len(first["jpg"])) + data[start + len(first["jpg"]) :])
    with pytest.raises(OSError, match=r"shard-000000.tar has SHA-256 .*, its index says .* damaged on its way"):
        replace(before, cache=ShardCache(tmp_path / "other", 2**30)).reader().shard(before.urls[0])
    index["shards"][0]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (server.folder / "index.json").write_text(json.dumps(index))
    after = open_shards(server.url, cache=cache)
    assert after.read(after.reader(), 0)["jpg"] == bytes(len(first["jpg"]))


def test_a_cache_that_cannot_be_written_to_is_one_line_before_anything_is_read(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot be kept in '.*/file': .*; choose another folder with data.cache_fol"):
        open_shards(server.url, cache=ShardCache(tmp_path / "file", 2**30))
    assert server.downloads() == []
