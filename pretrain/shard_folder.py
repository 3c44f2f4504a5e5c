"""Where shards are written: a local folder, or one behind a URL.

What comes in: names of files in the folder, and functions that write to an open file. What goes out: files that are
whole or absent. For a URL, each file is written locally first, to a temporary name, and then uploaded in one piece.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pretrain.durable import remove_leftovers, write_atomically
from pretrain.storage import (
    PatientFile,
    asked,
    file_system,
    has_folders,
    is_url,
    is_web,
    locate,
    one_line_errors,
    url_name,
)


class LocalFolder:
    """A folder of the local disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def exists(self) -> bool:
        return self.path.is_dir()

    def names(self) -> list[str]:
        """Sorted names of what lies in the folder itself."""
        return sorted(path.name for path in self.path.iterdir()) if self.exists() else []

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where it is absent."""
        path = self.path / name
        return path.stat().st_size if path.is_file() else None

    def sizes(self, names: list[str]) -> dict[str, int | None]:
        """Bytes of these files of the folder itself, by name; None where one is absent."""
        return {name: self.size(name) for name in names}

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def open(self, name: str) -> Any:
        """A file, open for reading."""
        return (self.path / name).open("rb")

    def write(self, name: str, write: Callable[[Any], Any]) -> str:
        """Let `write` fill the file; returns its SHA-256."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_atomically(path, write)

    def remove(self, name: str) -> None:
        """Remove a file or a folder with all its files."""
        path = self.path / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove what a killed process left half written."""
        remove_leftovers(self.path)

    def free_bytes(self, needed: int, shard: int) -> tuple[int, int, Path]:
        """Of all shards' and of one shard's bytes, those that must fit here; the bytes that are free, and where."""
        return needed, shutil.disk_usage(self.path).free, self.path


class RemoteFolder:
    """A folder behind a URL. Connections are made anew for each file, so that they never grow stale."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __str__(self) -> str:
        return self.url

    def place(self, name: str) -> tuple[Any, str]:
        return file_system(f"{self.url}/{name}" if name else self.url)

    def exists(self) -> bool:
        """Object stores have no empty folders, so that only what lies in one tells."""
        return bool(self.names())

    def names(self) -> list[str]:
        root = self.place("")[1].rstrip("/")
        found = asked(self.url, lambda system, path: system.ls(path, detail=False) if system.isdir(path) else [])
        return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in found if name.rstrip("/") != root)

    def size(self, name: str) -> int | None:
        try:
            return asked(f"{self.url}/{name}", lambda system, path: system.info(path)["size"])
        except FileNotFoundError:
            return None

    def sizes(self, names: list[str]) -> dict[str, int | None]:
        if is_web(self.url):
            return {name: self.size(name) for name in names}
        # One question for all, which would take minutes one by one.
        found = asked(self.url, lambda system, path: system.ls(path, detail=True))
        sizes = {url_name(info["name"]): info["size"] for info in found if info["type"] != "directory"}
        return {name: sizes.get(name) for name in names}

    def read(self, name: str) -> bytes:
        return asked(f"{self.url}/{name}", lambda system, path: system.cat_file(path))

    def open(self, name: str) -> Any:
        return PatientFile(f"{self.url}/{name}")

    def write(self, name: str, write: Callable[[Any], Any]) -> str:
        if is_web(self.url):
            raise ValueError(f"out={self.url}: http only reads; write to a folder or to s3:// and the like")
        system, path = self.place(name)
        with tempfile.TemporaryDirectory(prefix="murine-") as folder:
            local = Path(folder) / name.rsplit("/", 1)[-1]
            digest = write_atomically(local, write)
            try:
                with one_line_errors(f"{self.url}/{name}"):
                    if has_folders(self.url):
                        system.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
                    system.put_file(str(local), path)
            except FileNotFoundError as error:
                raise FileNotFoundError(
                    f"{self.url} cannot be written to: there is no such bucket; make it, or correct out="
                ) from error
        return digest

    def remove(self, name: str) -> None:
        system, path = self.place(name)
        with one_line_errors(f"{self.url}/{name}"):
            system.rm(path, recursive=True)

    def tidy(self) -> None:
        """An upload that broke off leaves nothing under the file's name in an object store."""

    def free_bytes(self, needed: int, shard: int) -> tuple[int, int, Path]:
        """Only the shard that waits for its upload takes room, here."""
        folder = Path(tempfile.gettempdir())
        return shard, shutil.disk_usage(folder).free, folder


def open_folder(location: Path | str) -> LocalFolder | RemoteFolder:
    place = locate(location)
    return RemoteFolder(place) if is_url(place) else LocalFolder(place)
