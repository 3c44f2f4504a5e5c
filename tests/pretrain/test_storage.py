"""Files behind URLs, and the cache of shards: limits, several processes at once, connections that break off."""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from pretrain import storage
from pretrain.storage import RemoteFile, ShardCache, file_system, list_files, locate, remote_file

SHARD_BYTES = 1000


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder, counts what is asked for, and breaks off as often as `breaks` says."""

    breaks = 0
    asked: list[str]

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        if type(self).breaks > 0 and self.path.endswith(".tar"):
            type(self).breaks -= 1
            self.send_response(200)
            self.send_header("Content-Length", str(SHARD_BYTES))
            self.end_headers()
            self.wfile.write(b"x" * (SHARD_BYTES // 2))
            self.close_connection = True
            return
        super().do_GET()


class Server:
    def __init__(self, folder: Path) -> None:
        self.handler = type("OneHandler", (Handler,), {"asked": []})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(self.handler, directory=str(folder)))
        self.folder, self.url = folder, f"http://127.0.0.1:{self.server.server_port}"

    def downloads(self) -> list[str]:
        return [path for path in self.handler.asked if path.endswith(".tar")]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A web server of a folder with four shards of 1,000 bytes."""
    pytest.importorskip("aiohttp")
    folder = tmp_path / "served"
    folder.mkdir()
    for number in range(4):
        (folder / f"shard-{number:06d}.tar").write_bytes(bytes([number]) * SHARD_BYTES)
    found = Server(folder)
    thread = threading.Thread(target=found.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch) -> None:
    monkeypatch.setattr(storage, "WAIT_S", 0.01)


def shards(server: Server) -> list[str]:
    return [f"{server.url}/shard-{number:06d}.tar" for number in range(4)]


def kept(folder: Path) -> list[str]:
    return sorted(path.name.partition("-")[2] for path in folder.iterdir() if not path.name.startswith("."))


def test_a_local_path_is_returned_as_it_is(tmp_path):
    cache = ShardCache(tmp_path / "cache", 10)
    assert cache.local_path(str(tmp_path / "a.tar"), 5) == tmp_path / "a.tar"
    assert not (tmp_path / "cache").exists()
    with pytest.raises(FileNotFoundError):
        cache.open(str(tmp_path / "a.tar"), 5)


def test_a_shard_is_downloaded_once(server, tmp_path):
    cache = ShardCache(tmp_path / "cache", 10 * SHARD_BYTES)
    first = [cache.local_path(url, SHARD_BYTES) for url in shards(server)]
    assert [path.read_bytes() for path in first] == [bytes([number]) * SHARD_BYTES for number in range(4)]
    assert [cache.local_path(url, SHARD_BYTES) for url in shards(server)] == first
    assert len(server.downloads()) == 4
    with cache.open(shards(server)[2], SHARD_BYTES) as file:
        assert file.read() == bytes([2]) * SHARD_BYTES


