"""Clips from video files: each video whole, or cut into clips of a fixed number of frames.

What comes in: files of a folder or an archive. What goes out: clips that are decoded when they are wanted. A video that
cannot be read becomes one clip, which says why when it is.
"""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pretrain.encode import one_line
from pretrain.items import Item, StoredFile, cuts, open_stored, suffix_of, without_suffix
from pretrain.progress import progress, say
from pretrain.signals import SignalFile
from pretrain.video import NoDecoder, VideoFacts, video_facts, video_frames


@dataclass(frozen=True)
class VideoPart:
    """`count` frames of a video from number `first` on; `problem` says why it cannot be read, if it cannot."""

    file: StoredFile
    facts: VideoFacts | None
    first: int = 0
    count: int = 0
    problem: str = ""

    @property
    def frame_rate_hz(self) -> float:
        return self.facts.frame_rate_hz if self.facts else 0.0

    def frames(self) -> Iterator[np.ndarray]:
        """Frames uint8 (height, width) or (height, width, 3)."""
        if self.facts is None:
            raise ValueError(self.problem)
        yield from opened_frames(self.file, self.facts, self.first, self.count)

    def encoded(self) -> tuple[str, bytes]:
        """The video as it lies in its file, with its extension, once its frames are known to be there."""
        if self.facts is None:
            raise ValueError(self.problem)
        return suffix_of(self.file.name)[1:], self.file.read_bytes()


def openable(file: StoredFile) -> Path | BinaryIO:
    return file if isinstance(file, Path) else open_stored(file)


def opened_frames(file: StoredFile, facts: VideoFacts, first: int, count: int) -> Iterator[np.ndarray]:
    return video_frames(openable(file), facts, range(first, first + count))


def facts_or_problem(file: StoredFile) -> tuple[VideoFacts | None, str]:
    try:
        return video_facts(openable(file)), ""
    except NoDecoder:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged bytes; the video is listed
        return None, one_line(error)


def video_items(
    files: Mapping[str, StoredFile],
    labels: Mapping[str, int],
    signals: Mapping[str, Mapping[str, SignalFile | None]],
    clip_frames: int,
) -> tuple[list[Item], int]:
    """Clips of the videos in their order, and how many frames at the ends of the videos fill no clip."""
    items, left_out, short = [], 0, []
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress("look into videos", len(files)) as meter:
        found = pool.map(facts_or_problem, files.values())
        for (name, file), (facts, problem) in zip(files.items(), found, strict=True):
            meter.advance()
            label, paired = labels.get(name), signals.get(without_suffix(name), {})
            if facts is None:
                items.append(Item(name, label=label, clip=VideoPart(file, None, problem=problem)))
                continue
            parts = cuts(facts.frames, clip_frames)
            left_out += facts.frames - sum(count for _, count in parts)
            short += [] if parts else [name]
            for first, count in parts:
                clip = VideoPart(file, facts, first, count)
                of_clip = part_of_signals(paired, first, count, facts.frames)
                items.append(Item(clip_name(name, first, parts), label=label, clip=clip, signals=of_clip))
    if left_out:
        said = f", also all of {len(short)} that are shorter, the first {short[0]!r}" if short else ""
        say(f"{left_out:,} frames at the ends of {len(files)} videos fill no clip of {clip_frames} frames{said}")
    return items, left_out


def part_of_signals(
    signals: Mapping[str, SignalFile | None], first: int, count: int, total: int
) -> dict[str, SignalFile | None]:
    """The signals of `count` frames from number `first` on, of a video of `total`."""
    return {name: signal and replace(signal, first=first, count=count, total=total) for name, signal in signals.items()}


def clip_name(name: str, first: int, parts: list[tuple[int, int]]) -> str:
    return f"{name} frame {first}" if len(parts) > 1 else name
