"""One file over HTTP, continued where it broke off: the downloader that pooch is given.

What comes in: a URL and a place. What goes out: `<place>.part`, which grows until it has the size that the server
named, and then becomes the file. A later process goes on from the same `.part`, if the server still has the same
version of the file; where it cannot send a range, or the file has changed there, it begins again.

Ranges, validators and their errors: RFC 9110, sections 8.8, 13.1.5 and 14, https://www.rfc-editor.org/rfc/rfc9110.
"""

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import requests

CHUNK_BYTES = 2**16  # what is lost at most where a connection breaks off
TIMEOUT_S = (20.0, 60.0)  # to connect, and between two packets
BUSY = (429, 500, 502, 503, 504)  # answers after which the same request is sent again
MIB = 2**20
# Sizes of the parts in which tools upload to S3 (the AWS command line: 8 MiB); which one was used is not published.
PART_MIB = (5, 8, 10, 15, 16, 20, 25, 32, 50, 64, 100, 128, 256, 512, 1024)
Advance = Callable[[int], Any]


@dataclass(frozen=True)
class Remote:
    """What a server says of a file: `bytes`, None if it does not say; `version`, its ETag or else its date, "" if none.

    `s3_etag` is the ETag where it follows from the content, as S3 computes it; "" elsewhere.
    """

    url: str
    bytes: int | None
    version: str = ""
    s3_etag: str = ""


@contextmanager
def open_session(attempts: int = 5, wait_s: float = 1.0) -> Iterator["requests.Session"]:
    """A session that repeats a request `attempts` times where the server is busy, waiting longer each time."""
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    retry = Retry(
        total=None, connect=1, read=1, status=attempts, other=0, backoff_factor=wait_s, status_forcelist=BUSY,
        raise_on_status=False,
    )  # fmt: skip
    with requests.Session() as session:
        session.headers["Accept-Encoding"] = "identity"  # ranges count bytes as they are stored
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=retry))
        yield session


def ask(session: "requests.Session", url: str) -> Remote:
    """What the server says of a file, without downloading it.

    Asks for the first byte, as some hosts refuse HEAD for what they redirect to. Raises FileNotFoundError,
    PermissionError or OSError of one line that names the URL.
    """
    with _request(session, url, {"Range": "bytes=0-0"}) as response:
        if response.status_code != 416:  # of a file without bytes there is no first one
            _raise_for_status(url, response)
        if response.status_code != 200:
            _ = response.content  # one byte, so that the connection can be used again
        return _remote(url, response)


class ResumableDownloader:
    """Downloads one file for `pooch.Pooch.fetch`, which then checks its hash.

    `part`: where it grows; left there, complete, for the caller to remove once pooch has checked and placed the file,
    so that nothing is lost however early it ends. `advance` is called with the bytes that came; with less than zero
    where it begins again. Gives up after `attempts` that brought nothing.
    """

    def __init__(
        self, session: "requests.Session", part: Path, advance: Advance, attempts: int = 5, wait_s: float = 1.0
    ) -> None:
        self.session, self.part, self.advance = session, part, advance
        self.attempts, self.wait_s = attempts, wait_s

    def __call__(self, url: str, output_file: str, pooch: Any, check_only: bool = False) -> bool | None:
        """Brings the file of `url` to the path `output_file`; the form is pooch's."""
        if check_only:
            return bool(ask(self.session, url))
        remote = self._finish_part(url)
        if matches_s3_etag(self.part, remote.s3_etag) is False:
            raise ValueError(f"what came does not have the ETag {remote.s3_etag} that S3 gives for it")
        _place(self.part, Path(output_file))
        return None

    def _finish_part(self, url: str) -> Remote:
        import requests

        most, failures = _size(self.part), 0
        while True:
            try:
                remote = ask(self.session, url)
                self._continue_part(remote)
                return remote
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
                now = _size(self.part)
                most, failures = max(most, now), 0 if now > most else failures + 1
                if failures >= self.attempts:
                    raise OSError(
                        f"{url}: the connection broke off {failures} times in a row ({cause(error)}); "
                        "the same command resumes"
                    ) from error
                time.sleep(self.wait_s * failures)

    def _continue_part(self, remote: Remote) -> None:
        """Download what the part lacks; raises one of requests' errors where the connection breaks off."""
        have = _size(self.part)
        if have and (remote.bytes is None or have > remote.bytes or self._version() != remote.version):
            have = self._begin_again(have)
        if have == remote.bytes and self.part.exists():
            return
        with _request(self.session, remote.url, _range_headers(have, remote.version)) as response:
            if response.status_code != 416:
                _raise_for_status(remote.url, response)
            if have and not _continues(response, have, remote.version):
                have = self._begin_again(have)
            if response.status_code != 200 and not have and _first_byte(response) != 0:
                raise self._broken(remote, "the server sent another part of the file than it was asked for")
            self._version_file().write_text(remote.version)
            with self.part.open("ab") as file:
                self._receive(response, file)
        if remote.bytes not in (None, _size(self.part)):
            raise self._broken(remote, f"{_size(self.part):,} bytes of {remote.bytes:,} came")

    def _broken(self, remote: Remote, what: str) -> "requests.ConnectionError":
        """The error of a download that must be continued, or begun again where more came than there is."""
        import requests

        if remote.bytes is not None and _size(self.part) > remote.bytes:
            self._begin_again(_size(self.part))
        return requests.ConnectionError(what)

    def _receive(self, response: "requests.Response", file: BinaryIO) -> None:
        for chunk in response.iter_content(CHUNK_BYTES):
            try:
                file.write(chunk)
            except OSError as error:
                raise OSError(f"{self.part}: {error.strerror}; make room, then the same command resumes") from error
            self.advance(len(chunk))
        file.flush()
        os.fsync(file.fileno())

    def _begin_again(self, have: int) -> int:
        self.part.unlink(missing_ok=True)
        self.advance(-have)
        return 0

    def _version_file(self) -> Path:
        return self.part.with_name(f"{self.part.name}.version")

    def _version(self) -> str:
        """Which version of the file the part is of; "" where the server named none."""
        path = self._version_file()
        return path.read_text() if path.is_file() else ""

    def discard(self) -> None:
        """Remove the part: it is in its place, or it is wrong."""
        self.part.unlink(missing_ok=True)
        self._version_file().unlink(missing_ok=True)


