"""Clips as shards hold them: frames resized as images are, or the encoded video as it was, with signals.

What comes in: an `Item` with a clip. What goes out: `Encoded`, with the frames uint8 (frames, height, width[, 3]) in
`clip.npy`, or the video in its own format, and always `clip.json`: `frames`, `height`, `width`, `frame_rate_hz`,
`video` (the item's name), and `first_frame`, its place in the video.
"""

import json
from dataclasses import replace

import numpy as np
from PIL import Image

from pretrain.config import ShardsConfig
from pretrain.encode import Encoded, npy_bytes, one_line, require_aspect, resize_short_side, with_signals
from pretrain.items import ClipFrames, Item

CLIP = "clip.npy"
FACTS = "clip.json"


def encode_clip(item: Item, config: ShardsConfig) -> Encoded:
    """One clip with its signals, or what is wrong with any of them."""
    try:
        encoded, frames = encoded_video(item.clip) if config.format == "encoded" else encode_frames(item.clip, config)
    except Exception as error:  # decoders raise nearly anything on damaged bytes; the clip is listed
        return Encoded(problem=one_line(error))
    width, height = encoded.size
    facts = {
        "frames": frames, "height": height, "width": width, "frame_rate_hz": item.clip.frame_rate_hz,
        "video": item.name, "first_frame": item.clip.first,
    }  # fmt: skip
    described = replace(
        encoded, more={FACTS: json.dumps(facts).encode()}, frame_rate_hz=round(item.clip.frame_rate_hz, 3)
    )
    return with_signals(described, item.signals)


def encode_frames(clip: ClipFrames, config: ShardsConfig) -> tuple[Encoded, int]:
    """The frames, resized one by one so that a long video is never held in its full size, and how many they are."""
    frames = np.stack([resized(frame, config.size) for frame in clip.frames()])
    return Encoded(CLIP, npy_bytes(frames), size=(frames.shape[2], frames.shape[1])), len(frames)


def resized(frame: np.ndarray, size: int) -> np.ndarray:
    """A frame (height, width) or (height, width, 3) with this short side in pixels."""
    require_aspect(frame.shape[1::-1])
    return np.asarray(resize_short_side(Image.fromarray(frame), size))


def encoded_video(clip: ClipFrames) -> tuple[Encoded, int]:
    """The video as it was, once each of its frames has been decoded, so that no reader meets a damaged one."""
    count, shape = 0, (0, 0)
    for frame in clip.frames():
        count, shape = count + 1, frame.shape[:2]
        require_aspect((shape[1], shape[0]))
    extension, data = clip.encoded()
    return Encoded(extension, data, size=(shape[1], shape[0])), count
