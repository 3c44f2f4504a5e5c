"""Public data on the local disk: planned first, then downloaded, resumable and checked.

What comes in: `RemoteFile`s of the catalogue and a folder. What goes out: a `Plan` (what is here, what is missing, how
large it is), and then the files, each whole or absent.

A file is checked against the hash that its source publishes. Where it publishes none, it is checked against S3's ETag
if that can be told, and the SHA-256 of the first download is kept in `downloads.lock` beside the data, in pooch's
format of a registry (name, hash, URL), which later runs check. Nothing that differs is ever overwritten.
"""

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from neural_data.catalogue import RemoteFile
from neural_data.resumable import Advance, Remote, ResumableDownloader, ask, cause, matches_s3_etag, open_session

if TYPE_CHECKING:
    import requests

LOCK = "downloads.lock"
FOLDER_VARIABLE = "MURINE_DATA"
RESERVE_BYTES = 2**28  # left free on the disk, so that a download does not fill it to the last byte


@dataclass(frozen=True)
class Item:
    """A file of a plan: its place `path`, its address `url`, its size `bytes` (None if unknown) and how much is here.

    `hash`: what it is checked against, None where there is nothing; `hash_is`: where that is from, for people.
    """

    name: str
    path: Path
    url: str
    bytes: int | None
    have: int
    hash: str | None
    hash_is: str

    @property
    def complete(self) -> bool:
        return self.path.exists()


@dataclass(frozen=True)
class Plan:
    """What is to be downloaded into `folder`."""

    folder: Path
    items: tuple[Item, ...]

    @property
    def missing(self) -> list[Item]:
        """The files that are not here as a whole."""
        return [item for item in self.items if not item.complete]

    @property
    def bytes(self) -> int | None:
        """Size of all files, None where a server does not say it."""
        sizes = [item.bytes for item in self.items]
        return None if None in sizes else sum(sizes)

    @property
    def bytes_left(self) -> int:
        """How much is still to come, as far as the servers say."""
        return sum(max((item.bytes or 0) - item.have, 0) for item in self.missing)

    @property
    def bytes_free(self) -> int:
        """Free space on the disk of the folder, which need not exist yet."""
        return shutil.disk_usage(next(place for place in (self.folder, *self.folder.parents) if place.exists())).free


def data_folder(source: str, out: str | None = None) -> Path:
    """Where the data of a source go: `out`; else a folder of its name in $MURINE_DATA, or in the user's cache."""
    import pooch

    if out is not None:
        return Path(out).expanduser()
    return pooch.utils.cache_location(pooch.os_cache("murine") / "data", env=FOLDER_VARIABLE) / source


def plan_download(
    files: Sequence[RemoteFile], folder: Path, mirror: str | None = None, advance: Advance = lambda files: None
) -> Plan:
    """Check what is in the folder and ask the servers for the size of what is not.

    Args:
        files: what is wanted.
        folder: where it goes; nothing is written yet.
        mirror: URL of a copy of the folder, which serves the files instead of their sources.
        advance: called with 1 after each file.

    Raises:
        ValueError: a file in the folder differs from what is expected, or the disk has no room.
        FileNotFoundError, PermissionError, OSError: a server does not give a file, in one line with its URL.
    """
    known = read_lock(folder)
    items = []
    with open_session() as session:
        for file in files:
            url = f"{mirror.rstrip('/')}/{file.name}" if mirror else file.url
            items.append(_item(session, file, folder, url, known.get(file.name)))
            advance(1)
    plan = Plan(folder, tuple(items))
    if plan.missing and plan.bytes_left + RESERVE_BYTES > plan.bytes_free:
        raise ValueError(
            f"{folder}: {in_words(plan.bytes_left)} are to come and {in_words(plan.bytes_free)} are free; "
            "make room, or name another folder with out="
        )
    return plan


def download(plan: Plan, advance: Advance = lambda bytes: None, attempts: int = 5, wait_s: float = 1.0) -> list[Path]:
    """Download what is missing, check it and record it; returns the paths in the order of the plan.

    `advance` is called with the bytes that came. A broken connection is tried again up to `attempts` times in a row,
    after `wait_s` seconds and more; whatever ends it, the same call goes on from there. Raises ValueError where a file
    does not have its hash, OSError where it cannot be had or another process downloads into the folder.
    """
    paths = [item.path for item in plan.items]
    if not plan.missing and {item.name for item in plan.items} <= set(read_lock(plan.folder)):
        return paths  # also in a folder that may only be read
    plan.folder.mkdir(parents=True, exist_ok=True)
    with _alone_in(plan.folder), _quiet_pooch(), open_session(attempts, wait_s) as session:
        recorded = read_lock(plan.folder)
        for item in plan.items:
            if not item.complete:
                _fetch(plan.folder, item, ResumableDownloader(session, _part(item.path), advance, attempts, wait_s))
            if item.name not in recorded:
                _record(plan.folder, item)
    return paths


