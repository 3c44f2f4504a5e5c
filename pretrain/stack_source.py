"""Images and clips from `.npy` stacks, which stay on the disk, or behind their URL, until an item is wanted.

What comes in: a `.npy` file, or a folder of them, uint8. What goes out, without a frame rate: images of stacks
`(N, H, W)` or `(N, H, W, 3)`. With a frame rate: clips, one of each `(T, H, W)` or `(T, H, W, 3)`, and N of each
`(N, T, H, W)` or `(N, T, H, W, 3)`. Labels are one number for each image or clip, over the files in the order of their
names, in `labels.npy` beside them. A signal of `walk.npy` is `walk.<name>.npy`: `(K, T)` of one clip, `(N, K, T)` of N,
`(N, K)` of images.
"""

import hashlib
import os
import random
from bisect import bisect_right
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from math import prod
from pathlib import Path

import numpy as np

from pretrain.config import ShardsConfig
from pretrain.items import Item, Source, byte_count, cuts, without_suffix
from pretrain.progress import progress, say
from pretrain.remote_npy import RemoteNpy, remote_npy
from pretrain.signals import SignalFile, require_signal_name
from pretrain.storage import RemoteFile

LABELS = "labels.npy"
FRAME_BYTES = 2**23  # of the frames of a clip that are read at a time
SHAPES = (
    "images are (N, H, W) or (N, H, W, 3); clips, with frame_rate_hz=<rate>, are (T, H, W), (T, H, W, 3), "
    "(N, T, H, W) or (N, T, H, W, 3)"
)


StackFile = Path | RemoteNpy


@dataclass(frozen=True)
class StackImage:
    """Image `number` of a stack, read when it is wanted."""

    file: StackFile
    number: int

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """Pixels uint8 (height, width) or (height, width, 3)."""
        return np.asarray(opened_stack(self.file)[self.number], dtype, copy=copy)


