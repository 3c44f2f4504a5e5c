"""Videos decoded with torchcodec (https://meta-pytorch.org/torchcodec), which finds every frame by its own scan.

What comes in: a video file, open or as a path. What goes out: as `pretrain/video.py` says. AVI files whose codec
reorders frames are beyond it and raise an error; PyAV reads them.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from torchcodec.decoders import VideoDecoder

from pretrain.video import VideoFacts, frame_rate_hz

FRAMES_AT_ONCE = 32
# Matroska rounds times to milliseconds, and torchcodec does not say what a container rounds to.
TICK_S = 1e-3


def opened_video(file: Path | BinaryIO) -> VideoDecoder:
    """A video, decoded in this thread alone, as many are decoded at once."""
    if not isinstance(file, Path):
        file.seek(0)
    source = str(file.absolute()) if isinstance(file, Path) else file
    with errors_in_one_line():
        return VideoDecoder(source, dimension_order="NHWC", num_ffmpeg_threads=1)


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Raises ValueError in one line in the place of what torchcodec raises on damaged files.

    Its own errors have many lines, and name places in its source.
    """
    try:
        yield
    except (RuntimeError, IndexError, ValueError) as error:
        what = re.sub(r"^\w+, \S+:\d+, ", "", str(error)).strip().split("\n")[0]
        raise ValueError(f"torchcodec cannot decode it ({what})") from error


def find_facts(file: Path | BinaryIO) -> VideoFacts:
    """What a video holds, from a scan of its packets, and the times of its first frame and its last.

    Raises ValueError in one line where one of these cannot be decoded, or the first is not the one that is shown first.
    """
    video = opened_video(file)
    with errors_in_one_line():
        first = video.get_frame_at(0)
        last_s = video.get_frame_at(len(video) - 1).pts_seconds
    require_first_frame(first.pts_seconds, video.metadata.begin_stream_seconds_from_content)
    stated = video.metadata.average_fps_from_header
    rate = frame_rate_hz(stated, len(video), last_s - first.pts_seconds, TICK_S)
    if not rate:
        raise ValueError("it does not say its frame rate")
    height, width = first.data.shape[:2]
    return VideoFacts(len(video), float(rate), height, width)


def require_first_frame(decoded_s: float, listed_s: float | None) -> None:
    """Raises ValueError where frame 0 as it is decoded comes later than the first frame that the scan has found.

    A video that was cut without encoding it again may show frames before its first keyframe, whose references an edit
    list hides. torchcodec counts them but starts at that keyframe, so that every number leads to a later frame.
    """
    if listed_s is not None and decoded_s > listed_s:
        raise ValueError(
            f"torchcodec gives its frame at {decoded_s:g} s for the first, which is at {listed_s:g} s, as in videos "
            f"that were cut without encoding; install PyAV (pip install 'murine[video]') or encode the video again"
        )


def find_frames(file: Path | BinaryIO, facts: VideoFacts, wanted: Sequence[int]) -> Iterator[np.ndarray]:
    """The frames of these numbers, in rising order, as far as they are there; ValueError where one is damaged."""
    video = opened_video(file)
    grey = str(video.metadata.pixel_format).startswith("gray")
    there = [number for number in wanted if number < len(video)]
    for start in range(0, len(there), FRAMES_AT_ONCE):
        with errors_in_one_line():
            frames = video.get_frames_at(there[start : start + FRAMES_AT_ONCE]).data.numpy()
        yield from frames[..., 0] if grey else frames
