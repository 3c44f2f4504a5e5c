"""Single samples out of WebDataset shards, by their key.

What comes in: the path of a tar, or its URL, and the key of a sample in it. What goes out: the sample as webdataset
gives it, a dictionary of its members' bytes by extension, with `__key__` and `__url__`. Members of one sample lie next
to each other and share a key, which is the name up to the first dot after the last slash (Aizman et al. 2019,
https://arxiv.org/abs/2001.01858).

A tar has no table of contents. Its headers are walked once when a shard is opened, about 2 µs each, and from then on a
sample costs one read of its own bytes. So a process that wants every eighth sample reads an eighth of the bytes.
"""

import mmap
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from webdataset.tariterators import base_plus_ext

BLOCK = 512
# A regular file in the header's type field; NUL is that of old tars.
REGULAR = (b"0", b"\0")


class OpenShard:
    """One shard: its file, and by key the members (extension, offset, bytes) of each sample.

    A tar that is cut short, or whose next header is damaged, ends there.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.path = file, Path(file.name)
        self.samples: dict[str, list[tuple[str, int, int]]] = {}
        for name, offset, size in tar_members(file.fileno()):
            key, extension = base_plus_ext(name)
            if key is not None:
                self.samples.setdefault(key, []).append((extension.lower(), offset, size))

    def read(self, key: str) -> dict[str, bytes | str]:
        """The members of a sample, in one read; raises KeyError, with a line, where they are not all there."""
        if key not in self.samples:
            raise KeyError(f"is not there (the shard has {len(self.samples):,} others)")
        members = self.samples[key]
        begin, end = members[0][1], members[-1][1] + members[-1][2]
        data = os.pread(self.file.fileno(), end - begin, begin)
        parts = {extension: data[offset - begin : offset - begin + size] for extension, offset, size in members}
        return {"__key__": key, "__url__": str(self.path), **parts}

    def close(self) -> None:
        self.file.close()


def tar_members(file: int) -> Iterator[tuple[str, int, int]]:
    """Name, offset and bytes of each regular file of a tar that lies there whole, up to the first damaged header."""
    length = os.fstat(file).st_size
    if not length:
        return
    with mmap.mmap(file, 0, prot=mmap.PROT_READ) as tar:
        position = 0
        while position + BLOCK <= length:
            header = tar[position : position + BLOCK]
            size = octal(header[124:136])
            offset = position + BLOCK
            if not header[0] or size is None or offset + size > length:
                return
            if header[156:157] in REGULAR:
                yield header[:100].rstrip(b"\0").decode("utf-8", "replace"), offset, size
            position = offset + -(-size // BLOCK) * BLOCK


def octal(field: bytes) -> int | None:
    """The number in a field of a tar's header; None where it is damaged."""
    digits = field.strip(b" \0")
    return int(digits, 8) if digits and not digits.strip(b"01234567") else None


class ShardReader:
    """Reads samples of many shards, of which at most `keep` are open at a time.

    `open_file` opens the file of a shard's path or URL, fetching it where that is needed. A shard that cannot be opened
    is not asked for again.
    """

    def __init__(self, open_file: Callable[[str], BinaryIO], keep: int = 64) -> None:
        self.open_file, self.keep = open_file, keep
        self.open: OrderedDict[str, OpenShard] = OrderedDict()
        self.failed: dict[str, OSError] = {}

    def read(self, url: str, key: str) -> dict[str, bytes | str]:
        """A sample of a shard; raises OSError where the shard, and KeyError where the sample is not there."""
        return self.shard(url).read(key)

    def shard(self, url: str) -> OpenShard:
        if url in self.open:
            self.open.move_to_end(url)
            return self.open[url]
        if url in self.failed:
            raise self.failed[url]
        try:
            shard = self.open[url] = OpenShard(self.open_file(url))
        except OSError as error:
            self.failed[url] = error
            raise
        while len(self.open) > self.keep:
            self.open.popitem(last=False)[1].close()
        return shard
