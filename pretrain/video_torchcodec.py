"""Videos decoded with torchcodec (https://meta-pytorch.org/torchcodec), which finds every frame by its own scan.

What comes in: a video file, open or as a path. What goes out: as `pretrain/video.py` says. AVI files whose codec
reorders frames are beyond it and raise an error; PyAV reads them.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from torchcodec.decoders import VideoDecoder

from pretrain.video import VideoFacts

FRAMES_AT_ONCE = 32


def opened_video(file: Path | BinaryIO) -> VideoDecoder:
    """A video, decoded in this thread alone, as many are decoded at once."""
    if not isinstance(file, Path):
        file.seek(0)
    source = str(file.absolute()) if isinstance(file, Path) else file
    return VideoDecoder(source, dimension_order="NHWC", num_ffmpeg_threads=1)


def find_facts(file: Path | BinaryIO) -> VideoFacts:
    """What a video holds, from a scan of its packets."""
    video = opened_video(file)
    height, width = video.get_frame_at(0).data.shape[:2]
    rate = video.metadata.average_fps
    if not rate:
        raise ValueError("it does not say its frame rate")
    return VideoFacts(len(video), float(rate), height, width)


def find_frames(file: Path | BinaryIO, facts: VideoFacts, wanted: Sequence[int]) -> Iterator[np.ndarray]:
    """The frames of these numbers."""
    video = opened_video(file)
    grey = str(video.metadata.pixel_format).startswith("gray")
    for start in range(0, len(wanted), FRAMES_AT_ONCE):
        frames = video.get_frames_at(list(wanted[start : start + FRAMES_AT_ONCE])).data.numpy()
        yield from frames[..., 0] if grey else frames
