"""Encoded videos: what they hold, and their frames, with PyAV or, where that is not installed, torchcodec.

What comes in: a video file, open or as a path. What goes out: `VideoFacts`, and frames uint8 (height, width, 3), or
(height, width) of grey videos, as a player shows them: in order, turned as the file says. Any frame is reached exactly.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

import numpy as np

MISSING = "videos need PyAV or torchcodec: pip install 'murine[video]'"
# A playlist under a video's name could lead to other files, so that only containers that hold their frames are opened:
# MP4 and QuickTime have the name of their first box behind its length, Matroska and WebM are EBML, AVI is RIFF.
FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
EBML, RIFF = b"\x1a\x45\xdf\xa3", b"RIFF"


class NoDecoder(ValueError):
    """Nothing here decodes videos, whatever file it is; the message says what to install."""


@dataclass(frozen=True)
class VideoFacts:
    """Frames of a video, their rate, height and width as shown, and how to reach them.

    `times` are the frames' presentation times int64 (frames,), in the file's own unit; `key_times` those of the frames
    that need no other. Both are None where they are not known, or not to be relied on.
    """

    frames: int
    frame_rate_hz: float
    height: int
    width: int
    times: np.ndarray | None = None
    key_times: np.ndarray | None = None


def video_facts(file: Path | BinaryIO) -> VideoFacts:
    """What a video holds; only its first frame is decoded, and with torchcodec its last.

    Raises ValueError where it holds none, or cannot be decoded rightly; NoDecoder where nothing here decodes videos.
    """
    require_container(file)
    return decoder().find_facts(file)


def video_frames(
    file: Path | BinaryIO, facts: VideoFacts, numbers: Sequence[int] | None = None
) -> Iterator[np.ndarray]:
    """The frames of these numbers, in rising order (None: all), one at a time.

    Raises ValueError where the video ends before the last of them.
    """
    require_container(file)
    wanted = range(facts.frames) if numbers is None else numbers
    given = 0
    for frame in decoder().find_frames(file, facts, wanted):
        yield frame
        given += 1
        if given == len(wanted):
            return
    raise ValueError(f"it gave {given:,} frames of {len(wanted):,}")


def frame_rate_hz(stated: float | None, frames: int, first_to_last_s: float, tick_s: float) -> float | None:
    """Frames per second, as stated where the times agree, or else as that many frames within `first_to_last_s` have.

    Containers state the rate that was asked for when they were written, even if the frames come at another one, and
    round the times of frames to `tick_s`. None where nothing is known.
    """
    if frames < 2 or first_to_last_s <= 0:
        return stated
    if stated and abs((frames - 1) / stated - first_to_last_s) <= tick_s:
        return stated
    return (frames - 1) / first_to_last_s


def require_container(file: Path | BinaryIO) -> None:
    if isinstance(file, Path):
        with file.open("rb") as opened:
            start = opened.read(12)
    else:
        file.seek(0)
        start = file.read(12)
        file.seek(0)
    if start[4:8] not in FIRST_BOXES and not start.startswith(EBML) and (start[:4], start[8:]) != (RIFF, b"AVI "):
        raise ValueError("it is no MP4, QuickTime, Matroska, WebM or AVI file")


def decoder() -> ModuleType:
    """The module that decodes, `video_pyav` or `video_torchcodec`; raises NoDecoder with one line where neither can."""
    if importlib.util.find_spec("av"):
        from pretrain import video_pyav

        return video_pyav
    if not importlib.util.find_spec("torchcodec"):
        raise NoDecoder(MISSING)
    problem = problem_of_torchcodec()
    if problem:
        raise NoDecoder(problem)
    from pretrain import video_torchcodec

    return video_torchcodec


@cache  # an import that fails is tried anew every time, with every version of FFmpeg in turn
def problem_of_torchcodec() -> str:
    """Why torchcodec, which is installed, cannot be used, in one line; empty where it can."""
    try:
        torchcodec = importlib.import_module("torchcodec")
        importlib.import_module("torchcodec.decoders")
    except Exception as error:  # it raises RuntimeError, ImportError or OSError, as its version and FFmpeg's have it
        found = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    else:
        # Newer versions load without FFmpeg, say None here, and fail with every video.
        if getattr(torchcodec, "ffmpeg_major_version", "unknown") is not None:
            return ""
        found = "it found none that fits"
    return (
        f"torchcodec cannot load FFmpeg's libraries ({found}); install ffmpeg in a version that it supports, or PyAV: "
        f"pip install 'murine[video]'"
    )
