"""A folder of `.npy` files, on disk or inside a zip, of which only what is asked for is read.

Comes in: a folder, or a zip and the folder inside of it. Goes out: a `NpyFolder` or a `ZipFolder`: which files there
are, the header of each, its first line, and its array.

A zip is read where it lies, nothing is extracted: a mouse of 2023 would take another 18 GB. What is stored in it is
mapped into memory, just as files are. What is deflated must be decompressed from its beginning, so that any window of
an array costs the whole array (about 0.1 s for 20 MB); the last array of each folder is kept for the next window.

Files of Python objects are refused; members of a zip are checked: no absolute paths, no "..", no links, no passwords,
and of what is decompressed the length and the CRC.
"""

import io
import math
import mmap
import os
import re
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

# One read gets the header and, in float64, a first line of 480 samples.
START_BYTES = 4096
# Below, reading a file takes less time than mapping it.
MAPPED_BYTES = 2**18
# What a sane header can take: numpy's own limit is 10,000.
HEADER_BYTES = 2**16
MAGIC = b"\x93NUMPY"
DEEPEST = 4  # meta/statistics/<modality>/all


@dataclass(frozen=True)
class NpyHeader:
    """What a `.npy` file says of its array: `shape`, `dtype`, whether it is in Fortran's order, and the `offset` of the
    first element in bytes."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class NpyFolder:
    """`.npy` files below a folder on disk: `files` are their paths relative to it, with their bytes.

    `name` is the folder's own. Can be pickled.
    """

    def __init__(self, path: Path, name: str, files: dict[str, int]) -> None:
        # Absolute: workers of a sweep go to folders of their own.
        self.path, self.name, self.files = os.path.abspath(path), name, files
        self._headers: dict[str, NpyHeader] = {}
        self._parsed: dict[bytes, NpyHeader] = {}

    def wrong(self, file: str, found: Any, expected: str) -> ValueError:
        """The one line that says what is the matter with a file."""
        return ValueError(f"{self.path}: {file}: found {found}, expected {expected}")

    def header(self, file: str) -> NpyHeader:
        """Raises FileNotFoundError where there is no such file, ValueError where it is damaged or holds objects."""
        if file not in self._headers:
            self._read_header(file)
        return self._headers[file]

    def first_line(self, file: str) -> np.ndarray:
        """The elements along the last axis, at index 0 of all others; of most files only these are read."""
        start = self._read_header(file)
        header = self._headers[file]
        if len(header.shape) < 1 or header.nbytes == 0:
            raise self.wrong(file, f"shape {header.shape}", "an array that is not empty")
        length = header.shape[-1]
        # Where Fortran's order has it, the line's elements lie far apart, unless there is nothing but the line.
        together = not header.fortran or len(header.shape) == 1
        if together and header.offset + length * header.dtype.itemsize <= len(start):
            return np.frombuffer(start, header.dtype, length, header.offset)
        return np.array(self.array(file)[(0,) * (len(header.shape) - 1)])

    def array(self, file: str, scattered: bool = False) -> np.ndarray:
        """The array, mapped into memory where that is possible; read-only. `scattered`: few elements, far apart, will
        be looked at."""
        header = self.header(file)
        if header.nbytes >= MAPPED_BYTES:
            return self._mapped(os.path.join(self.path, file), header, header.offset, file, scattered)
        return self._from_bytes(file, header, self._bytes(file, header.offset, header.nbytes))

    def _from_bytes(self, file: str, header: NpyHeader, data: bytes) -> np.ndarray:
        if len(data) < header.nbytes:
            raise self.wrong(file, f"{header.offset + len(data)} bytes", f"{header.offset + header.nbytes}")
        return np.ndarray(header.shape, header.dtype, data, order="F" if header.fortran else "C")

    def _mapped(self, where: str, header: NpyHeader, offset: int, file: str, scattered: bool) -> np.ndarray:
        first = offset - offset % mmap.ALLOCATIONGRANULARITY
        try:
            with open(where, "rb") as handle:
                length = offset - first + header.nbytes
                mapped = mmap.mmap(handle.fileno(), length, access=mmap.ACCESS_READ, offset=first)
        except FileNotFoundError:
            raise self._gone(file) from None
        except (ValueError, OSError) as error:
            raise self.wrong(file, f"a file that cannot be read ({error})", "the array that was there") from None
        if scattered and hasattr(mmap, "MADV_RANDOM"):
            # Otherwise the system reads 128 kB around each page.
            mapped.madvise(mmap.MADV_RANDOM)
        order = "F" if header.fortran else "C"
        return np.ndarray(header.shape, header.dtype, mapped, offset - first, order=order)

    def _bytes(self, file: str, first: int, count: int) -> bytes:
        try:
            with open(os.path.join(self.path, file), "rb") as handle:
                handle.seek(first)
                return handle.read(count)
        except FileNotFoundError:
            raise self._gone(file) from None
        except OSError as error:
            raise self.wrong(file, f"a file that cannot be read ({error})", "a readable file") from None

    def _gone(self, file: str) -> FileNotFoundError:
        return FileNotFoundError(f"{self.path}: {file}: no such file")

    def _read_header(self, file: str) -> bytes:
        """Remembers the header of a file and returns its first bytes, START_BYTES or more."""
        if file not in self.files:
            raise self._gone(file)
        start = self._bytes(file, 0, START_BYTES)
        wide = 4 if start[6:7] >= b"\x02" else 2
        if start[:6] != MAGIC or len(start) < 8 + wide:
            raise self.wrong(file, "a file that is no array", "an .npy file as numpy writes it")
        offset = 8 + wide + int.from_bytes(start[8 : 8 + wide], "little")
        if START_BYTES < offset <= HEADER_BYTES:
            start = self._bytes(file, 0, HEADER_BYTES)
        header = self._parsed.get(start[:offset]) or self._parse(file, start[:offset], offset)
        self._parsed[start[:offset]] = self._headers[file] = header
        if self.files[file] < header.offset + header.nbytes:
            raise self.wrong(file, f"{self.files[file]} bytes", f"{header.offset + header.nbytes} (it was cut off)")
        return start

    def _parse(self, file: str, start: bytes, offset: int) -> NpyHeader:
        stream = io.BytesIO(start)
        try:
            version = np.lib.format.read_magic(stream)
            readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, fortran, dtype = readers[version](stream)
        except (ValueError, KeyError) as error:
            line = " ".join(str(error).split())[:100]
            raise self.wrong(file, f"a damaged header ({line})", "an .npy file as numpy writes it") from None
        if any(size < 0 for size in shape):
            raise self.wrong(file, f"shape {shape}", "a shape without negative sizes")
        if dtype.hasobject or dtype.names or dtype.kind not in "biufSU":
            what = "Python objects" if dtype.hasobject else str(dtype)
            raise self.wrong(file, what, "numbers or text; objects could run code and are not read")
        return NpyHeader(shape, dtype, fortran, offset)


class ZipFolder(NpyFolder):
    """The `.npy` files below `root` in a zip, "" or ending in "/"; see the module's docstring."""

    def __init__(self, archive: Path, root: str, members: dict[str, zipfile.ZipInfo]) -> None:
        below = {name.removeprefix(root): member for name, member in members.items() if name.startswith(root)}
        self._members = {file: member for file, member in below.items() if file.endswith(".npy")}
        self._recent: dict[str, tuple[str, np.ndarray]] = {}
        self._places: dict[str, int] = {}
        sizes = {file: member.file_size for file, member in self._members.items()}
        super().__init__(archive, PurePosixPath(root).name or archive.stem, sizes)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_recent": {}}

    @property
    def deflated(self) -> bool:
        """Whether any file must be decompressed."""
        return any(member.compress_type != zipfile.ZIP_STORED for member in self._members.values())

    def array(self, file: str, scattered: bool = False) -> np.ndarray:
        """The array, mapped into memory where it is stored without compression; read-only."""
        header, below = self.header(file), file.rpartition("/")[0]
        if self._members[file].compress_type == zipfile.ZIP_STORED:
            if header.nbytes >= MAPPED_BYTES:
                return self._mapped(self.path, header, self._place(file) + header.offset, file, scattered)
            return super().array(file)
        recent, values = self._recent.get(below, ("", None))
        if recent != file:
            values = self._from_bytes(file, header, memoryview(self._inflated(file))[header.offset :])
            self._recent[below] = (file, values)
        return values

    def _bytes(self, file: str, first: int, count: int) -> bytes:
        member = self._members[file]
        if member.compress_type != zipfile.ZIP_STORED:
            return self._inflated(file, first + count)[first:]
        with open(self.path, "rb") as handle:
            handle.seek(self._place(file) + first)
            return handle.read(max(0, min(count, member.file_size - first)))

    def _place(self, file: str) -> int:
        """Where a member's data begin in the zip: behind its local header, whose length only the header tells."""
        if file not in self._places:
            member = self._members[file]
            with open(self.path, "rb") as handle:
                handle.seek(member.header_offset)
                local = handle.read(30)
            if local[:4] != b"PK\x03\x04" or len(local) < 30:
                raise self.wrong(file, "no member where the zip says", "a zip that is whole")
            self._places[file] = member.header_offset + 30 + sum(struct.unpack("<HH", local[26:30]))
        return self._places[file]

    def _inflated(self, file: str, count: int | None = None) -> bytes:
        """The first `count` bytes of a member, by default all of them, which are then checked.

        Never more than the zip promises is decompressed."""
        member, inflate = self._members[file], zlib.decompressobj(-zlib.MAX_WBITS)
        wanted = member.file_size if count is None else min(count, member.file_size)
        # A code of deflate has at most 15 bits a byte, and its table some 300 bytes: a start needs no more than this.
        packed = member.compress_size if count is None else min(member.compress_size, 2 * wanted + 1024)
        with open(self.path, "rb") as handle:
            handle.seek(self._place(file))
            data = handle.read(packed)
        try:
            found = inflate.decompress(data, max(1, wanted))
        except zlib.error as error:
            raise self.wrong(file, f"damaged data ({error})", "what was put into the zip") from None
        if count is None and (len(found) < wanted or zlib.crc32(found) != member.CRC):
            raise self.wrong(file, "damaged data (the CRC differs)", "what was put into the zip")
        return found


