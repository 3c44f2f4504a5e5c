"""Files that lie here or behind a URL of any kind that fsspec knows (`s3://`, `http://`, ...), and a cache of shards.

What comes in: a local path or a URL. What goes out: files that are read when they are wanted, listings of folders, and
whole shards on the local disk. fsspec (https://filesystem-spec.readthedocs.io) does the talking.
"""

import errno
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

ATTEMPTS = 4
WAIT_S = 1.0  # before the second attempt; twice as long before each further one
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "http": "http", "https": "http"}


def is_url(location: Path | str) -> bool:
    return "://" in str(location)


def locate(location: Path | str) -> Path | str:
    """A local path, with its `~` expanded, or a URL without its last slash."""
    text = str(location)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return text.rstrip("/") if is_url(text) else Path(text).expanduser()


def file_system(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a URL, and the path in it; made anew in each process, as its connections survive no fork."""
    try:
        return url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        extra = EXTRAS.get(url.partition("://")[0])
        how = f"pip install 'murine[{extra}]'" if extra else str(error)
        raise ValueError(f"{url} needs a package that is not installed: {how}") from error
    except ValueError as error:
        raise ValueError(f"{url} is of no kind that can be read or written: {error}") from error


@contextmanager
def one_line_errors(url: str) -> Iterator[None]:
    """What the libraries of remote storage raise, which is nearly anything, as one line that names the URL."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{url} does not exist") from error
    except Exception as error:
        raise OSError(f"{url}: {type(error).__name__}: {error}") from error


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file behind a URL, of `size` bytes, read when it is wanted."""

    url: str
    size: int

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    def read_bytes(self) -> bytes:
        system, path = file_system(self.url)
        with one_line_errors(self.url):
            return system.cat_file(path)

    def open(self) -> BinaryIO:
        """The file, open for reading anywhere in it."""
        system, path = file_system(self.url)
        with one_line_errors(self.url):
            return system.open(path, "rb")


def remote_file(url: str) -> RemoteFile | None:
    """The file behind a URL; None where there is none, or a folder."""
    system, path = file_system(url)
    try:
        with one_line_errors(url):
            found = system.info(path)
    except FileNotFoundError:
        return None
    # A web server answers for a folder with a page.
    is_page = str(found.get("mimetype", "")).startswith("text/html")
    return None if found["type"] == "directory" or is_page else RemoteFile(url, found["size"] or 0)


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
    system, path = file_system(url)
    with one_line_errors(url):
        found = system.find(path, detail=True)
    root = path.rstrip("/") + "/"
    names = {place.removeprefix(root): info["size"] or 0 for place, info in found.items() if place.startswith(root)}
    return {name: RemoteFile(f"{url}/{name}", size) for name, size in names.items()}


def cache_folder() -> Path:
    """Where shards of URLs are kept unless the config says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "murine" / "shards"


class ShardCache:
    """Whole shards of URLs, kept in a local folder that grows no larger than `limit_bytes`.

    Several processes may ask at once: each shard is downloaded once, and what was longest unused makes room. While
    processes download at the same time, their newest shards may exceed the limit for a moment; so does a single shard
    larger than it. Holds no connection, so that it may be passed to other processes.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes

    def local_path(self, url: str, bytes: int) -> Path:
        """The shard of this many bytes on the local disk; a local path is returned as it is.

        Open it at once (or use `open`): when others need the room it may go, which does not touch files that are open.
        """
        if not is_url(url):
            return Path(url)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{url.rsplit('/', 1)[-1]}"
        while not is_whole(path, bytes) or not touch(path):
            with FileLock(self.folder / f".{path.name}.lock"):
                if not is_whole(path, bytes):
                    self.make_room(bytes, path)
                    download(url, path, bytes)
                    self.make_room(bytes, path)
        return path

    def open(self, url: str, bytes: int) -> BinaryIO:
        """The shard, open for reading, whatever makes room meanwhile."""
        for _ in range(100):
            path = self.local_path(url, bytes)
            try:
                return path.open("rb")
            except FileNotFoundError:
                if not is_url(url):
                    raise
        raise OSError(f"{self.folder} loses shards before they are opened; allow more than {self.limit_bytes:,} bytes")

    def make_room(self, bytes: int, kept: Path) -> None:
        """Remove what was longest unused until there is room for `bytes` beside the rest; `kept` is not counted."""
        with FileLock(self.folder / ".room.lock"):
            shards = [(path.stat(), path) for path in self.folder.iterdir() if is_shard(path) and path != kept]
            total = bytes + sum(stat.st_size for stat, _ in shards)
            for stat, path in sorted(shards, key=lambda shard: shard[0].st_mtime_ns):
                if total <= self.limit_bytes:
                    break
                path.unlink()
                total -= stat.st_size


def is_shard(path: Path) -> bool:
    return not path.name.startswith(".")


def is_whole(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def touch(path: Path) -> bool:
    """Note that a shard was used now; False where it has just made room for another."""
    now = time.time_ns()  # finer than the clock that the file system would take
    try:
        os.utime(path, ns=(now, now))
    except FileNotFoundError:
        return False
    return True


def download(url: str, path: Path, size: int) -> None:
    """Bring a file of `size` bytes to `path`, trying again when the connection breaks off.

    The caller holds the lock of `path`, so that the temporary file is nobody else's.
    """
    system, remote = file_system(url)
    temporary = path.with_name(f".{path.name}.tmp")
    problem = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(WAIT_S * 2 ** (attempt - 1))
        try:
            system.get_file(remote, str(temporary))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{url} does not exist") from error
        except Exception as error:  # each kind of storage has its own errors for a connection that breaks off
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                temporary.unlink(missing_ok=True)
                raise OSError(f"no space left in {path.parent} for {url} ({size:,} bytes); free some") from error
            problem = f"{type(error).__name__}: {error}"
            continue
        found = temporary.stat().st_size
        if found == size:
            os.replace(temporary, path)
            return
        problem = f"it gave {found:,} bytes of {size:,}"
    temporary.unlink(missing_ok=True)
    raise OSError(f"{url} cannot be downloaded, tried {ATTEMPTS} times: {problem}")
