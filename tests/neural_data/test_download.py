"""Downloads from real servers on this machine: whole, cut, killed, without ranges, changed, wrong, absent, too big."""

import hashlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_data.catalogue import RemoteFile
from neural_data.download import LOCK, data_folder, download, in_words, plan_download, read_lock
from neural_data.resumable import MIB, ResumableDownloader, matches_s3_etag, open_session

ROOT = Path(__file__).resolve().parents[2]
CONTENT = np.random.default_rng(0).bytes(700_000)
OTHER = np.random.default_rng(1).bytes(700_000)
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
WAIT_S = 0.01


class Server(ThreadingHTTPServer):
    """Serves `content` under every path, once it has given the statuses in `answers` of that path."""

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.headers = content, {}
        self.answers: dict[str, list[int]] = {}
        self.ranges, self.chunked, self.wrong_range = True, False, False
        self.cuts: list[int] = []  # bytes after which the next answers break off
        self.pause_s = 0.0  # between pieces of 10 kB
        self.claimed: int | None = None  # a size that is not that of the content
        self.longest: int | None = None  # most bytes of a range that an answer has
        self.later: list[tuple[bytes, dict[str, str]]] = []  # content and headers after the next questions for a size
        self.asked: list[dict[str, str]] = []

    def url(self, name: str = "file.bin") -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def starts(self) -> list[int]:
        """Where each download began; questions for the size are left out."""
        ranges = [asked.get("Range", "bytes=0-") for asked in self.asked]
        return [int(range.removeprefix("bytes=")[:-1]) for range in ranges if range.endswith("-")]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.asked.append(dict(self.headers))
        if answers := server.answers.get(self.path.lstrip("/")):
            self.send_response(answers.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content, headers = server.content, server.headers
        if self.headers.get("Range") == "bytes=0-0" and server.later:
            server.content, server.headers = server.later.pop(0)
        first, last, status = self.wanted(content, headers.get("ETag") or headers.get("Last-Modified"))
        self.send_response(status)
        self.send_headers(first, last, status, headers, server.claimed or len(content))
        if status != 416:
            self.send_body(content[first : last + 1])

    def wanted(self, content: bytes, version: str | None) -> tuple[int, int, int]:
        """First byte, last byte and status of the answer."""
        asked, condition = self.headers.get("Range"), self.headers.get("If-Range")
        changed = condition is not None and (condition != version or condition.startswith("W/"))
        if not self.server.ranges or asked is None or changed:
            return 0, len(content) - 1, 200
        first, last = asked.removeprefix("bytes=").split("-")
        if int(first) >= len(content):
            return 0, 0, 416
        if self.server.wrong_range and not last:
            first = str(min(2 * int(first), len(content) - 1))
        last = min(int(last or len(content)), len(content) - 1)
        return int(first), min(last, int(first) + (self.server.longest or len(content)) - 1), 206

    def send_headers(self, first: int, last: int, status: int, headers: dict[str, str], size: int) -> None:
        if status != 200:
            self.send_header("Content-Range", f"bytes {f'{first}-{last}' if status == 206 else '*'}/{size}")
        if self.server.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            length = 0 if status == 416 else last + 1 - first
            self.send_header("Content-Length", str(size if status == 200 else length))
        for name, value in headers.items():
            if name != "Server":  # `send_response` has sent it
                self.send_header(name, value)
        self.end_headers()

    def send_body(self, body: bytes) -> None:
        download = self.headers.get("Range") != "bytes=0-0"
        cut = self.server.cuts.pop(0) if download and self.server.cuts else len(body)
        try:
            for start in range(0, cut, 10_000):
                piece = body[start : min(start + 10_000, cut)]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if self.server.chunked else piece)
                time.sleep(self.server.pause_s)
            if self.server.chunked and cut == len(body):
                self.wfile.write(b"0\r\n\r\n")
        except OSError:  # the client has gone
            pass
        if cut < len(body):
            self.close_connection = True

    def version_string(self) -> str:
        return self.server.headers.get("Server", "test")

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    """Starts a server with these attributes."""
    running = []

    def begin(content: bytes = CONTENT, **attributes: Any) -> Server:
        server = Server(content)
        for name, value in attributes.items():
            setattr(server, name, value)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        running.append(server)
        return server

    yield begin
    for server in running:
        server.shutdown()
        server.server_close()


