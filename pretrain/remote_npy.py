"""`.npy` files behind URLs, of which only the wanted part is read.

What comes in: a `.npy` file of a source behind a URL. What goes out: its header, read once, and any part of its array,
as numpy gives it of an array, by ranges of the file's bytes. Nothing is unpickled.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from pretrain.storage import RemoteFile

HEADER_BYTES = 4096  # asked for at a time; nearly every header fits
READ_BYTES = 2**23  # of one request where a part has to be put together, so that little is held besides the part
GAP_BYTES = 2**16  # between two runs of bytes, which come sooner in one request than in two

Part = int | slice | tuple[int | slice, ...]


@dataclass(frozen=True)
class RemoteNpy:
    """An array in a file of `size` bytes behind a URL, from byte `offset` on; it holds nothing that is open.

    `array[3]`, `array[2, :, 5:9]` read that part alone. Raises FileNotFoundError where the file is gone, StorageFailed
    where that cannot be told, and ValueError where it has become shorter.
    """

    file: RemoteFile
    dtype: np.dtype
    shape: tuple[int, ...]
    fortran: bool
    offset: int

    @property
    def name(self) -> str:
        return self.file.name

    @property
    def size(self) -> int:
        return self.file.size

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def read_bytes(self) -> bytes:
        """The whole file."""
        return self.file.read_bytes()

    def __getitem__(self, part: Part) -> np.ndarray:
        wanted = list(part) if isinstance(part, tuple) else [part]
        wanted += [slice(None)] * (self.ndim - len(wanted))
        windows = [range(side)[axis] for side, axis in zip(self.shape, wanted, strict=True)]
        spans = [range(window, window + 1) if isinstance(window, int) else window for window in windows]
        if any(span.step != 1 for span in spans):
            raise IndexError(f"{part} has steps, between which all bytes would be read; ask for single rows")
        # In Fortran's order an array lies as its transpose does in C's.
        shape, spans = (self.shape[::-1], spans[::-1]) if self.fortran else (self.shape, spans)
        data = b"".join(self.read_runs(*runs(shape, spans, self.dtype.itemsize)))
        values = np.frombuffer(data, self.dtype).reshape([len(span) for span in spans])
        values = values.T if self.fortran else values
        return values[tuple(0 if isinstance(window, int) else slice(None) for window in windows)]

    def read_runs(self, starts: list[int], length: int) -> Iterator[bytes]:
        """Runs of `length` bytes from these places in the array on, near ones by one request."""
        for near in together(starts, length):
            wanted = near[-1] + length - near[0]
            data = self.file.read_part(self.offset + near[0], wanted)
            if len(data) != wanted:
                raise ValueError(f"{self.file.url} has become shorter than its header says; bring the file again")
            for start in near:
                yield data[start - near[0] : start - near[0] + length]


def runs(shape: tuple[int, ...], spans: list[range], item_bytes: int) -> tuple[list[int], int]:
    """Where in an array of C order each unbroken run of bytes of a part begins, and the length that all have."""
    strides = [item_bytes * prod(shape[axis + 1 :]) for axis in range(len(shape))]
    whole = len(shape)
    while whole and len(spans[whole - 1]) == shape[whole - 1]:
        whole -= 1
    broken = max(whole - 1, 0)
    length = item_bytes * prod(len(span) for span in spans[broken:])
    starts = np.zeros(1, np.int64)
    for span, stride in zip(spans[:broken], strides[:broken], strict=True):
        starts = np.add.outer(starts, np.asarray(span, np.int64) * stride).ravel()
    first = spans[broken].start * strides[broken] if spans and length else 0
    return (starts + first).tolist(), length


def together(starts: list[int], length: int) -> list[list[int]]:
    """Places of runs in their order, those in one list that are to be read by one request."""
    found: list[list[int]] = []
    for start in starts:
        near = found and start - found[-1][-1] - length <= GAP_BYTES
        if near and start + length - found[-1][0] <= READ_BYTES:
            found[-1].append(start)
        else:
            found.append([start])
    return found


def remote_npy(file: RemoteFile) -> RemoteNpy:
    """The array of a file, from its header; raises one line where it is none, or cannot be read in parts."""
    with file.open(HEADER_BYTES) as opened:
        try:
            shape, fortran, dtype = read_header(opened)
        except Exception as error:  # numpy's parser raises several kinds on damaged bytes
            what = str(error).replace("\n", " ")
            raise ValueError(f"{file.url!r} cannot be read as .npy: {what}") from error
        offset, size = opened.tell(), opened.seek(0, os.SEEK_END)
        # A server of whole files shows itself here, before it sends all of them for one row.
        opened.seek(max(size - 1, 0))
        opened.read(1)
    whole = offset + dtype.itemsize * prod(shape)
    if size < whole:
        raise ValueError(f"{file.url!r} is cut short: {size:,} of {whole:,} bytes; bring the file again")
    if fortran and len(shape) > 2:
        raise ValueError(
            f"{file.url!r} lies in Fortran order, each row spread over the whole file, and cannot be read from a URL; "
            "save it again with np.save(file, np.ascontiguousarray(array)), or use it from a local folder"
        )
    return RemoteNpy(RemoteFile(file.url, size), dtype, shape, fortran, offset)


def read_header(opened: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether it is in Fortran's order, and dtype of the array in an open file; leaves it at the first value."""
    version = np.lib.format.read_magic(opened)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"it has version {version[0]}.{version[1]} of the format; arrays of numbers have 1.0 or 2.0")
    shape, fortran, dtype = read(opened)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never unpickled; save numbers")
    if min(shape, default=0) < 0:
        raise ValueError(f"its header says shape {shape}")
    return shape, fortran, dtype
