"""The cache of shards: limits, several processes at once, connections that break off, files that are not its own."""

import errno
import hashlib
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretrain import shard_cache, storage
from pretrain.shard_cache import ShardCache
from tests.pretrain.web_server import SHARD_BYTES, WebServer, four_shards, serving, shards


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WebServer]:
    pytest.importorskip("aiohttp")
    with serving(four_shards(tmp_path / "served")) as found:
        yield found


@pytest.fixture(autouse=True)
def short_waits(monkeypatch) -> None:
    monkeypatch.setattr(storage, "WAIT_S", 0.01)


def digest(url: str) -> str:
    """SHA-256 of the shard that the server has at an address."""
    return hashlib.sha256(bytes([int(url[-5])]) * SHARD_BYTES).hexdigest()


def fetched(cache: ShardCache, url: str) -> Path:
    return cache.local_path(url, SHARD_BYTES, digest(url))


def kept(folder: Path) -> list[str]:
    return sorted(path.name.partition("-")[2] for path in folder.iterdir() if not path.name.startswith("."))


def test_a_local_path_is_returned_as_it_is(tmp_path):
    cache = ShardCache(tmp_path / "cache", 10)
    assert cache.local_path(str(tmp_path / "a.tar"), 5, "") == tmp_path / "a.tar"
    assert not (tmp_path / "cache").exists()
    with pytest.raises(FileNotFoundError):
        cache.open(str(tmp_path / "a.tar"), 5, "")


def test_a_shard_is_downloaded_once(server, tmp_path):
    cache = ShardCache(tmp_path / "cache", 10 * SHARD_BYTES)
    first = [fetched(cache, url) for url in shards(server)]
    assert [path.read_bytes() for path in first] == [bytes([number]) * SHARD_BYTES for number in range(4)]
    assert [fetched(cache, url) for url in shards(server)] == first
    assert len(server.downloads()) == 4
    with cache.open(shards(server)[2], SHARD_BYTES, digest(shards(server)[2])) as file:
        assert file.read() == bytes([2]) * SHARD_BYTES


def test_the_longest_unused_makes_room_and_never_the_one_asked_for(server, tmp_path):
    cache = ShardCache(tmp_path / "cache", 2 * SHARD_BYTES + 500)
    one, two, three, four = shards(server)
    for url in (one, two, one, three):
        fetched(cache, url)
    assert kept(tmp_path / "cache") == ["shard-000000.tar", "shard-000002.tar"]
    small = ShardCache(tmp_path / "cache", SHARD_BYTES // 2)
    assert fetched(small, four).read_bytes() == bytes([3]) * SHARD_BYTES
    assert kept(tmp_path / "cache") == ["shard-000003.tar"]


def test_a_shard_of_another_size_is_downloaded_again(server, tmp_path):
    cache = ShardCache(tmp_path / "cache", 10 * SHARD_BYTES)
    path = fetched(cache, shards(server)[0])
    path.write_bytes(b"cut")
    assert fetched(cache, shards(server)[0]).read_bytes() == bytes(SHARD_BYTES)


@pytest.mark.parametrize("breaks", [1, 3])
def test_a_download_that_breaks_off_is_tried_again(server, tmp_path, breaks):
    server.handler.breaks = breaks
    path = fetched(ShardCache(tmp_path / "cache", 10 * SHARD_BYTES), shards(server)[1])
    assert path.read_bytes() == bytes([1]) * SHARD_BYTES
    assert len(server.downloads()) == breaks + 1


def test_a_download_that_never_succeeds_leaves_nothing_and_says_why(server, tmp_path):
    server.handler.breaks = 100
    cache = ShardCache(tmp_path / "cache", 10 * SHARD_BYTES)
    with pytest.raises(OSError, match=r"shard-000001.tar cannot be read, tried 6 times: "):
        fetched(cache, shards(server)[1])
    server.handler.breaks = 0
    with pytest.raises(OSError, match=r"tried 6 times: EOFError: it gave 1,000 bytes of 1,001"):
        cache.local_path(shards(server)[1], SHARD_BYTES + 1, digest(shards(server)[1]))
    with pytest.raises(FileNotFoundError, match=r"absent.tar does not exist"):
        cache.local_path(f"{server.url}/absent.tar", SHARD_BYTES, "0" * 64)
    assert kept(tmp_path / "cache") == []
    assert not list((tmp_path / "cache").glob("*.tmp"))


def test_a_full_disk_is_one_line_and_no_reason_to_ask_again(server, tmp_path, monkeypatch):
    attempts = []

    def full(*arguments, **options):
        attempts.append(arguments)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shard_cache, "fetch_whole", full)
    with pytest.raises(OSError, match=r"no space left in .*cache for http://.*shard-000000.tar \(1,000 bytes\); free"):
        fetched(ShardCache(tmp_path / "cache", 10 * SHARD_BYTES), shards(server)[0])
    assert len(attempts) == 1


