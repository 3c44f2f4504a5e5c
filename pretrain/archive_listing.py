"""What tar and zip archives hold, listed once and read from where it lies; nothing is extracted to the disk.

What comes in: a `.tar` (not compressed) or `.zip` file, or a tar of tars. What goes out: a listing, from names to files
that are read when they are wanted, as for a folder. A tar within a tar is a folder of its stem: so ImageNet's training
images (ILSVRC2012_img_train.tar, one tar per synset) lie in class folders. In WebDataset's tars (Aizman et al. 2019,
https://arxiv.org/abs/2001.01858), the labels in `.cls` and `.json` files are read along the way.
"""

import functools
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from pretrain.items import IMAGE_SUFFIXES, VIDEO_SUFFIXES, StoredFile, byte_count, is_hidden, open_stored, suffix_of
from pretrain.label_list import read_label
from pretrain.progress import progress
from pretrain.storage import RemoteFile, by_folder, is_url

LABEL_SUFFIXES = frozenset((".cls", ".json"))
READ_SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES | {".npy", ".npz"}
LABEL_KEYS = ("label", "cls", "class")  # of a sample's .json
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
MEBIBYTE = 2**20
# Of a zip behind a URL, beyond what is read: members come in random order, and its storage would send 50 MB for each.
AHEAD_BYTES = 2**18


@dataclass(frozen=True, slots=True)
class TarMember:
    """A file in a tar: `size` bytes from `offset` on, of the tar at a path or URL."""

    name: str
    archive: str
    offset: int
    size: int

    def read_bytes(self) -> bytes:
        if is_url(self.archive):
            data = RemoteFile(self.archive, self.size).read_part(self.offset, self.size)
        else:
            with open(self.archive, "rb") as file:
                data = os.pread(file.fileno(), self.size, self.offset)
        if len(data) != self.size:
            raise EOFError(f"{self.archive} ends within {self.name}")
        return data

    def open(self) -> BinaryIO:
        return io.BytesIO(self.read_bytes())


@dataclass(frozen=True, slots=True)
class ZipMember:
    """A file in a zip, of `size` bytes once it is decompressed."""

    name: str
    archive: Path | RemoteFile
    size: int

    def read_bytes(self) -> bytes:
        return opened_zip(self.archive, os.getpid()).read(self.name)

    def open(self) -> BinaryIO:
        return io.BytesIO(self.read_bytes())


@dataclass(frozen=True, slots=True)
class MemberLabel:
    """The label that a `.cls` or `.json` file of a WebDataset sample gives."""

    name: str
    label: int | str


Listing = dict[str, StoredFile | MemberLabel]


@functools.lru_cache(maxsize=8)
def opened_zip(file: Path | RemoteFile, process: int) -> zipfile.ZipFile:
    """A zip, open for all threads of a process; several processes must not share its place in the file."""
    return zipfile.ZipFile(file.open(AHEAD_BYTES) if isinstance(file, RemoteFile) else open_stored(file))


