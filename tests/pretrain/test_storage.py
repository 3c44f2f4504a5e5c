"""Files behind URLs: what their names say, listings, servers that are busy, away, or serve whole files only."""

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from pretrain import shard_cache, storage
from pretrain.storage import RemoteFile, StorageFailed, file_system, files_beside, list_files, locate, remote_file
from tests.pretrain.web_server import SHARD_BYTES, WebServer, four_shards, serving, shards


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WebServer]:
    pytest.importorskip("aiohttp")
    with serving(four_shards(tmp_path / "served")) as found:
        yield found


@pytest.fixture(autouse=True)
def short_waits(monkeypatch) -> None:
    monkeypatch.setattr(storage, "WAIT_S", 0.01)


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


def test_files_beside_a_file_are_those_of_its_folder_alone(server):
    (server.folder / "below").mkdir()
    (server.folder / "below" / "shard-000009.tar").write_bytes(b"x")
    names = [f"shard-{number:06d}.tar" for number in range(4)]
    for url in (shards(server)[2], f"{shards(server)[2]}?sig=a/b"):
        found = files_beside(url)
        assert sorted(found) == names
        assert found[names[1]].read_bytes() == b"\x01" * SHARD_BYTES
    (server.folder / "index.html").write_text('<a href="below/shard-000009.tar">deep</a> <a href="a.npy">near</a>')
    assert list(files_beside(shards(server)[0])) == ["a.npy"]
    system = fsspec.filesystem("memory")
    for place in ("/beside-1", "/beside/a/2", "/beside/a/3", "/beside/a/b/4"):
        system.pipe_file(place, b"x")
    assert files_beside("memory://beside/a/2") == {n: RemoteFile(f"memory://beside/a/{n}", 1) for n in ("2", "3")}
    assert files_beside("memory://beside-1")["beside-1"].read_bytes() == b"x"


def test_files_beside_are_not_known_where_they_are_not_listed_and_a_failing_server_is_an_error(server):
    server.handler.lists = False
    assert files_beside(shards(server)[0]) is None
    assert files_beside(f"{server.url}/absent/a.tar") is None
    server.handler.down = True
    with pytest.raises(OSError, match=r"cannot be read, tried 6 times: the server answers 503 Service Unavailable$"):
        files_beside(shards(server)[0])


