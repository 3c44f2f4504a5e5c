"""Signals recorded beside an image or a video, such as running speed or the centre of the pupil.

What comes in: beside `walk.mp4`, an archive `walk.npz` with an array for each signal, or an array `walk.<name>.npy` for
each (beside an image likewise). An array is (channels, frames) or (frames,) for a video, one value for each frame;
(channels,) or one number for an image. What goes out: float32 values, read when they are wanted and without unpickling.
"""

import io
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pretrain.items import StoredFile, open_stored, suffix_of, without_suffix
from pretrain.remote_npy import RemoteNpy, remote_npy
from pretrain.storage import RemoteFile

# WebDataset's readers make extensions small, and end the key of a sample at its first dot.
NAME = re.compile(r"[a-z][a-z0-9_]*")
# Batches hold these themselves, as they are read or as the view maker hands them on.
RESERVED = frozenset((
    "images", "video", "pixels", "sizes", "index", "label", "depth", "frames", "frame_rate_hz", "problems", "views",
    "local_views", "patches", "epoch", "progress",
))  # fmt: skip


@dataclass(frozen=True)
class SignalFile:
    """An array of a `.npy` file, or the one called `key` of an `.npz` file.

    Of a stack's signals, those of its item number `index`; `first` and `count` are the wanted frames of `total`.
    """

    file: StoredFile
    key: str | None = None
    index: int | None = None
    first: int = 0
    count: int | None = None
    total: int | None = None

    def read(self) -> np.ndarray:
        """Values float32, (channels,) of an image or (channels, frames) of a clip."""
        array = load_array(self.file, self.key, whole=self.count == self.total)
        if array.dtype.kind not in "fiub":
            raise ValueError(f"{self.file.name} holds {array.dtype}, not numbers")
        of_item = () if self.index is None else (self.index,)
        shape = array.shape[len(of_item) :]
        if self.count is None:
            require_image_signal(shape, self.file.name)
            return np.atleast_1d(np.asarray(array[of_item], np.float32))
        if len(shape) not in (1, 2) or shape[-1] != self.total:
            raise ValueError(
                f"{self.file.name} has shape {shape}, should be (channels, {self.total}) as its video has "
                f"{self.total} frames"
            )
        frames = slice(self.first, self.first + self.count)
        wanted = (*of_item, frames) if len(shape) == 1 else (*of_item, slice(None), frames)
        return np.atleast_2d(np.asarray(array[wanted], np.float32))


def require_image_signal(shape: tuple[int, ...], name: str) -> None:
    if len(shape) > 1:
        raise ValueError(f"{name} has shape {shape}, should be (channels,) beside an image")


def require_signal_name(signal: str, file: str) -> None:
    """Raises one line where `file` holds a signal of a name that a batch cannot have it by."""
    if not NAME.fullmatch(signal):
        raise ValueError(f"signal {signal!r} of {file}: a signal's name has small letters, digits and _ only")
    if signal in RESERVED:
        raise ValueError(f"signal {signal!r} of {file}: batches have an entry of that name already; rename the signal")


def load_array(file: StoredFile, key: str | None, whole: bool) -> np.ndarray | RemoteNpy:
    """An array of an `.npz` or a `.npy` file; of a `.npy` file not read yet, unless it is wanted whole from a URL."""
    if key is not None:
        with open_stored(file) as opened, np.load(opened, allow_pickle=False) as arrays:
            return arrays[key]
    if isinstance(file, Path):
        return np.load(file, mmap_mode="r", allow_pickle=False)
    if isinstance(file, RemoteNpy):
        return file
    if isinstance(file, RemoteFile) and not whole:
        return remote_npy(file)
    return np.load(io.BytesIO(file.read_bytes()), allow_pickle=False)


def paired_signals(listing: Mapping[str, StoredFile], names: Collection[str]) -> dict[str, dict[str, SignalFile]]:
    """Signals of the listed images or videos `names`, by name without suffix and then by the signal's name."""
    stems = {without_suffix(name) for name in names}
    found: dict[str, dict[str, SignalFile]] = defaultdict(dict)
    for name, file in listing.items():
        stem = without_suffix(name)
        if suffix_of(name) == ".npz" and stem in stems:
            found[stem] |= {signal: SignalFile(file, signal) for signal in array_names(file)}
        elif suffix_of(name) == ".npy":
            stem, _, signal = stem.rpartition(".")
            if stem in stems:
                found[stem][signal] = SignalFile(file)
    for signals in found.values():
        for signal, array in signals.items():
            require_signal_name(signal, array.file.name)
    return dict(found)


def array_names(file: StoredFile) -> list[str]:
    try:
        with open_stored(file) as opened, np.load(opened, allow_pickle=False) as arrays:
            return list(arrays.files)
    except Exception as error:  # numpy's reader raises nearly anything on what is no .npz
        raise ValueError(f"{file.name} cannot be read as .npz: {error}") from error