def matches_s3_etag(path: Path, etag: str) -> bool | None:
    """Whether a file has the ETag that S3 made of it; None where that cannot be told.

    It is the MD5 of the content, or, of an upload in n parts, the MD5 of the MD5s of the parts, a dash and n
    (https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html). The size of the parts is not
    published: the usual ones that make n parts are tried, and where none fits the ETag says nothing.
    """
    digest, dash, parts = etag.partition("-")
    if not re.fullmatch("[0-9a-f]{32}", digest) or (dash and not parts.isdigit()):
        return None
    with path.open("rb") as file:
        if not dash:
            return hashlib.file_digest(file, "md5").hexdigest() == digest
        size = path.stat().st_size
        fitting = [mib * MIB for mib in PART_MIB if -(-size // (mib * MIB)) == int(parts)]
        return True if any(_md5_of_parts(file, size) == digest for size in fitting) else None


def _md5_of_parts(file: BinaryIO, part_bytes: int) -> str:
    file.seek(0)
    whole = hashlib.md5(usedforsecurity=False)
    while part := file.read(part_bytes):
        whole.update(hashlib.md5(part, usedforsecurity=False).digest())
    return whole.hexdigest()


def _request(session: "requests.Session", url: str, headers: dict[str, str]) -> "requests.Response":
    return session.get(url, headers=headers, stream=True, timeout=TIMEOUT_S)


def _range_headers(have: int, version: str) -> dict[str, str]:
    if not have:
        return {}
    # A weak validator may not stand in If-Range; `_continues` compares it afterwards.
    condition = {"If-Range": version} if version and not version.startswith("W/") else {}
    return {"Range": f"bytes={have}-"} | condition


def _continues(response: "requests.Response", have: int, version: str) -> bool:
    """Whether the answer is the rest of the same version of the file."""
    same = version in ("", response.headers.get("ETag"), response.headers.get("Last-Modified"))
    return response.status_code == 206 and same and _first_byte(response) == have


def _first_byte(response: "requests.Response") -> int | None:
    """Where the bytes of an answer begin in the file; None where it does not say."""
    first = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(first[1]) if first else None


def _remote(url: str, response: "requests.Response") -> Remote:
    headers = response.headers
    if response.status_code in (206, 416):
        total = headers.get("Content-Range", "").rpartition("/")[2]
    else:
        total = headers.get("Content-Length", "")
    etag = headers.get("ETag", "")
    from_content = headers.get("Server") == "AmazonS3" and "kms" not in headers.get("x-amz-server-side-encryption", "")
    version = etag or headers.get("Last-Modified", "")
    return Remote(url, int(total) if total.isdigit() else None, version, etag.strip('"') if from_content else "")


def _raise_for_status(url: str, response: "requests.Response") -> None:
    status = response.status_code
    if status in (200, 206):
        return
    answer = f"{url}: the server answers {status} {response.reason}"
    if status in (404, 410):
        raise FileNotFoundError(f"{answer}: it has no such file")
    if status in (401, 403):
        raise PermissionError(f"{answer}: it gives this file to nobody without an account, or has no such file")
    raise OSError(f"{answer}; try again later")


def cause(error: BaseException) -> str:
    """What began a chain of errors, such as `Connection refused`, without what libraries put around it."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _place(part: Path, output: Path) -> None:
    """A second name for the part, so that it outlives what happens to the first; moved where there are no links."""
    output.unlink(missing_ok=True)
    try:
        os.link(part, output)
    except OSError:
        os.replace(part, output)