def test_locations(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert locate("~/shards") == Path("/home/someone/shards")
    assert locate("file:///data/shards") == Path("/data/shards")
    assert locate("s3://bucket/shards/") == "s3://bucket/shards"
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert shard_cache.cache_folder() == Path("/home/someone/.cache/murine/shards")
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch")
    assert shard_cache.cache_folder() == Path("/scratch/murine/shards")


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


def test_what_a_busy_server_refuses_is_asked_for_again(server):
    server.handler.busy_every = 2
    files = list_files(server.url)
    assert [remote_file(url).size for url in shards(server)] == [SHARD_BYTES] * 4
    assert [file.read_bytes()[:1] for file in files.values()] == [bytes([number]) for number in range(4)]
    assert [file.read_part(990, 20) for file in files.values()] == [bytes([number]) * 10 for number in range(4)]
    with files["shard-000003.tar"].open() as opened:
        opened.seek(-7, os.SEEK_END)
        assert opened.read() == b"\x03" * 7


def test_a_server_that_goes_on_failing_is_no_missing_file(server):
    file = remote_file(shards(server)[0])
    opened = file.open()
    server.handler.down = True
    line = r"shard-000000.tar cannot be read, tried 6 times: the server answers 503 Service Unavailable$"
    for read in (file.read_bytes, lambda: file.read_part(1, 2), file.open, opened.read):
        with pytest.raises(StorageFailed, match=line):
            read()
    with pytest.raises(OSError, match=line):
        remote_file(file.url)
    with pytest.raises(OSError, match="tried 6 times"):
        list_files(server.url)
    server.handler.down = False
    with pytest.raises(FileNotFoundError, match=r"absent.jpg does not exist"):
        RemoteFile(f"{server.url}/absent.jpg", 3).read_bytes()


def test_a_host_that_cannot_be_reached_is_one_line(server):
    server.server.shutdown()
    server.server.server_close()
    line = r"cannot be reached, tried 6 times: ClientConnectorError: Cannot connect to host 127.0.0.1"
    for ask in (remote_file, list_files):
        with pytest.raises(OSError, match=line):
            ask(server.url)
    with pytest.raises(StorageFailed, match=line):
        RemoteFile(shards(server)[0], SHARD_BYTES).read_bytes()


def test_folders_behind_a_url_whose_pages_fail_are_not_left_out(server, monkeypatch):
    for name in ("ant/1.jpg", "bee/deep/2.jpg"):
        (server.folder / name).parent.mkdir(parents=True)
        (server.folder / name).write_bytes(b"x")
    assert [name for name in list_files(server.url) if "/" in name] == ["ant/1.jpg", "bee/deep/2.jpg"]
    web = type(file_system(server.url)[0])
    listed = web.ls

    def failing(system, url, **options):
        if url.endswith("/deep"):
            raise ConnectionResetError("reset by peer")
        return listed(system, url, **options)

    monkeypatch.setattr(web, "ls", failing)
    with pytest.raises(OSError, match=r"/bee/deep cannot be reached, tried 6 times: ConnectionResetError: reset by"):
        list_files(server.url)


def test_a_server_that_sends_whole_files_only_is_one_line(server):
    server.handler.parts = False
    file = remote_file(shards(server)[0])
    assert len(file.read_bytes()) == SHARD_BYTES
    with pytest.raises(StorageFailed, match=r"shard-000000.tar does not serve parts of files, .*; download the file"):
        file.read_part(512, 20)
    opened = file.open()
    opened.seek(900)
    with pytest.raises(StorageFailed, match=r"does not serve parts of files"):
        opened.read(20)


def test_a_url_with_a_query_has_the_name_before_it(server):
    file = remote_file(locate(f"{shards(server)[1]}?expires=1&sig=a/b/"))
    assert file.name == "shard-000001.tar"
    assert file.read_bytes() == b"\x01" * SHARD_BYTES
    assert server.handler.asked[-1].endswith("shard-000001.tar?expires=1&sig=a/b/")
    assert RemoteFile("s3://bucket/what?.jpg", 3).name == "what?.jpg"


def test_denied_access_is_one_line_and_not_asked_again():
    asked = []

    def denied(*arguments: object) -> None:
        asked.append(arguments)
        raise PermissionError("Forbidden")

    with pytest.raises(PermissionError, match=r"memory://a/b cannot be read: PermissionError: Forbidden"):
        storage.asked("memory://a/b", denied)
    line = r"memory://a/b is denied: Forbidden; check the credentials"
    with pytest.raises(PermissionError, match=line), storage.one_line_errors("memory://a/b"):
        denied()
    assert len(asked) == 2


def test_credentials_that_are_not_there_are_not_waited_for():
    """The name is all that botocore's class of error is known by where botocore is not installed."""
    asked, absent = [], type("NoCredentialsError", (Exception,), {})

    def anonymous(*arguments: object) -> None:
        asked.append(arguments)
        raise absent("Unable to locate credentials")

    with pytest.raises(OSError, match=r"memory://a cannot be read: NoCredentialsError: Unable to locate credentials$"):
        storage.asked("memory://a", anonymous)
    assert len(asked) == 1


def test_a_url_without_a_place_is_one_line():
    with pytest.raises(ValueError, match=r"s3:// names no place; write it as s3://<bucket>/<folder>"):
        locate("s3://")


def test_of_s3_only_our_attempts_are_made_and_what_a_user_sets_wins(monkeypatch):
    assert storage.options_of("s3://bucket/a") == {"config_kwargs": {"retries": {"max_attempts": 0}}}
    monkeypatch.setitem(storage.conf, "s3", {"config_kwargs": {"read_timeout": 5, "retries": {"max_attempts": 2}}})
    assert storage.options_of("s3://bucket/a") == {"config_kwargs": {"read_timeout": 5, "retries": {"max_attempts": 2}}}
    assert storage.options_of("memory://a") == {}
    monkeypatch.setattr(storage, "S3", ("memory",))
    assert file_system("memory://a")[0].retries == 1
