"""Clips of shards, decoded: only the frames that are wanted, and their signals.

What comes in: an encoded sample of a shard, a dictionary from extensions to bytes, as `pretrain/encode_clip.py` makes
them. What goes out: a `Clip`.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pretrain.encode import SIGNAL
from pretrain.encode_clip import CLIP, FACTS
from pretrain.items import VIDEO_SUFFIXES
from pretrain.video import video_facts, video_frames

NUMBERS = ("frames", "height", "width", "frame_rate_hz")


@dataclass(frozen=True)
class Clip:
    """`frames` uint8 (T, height, width, 3), one every 1 / `frame_rate_hz` seconds; `signals` float32 (channels, T)."""

    frames: np.ndarray
    frame_rate_hz: float
    signals: dict[str, np.ndarray]


@dataclass(frozen=True)
class ClipFacts:
    """What `clip.json` says: frames, their height and width in pixels, and their rate."""

    frames: int
    height: int
    width: int
    frame_rate_hz: float


def is_clip(sample: dict) -> bool:
    return FACTS in sample


def clip_facts(sample: dict) -> ClipFacts:
    """What a sample says of its clip, without decoding; raises one line where it does not."""
    try:
        facts = json.loads(sample[FACTS])
        found = ClipFacts(*(facts[name] for name in NUMBERS[:3]), float(facts["frame_rate_hz"]))
        if (
            not all(isinstance(facts[name], int) and facts[name] > 0 for name in NUMBERS[:3])
            or found.frame_rate_hz <= 0
        ):
            raise ValueError(f"it says {facts}")
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{FACTS} of sample {sample.get('__key__')} cannot be read: {error!r}") from error
    return found


def decode_clip(sample: dict, numbers: Sequence[int] | None = None) -> Clip:
    """The frames of these numbers of a sample's clip, in rising order (None: all), and their signals.

    The frame rate is that of the whole clip. Grey frames get three equal channels.

    Raises:
        ValueError: the clip has no such frames, or is damaged.
    """
    facts = clip_facts(sample)
    wanted = np.arange(facts.frames) if numbers is None else np.asarray(numbers)
    if not len(wanted) or wanted[0] < 0 or wanted[-1] >= facts.frames or (np.diff(wanted) < 1).any():
        raise ValueError(
            f"sample {sample.get('__key__')} has frames 0 to {facts.frames - 1}, and wanted were {wanted.tolist()}; "
            "name some of them, in rising order"
        )
    frames = stored_frames(sample, facts, wanted)
    names = sorted(key for key in sample if key.endswith(SIGNAL))
    signals = {key.removesuffix(SIGNAL): decode_signal(sample[key], facts.frames, key)[:, wanted] for key in names}
    return Clip(frames, facts.frame_rate_hz, signals)


def stored_frames(sample: dict, facts: ClipFacts, wanted: np.ndarray) -> np.ndarray:
    """The wanted frames uint8 (T, height, width, 3) of raw frames, or of an encoded video."""
    if CLIP in sample:
        frames = npy_view(sample[CLIP])
        if frames.dtype != np.uint8 or frames.shape[:3] != (facts.frames, facts.height, facts.width):
            raise ValueError(f"{CLIP} holds {frames.dtype} {frames.shape}, which is not what {FACTS} says: {facts}")
        return three_channels(frames[wanted])
    extension = next((suffix[1:] for suffix in sorted(VIDEO_SUFFIXES) if suffix[1:] in sample), None)
    if extension is None:
        raise ValueError(f"sample {sample.get('__key__')} has neither {CLIP} nor a video")
    file = io.BytesIO(sample[extension])
    video = video_facts(file)
    if video.frames != facts.frames:
        raise ValueError(f"its video has {video.frames} frames, {FACTS} says {facts.frames}")
    return three_channels(np.stack(list(video_frames(file, video, wanted.tolist()))))


def three_channels(frames: np.ndarray) -> np.ndarray:
    """Colour frames as they are, grey ones (T, height, width) three times."""
    return np.repeat(frames[..., None], 3, axis=3) if frames.ndim == 3 else frames


def decode_signal(data: bytes, frames: int | None, name: str) -> np.ndarray:
    """A signal float32, (channels, frames) of a clip, or (channels,) of an image, whose `frames` are None."""
    values = npy_view(data)
    shape = values.shape[1:]
    if values.dtype != np.float32 or values.ndim == 0 or shape != (() if frames is None else (frames,)):
        wanted = "(channels,)" if frames is None else f"(channels, {frames})"
        raise ValueError(f"{name} holds {values.dtype} {values.shape}, should be float32 {wanted}")
    return np.array(values)


def npy_view(data: bytes) -> np.ndarray:
    """The array of a `.npy` file's bytes, without copying them; raises ValueError where it would need unpickling."""
    buffer = io.BytesIO(data)
    version = np.lib.format.read_magic(buffer)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(buffer)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not unpickled")
    count = int(np.prod(shape))
    values = np.frombuffer(data, dtype, count, buffer.tell())
    return values.reshape(shape, order="F" if fortran else "C")