@dataclass(frozen=True)
class StackPart:
    """`count` frames of a clip in a stack, from number `first` on; `index` is the clip's number where it holds many."""

    file: StackFile
    index: int | None
    first: int
    count: int
    frame_rate_hz: float

    def frames(self) -> Iterator[np.ndarray]:
        """Frames uint8 (height, width) or (height, width, 3)."""
        stack = opened_stack(self.file)
        clip = () if self.index is None else (self.index,)
        at_once = max(1, FRAME_BYTES // prod(stack.shape[len(clip) + 1 :]))
        end = self.first + self.count
        for start in range(self.first, end, at_once):
            yield from stack[(*clip, slice(start, min(start + at_once, end)))]

    def encoded(self) -> tuple[str, bytes]:
        raise ValueError("format=encoded keeps videos as they were; a stack has none, choose format=raw")


@dataclass(frozen=True)
class Stack:
    """A file of images or clips: how many, of how many frames each (0 for images), and its signals' files."""

    file: StackFile
    items: int
    frames: int
    single: bool
    signals: dict[str, StackFile]


def stack_source(files: list[Path | RemoteFile], config: ShardsConfig, place: str) -> Source:
    """Images or clips of the stacks of one folder, shuffled once over all of them; `place` is what they came by."""
    files = with_headers(files)
    found = stacks(files, config)
    if not found:
        raise ValueError(f"no stack in {place!r}, only {LABELS}; put the .npy stacks beside it")
    clips = config.frame_rate_hz is not None
    if config.clip_frames and not clips:
        raise ValueError("clip_frames is for clips; say frame_rate_hz=<rate> if these stacks are clips")
    names = tuple(sorted({name for stack in found for name in stack.signals}))
    starts = [0, *accumulate(stack.items for stack in found)]
    labels = stack_labels([file for file in files if file.name == LABELS], starts[-1])
    places = [
        (number, first, count)
        for number in range(starts[-1])
        for first, count in cuts(found[bisect_right(starts, number) - 1].frames, config.clip_frames if clips else 0)
    ]
    if not places:
        raise ValueError(f"no clip in {place!r} has clip_frames={config.clip_frames} frames")
    left_out = sum(stack.items * stack.frames for stack in found) - sum(count for _, _, count in places)
    if left_out:
        say(f"{left_out:,} frames at the ends of the clips fill no clip of {config.clip_frames} frames")
    random.Random(config.seed).shuffle(places)

    def items(start: int) -> Iterator[Item]:
        for number, first, count in places[start:]:
            file = bisect_right(starts, number) - 1
            label = None if labels is None else int(labels[number])
            yield stack_item(found[file], number - starts[file], first, count, label, names, config.frame_rate_hz)

    listed = "\n".join(fingerprint(stack) for stack in found)
    labelled = "" if labels is None else hashlib.sha256(labels.tobytes()).hexdigest()
    settings = f"{config.seed} {config.frame_rate_hz} {config.clip_frames} {labelled}"
    kind = "clips" if clips else "images"
    return Source(len(places), items, f"{listed}\n{settings}", kind=kind, signals=names, frames_left_out=left_out)


def with_headers(files: list[Path | RemoteFile]) -> list[StackFile]:
    """The same files, those behind URLs with their headers read."""
    found = [file for file in files if isinstance(file, Path)]
    remote = [file for file in files if isinstance(file, RemoteFile)]
    if remote:
        with ThreadPoolExecutor(os.cpu_count()) as pool, progress("look into stacks", len(remote)) as meter:
            for file in pool.map(remote_npy, remote):
                found.append(file)
                meter.advance()
    return found


def fingerprint(stack: Stack) -> str:
    files = [stack.file, *(stack.signals[name] for name in sorted(stack.signals))]
    return "\n".join(f"{file.name}:{byte_count(file)}" for file in files)


def stack_item(
    stack: Stack, number: int, first: int, count: int, label: int | None, names: tuple[str, ...], rate: float | None
) -> Item:
    """Image or clip `number` of a stack, or `count` of its frames from `first` on."""
    index = None if stack.single else number
    part = {"first": first, "count": count, "total": stack.frames} if stack.frames else {}
    signals = {
        name: SignalFile(stack.signals[name], index=index, **part) if name in stack.signals else None for name in names
    }
    name = stack.file.name if stack.single else f"{stack.file.name} {number}"
    if not stack.frames:
        return Item(name, StackImage(stack.file, number), label, signals=signals)
    name = name if count == stack.frames else f"{name} frame {first}"
    return Item(name, label=label, clip=StackPart(stack.file, index, first, count, rate), signals=signals)


def stacks(files: list[StackFile], config: ShardsConfig) -> list[Stack]:
    """The stacks among `.npy` files, in the order of their names; the others are labels, or signals of the stacks."""
    stems = {without_suffix(file.name) for file in files}
    signals: dict[str, dict[str, StackFile]] = {}
    of_stacks = []
    for file in sorted(files, key=lambda file: file.name):
        stem, _, name = without_suffix(file.name).rpartition(".")
        if stem in stems:
            require_signal_name(name, file.name)
            signals.setdefault(stem, {})[name] = file
        elif file.name != LABELS:
            of_stacks.append(file)
    clips = config.frame_rate_hz is not None
    return [read_stack(file, clips, signals.get(without_suffix(file.name), {})) for file in of_stacks]


def read_stack(file: StackFile, clips: bool, signals: dict[str, StackFile]) -> Stack:
    """What a stack holds, from its header; raises one line where it can be neither images nor clips."""
    stack = opened_stack(file)
    if stack.dtype != np.uint8:
        raise ValueError(f"{file.name} holds {stack.dtype}; pixels of a stack are uint8, from 0 to 255")
    sides = stack.ndim - (stack.ndim > 3 and stack.shape[-1] == 3)
    if 0 in stack.shape or sides not in ((3, 4) if clips else (3,)):
        raise ValueError(f"{file.name} has shape {stack.shape}; {SHAPES}")
    single = clips and sides == 3
    if not single:
        require_rows(file, len(stack), signals)
    return Stack(file, 1 if single else len(stack), stack.shape[sides - 3] if clips else 0, single, signals)


def require_rows(stack: StackFile, items: int, signals: dict[str, StackFile]) -> None:
    """Raises one line where a signal has not a row for each of the images or clips of its stack."""
    for file in signals.values():
        shape = opened_stack(file).shape
        if shape[:1] != (items,):
            raise ValueError(f"{file.name} has shape {shape}, should have {items:,} rows, one for each of {stack.name}")


def opened_stack(file: StackFile) -> np.ndarray | RemoteNpy:
    """A stack, mapped from the disk, or read in parts; raises one line where it is no array, or needs unpickling."""
    return mapped(file, file.stat().st_mtime_ns) if isinstance(file, Path) else file


@lru_cache(maxsize=256)
def mapped(path: Path, changed_ns: int) -> np.ndarray:
    """The stack as it was last changed; not all are kept open, as a process may only open so many files."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as .npy: {error}") from error


def stack_labels(files: list[StackFile], items: int) -> np.ndarray | None:
    """Labels (items,) of the file of labels, where there is one."""
    if not files:
        return None
    labels = opened_stack(files[0])
    fits = labels.dtype.kind in "iu" and labels.shape == (items,)
    values = np.asarray(labels[:]) if fits else None
    if values is None or values.min(initial=0) < 0:
        raise ValueError(
            f"{LABELS} should have {items:,} whole numbers from 0, found {labels.dtype} of shape {labels.shape}"
        )
    return values