def read_lock(folder: Path) -> dict[str, str]:
    """The hashes of what was downloaded into a folder before, by name."""
    import pooch

    path = folder / LOCK
    registry = pooch.create(path=folder, base_url="")
    if path.is_file():
        try:
            registry.load_registry(path)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: expected lines of name, hash and URL ({error})") from error
    return dict(registry.registry)


def in_words(bytes: int) -> str:
    """A size with its unit, decimal as the sources give it: 2.9 GB."""
    size = float(bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _item(session: "requests.Session", file: RemoteFile, folder: Path, url: str, locked: str | None) -> Item:
    path, part = folder / file.name, _part(folder / file.name)
    hash = file.hash or locked
    hash_is = "published" if file.hash else f"that of the first download, kept in {folder / LOCK}" if locked else ""
    if not path.exists():
        have = part.stat().st_size if part.exists() else 0
        return Item(file.name, path, url, _ask(session, url).bytes, have, hash, hash_is)
    if hash is None:
        _compare(path, _ask(session, url))
    elif not _has_hash(path, hash):
        raise ValueError(f"{path}: does not have {hash}, which is {hash_is}; move it away to download it again")
    size = path.stat().st_size
    return Item(file.name, path, url, size, size, hash, hash_is)


def _ask(session: "requests.Session", url: str) -> Remote:
    import requests

    try:
        return ask(session, url)
    except requests.RequestException as error:
        raise ConnectionError(f"{url} cannot be reached: {cause(error)}; mirror=<URL> names another place") from error


def _compare(path: Path, remote: Remote) -> None:
    """A file that was there before, without a hash to go by: its size and S3's ETag must be the server's."""
    size = path.stat().st_size
    if remote.bytes not in (None, size):
        raise ValueError(
            f"{path}: has {size:,} bytes, {remote.url} has {remote.bytes:,}; move it away to download it again"
        )
    if matches_s3_etag(path, remote.s3_etag) is False:
        raise ValueError(f"{path}: differs from {remote.url} (ETag); move it away to download it again")


def _has_hash(path: Path, hash: str) -> bool:
    import pooch

    return pooch.hashes.hash_matches(str(path), hash)


def _fetch(folder: Path, item: Item, downloader: ResumableDownloader) -> None:
    import pooch

    registry = pooch.create(
        path=folder, base_url="", registry={item.name: item.hash}, urls={item.name: item.url}, allow_updates=False
    )
    item.path.parent.mkdir(parents=True, exist_ok=True)
    _remove_strays(downloader.part)
    try:
        registry.fetch(item.name, downloader=downloader)
    except ValueError as error:
        downloader.discard()
        known = f" (the known hash is {item.hash_is})" if item.hash else ""
        raise ValueError(f"{item.url}: {error}{known}") from error
    downloader.discard()


def _remove_strays(part: Path) -> None:
    """The second name of a part, which a process that was killed while it checked a download leaves behind."""
    for stray in part.parent.glob("tmp*"):
        if part.exists() and stray.samefile(part):
            stray.unlink()


def _record(folder: Path, item: Item) -> None:
    """Keep the SHA-256 of a file in the lock; it is what the next run compares with."""
    import pooch

    hash = item.hash if item.hash and item.hash.startswith("sha256:") else f"sha256:{pooch.file_hash(item.path)}"
    with (folder / LOCK).open("a", encoding="utf-8") as lock:
        lock.write(f"{item.name} {hash} {item.url}\n")
        lock.flush()
        os.fsync(lock.fileno())


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """No other process downloads into the folder for the duration of the block."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / ".downloads.filelock", timeout=0):
            yield
    except Timeout as error:
        raise OSError(f"{folder}: another process is downloading into it; wait for it, or name another out=") from error


@contextmanager
def _quiet_pooch() -> Iterator[None]:
    """Without pooch's own lines, which would go through the progress bar."""
    import pooch

    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")
