"""What a source of shards yields: images or clips, one by one, in a fixed order.

What comes in: nothing. What goes out: the types `Item` and `Source`, and what the kinds of source share: which files
are images or videos, how many bytes a file has, the one shuffle of a listing, and how videos are cut.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from pretrain.config import ShardsConfig

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"))
VIDEO_SUFFIXES = frozenset((".mp4", ".avi", ".mov", ".mkv", ".webm"))


class StoredFile(Protocol):
    """A file on the disk, behind a URL or in an archive, that is read when it is wanted (`pathlib.Path` is one)."""

    @property
    def name(self) -> str: ...

    def read_bytes(self) -> bytes: ...


class StoredPixels(Protocol):
    """Pixels (height, width, 3) or (height, width), read when they are wanted (`np.ndarray` is one)."""

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray: ...


class ClipFrames(Protocol):
    """Frames of a video or a stack, read when they are wanted: `count` of them, at `frame_rate_hz`."""

    count: int
    frame_rate_hz: float
    first: int

    def frames(self) -> Iterator[np.ndarray]:
        """Frames uint8, all (height, width) or all (height, width, 3)."""
        ...

    def encoded(self) -> tuple[str, bytes]:
        """The whole video as it was: its extension and its bytes."""
        ...


class SignalValues(Protocol):
    """A signal beside an image or a clip, read when it is wanted."""

    def read(self) -> np.ndarray:
        """Values float32, (channels,) of an image or (channels, frames) of a clip."""
        ...


@dataclass(frozen=True)
class Item:
    """One image or clip of a source: `image` is encoded bytes, a file, or pixels uint8.

    `depth` is its depth image in the same forms, with one channel, 8 or 16 bit; None where there is none. A clip has
    `clip` instead. `signals` are those that belong to it, by name; None where it lacks one that others have.
    """

    name: str
    image: bytes | StoredFile | StoredPixels = b""
    label: int | None = None
    depth: bytes | StoredFile | StoredPixels | None = None
    clip: ClipFrames | None = None
    signals: dict[str, SignalValues | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """A fixed sequence of images or of clips.

    `items(start)` yields them from number `start` on; `fingerprint` changes whenever the sequence does, so that an
    interrupted job only goes on from the same source. `signals` are the names of those that every item has;
    `frames_left_out` counts frames at the ends of videos that fill no clip.
    """

    count: int
    items: Callable[[int], Iterator[Item]]
    fingerprint: str
    classes: tuple[str, ...] | None = None
    kind: str = "images"
    signals: tuple[str, ...] = ()
    frames_left_out: int = 0


def byte_count(file: StoredFile) -> int:
    return file.stat().st_size if isinstance(file, Path) else file.size


def open_stored(file: StoredFile) -> BinaryIO:
    """A file, open for reading anywhere in it."""
    return file.open("rb") if isinstance(file, Path) else file.open()


def suffix_of(name: str) -> str:
    """A name's last suffix in small letters, with its dot; empty where there is none."""
    last = name.rsplit("/", 1)[-1]
    return f".{last.rsplit('.', 1)[1].lower()}" if "." in last[1:] else ""


def is_hidden(name: str) -> bool:
    """Whether a file, or a folder that it lies in, is out of a user's sight: shadows of macOS's, editors' copies."""
    return any(part.startswith(".") for part in name.split("/"))


def without_suffix(name: str) -> str:
    suffix = suffix_of(name)
    return name[: -len(suffix)] if suffix else name


def shuffled(items: list[Item], config: ShardsConfig) -> Callable[[int], Iterator[Item]]:
    """A source's `items` of a listing that is shuffled once, in place.

    So each shard holds a mixture of all classes; a shuffle buffer while training could not undo an order by class.
    """
    random.Random(config.seed).shuffle(items)
    return lambda start: iter(items[start:])


def listing_fingerprint(items: list[Item]) -> str:
    return "\n".join(f"{item.name}:{byte_count(item.image)}" for item in items)


def cuts(frames: int, clip_frames: int) -> list[tuple[int, int]]:
    """First frame and length of each clip of `clip_frames` frames that fits in a video one after the other; 0: all."""
    if clip_frames == 0:
        return [(0, frames)]
    return [(first, clip_frames) for first in range(0, frames - clip_frames + 1, clip_frames)]