def fetch(server: Server, folder: Path, hash: str | None = None, name: str = "deep/file.bin", **given: Any) -> Path:
    plan = plan_download([RemoteFile(name, server.url(name), hash=hash)], folder)
    (path,) = download(plan, wait_s=WAIT_S, **given)
    return path


def left_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def only_the_file(folder: Path) -> bool:
    return left_in(folder) in (["deep/file.bin", LOCK], [".downloads.filelock", "deep/file.bin", LOCK])


@pytest.mark.parametrize("hash", [None, SHA256, f"md5:{hashlib.md5(CONTENT).hexdigest()}"])
def test_a_file_comes_whole_is_recorded_and_is_not_asked_for_again(start, tmp_path, hash):
    server, came = start(), []
    path = fetch(server, tmp_path, hash, advance=came.append)
    assert path == tmp_path / "deep/file.bin"
    assert path.read_bytes() == CONTENT
    assert sum(came) == len(CONTENT)
    assert (tmp_path / LOCK).read_text() == f"deep/file.bin {SHA256} {server.url('deep/file.bin')}\n"
    assert only_the_file(tmp_path)
    requests, before = len(server.asked), (tmp_path / LOCK).stat().st_mtime_ns
    assert fetch(server, tmp_path, hash) == path
    assert len(server.asked) == requests
    assert (tmp_path / LOCK).stat().st_mtime_ns == before


def test_the_plan_says_what_is_here_and_what_is_to_come(start, tmp_path):
    server = start()
    files = [RemoteFile(name, server.url(name)) for name in ("a", "b", "c")]
    download(plan_download(files[:1], tmp_path))
    (tmp_path / "b.part").write_bytes(CONTENT[:1000])
    counted = []
    plan = plan_download(files, tmp_path, advance=counted.append)
    assert [item.name for item in plan.missing] == ["b", "c"]
    assert [item.have for item in plan.items] == [len(CONTENT), 1000, 0]
    assert (plan.bytes, plan.bytes_left, counted) == (3 * len(CONTENT), 2 * len(CONTENT) - 1000, [1, 1, 1])


@pytest.mark.parametrize("headers", [{}, {"ETag": '"v1"'}, {"ETag": 'W/"v1"'}, {"Last-Modified": "yesterday"}])
def test_a_connection_that_breaks_off_is_continued_where_it_broke(start, tmp_path, headers):
    server, came = start(headers=headers, cuts=[200_000, 150_000, 90_000]), []
    # Two attempts are enough for three breaks, as each brought something.
    assert fetch(server, tmp_path, SHA256, advance=came.append, attempts=2).read_bytes() == CONTENT
    assert sum(came) == len(CONTENT)
    first, second, third, fourth = server.starts()
    assert (first, 100_000 < second < third < fourth) == (0, True)
    assert only_the_file(tmp_path)


def test_a_server_that_gives_less_than_it_was_asked_for_is_asked_for_the_rest(start, tmp_path):
    server = start(longest=150_000, cuts=[100_000])
    assert fetch(server, tmp_path, SHA256).read_bytes() == CONTENT
    assert len(server.starts()) > 4


def test_a_server_without_ranges_begins_again(start, tmp_path):
    server, came = start(ranges=False, cuts=[300_000, 400_000]), []
    assert fetch(server, tmp_path, SHA256, advance=came.append).read_bytes() == CONTENT
    assert sum(came) == len(CONTENT)
    assert min(came) < -200_000
    assert len(server.starts()) == 3


def test_a_server_that_breaks_off_again_and_again_is_left_and_the_part_stays(start, tmp_path):
    server = start(cuts=[0] * 20)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/file.bin.part").write_bytes(CONTENT[:5000])
    with pytest.raises(
        OSError, match=r"the connection broke off 3 times in a row .*; the same command resumes"
    ) as caught:
        fetch(server, tmp_path, SHA256, attempts=3)
    assert str(caught.value).startswith(server.url("deep/file.bin"))
    assert "\n" not in str(caught.value)
    assert (tmp_path / "deep/file.bin.part").read_bytes() == CONTENT[:5000]
    server.cuts.clear()
    assert fetch(server, tmp_path, SHA256).read_bytes() == CONTENT
    assert server.starts()[-1] == 5000


