"""Trials or clips of different lengths one after the other in one file, time first, so that a window lies together.

Comes in: a file of plain numbers and what its index says: type, shape of a frame, frames of each row. Goes out: any
row, mapped into memory, of which only what is looked at is read; the mapping ends with the array.

Values may be rounded to save space: grey levels to whole numbers (uint8); responses to float16, whose 11 bits are off
by at most 2^-11 = 0.05 % of a value above 6e-5, and by 3e-8 below. A row that reaches beyond float16 (65,504)
is halved as often as it takes, which loses nothing, and doubled again when it is read.
"""

import math
import mmap
import os
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from neural_data.trial_files import TrialFiles

DTYPES = ("uint8", "float16", "float32")
LARGEST_HALF = 65504.0


@dataclass(frozen=True, eq=False)
class RowFile:
    """Rows of a file: `shape` of one frame, `frames` int64 (rows,), `halved` int64 (rows,), `crc32` of each row."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    frames: np.ndarray
    halved: np.ndarray
    crc32: tuple[int, ...] = field(default=())

    @property
    def frame_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)

    @cached_property
    def starts(self) -> np.ndarray:
        """Where each row begins, in bytes, int64 (rows + 1,); the last is the size of the file."""
        return np.concatenate([[0], np.cumsum(self.frames)]) * self.frame_bytes

    @classmethod
    def from_index(cls, folder: Path, entry: dict[str, Any]) -> "RowFile":
        """As the index of a folder describes it. Raises ValueError or KeyError where that makes no sense."""
        if entry["dtype"] not in DTYPES or Path(entry["file"]).name != entry["file"]:
            raise ValueError(
                f"{entry['dtype']} in {entry['file']!r}, expected one of {', '.join(DTYPES)} in a file here"
            )
        frames = np.array(entry["frames"], np.int64)
        halved = np.array(entry["halved"], np.int64)
        shape, crc32 = tuple(map(int, entry["shape"])), tuple(map(int, entry["crc32"]))
        if not len(frames) == len(halved) == len(crc32) or frames.min(initial=0) < 0 or min(shape, default=1) < 0:
            raise ValueError(f"{len(frames)} rows, {len(halved)} scales and {len(crc32)} checksums, expected as many")
        return cls(folder / entry["file"], np.dtype(entry["dtype"]), shape, frames, halved, crc32)

    def entry(self) -> dict[str, Any]:
        """What the index says of it."""
        plain = {"file": self.path.name, "dtype": self.dtype.name, "shape": list(self.shape)}
        return plain | {"frames": self.frames.tolist(), "halved": self.halved.tolist(), "crc32": list(self.crc32)}

    def check_size(self) -> None:
        """Raises FileNotFoundError or ValueError where the file is absent, cut off or too long."""
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such file")
        size = self.path.stat().st_size
        if size != self.starts[-1]:
            raise ValueError(f"{self.path}: found {size} bytes, expected {self.starts[-1]}; prepare it again")

    def check_row(self, row: int) -> None:
        """Raises ValueError where a row is not what was written."""
        if zlib.crc32(self._bytes(row)) != self.crc32[row]:
            raise ValueError(f"{self.path}: row {row} is damaged (its CRC differs); prepare it again")

    def read(self, row: int, frames: slice = slice(None)) -> np.ndarray:
        """Frames of a row, (frames, ...): uint8 and float32 as they lie in the file, read-only; of float16 float32."""
        shape = (int(self.frames[row]), *self.shape)
        if not math.prod(shape):
            return np.empty((len(range(shape[0])[frames]), *self.shape), np.float32)
        values = np.ndarray(shape, self.dtype, self._bytes(row))[frames]
        if self.dtype != np.float16:
            return values
        wide = _widened(values)
        return np.ldexp(wide, int(self.halved[row])) if self.halved[row] else wide

    def only_frame(self, row: int) -> np.ndarray:
        """The one frame of a row; NaN where it has none."""
        values = self.read(row)
        return values[0] if len(values) else np.full(self.shape, np.nan, np.float32)

    def _bytes(self, row: int) -> memoryview:
        start, stop = int(self.starts[row]), int(self.starts[row + 1])
        if start == stop:
            return memoryview(b"")
        first = start - start % mmap.ALLOCATIONGRANULARITY
        with open(self.path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), stop - first, access=mmap.ACCESS_READ, offset=first)
        return memoryview(mapped)[start - first :]


def _widened(values: np.ndarray) -> np.ndarray:
    """float16 as float32, the same numbers; torch is asked because numpy takes twenty times as long."""
    import torch

    return torch.from_numpy(np.array(values)).float().numpy()


class TimeFirstTraces(TrialFiles):
    """Traces (rows, channels, time) in a file that has time first; of a window only its own frames are read.

    What comes back lies in memory as it does in the file, time first.
    """

    def __init__(self, rows: RowFile) -> None:
        self.rows = rows
        super().__init__(self._whole, (len(rows.frames), rows.shape[0], int(rows.frames.max())))

    def _whole(self, row: int) -> np.ndarray:
        return self.rows.read(row).T

    def _trial(self, row: int, rest: tuple[Any, ...]) -> np.ndarray:
        if len(rest) == 2 and rest[0] == slice(None) and isinstance(rest[1], slice):
            wanted = range(self.shape[2])[rest[1]]
            if wanted.step > 0 and len(wanted) and wanted[-1] < self.rows.frames[row]:
                return self.rows.read(row, slice(wanted[0], wanted[-1] + 1, wanted.step)).T
        return super()._trial(row, rest)


def as_written(values: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, int, float]:
    """Values as a row holds them, how often they were halved, and by how much the largest rounding changed one.

    The change is in grey levels of uint8, and 0 of other types. Raises ValueError for values that the type cannot hold.
    """
    if dtype == np.uint8:
        if values.dtype == np.uint8:
            return np.ascontiguousarray(values), 0, 0.0
        if values.size and not (values.min() >= 0 and values.max() <= 255):
            raise ValueError(f"values from {values.min():g} to {values.max():g}, expected grey levels from 0 to 255")
        rounded = np.rint(values)
        return rounded.astype(np.uint8, order="C"), 0, float(np.abs(values - rounded).max(initial=0))
    if dtype != np.float16:
        return values.astype(dtype, order="C"), 0, 0.0
    largest = float(np.nanmax(np.abs(values), initial=0))
    if not math.isfinite(largest):
        raise ValueError("an infinite value, expected numbers or NaN")
    halved = max(0, math.ceil(math.log2(largest / LARGEST_HALF))) if largest > LARGEST_HALF else 0
    return np.ldexp(values, -halved).astype(np.float16, order="C"), halved, 0.0


class RowWriter:
    """Appends rows to a file and remembers their checksums; a second one goes on where the first was stopped."""

    def __init__(self, path: Path, rows: RowFile, done: dict[str, list[int]]) -> None:
        """`rows`: what the file is to become; `done`: `crc32` and `halved` of the rows that are whole already."""
        self.rows, self.done = rows, {key: list(done[key]) for key in ("crc32", "halved")}
        self.file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115
        start = int(rows.starts[self.count])
        if os.fstat(self.file.fileno()).st_size < start:
            self.done, start = {"crc32": [], "halved": []}, 0
        self.file.truncate(start)
        self.file.seek(start)

    @property
    def count(self) -> int:
        """Rows that are written."""
        return len(self.done["crc32"])

    def append(self, values: np.ndarray) -> float:
        """Write the next row (frames, ...); returns the largest change by rounding."""
        expected = (int(self.rows.frames[self.count]), *self.rows.shape)
        if values.shape != expected:
            raise ValueError(f"shape {values.shape}, expected {expected}")
        written, halved, change = as_written(values, self.rows.dtype)
        self.file.write(written.data if written.size else b"")
        self.done["crc32"].append(zlib.crc32(written))
        self.done["halved"].append(halved)
        return change

    def sync(self) -> None:
        """Make sure that what was written is on the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()