def archive_listing(file: Path | RemoteFile) -> Listing:
    """Images, videos, arrays and labels in a tar or zip by name, without the folder that holds everything else.

    Sorted as a folder is, whatever their order in the archive.
    """
    found: Listing = {}
    add_members = add_zip_members if suffix_of(file.name) == ".zip" else add_tar_members
    with progress(f"list {file.name}, MiB", byte_count(file) // MEBIBYTE) as meter:

        def reached(offset: int) -> None:
            if offset // MEBIBYTE > meter.done:
                meter.advance(offset // MEBIBYTE - meter.done)

        try:
            add_members(found, file, reached)
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, NotImplementedError) as error:
            raise ValueError(f"{str(location(file))!r} cannot be read as {suffix_of(file.name)}: {error}") from error
    names = without_common_folder(found)
    return {name: names[name] for name in sorted(names, key=by_folder)}


def add_tar_members(found: Listing, file: Path | RemoteFile, reached: Callable[[int], None]) -> None:
    with open_stored(file) as opened:
        if opened.read(6).startswith(COMPRESSED):
            raise tarfile.ReadError("it is compressed, so that its images have no random order; decompress it first")
        opened.seek(0)
        add_members_of_tar(found, opened, str(location(file)), 0, "", reached)


def add_members_of_tar(
    found: Listing, opened: BinaryIO, archive: str, base: int, folder: str, reached: Callable[[int], None]
) -> None:
    """Members of a tar that begins at byte `base` of the archive, and of the tars in it."""
    with tarfile.open(fileobj=opened, mode="r:") as tar:
        for member in tar:
            tar.members = []  # which would otherwise keep every header
            reached(base + member.offset)
            name = folder + checked_name(member.name, archive)
            suffix = suffix_of(name)
            if is_hidden(name):
                continue
            if member.islnk() and (original := folder + checked_name(member.linkname, archive)) in found:
                found[name] = found[original]
            elif member.issparse() or not member.isreg():
                continue
            elif suffix == ".tar":
                inner, start = tar.extractfile(member), base + member.offset_data
                add_members_of_tar(found, inner, archive, start, f"{name[:-4]}/", reached)
            elif suffix in LABEL_SUFFIXES:
                add_label(found, name, tar.extractfile(member).read())
            elif suffix in READ_SUFFIXES:
                found[name] = TarMember(name, archive, base + member.offset_data, member.size)


def add_zip_members(found: Listing, file: Path | RemoteFile, reached: Callable[[int], None]) -> None:
    archive = opened_zip(file, os.getpid())
    for member in archive.infolist():
        reached(member.header_offset)
        name = checked_name(member.filename, file.name)
        if member.flag_bits & 1:
            raise zipfile.BadZipFile(f"{name!r} in it is encrypted; decrypt it first")
        if member.is_dir() or is_hidden(name):
            continue
        if suffix_of(name) in LABEL_SUFFIXES:
            add_label(found, name, archive.read(member))
        elif suffix_of(name) in READ_SUFFIXES:
            found[name] = ZipMember(member.filename, file, member.file_size)


def location(file: Path | RemoteFile) -> Path | str:
    return file if isinstance(file, Path) else file.url


def checked_name(name: str, archive: str) -> str:
    """A member's name from its first folder on; raises ValueError where it leads out of the archive."""
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise ValueError(f"{archive} holds {name!r}, a name that leads out of it; archives of that kind are not read")
    return "/".join(parts)


def add_label(found: Listing, name: str, data: bytes) -> None:
    """The label in a `.cls` or `.json` file; none where a `.json` file has no such entry."""
    try:
        value = read_label(data.decode()) if suffix_of(name) == ".cls" else json.loads(data)
    except ValueError as error:
        raise ValueError(f"label file {name!r} cannot be read: {error}") from error
    if isinstance(value, dict):
        value = next((value[key] for key in LABEL_KEYS if key in value), None)
    if isinstance(value, int | str) and not isinstance(value, bool):
        found[name] = MemberLabel(name, value)


def without_common_folder(found: Listing) -> Listing:
    """The same files by names from where they part ways on: `photos/cat/1.jpg` becomes `cat/1.jpg`."""
    while found and len({name.partition("/")[0] for name in found}) == 1 and all("/" in name for name in found):
        found = {name.partition("/")[2]: file for name, file in found.items()}
    return found


def sample_key(name: str) -> str:
    """WebDataset's key of a file: its name up to the first dot."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def member_labels(listing: Listing) -> dict[str, int | str]:
    """Labels by the samples' keys; a `.cls` file counts before a `.json` file."""
    found = [(name, file.label) for name, file in listing.items() if isinstance(file, MemberLabel)]
    found.sort(key=lambda pair: suffix_of(pair[0]) == ".cls")
    return {sample_key(name): label for name, label in found}