def disk_folder(folder: Path, tops: tuple[str, ...]) -> NpyFolder:
    """The `.npy` files below the folders `tops` of a folder, at most DEEPEST deep, but for hidden ones."""
    files: dict[str, int] = {}
    for top in tops:
        _list(folder, top, files)
    return NpyFolder(folder, folder.resolve().name, files)


def _list(folder: Path, below: str, files: dict[str, int]) -> None:
    """Links are followed: people keep data where there is room."""
    if not (folder / below).is_dir():
        return
    with os.scandir(folder / below) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            name = f"{below}/{entry.name}"
            if entry.name.startswith("."):
                continue
            if entry.name.endswith(".npy") and entry.is_file():
                files[name] = entry.stat().st_size
            elif name.count("/") < DEEPEST and entry.is_dir():
                _list(folder, name, files)


def zip_members(archive: Path) -> dict[str, zipfile.ZipInfo]:
    """The members of a zip by name, but for hidden ones. Raises ValueError for a damaged zip and for members that a
    sane archive has not."""
    try:
        with zipfile.ZipFile(archive) as handle:
            members = handle.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise ValueError(f"{archive}: found a damaged zip ({error}), expected one that is whole") from None
    found: dict[str, zipfile.ZipInfo] = {}
    for member in members:
        reason = _unsafe(member)
        if reason is None and member.filename in found:
            reason = "a member that is there twice"
        if reason is not None:
            raise ValueError(f"{archive}: {member.filename!r}: found {reason}, expected plain files below one folder")
        parts = PurePosixPath(member.filename).parts
        if not member.is_dir() and not any(part.startswith((".", "__MACOSX")) for part in parts):
            found[member.filename] = member
    return found


def _unsafe(member: zipfile.ZipInfo) -> str | None:
    path = PurePosixPath(member.filename)
    if path.is_absolute() or ".." in path.parts or re.match(r".*\\|[A-Za-z]:", member.filename):
        return "a path that leads out of the archive"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "a link"
    if member.flag_bits & 1:
        return "a member with a password"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "a compression other than deflate"
    return None
