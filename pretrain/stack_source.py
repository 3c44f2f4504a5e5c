"""Images and clips from `.npy` stacks, which stay on the disk until an item is wanted.

What comes in: a `.npy` file, or a folder of them, uint8. What goes out, without a frame rate: images of stacks
`(N, H, W)` or `(N, H, W, 3)`. With a frame rate: clips, one of each `(T, H, W)` or `(T, H, W, 3)`, and N of each
`(N, T, H, W)` or `(N, T, H, W, 3)`. Labels are one number for each image or clip, over the files in the order of their
names, in `labels.npy` beside them. A signal of `walk.npy` is `walk.<name>.npy`: `(K, T)` of one clip, `(N, K, T)` of N,
`(N, K)` of images.
"""

import hashlib
import random
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np

from pretrain.config import ShardsConfig
from pretrain.items import Item, Source, cuts
from pretrain.progress import say
from pretrain.signals import SignalFile, require_signal_name

LABELS = "labels.npy"
SHAPES = (
    "images are (N, H, W) or (N, H, W, 3); clips, with frame_rate_hz=<rate>, are (T, H, W), (T, H, W, 3), "
    "(N, T, H, W) or (N, T, H, W, 3)"
)


@dataclass(frozen=True)
class StackPart:
    """`count` frames of a clip in a stack, from number `first` on; `index` is the clip's number where it holds many."""

    path: Path
    index: int | None
    first: int
    count: int
    frame_rate_hz: float

    def frames(self) -> Iterator[np.ndarray]:
        """Frames uint8 (height, width) or (height, width, 3)."""
        stack = opened_stack(self.path)
        clip = stack if self.index is None else stack[self.index]
        yield from clip[self.first : self.first + self.count]

    def encoded(self) -> tuple[str, bytes]:
        raise ValueError("format=encoded keeps videos as they were; a stack has none, choose format=raw")


@dataclass(frozen=True)
class Stack:
    """A file of images or clips: how many, of how many frames each (0 for images), and its signals' files."""

    path: Path
    items: int
    frames: int
    single: bool
    signals: dict[str, Path]


def stack_source(paths: list[Path], config: ShardsConfig) -> Source:
    """Images or clips of stacks, shuffled once over all of them."""
    found = stacks(paths, config)
    if not found:
        raise ValueError(f"no stack in {str(paths[0].parent)!r}, only {LABELS}; put the .npy stacks beside it")
    clips = config.frame_rate_hz is not None
    if config.clip_frames and not clips:
        raise ValueError("clip_frames is for clips; say frame_rate_hz=<rate> if these stacks are clips")
    names = tuple(sorted({name for stack in found for name in stack.signals}))
    starts = [0, *accumulate(stack.items for stack in found)]
    labels = stack_labels(paths[0].with_name(LABELS), starts[-1])
    places = [
        (number, first, count)
        for number in range(starts[-1])
        for first, count in cuts(found[bisect_right(starts, number) - 1].frames, config.clip_frames if clips else 0)
    ]
    if not places:
        raise ValueError(f"no clip in {str(paths[0].parent)!r} has clip_frames={config.clip_frames} frames")
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


def fingerprint(stack: Stack) -> str:
    files = [stack.path, *(stack.signals[name] for name in sorted(stack.signals))]
    return "\n".join(f"{path.name}:{path.stat().st_size}" for path in files)


def stack_item(
    stack: Stack, number: int, first: int, count: int, label: int | None, names: tuple[str, ...], rate: float | None
) -> Item:
    """Image or clip `number` of a stack, or `count` of its frames from `first` on."""
    index = None if stack.single else number
    part = {"first": first, "count": count, "total": stack.frames} if stack.frames else {}
    signals = {
        name: SignalFile(stack.signals[name], index=index, **part) if name in stack.signals else None for name in names
    }
    name = stack.path.name if stack.single else f"{stack.path.name} {number}"
    if not stack.frames:
        return Item(name, opened_stack(stack.path)[number], label, signals=signals)
    name = name if count == stack.frames else f"{name} frame {first}"
    return Item(name, label=label, clip=StackPart(stack.path, index, first, count, rate), signals=signals)


def stacks(paths: list[Path], config: ShardsConfig) -> list[Stack]:
    """The stacks among `.npy` files, in the order of their names; the others are labels, or signals of the stacks."""
    stems = {path.stem for path in paths}
    signals: dict[str, dict[str, Path]] = {}
    for path in paths:
        stem, _, name = path.stem.rpartition(".")
        if stem in stems:
            require_signal_name(name, path.name)
            signals.setdefault(stem, {})[name] = path
    of_stacks = [p for p in sorted(paths) if p.name != LABELS and p.stem.rpartition(".")[0] not in stems]
    return [read_stack(path, config.frame_rate_hz is not None, signals.get(path.stem, {})) for path in of_stacks]


def read_stack(path: Path, clips: bool, signals: dict[str, Path]) -> Stack:
    """What a stack holds, from its header; raises one line where it can be neither images nor clips."""
    stack = opened_stack(path)
    if stack.dtype != np.uint8:
        raise ValueError(f"{path.name} holds {stack.dtype}; pixels of a stack are uint8, from 0 to 255")
    sides = stack.ndim - (stack.ndim > 3 and stack.shape[-1] == 3)
    if 0 in stack.shape or sides not in ((3, 4) if clips else (3,)):
        raise ValueError(f"{path.name} has shape {stack.shape}; {SHAPES}")
    single = clips and sides == 3
    if not single:
        require_rows(path, len(stack), signals)
    return Stack(path, 1 if single else len(stack), stack.shape[sides - 3] if clips else 0, single, signals)


def require_rows(path: Path, items: int, signals: dict[str, Path]) -> None:
    """Raises one line where a signal has not a row for each of the images or clips of its stack."""
    for file in signals.values():
        shape = opened_stack(file).shape
        if shape[:1] != (items,):
            raise ValueError(f"{file.name} has shape {shape}, should have {items:,} rows, one for each of {path.name}")


def opened_stack(path: Path) -> np.ndarray:
    """A stack, mapped from the disk; raises one line where it is no array, or would need unpickling."""
    return mapped(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=256)
def mapped(path: Path, changed_ns: int) -> np.ndarray:
    """The stack as it was last changed; not all are kept open, as a process may only open so many files."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as .npy: {error}") from error


def stack_labels(path: Path, items: int) -> np.ndarray | None:
    """Labels (items,) of the file beside the stacks; None where there is none."""
    if not path.is_file():
        return None
    labels = np.asarray(opened_stack(path))
    if labels.dtype.kind not in "iu" or labels.shape != (items,) or labels.min(initial=0) < 0:
        raise ValueError(
            f"{LABELS} should have {items:,} whole numbers from 0, found {labels.dtype} of shape {labels.shape}"
        )
    return labels
