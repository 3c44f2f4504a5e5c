"""Encoded videos: what they hold, and their frames, decoded with PyAV.

What comes in: a video file, open or as a path. What goes out: `VideoFacts`, found without decoding, and frames uint8
(height, width, 3), or (height, width) of grey videos, as a player shows them: in order, turned as the file says.

Any frame is reached exactly: from the keyframe that is shown at or before it, by its presentation time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from av.container import InputContainer

# Containers that hold their frames themselves; a playlist under a video's name could lead to other files.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm"
MISSING = "videos need PyAV: pip install 'murine[video]'"


@dataclass(frozen=True)
class VideoFacts:
    """Frames of a video, their rate, height and width as shown, and how to reach them.

    `times` are the frames' presentation times int64 (frames,), in the file's own unit; `key_times` those of the frames
    that need no other. Both are None where the file does not give every frame a time of its own.
    """

    frames: int
    frame_rate_hz: float
    height: int
    width: int
    times: np.ndarray | None
    key_times: np.ndarray | None


@contextmanager
def opened_video(file: Path | BinaryIO) -> Iterator["InputContainer"]:
    """A video, open for reading in one thread; nothing but the file itself is opened, whatever it refers to."""
    try:
        import av
    except ImportError as error:
        raise ValueError(MISSING) from error
    if not isinstance(file, Path):
        file.seek(0)
    source = str(file.absolute()) if isinstance(file, Path) else file
    with av.open(source, options={"format_whitelist": FORMATS}) as container:
        if not container.streams.video:
            raise ValueError("it holds no video")
        container.streams.video[0].codec_context.thread_count = 1
        yield container


def video_facts(file: Path | BinaryIO) -> VideoFacts:
    """What a video holds, from its packets; raises ValueError where it holds no frame."""
    with opened_video(file) as container:
        stream = container.streams.video[0]
        packets = [
            (packet.pts, packet.is_keyframe)
            for packet in container.demux(stream)
            if packet.size and not packet.is_discard
        ]
        if not packets:
            raise ValueError("it holds no frame")
        rate = stream.average_rate or stream.guessed_rate or stream.base_rate
        times = key_times = None
        if all(time is not None for time, _ in packets) and len({time for time, _ in packets}) == len(packets):
            times = np.sort(np.array([time for time, _ in packets], np.int64))
            key_times = np.sort(np.array([time for time, key in packets if key], np.int64))
            if len(times) > 1:
                seconds = float((times[-1] - times[0]) * stream.time_base)
                rate = (len(times) - 1) / seconds if not rate else rate
        if not rate:
            raise ValueError("it does not say its frame rate")
    with opened_video(file) as container:
        shown = next(decoded(container), None)
        if shown is None:
            raise ValueError("its first frame cannot be decoded")
    return VideoFacts(len(packets), float(rate), shown.shape[0], shown.shape[1], times, key_times)


def video_frames(
    file: Path | BinaryIO, facts: VideoFacts, first: int = 0, count: int | None = None, stride: int = 1
) -> Iterator[np.ndarray]:
    """Frames number `first`, `first + stride`, ... of a video, `count` of them (None: to the end), one at a time.

    Raises ValueError where the video ends before the last of them.
    """
    wanted = range(facts.frames)[first::stride][:count]
    with opened_video(file) as container:
        if facts.times is None or not len(facts.key_times) or facts.key_times[0] > facts.times[wanted[0]]:
            numbered = enumerate(decoded(container))
            found = (frame for number, frame in numbered if number in wanted)
        else:
            start = facts.key_times[np.searchsorted(facts.key_times, facts.times[wanted[0]], side="right") - 1]
            container.seek(int(start), stream=container.streams.video[0], backward=True)
            found = decoded(container, {int(facts.times[number]) for number in wanted})
        given = 0
        for frame in found:
            yield frame
            given += 1
            if given == len(wanted):
                return
    raise ValueError(f"it gave {given:,} frames of {len(wanted):,}")


def decoded(container: "InputContainer", times: set[int] | None = None) -> Iterator[np.ndarray]:
    """Pixels of the frames to come, or of those with these presentation times."""
    for frame in container.decode(container.streams.video[0]):
        if times is not None and frame.pts not in times:
            continue
        grey = frame.format.name.startswith("gray")
        pixels = frame.to_ndarray(format="gray" if grey else "rgb24")
        yield np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90 % 4))