def test_another_range_than_was_asked_for_is_not_taken(start, tmp_path):
    server = start(wrong_range=True)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/file.bin.part").write_bytes(CONTENT[:5000])
    assert fetch(server, tmp_path, SHA256).read_bytes() == CONTENT
    assert server.starts() == [5000, 0]


@pytest.mark.parametrize("cuts", [[], [400_000]])
def test_a_server_that_does_not_say_the_size(start, tmp_path, cuts):
    server = start(chunked=True, ranges=False, cuts=cuts)
    plan = plan_download([RemoteFile("deep/file.bin", server.url())], tmp_path)
    assert (plan.bytes, plan.bytes_left) == (None, 0)
    assert fetch(server, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("ranges", [True, False])
def test_an_empty_file(start, tmp_path, ranges):
    assert fetch(start(b"", ranges=ranges), tmp_path).read_bytes() == b""


def test_a_process_that_is_killed_loses_nothing(start, tmp_path):
    server = start(pause_s=0.05)
    code = (
        "import sys; from pathlib import Path; from neural_data.catalogue import RemoteFile\n"
        "from neural_data.download import download, plan_download\n"
        "download(plan_download([RemoteFile('deep/file.bin', sys.argv[1])], Path(sys.argv[2])))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, server.url(), str(tmp_path)], cwd=ROOT)
    part, deadline = tmp_path / "deep/file.bin.part", time.monotonic() + 60
    while time.monotonic() < deadline and not (part.exists() and part.stat().st_size > 150_000):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    here = part.stat().st_size
    server.pause_s = 0
    assert 150_000 < here < len(CONTENT)
    assert fetch(server, tmp_path, SHA256).read_bytes() == CONTENT
    assert server.starts() == [0, here]


def test_what_came_outlives_the_check_of_pooch(start, tmp_path):
    part, output = tmp_path / "x.part", tmp_path / "tmp1"
    output.touch()
    with open_session() as session:
        ResumableDownloader(session, part, lambda bytes: None)(start().url(), str(output), None)
    output.unlink()  # as pooch does when it is interrupted
    assert part.read_bytes() == CONTENT


def test_a_process_that_is_killed_while_it_checks_leaves_a_second_name_that_goes(start, tmp_path):
    part = tmp_path / "deep/file.bin.part"
    part.parent.mkdir()
    part.write_bytes(CONTENT)
    os.link(part, part.with_name("tmp12345"))
    part.with_name("tmp_of_the_user").write_text("mine")
    server = start()
    fetch(server, tmp_path, SHA256)
    assert not server.starts()
    assert left_in(tmp_path / "deep") == ["file.bin", "tmp_of_the_user"]


@pytest.fixture(scope="module")
def steady() -> Iterator[Server]:
    server = Server(CONTENT[:3000])
    server.headers = {"ETag": '"v2"'}
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@settings(deadline=None, max_examples=40)
@given(have=st.integers(0, 3500), version=st.sampled_from(["", '"v1"', '"v2"']), cuts=st.lists(st.integers(1, 2999)))
def test_whatever_is_here_already_the_file_comes_out_right(steady, tmp_path_factory, have, version, cuts):
    folder = tmp_path_factory.mktemp("any")
    steady.cuts = cuts[:4]
    right = version == '"v2"' and have <= 3000
    (folder / "file.bin.part").write_bytes(CONTENT[:have] if right else OTHER[:have])
    (folder / "file.bin.part.version").write_text(version)
    path = fetch(steady, folder, f"sha256:{hashlib.sha256(CONTENT[:3000]).hexdigest()}", "file.bin", attempts=20)
    assert path.read_bytes() == CONTENT[:3000]
    assert not list(folder.glob("*.part*"))


def test_a_file_that_has_changed_at_its_source_is_not_mixed_with_the_old_one(start, tmp_path):
    server = start(headers={"ETag": '"v1"'}, cuts=[300_000] + [0] * 10)
    with pytest.raises(OSError, match="broke off"):
        fetch(server, tmp_path, attempts=2)
    server.content, server.headers, server.cuts = OTHER, {"ETag": '"v2"'}, []
    assert fetch(server, tmp_path).read_bytes() == OTHER


@pytest.mark.parametrize("weak", ["", "W/"])
def test_a_file_that_changes_just_before_it_is_continued_is_begun_again(start, tmp_path, weak):
    server = start(headers={"ETag": f'{weak}"v1"'}, cuts=[300_000])
    old, new = (CONTENT, server.headers), (OTHER, {"ETag": f'{weak}"v2"'})
    server.later = [old, old, new]  # after the plan's question, the first of the download, and the second
    assert fetch(server, tmp_path).read_bytes() == OTHER


@pytest.mark.parametrize(
    ("answers", "error", "message"),
    [
        ([404], FileNotFoundError, "the server answers 404 Not Found: it has no such file"),
        ([410], FileNotFoundError, "410 Gone"),
        ([403], PermissionError, "403 Forbidden: it gives this file to nobody without an account"),
        ([400], OSError, "400 Bad Request; try again later"),
    ],
)
def test_what_a_server_refuses_is_one_line_with_the_url(start, tmp_path, answers, error, message):
    server = start(answers={"absent.nwb": answers})
    with pytest.raises(error, match=message) as caught:
        plan_download([RemoteFile("absent.nwb", server.url("absent.nwb"))], tmp_path / "new")
    assert str(caught.value).startswith(server.url("absent.nwb"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_a_busy_server_is_asked_again(start, tmp_path):
    server = start()
    plan = plan_download([RemoteFile("file.bin", server.url())], tmp_path)
    server.answers = {"file.bin": [503, 500, 429]}
    assert download(plan, wait_s=WAIT_S)[0].read_bytes() == CONTENT
    plan = plan_download([RemoteFile("absent.bin", server.url("absent.bin"))], tmp_path)
    server.answers = {"absent.bin": [503] * 9}
    with pytest.raises(OSError, match=r"absent.bin: the server answers 503 Service Unavailable; try again later"):
        download(plan, attempts=2, wait_s=WAIT_S)


def test_a_host_that_is_not_there(tmp_path):
    with pytest.raises(ConnectionError, match=r"http://127.0.0.1:9/x cannot be reached: Connection refused; mirror="):
        plan_download([RemoteFile("x", "http://127.0.0.1:9/x")], tmp_path)


def test_wrong_bytes_are_thrown_away(start, tmp_path):
    server = start(OTHER)
    with pytest.raises(
        ValueError, match=r"does not match the known hash: .* \(the known hash is published\)"
    ) as caught:
        fetch(server, tmp_path, SHA256)
    assert str(caught.value).startswith(server.url("deep/file.bin"))
    assert "\n" not in str(caught.value)
    assert left_in(tmp_path / "deep") == []
    server.content = CONTENT
    assert fetch(server, tmp_path, SHA256).read_bytes() == CONTENT


def test_where_no_hash_is_published_the_first_download_is_what_later_ones_are_compared_with(start, tmp_path):
    server = start()
    path = fetch(server, tmp_path)
    assert read_lock(tmp_path) == {"deep/file.bin": SHA256}
    path.unlink()
    server.content = OTHER
    with pytest.raises(ValueError, match=f"the known hash is that of the first download, kept in .*{LOCK}"):
        fetch(server, tmp_path)
    assert not path.exists()
    server.content = CONTENT
    assert fetch(server, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("published", [SHA256, None])
def test_nothing_that_differs_is_overwritten(start, tmp_path, published):
    server = start()
    path = fetch(server, tmp_path)
    path.write_bytes(OTHER)
    with pytest.raises(ValueError, match=r"file.bin: does not have sha256:.*; move it away to download it again"):
        fetch(server, tmp_path, published)
    assert path.read_bytes() == OTHER
    assert read_lock(tmp_path) == {"deep/file.bin": SHA256}


def test_a_file_that_was_there_before_is_kept_if_it_can_be_the_one(start, tmp_path):
    server = start()
    path = tmp_path / "deep/file.bin"
    path.parent.mkdir()
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match=r"has 699,999 bytes, http.* has 700,000; move it away"):
        fetch(server, tmp_path)
    path.write_bytes(CONTENT)
    assert fetch(server, tmp_path) == path
    assert read_lock(tmp_path) == {"deep/file.bin": SHA256}
    assert not server.starts()


def s3_headers(content: bytes, part_bytes: int | None = None) -> dict[str, str]:
    return {"Server": "AmazonS3", "ETag": f'"{s3_etag(content, part_bytes)}"'}


def s3_etag(content: bytes, part_bytes: int | None = None) -> str:
    if part_bytes is None:
        return hashlib.md5(content).hexdigest()
    parts = [content[first : first + part_bytes] for first in range(0, len(content), part_bytes)]
    joined = b"".join(hashlib.md5(part).digest() for part in parts)
    return f"{hashlib.md5(joined).hexdigest()}-{len(parts)}"


def test_what_s3_serves_is_checked_by_its_etag(start, tmp_path):
    server = start(headers=s3_headers(OTHER))
    with pytest.raises(ValueError, match=r"does not have the ETag .* that S3 gives for it"):
        fetch(server, tmp_path)
    assert left_in(tmp_path / "deep") == []
    (tmp_path / "deep/file.bin").write_bytes(CONTENT)
    with pytest.raises(ValueError, match=r"differs from .* \(ETag\)"):
        fetch(server, tmp_path)
    (tmp_path / "deep/file.bin").unlink()
    server.headers = s3_headers(CONTENT)
    assert fetch(server, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("headers", [{"Server": "nginx"}, {"x-amz-server-side-encryption": "aws:kms"}])
def test_an_etag_that_does_not_follow_from_the_content_says_nothing(start, tmp_path, headers):
    server = start(headers=s3_headers(OTHER) | headers)
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_the_etag_of_an_upload_in_parts(tmp_path):
    content = np.random.default_rng(2).bytes(11 * MIB + 17)
    path = tmp_path / "file"
    path.write_bytes(content)
    for mib, tells in ((5, True), (8, True), (7, None)):  # no tool uploads parts of 7 MiB
        assert matches_s3_etag(path, s3_etag(content, mib * MIB)) is tells
    assert matches_s3_etag(path, s3_etag(content)) is True
    assert matches_s3_etag(path, "abc-2") is matches_s3_etag(path, "") is None
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert matches_s3_etag(path, s3_etag(content, 5 * MIB)) is None
    assert matches_s3_etag(path, s3_etag(content)) is False


def test_a_disk_without_room_is_told_before_anything_is_written(start, tmp_path):
    server = start(claimed=10**16)
    with pytest.raises(ValueError, match=r"new: 1e\+04 TB are to come and .* are free; make room, or name another"):
        plan_download([RemoteFile("x", server.url())], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_disk_that_becomes_full_keeps_what_came(start, tmp_path):
    server = start()
    plan = plan_download([RemoteFile("file.bin", server.url())], tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        with pytest.raises(OSError, match=r"file.bin.part: .*; make room, then the same command resumes"):
            download(plan)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    here = (tmp_path / "file.bin.part").stat().st_size
    assert 0 < here <= 300_000
    assert fetch(server, tmp_path, SHA256, "file.bin").read_bytes() == CONTENT
    assert server.starts() == [0, here]


def test_two_processes_do_not_write_the_same_folder(start, tmp_path):
    with (
        FileLock(tmp_path / ".downloads.filelock"),
        pytest.raises(OSError, match="another process is downloading into it"),
    ):
        fetch(start(), tmp_path)


def test_a_lock_that_is_none_is_one_line(start, tmp_path):
    (tmp_path / LOCK).write_text("file.bin one two three four\n")
    with pytest.raises(ValueError, match=f"{LOCK}: expected lines of name, hash and URL") as caught:
        fetch(start(), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_mirror_serves_what_lies_elsewhere(start, tmp_path):
    server = start()
    plan = plan_download([RemoteFile("deep/file.bin", "http://127.0.0.1:9/x", hash=SHA256)], tmp_path, server.url(""))
    assert [item.url for item in plan.items] == [server.url("deep/file.bin")]
    assert download(plan)[0].read_bytes() == CONTENT


def test_where_data_go(tmp_path, monkeypatch):
    monkeypatch.delenv("MURINE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_folder("allen") == tmp_path / "cache/murine/data/allen"
    monkeypatch.setenv("MURINE_DATA", str(tmp_path / "data"))
    assert data_folder("allen") == tmp_path / "data/allen"
    assert data_folder("allen", str(tmp_path / "here")) == tmp_path / "here"


@pytest.mark.parametrize(("size", "words"), [(0, "0 B"), (999, "999 B"), (2_856_232_912, "2.86 GB"), (10**13, "10 TB")])
def test_sizes_in_words(size, words):
    assert in_words(size) == words
