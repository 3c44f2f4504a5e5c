"""Files that lie here or behind a URL of any kind that fsspec knows (`s3://`, `http://`, ...).

What comes in: a local path or a URL. What goes out: files that are read when they are wanted, and listings of folders.
fsspec (https://filesystem-spec.readthedocs.io) does the talking.

What fails on the way is asked for again, with growing pauses. When it goes on failing, a file that is read for shards
raises `StorageFailed`, which stops the run; everything else raises OSError.
"""

import errno
import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

from fsspec import AbstractFileSystem
from fsspec.config import conf
from fsspec.core import url_to_fs

from pretrain.durable import NO_SPACE

ATTEMPTS = 6
WAIT_S = 0.5  # before the second attempt; twice as long before each further one
CONNECT_S, SILENCE_S = 30, 60  # after which a web server that does not answer, or goes silent, counts as failed
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "http": "http", "https": "http"}
S3 = ("s3", "s3a")
OBJECT_STORES = (*S3, "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "r2")
ABSENT = (404, 410)  # a web server's codes for what does not exist
BUSY = (408, 429)  # and, beside 500 and above, for what may work later
Answer = TypeVar("Answer")


class StorageFailed(BaseException):
    """Storage that goes on failing, so that nothing is known about the file that was wanted of it.

    No `Exception`, because decoders and archives make a damaged file of whatever they meet, and a run that leaves
    damaged files out must not leave this one out. `failures_as_os_errors` ends its way.
    """


@contextmanager
def failures_as_os_errors() -> Iterator[None]:
    """Outside of all that reads a source, `StorageFailed` is an OSError like others."""
    try:
        yield
    except StorageFailed as error:
        raise OSError(str(error)) from error


def is_url(location: Path | str) -> bool:
    return "://" in str(location)


def is_web(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def locate(location: Path | str) -> Path | str:
    """A local path, with its `~` expanded, or a URL without its last slash."""
    text = str(location)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    if text.endswith("://"):
        raise ValueError(f"{text} names no place; write it as {text}<bucket>/<folder>")
    if is_url(text):
        return text if is_web(text) and "?" in text else text.rstrip("/")
    return Path(text).expanduser()


def url_name(url: str) -> str:
    """The last part of a URL, without the query that a web address may have."""
    return (urlsplit(url).path if is_web(url) else url).rsplit("/", 1)[-1]


def file_system(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a URL, and the path in it; made anew in each process, as its connections survive no fork."""
    try:
        system, path = url_to_fs(url, use_listings_cache=False, **options_of(url))
    except ImportError as error:
        extra = EXTRAS.get(scheme_of(url))
        how = f"pip install 'murine[{extra}]'" if extra else str(error)
        raise ValueError(f"{url} needs a package that is not installed: {how}") from error
    except ValueError as error:
        raise ValueError(f"{url} is of no kind that can be read or written: {error}") from error
    if scheme_of(url) in S3:
        # s3fs's own attempts, which are no option of its file systems (see `s3_options`).
        system.retries = 1
    return system, path


def options_of(url: str) -> dict[str, Any]:
    """What a file system needs so that a server which does not answer is noticed within minutes."""
    if is_web(url):
        return web_options()
    return s3_options() if scheme_of(url) in S3 else {}


def s3_options() -> dict[str, Any]:
    """No attempts of botocore's own, nor of s3fs's: with ours they took 42 minutes on a silent server."""
    users = conf.get("s3", {}).get("config_kwargs", {})
    return {"config_kwargs": {"retries": {"max_attempts": 0}, **users}}


def scheme_of(url: str) -> str:
    return url.partition("://")[0]


def has_folders(url: str) -> bool:
    """Whether folders must be made before files; object stores have none, and would be asked to make the bucket."""
    return scheme_of(url) not in OBJECT_STORES


def web_options() -> dict[str, Any]:
    """No limit on how long a whole file takes, which is five minutes otherwise, but one on silence."""
    from aiohttp import ClientTimeout

    return {"client_kwargs": {"timeout": ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)}}


def asked(
    url: str, call: Callable[[AbstractFileSystem, str], Answer], failure: type[BaseException] = OSError
) -> Answer:
    """What `call` gives of the file system of a URL and the path in it, asked again while that may help.

    Raises FileNotFoundError, or `failure`, with one line that names the URL.
    """
    system, path = file_system(url)
    try:
        return patiently(url, lambda: call(system, path), failure)
    except ValueError as error:
        raise failure(f"{url} cannot be read: {reason(error)}") from error


def patiently(url: str, call: Callable[[], Answer], failure: type[BaseException]) -> Answer:
    """What `call` gives, called again while that may help; a ValueError, which is of no network, passes."""
    problem: Exception | None = None
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(WAIT_S * 2 ** (attempt - 1))
        try:
            return call()
        except ValueError:
            raise
        except Exception as error:  # each kind of storage has its own errors for a connection that breaks off
            problem = behind(url, error)
        if isinstance(problem, FileNotFoundError):
            raise FileNotFoundError(f"{url} does not exist") from problem
        if isinstance(problem, PermissionError) and failure is OSError:
            raise PermissionError(f"{url} cannot be read: {reason(problem)}") from problem
        if not may_pass(problem):
            raise failure(f"{url} cannot be read: {reason(problem)}") from problem
    what = "reached" if isinstance(problem, OSError) else "read"
    raise failure(f"{url} cannot be {what}, tried {ATTEMPTS} times: {reason(problem)}") from problem


def behind(url: str, error: Exception) -> Exception:
    """The reason of an error; fsspec says of a web server that fails, or cannot be reached, that the file is absent."""
    if getattr(error, "status", None) in ABSENT:
        return FileNotFoundError(url)
    if is_web(url) and isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception):
        return behind(url, error.__cause__)
    return error


def may_pass(error: Exception) -> bool:
    """Whether asking again may help: not where access is denied, or the disk here is full."""
    # botocore's errors about credentials that are not there, whose classes are only known where it is installed.
    if isinstance(error, PermissionError | ValueError | NotImplementedError) or "Credentials" in type(error).__name__:
        return False
    if getattr(error, "errno", None) in NO_SPACE:
        return False
    status = getattr(error, "status", None)
    return not isinstance(status, int) or status in BUSY or status >= 500


def reason(error: Exception) -> str:
    """An error in one line."""
    if isinstance(getattr(error, "status", None), int):
        return f"the server answers {error.status} {getattr(error, 'message', '')}".rstrip()
    return f"{type(error).__name__}: {error}".replace("\n", " ").removesuffix(": ")


def without_parts(url: str) -> str:
    return f"the server of {url} does not serve parts of files, which reading it there needs; download the file first"


@contextmanager
def one_line_errors(url: str) -> Iterator[None]:
    """What the libraries of remote storage raise, which is nearly anything, as one line that names the URL."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{url} does not exist") from error
    except PermissionError as error:
        raise PermissionError(f"{url} is denied: {error}; check the credentials, and what they may do there") from error
    except Exception as error:
        raise OSError(f"{url}: {type(error).__name__}: {error}") from error


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a source behind a URL, of `size` bytes, read when it is wanted.

    Raises FileNotFoundError where it is gone, and StorageFailed where that cannot be told.
    """

    url: str
    size: int

    @property
    def name(self) -> str:
        return url_name(self.url)

    def read_bytes(self) -> bytes:
        return asked(self.url, lambda system, path: system.cat_file(path), StorageFailed)

    def read_part(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on, fewer where the file ends."""
        if not size:
            return b""
        data = asked(self.url, partial(cat_part, offset=offset, end=offset + size), StorageFailed)
        if len(data) > size:
            raise StorageFailed(without_parts(self.url))
        return data

    def open(self, block_bytes: int | None = None) -> BinaryIO:
        """The file, open for reading anywhere in it; `block_bytes` are asked for ahead, or what its storage likes."""
        return PatientFile(self.url, StorageFailed, block_bytes)


def cat_part(system: AbstractFileSystem, path: str, offset: int, end: int) -> bytes:
    return system.cat_file(path, start=offset, end=end)


class PatientFile(io.RawIOBase):
    """A file behind a URL, open for reading anywhere in it; raises `failure` where its storage goes on failing."""

    def __init__(self, url: str, failure: type[BaseException] = OSError, block_bytes: int | None = None) -> None:
        self.url, self.failure = url, failure
        self.file = asked(url, lambda system, path: system.open(path, "rb", block_size=block_bytes), failure)
        try:
            self.file.seek(1)
            self.file.seek(0)
        except ValueError as error:  # of fsspec, where a web server says beforehand that it only sends whole files
            raise failure(without_parts(url)) from error

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        try:
            return patiently(self.url, lambda: self.file.read(size), self.failure)
        except ValueError as error:  # of fsspec, where a web server sends the whole file instead
            raise self.failure(without_parts(self.url)) from error

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self.file.seek(offset, whence)
        except ValueError as error:  # which other files raise as an OSError, that readers of archives expect
            raise OSError(errno.EINVAL, f"{self.url}: {error}") from error

    def tell(self) -> int:
        return self.file.tell()

    def close(self) -> None:
        if not self.closed and "file" in self.__dict__:
            self.file.close()
        super().close()


def remote_file(url: str) -> RemoteFile | None:
    """The file behind a URL; None where there is none, or a folder."""
    try:
        found = asked(url, lambda system, path: system.info(path))
    except FileNotFoundError:
        return None
    # A web server answers for a folder with a page.
    is_page = str(found.get("mimetype", "")).startswith("text/html")
    return None if found["type"] == "directory" or is_page else RemoteFile(url, found["size"] or 0)


def files_beside(url: str) -> dict[str, RemoteFile] | None:
    """Files of the folder that the file behind a URL lies in, by name; None where its storage does not list them."""
    folder = (url.partition("?")[0] if is_web(url) else url).removesuffix(url_name(url))
    try:
        found = asked(folder, listed_or_refused)
    except FileNotFoundError:
        found = None
    if found is None:
        return None
    files = placed(folder, {info["name"]: info["size"] or 0 for info in found if info["type"] != "directory"})
    return {name: file for name, file in files.items() if "/" not in name}


def listed_or_refused(system: AbstractFileSystem, path: str) -> list[dict[str, Any]] | None:
    """What a folder holds; None where that may not be known, though a file in it may be read."""
    try:
        return system.ls(path, detail=True)
    except Exception as error:  # each kind of storage has its own
        status = getattr(error, "status", None)
        refused = isinstance(status, int) and status < 500 and status not in BUSY
        if refused or isinstance(error, PermissionError | NotImplementedError):
            return None
        raise


def list_files(folder: Path | str) -> dict[str, Path | RemoteFile]:
    """Files of a folder and of the folders below it, by their place in it, sorted folder by folder."""
    names = local_files(folder) if isinstance(folder, Path) else remote_files(folder)
    return {name: names[name] for name in sorted(names, key=by_folder)}


def by_folder(name: str) -> list[str]:
    """Sorts names folder by folder."""
    return name.split("/")


def local_files(folder: Path) -> dict[str, Path]:
    """Links to folders are followed in the folder itself, and not further below, where they could go round."""
    found = {entry.name: entry for entry in folder.iterdir() if not entry.is_dir()}
    for top in (entry for entry in folder.iterdir() if entry.is_dir()):
        for place, _, names in os.walk(top):
            paths = (Path(place) / name for name in names)
            found |= {path.relative_to(folder).as_posix(): path for path in paths}
    return found


def remote_files(url: str) -> dict[str, RemoteFile]:
    if is_web(url):
        return placed(f"{url}/", dict.fromkeys(linked_files(url), 0))
    found = asked(url, lambda system, path: system.find(path, detail=True))
    return placed(f"{url}/", {place: info["size"] or 0 for place, info in found.items()})


def placed(folder: str, sizes: dict[str, int]) -> dict[str, RemoteFile]:
    """Files by their place in a folder, whose URL ends with a slash; `sizes` are by what its storage calls them."""
    root = folder if is_web(folder) else file_system(folder)[1].rstrip("/") + "/"
    names = {place.removeprefix(root): size for place, size in sizes.items() if place.startswith(root)}
    return {name: RemoteFile(folder + name, size) for name, size in names.items()}


def linked_files(url: str) -> list[str]:
    """Addresses of the files below a web page, by the links of the pages that a server shows for folders.

    fsspec's own walk leaves out the folders whose pages fail to come.
    """
    pages, files = [url], []
    for page in pages:
        try:
            links = asked(page, lambda system, path: system.ls(path, detail=True))
        except FileNotFoundError:
            continue
        for link in links:
            place = link["name"]
            if link["type"] != "directory":
                files.append(place)
            elif place.startswith(f"{url}/") and place.rstrip("/") not in pages:
                pages.append(place.rstrip("/"))
    return files
