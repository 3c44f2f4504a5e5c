"""Videos decoded with PyAV (https://pyav.basswood-io.com).

What comes in: a video file, open or as a path. What goes out: as `pretrain/video.py` says. A frame is reached from the
keyframe that is shown at or before it, by its presentation time; where times are not to be relied on, from the first.
"""

from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.container import InputContainer

from pretrain.video import VideoFacts, frame_rate_hz

DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm"


@contextmanager
def opened_video(file: Path | BinaryIO) -> Iterator[InputContainer]:
    """A video, open for reading, decoded in this thread alone, as many are decoded at once."""
    if not isinstance(file, Path):
        file.seek(0)
    source = str(file.absolute()) if isinstance(file, Path) else file
    with av.open(source, options={"format_whitelist": DEMUXERS}) as container:
        if not container.streams.video:
            raise ValueError("it holds no video")
        container.streams.video[0].codec_context.thread_count = 1
        yield container


def find_facts(file: Path | BinaryIO) -> VideoFacts:
    """What a video holds, from its packets."""
    with opened_video(file) as container:
        stream = container.streams.video[0]
        packets = [
            (packet.pts, packet.is_keyframe)
            for packet in container.demux(stream)
            if packet.size and not packet.is_discard
        ]
        times, key_times = reliable_times(container, packets)
        rate = stream.average_rate or stream.guessed_rate
        rate = float(rate) if rate else None
        if times is not None and len(times):
            tick_s = float(stream.time_base)
            rate = frame_rate_hz(rate, len(times), float(times[-1] - times[0]) * tick_s, tick_s)
    if not rate:
        raise ValueError("it holds no frame, or does not say its frame rate")
    with opened_video(file) as container:
        shown = next(decoded(container), None)
    if shown is None:
        raise ValueError("its first frame cannot be decoded")
    return VideoFacts(len(packets), rate, shown.shape[0], shown.shape[1], times, key_times)


def reliable_times(
    container: InputContainer, packets: list[tuple[int | None, bool]]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Presentation times of the frames and of the keyframes, where every frame has one of its own.

    AVI has none: those that are made up are wrong where a codec reorders frames.
    """
    made_up = container.format.name == "avi" and not container.streams.video[0].codec_context.codec.intra_only
    times = [time for time, _ in packets]
    if made_up or None in times or len(set(times)) < len(times):
        return None, None
    return np.sort(np.array(times, np.int64)), np.sort(np.array([time for time, key in packets if key], np.int64))


def find_frames(file: Path | BinaryIO, facts: VideoFacts, wanted: Sequence[int]) -> Iterator[np.ndarray]:
    """The frames of these numbers, in rising order, as far as they are there."""
    with opened_video(file) as container:
        keys = facts.key_times
        if facts.times is None or not len(keys) or keys[0] > facts.times[wanted[0]]:
            yield from decoded(container, numbers=frozenset(wanted))
            return
        times = facts.times[np.asarray(wanted)]
        for key_time, shown in runs_from_keyframes(times, keys):
            container.seek(key_time, stream=container.streams.video[0], backward=True)
            yield from islice(decoded(container, times=frozenset(shown)), len(shown))


def runs_from_keyframes(times: np.ndarray, key_times: np.ndarray) -> Iterator[tuple[int, list[int]]]:
    """Wanted times, in runs that are decoded from a keyframe on; keyframes between them that begin nothing are
    what a seek passes over."""
    key = np.searchsorted(key_times, times, side="right") - 1
    for run in np.split(np.arange(len(times)), np.flatnonzero(np.diff(key) > 1) + 1):
        yield int(key_times[key[run[0]]]), times[run].tolist()


def decoded(
    container: InputContainer, numbers: Container[int] | None = None, times: Container[int] | None = None
) -> Iterator[np.ndarray]:
    """Pixels of the frames to come, or only of those with these numbers from here on, or these presentation times."""
    for number, frame in enumerate(container.decode(container.streams.video[0])):
        if (numbers is not None and number not in numbers) or (times is not None and frame.pts not in times):
            continue
        grey = frame.format.name.startswith("gray")
        pixels = frame.to_ndarray(format="gray" if grey else "rgb24")
        yield np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90 % 4))