def read_all(folder: Path, urls: list[str], limit: int, results: "multiprocessing.Queue") -> None:
    cache = ShardCache(folder, limit)
    for url in urls * 5:
        with cache.open(url, SHARD_BYTES, digest(url)) as file:
            results.put((url, file.read()[:1], os.getpid()))


@pytest.mark.parametrize(("limit", "downloads"), [(100 * SHARD_BYTES, 4), (2 * SHARD_BYTES, None)])
def test_several_forked_processes_ask_at_once(server, tmp_path, limit, downloads):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    # The parent has open connections of its own, which its children must not use.
    fetched(ShardCache(tmp_path / "parent", limit), shards(server)[0])
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


def test_the_cache_removes_nothing_but_its_own_shards(server, tmp_path):
    folder = tmp_path / "documents"
    (folder / "0123456789abcdef-folder.tar").mkdir(parents=True)
    (folder / "letters").mkdir()
    others = [folder / name for name in ("thesis.docx", "photos.raw", "shard-000000.tar", "0123456789abcdef-x.zip")]
    for path in others:
        path.write_bytes(bytes(3 * SHARD_BYTES))
    (folder / "0123456789abcdef-link.tar").symlink_to(others[0])
    before = set(folder.iterdir())
    cache = ShardCache(folder, SHARD_BYTES)
    for url in shards(server):
        assert fetched(cache, url).read_bytes() == bytes([int(url[-5])]) * SHARD_BYTES
    left = {path for path in folder.iterdir() if not path.name.startswith(".")}
    assert {path.name for path in left - before} == {f"{digest(shards(server)[3])[:16]}-shard-000003.tar"}
    assert before <= left
    assert all(path.stat().st_size == 3 * SHARD_BYTES for path in others)


def test_a_shard_that_was_written_anew_is_downloaded_anew(server, tmp_path):
    cache, url = ShardCache(tmp_path / "cache", 10 * SHARD_BYTES), shards(server)[0]
    assert fetched(cache, url).read_bytes() == bytes(SHARD_BYTES)
    anew = b"y" * SHARD_BYTES
    (server.folder / "shard-000000.tar").write_bytes(anew)
    assert cache.local_path(url, SHARD_BYTES, hashlib.sha256(anew).hexdigest()).read_bytes() == anew
    assert fetched(cache, url).read_bytes() == bytes(SHARD_BYTES)


def test_a_shard_that_is_not_the_one_of_the_index_is_one_line(server, tmp_path):
    cache, url = ShardCache(tmp_path / "cache", 10 * SHARD_BYTES), shards(server)[1]
    (server.folder / "shard-000001.tar").write_bytes(b"z" * SHARD_BYTES)
    line = r"shard-000001.tar has SHA-256 \w{12}…, its index says \w{12}…: .* or written anew; .*verify=http://"
    with pytest.raises(OSError, match=line):
        fetched(cache, url)
    assert kept(tmp_path / "cache") == []
    assert not list((tmp_path / "cache").glob(".*.tmp"))


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_cache_folder_that_cannot_be_written_to_is_one_line(tmp_path, place):
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"shards of URLs cannot be kept in '.*file.*': .*; choose another"):
        ShardCache(tmp_path / place, SHARD_BYTES).require_writable()
