"""Shards behind URLs: written, interrupted, read and verified as in a local folder."""

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest

from pretrain import shards
from pretrain.config import ShardsConfig
from pretrain.shard_folder import LocalFolder, RemoteFolder, open_folder
from pretrain.shards import encode, read_index, verify_shards, write_shards
from pretrain.sources import open_source


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


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def served(tiny_shards: Path) -> Iterator[str]:
    pytest.importorskip("aiohttp")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tiny_shards)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


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
