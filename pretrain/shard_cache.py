"""A cache of shards: those behind URLs, whole, on the local disk, within a limit.

What comes in: the URL of a shard, with its bytes and SHA-256 as the index says. What goes out: the shard, open for
reading. The least recently used ones make room.
"""

import hashlib
import os
import re
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock
from fsspec import AbstractFileSystem

from pretrain.durable import NO_SPACE
from pretrain.storage import asked, is_url, url_name

CACHED_SHARD = re.compile(r"[0-9a-f]{16}-.+\.tar")


def cache_folder() -> Path:
    """Where shards of URLs are kept unless the config says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "murine" / "shards"


class ShardUnavailable(OSError):
    """A shard cannot be had now, which says nothing of its samples: they are neither missing nor damaged."""


class ShardCache:
    """Whole shards of URLs, kept in a local folder that grows no larger than `limit_bytes`.

    Their names begin with their SHA-256, so that shards that are written anew are other shards. Files of other names
    are not the cache's, and are left alone. Several processes may ask at once: each shard is downloaded once, and what
    was longest unused makes room. While processes download at the same time, their newest shards may exceed the limit
    for a moment; so does a single shard larger than it. Holds no connection, so that it may be passed to other
    processes.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes

    def require_writable(self) -> None:
        """Make the folder; raises ValueError with one line where shards cannot be written to it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise ValueError(
                f"shards of URLs cannot be kept in {str(self.folder)!r}: {error.strerror}; choose another folder with "
                "data.cache_folder="
            ) from error

    def local_path(self, url: str, bytes: int, sha256: str) -> Path:
        """The shard of this many bytes, and this SHA-256, on the local disk; a local path is returned as it is.

        Open it at once (or use `open`): when others need the room it may go, which does not touch files that are open.
        """
        if not is_url(url):
            return Path(url)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{sha256[:16]}-{url_name(url)}"
        while not is_whole(path, bytes) or not touch(path):
            with FileLock(self.folder / f".{path.name}.lock"):
                if not is_whole(path, bytes):
                    self.make_room(bytes, path)
                    download(url, path, bytes, sha256)
                    self.make_room(bytes, path)
        return path

    def open(self, url: str, bytes: int, sha256: str) -> BinaryIO:
        """The shard, open for reading, whatever makes room meanwhile."""
        for _ in range(100):
            path = self.local_path(url, bytes, sha256)
            try:
                return path.open("rb")
            except FileNotFoundError:
                if not is_url(url):
                    raise
        raise ShardUnavailable(
            f"{self.folder} loses shards before they are opened; allow more than {self.limit_bytes:,} bytes"
        )

    def make_room(self, bytes: int, kept: Path) -> None:
        """Remove what was longest unused until there is room for `bytes` beside the rest; `kept` is not counted."""
        with FileLock(self.folder / ".room.lock"):
            shards = [(path.stat(), path) for path in self.folder.iterdir() if is_cached(path) and path != kept]
            total = bytes + sum(stat.st_size for stat, _ in shards)
            for stat, path in sorted(shards, key=lambda shard: shard[0].st_mtime_ns):
                if total <= self.limit_bytes:
                    break
                path.unlink()
                total -= stat.st_size


def is_cached(path: Path) -> bool:
    """Whether a file is one that the cache has written, and may remove."""
    return bool(CACHED_SHARD.fullmatch(path.name)) and path.is_file() and not path.is_symlink()


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


def download(url: str, path: Path, size: int, sha256: str) -> None:
    """Bring a file of `size` bytes to `path`; the caller holds its lock, so the temporary file is nobody else's.

    Raises:
        FileNotFoundError: there is no such file behind the URL.
        ShardUnavailable: its storage cannot be reached or denies access, or the disk here is full.
        OSError: it is not the one with this SHA-256.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        asked(url, partial(fetch_whole, temporary=temporary, size=size), ShardUnavailable)
        require_digest(url, temporary, sha256)
        os.replace(temporary, path)
    except OSError as error:
        if getattr(error.__cause__, "errno", None) in NO_SPACE:
            raise ShardUnavailable(f"no space left in {path.parent} for {url} ({size:,} bytes); free some") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def fetch_whole(system: AbstractFileSystem, remote: str, temporary: Path, size: int) -> None:
    """One attempt to download; raises EOFError where not all bytes came."""
    system.get_file(remote, str(temporary))
    found = temporary.stat().st_size
    if found != size:
        raise EOFError(f"it gave {found:,} bytes of {size:,}")


def require_digest(url: str, path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise OSError(
            f"{url} has SHA-256 {found[:12]}…, its index says {sha256[:12]}…: it was damaged on its way, or written "
            f"anew; run again, and if it stays so, check `murine shards verify={url.rsplit('/', 1)[0]}`"
        )
