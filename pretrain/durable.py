"""Files that are whole or absent: written to a temporary name, synced, then renamed.

What comes in: a path and a function that writes to an open file. What goes out: the file, and its SHA-256.
"""

import errno
import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What an OSError has as its number where there is no room: on the disk, of a user's quota, or for a file of that size.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class HashingFile(io.RawIOBase):
    """A file opened for writing that hashes what passes through; not seekable, so every byte passes once."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")
        self.digest = hashlib.sha256()
        self.problem: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.problem = error
            raise

    def tell(self) -> int:
        return self.file.tell()

    def flush(self) -> None:
        if not self.file.closed and self.problem is None:
            self.file.flush()

    def fileno(self) -> int:
        return self.file.fileno()

    def close(self) -> None:
        try:
            self.file.close()
        except OSError as error:
            self.problem = self.problem or error
            raise
        finally:
            super().close()


def write_atomically(path: Path, write: Callable[[io.RawIOBase], Any], checksum: bool = False) -> str:
    """Let `write` fill a temporary file beside `path`, sync it, and rename it to `path`; returns its SHA-256.

    If `write` raises, the temporary file is removed and `path` is left as it was. With `checksum`, the digest is
    first kept beside it in `<name>.sha256`, in the form that `sha256sum --check` reads.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        file = HashingFile(temporary)
        try:
            with file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
        except Exception as error:
            # What is written through torch's zip files ends with an error of theirs, which hides that of the disk.
            cause = file.problem or error
            if isinstance(cause, OSError) and cause.filename is None:
                cause.filename = str(path)
            raise cause from None
        digest = file.digest.hexdigest()
        if checksum:
            line = f"{digest}  {path.name}\n".encode()
            write_atomically(checksum_path(path), lambda sidecar: sidecar.write(line))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return digest


def remove_leftovers(folder: Path, files: str = ".*.tmp") -> None:
    """Remove the temporary files of a process that was killed while it wrote into the folder."""
    for path in folder.glob(files):
        path.unlink(missing_ok=True)


def checksum_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def is_intact(path: Path) -> bool:
    """Whether a file has the SHA-256 that was kept when it was written."""
    sidecar = checksum_path(path)
    if not sidecar.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sidecar.read_text().split()[0]


def sync_folder(folder: Path) -> None:
    """Make renames in the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