def test_the_longest_unused_makes_room_and_never_the_one_asked_for(server, tmp_path):
    cache = ShardCache(tmp_path / "cache", 2 * SHARD_BYTES + 500)
    one, two, three, four = shards(server)
    for url in (one, two, one, three):
        cache.local_path(url, SHARD_BYTES)
    assert kept(tmp_path / "cache") == ["shard-000000.tar", "shard-000002.tar"]
    small = ShardCache(tmp_path / "cache", SHARD_BYTES // 2)
    assert small.local_path(four, SHARD_BYTES).read_bytes() == bytes([3]) * SHARD_BYTES
    assert kept(tmp_path / "cache") == ["shard-000003.tar"]


def test_a_shard_of_another_size_is_downloaded_again(server, tmp_path):
    cache = ShardCache(tmp_path / "cache", 10 * SHARD_BYTES)
    path = cache.local_path(shards(server)[0], SHARD_BYTES)
    path.write_bytes(b"cut")
    assert cache.local_path(shards(server)[0], SHARD_BYTES).read_bytes() == bytes(SHARD_BYTES)


@pytest.mark.parametrize("breaks", [1, 3])
def test_a_download_that_breaks_off_is_tried_again(server, tmp_path, breaks):
    server.handler.breaks = breaks
    path = ShardCache(tmp_path / "cache", 10 * SHARD_BYTES).local_path(shards(server)[1], SHARD_BYTES)
    assert path.read_bytes() == bytes([1]) * SHARD_BYTES
    assert len(server.downloads()) == breaks + 1


def test_a_download_that_never_succeeds_leaves_nothing_and_says_why(server, tmp_path):
    server.handler.breaks = 100
    cache = ShardCache(tmp_path / "cache", 10 * SHARD_BYTES)
    with pytest.raises(OSError, match=r"shard-000001.tar cannot be downloaded, tried 4 times: "):
        cache.local_path(shards(server)[1], SHARD_BYTES)
    server.handler.breaks = 0
    with pytest.raises(OSError, match=r"tried 4 times: it gave 1,000 bytes of 1,001"):
        cache.local_path(shards(server)[1], SHARD_BYTES + 1)
    with pytest.raises(FileNotFoundError, match=r"absent.tar does not exist"):
        cache.local_path(f"{server.url}/absent.tar", SHARD_BYTES)
    assert kept(tmp_path / "cache") == []
    assert not list((tmp_path / "cache").glob("*.tmp"))


def read_all(folder: Path, urls: list[str], limit: int, results: "multiprocessing.Queue") -> None:
    cache = ShardCache(folder, limit)
    for url in urls * 5:
        with cache.open(url, SHARD_BYTES) as file:
            results.put((url, file.read()[:1], os.getpid()))


@pytest.mark.parametrize(("limit", "downloads"), [(100 * SHARD_BYTES, 4), (2 * SHARD_BYTES, None)])
def test_several_forked_processes_ask_at_once(server, tmp_path, limit, downloads):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    # The parent has open connections of its own, which its children must not use.
    ShardCache(tmp_path / "parent", limit).local_path(shards(server)[0], SHARD_BYTES)
    server.handler.asked.clear()
    arguments = (tmp_path / "cache", shards(server), limit, results)
    processes = [context.Process(target=read_all, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in range(3 * 5 * 4)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert all(first == bytes([int(url[-5])]) for url, first, _ in found)
    assert len({number for _, _, number in found}) == 3
    assert downloads is None or len(server.downloads()) == downloads
    sizes = [path.stat().st_size for path in (tmp_path / "cache").iterdir() if not path.name.startswith(".")]
    assert sum(sizes) <= limit


def test_listings_are_sorted_folder_by_folder_here_and_there(tmp_path):
    names = ("b.jpg", "a/2.jpg", "a/deep/3.jpg", "a-b/1.jpg", "c/x.txt")
    system = fsspec.filesystem("memory")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
        system.pipe_file(f"/listed/{name}", name.encode())
    (tmp_path / "link").symlink_to(tmp_path / "a", target_is_directory=True)
    local, remote = list_files(tmp_path), list_files("memory://listed")
    expected = ["a/2.jpg", "a/deep/3.jpg", "a-b/1.jpg", "b.jpg", "c/x.txt"]
    assert list(remote) == expected
    assert [name for name in local if not name.startswith("link/")] == expected
    assert {name: file.read_bytes() for name, file in remote.items()} == {name: name.encode() for name in names}
    assert remote["a/2.jpg"] == RemoteFile("memory://listed/a/2.jpg", 7)
    assert "link/2.jpg" in local


def test_what_a_url_names_is_told_apart(server):
    assert remote_file(shards(server)[0]).size == SHARD_BYTES
    assert remote_file(f"{server.url}/absent.tar") is None
    assert sorted(list_files(server.url)) == [f"shard-{number:06d}.tar" for number in range(4)]
    assert remote_file(server.url) is None


def test_locations(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert locate("~/shards") == Path("/home/someone/shards")
    assert locate("file:///data/shards") == Path("/data/shards")
    assert locate("s3://bucket/shards/") == "s3://bucket/shards"
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert storage.cache_folder() == Path("/home/someone/.cache/murine/shards")
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch")
    assert storage.cache_folder() == Path("/scratch/murine/shards")


def test_storage_that_is_not_known_or_not_installed_is_one_line(monkeypatch):
    with pytest.raises(ValueError, match="nonsense://a is of no kind that can be read or written"):
        file_system("nonsense://a")

    def absent(url: str, **options: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(storage, "url_to_fs", absent)
    with pytest.raises(ValueError, match=r"s3://b/x needs a package .*: pip install 'murine\[s3\]'"):
        file_system("s3://b/x")
    with pytest.raises(ValueError, match="abfs://b/x needs a package that is not installed: Install s3fs"):
        file_system("abfs://b/x")
