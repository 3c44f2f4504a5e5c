"""Samples of shards, decoded, and batches of them.

What comes in: an encoded sample, a dictionary of its members' bytes by extension. What goes out: a `Sample`, and
batches, dictionaries of tensors: of images `images` uint8 (batch, 3, height, width), padded at the right and bottom to
the largest of the batch, with true heights and widths in pixels, `sizes` (batch, 2); of clips `video` uint8 (batch, 3,
frames, height, width), padded at the end of time too, with `sizes`, `frames` (batch,) and `frame_rate_hz` (batch,), and
where they hold only what certain views show `times` (batch, views, clip frames), which of their frames that is.
Always `index` (batch,), global indices; where the shards have them `label` (batch,), `depth` (batch, 1, height, width),
padded like images, in the maps' own units, uint8, or int32 where one has 16 bits; and signals by their names, float32
(batch, channels), or (batch, channels, frames) of clips, NaN where there is no frame.
"""

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pretrain.clip_times import TimesOfClip
from pretrain.clips import clip_facts, decode_clip, decode_signal, is_clip
from pretrain.encode import DEPTH, SIGNAL
from pretrain.video import NoDecoder


@dataclass(frozen=True)
class Sample:
    """A decoded sample.

    `pixels` uint8 (height, width, 3) of an image, or (frames, height, width, 3) of a clip; `depth` uint8 or int32
    (height, width); `signals` float32 (channels,), or (channels, frames) of a clip. Of a clip that was decoded for
    certain views `times` (views, clip frames) are those of its frames that each view shows.
    """

    pixels: Tensor
    index: int
    label: int | None = None
    depth: Tensor | None = None
    signals: dict[str, Tensor] = field(default_factory=dict)
    frame_rate_hz: float | None = None
    times: Tensor | None = None


def decode(sample: dict[str, Any], times: TimesOfClip | None = None) -> Sample:
    """An encoded sample, decoded; of a clip only the frames of these times, where some are given.

    Raises:
        NoDecoder: nothing here decodes videos.
        ValueError: `cannot be decoded (...)`; it is damaged.
    """
    try:
        label = int(sample["cls"]) if "cls" in sample else None
        index = int(sample["__key__"])
        if is_clip(sample):
            shown, places = frames_of_views(times(clip_facts(sample).frames)) if times else (None, None)
            clip = decode_clip(sample, shown)
            signals = {name: torch.from_numpy(values) for name, values in clip.signals.items()}
            return Sample(torch.from_numpy(clip.frames), index, label, None, signals, clip.frame_rate_hz, places)
        pixels = decode_image(sample)
        depth = decode_depth(sample[DEPTH], pixels.shape[:2]) if DEPTH in sample else None
        return Sample(pixels, index, label, depth, image_signals(sample))
    except NoDecoder:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        what = f"{type(error).__name__}: {error}".split("\n")[0]
        raise ValueError(f"cannot be decoded ({what})") from error


def frames_of_views(times: Tensor) -> tuple[np.ndarray, Tensor]:
    """The numbers (T,) of all frames that views show at `times` (views, clip frames), and which of them each shows."""
    shown, places = times.unique(return_inverse=True)
    return shown.numpy(), places


def decode_image(sample: dict[str, Any]) -> Tensor:
    """Pixels uint8 (height, width, 3); JPEGs by libjpeg-turbo directly, whose pixels are Pillow's in half the time."""
    if "jpg" in sample:
        return torch.from_numpy(simplejpeg.decode_jpeg(sample["jpg"], colorspace="RGB"))
    if "npy" in sample:
        pixels = np.load(io.BytesIO(sample["npy"]), allow_pickle=False)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f"its .npy holds {pixels.dtype} {pixels.shape}, not uint8 (height, width, 3)")
        return torch.from_numpy(pixels)
    raise ValueError(f"it has no .jpg or .npy, but {', '.join(sorted(k for k in sample if k[0] != '_')) or 'nothing'}")


def decode_depth(png: bytes, shape: tuple[int, ...]) -> Tensor:
    """Depths uint8, or int32 for 16 bits, of a grey PNG; raises ValueError where it has not the image's shape."""
    depth = np.asarray(Image.open(io.BytesIO(png), formats=("PNG",)))
    if depth.shape != tuple(shape):
        raise ValueError(f"its depth map has shape {depth.shape}, the image {tuple(shape)}")
    return torch.from_numpy(depth.copy() if depth.dtype == np.uint8 else depth.astype(np.int32))


def image_signals(sample: dict[str, Any]) -> dict[str, Tensor]:
    """Signals float32 (channels,) that come with an image, by name."""
    names = (name for name in sample if name.endswith(SIGNAL))
    return {name.removesuffix(SIGNAL): torch.from_numpy(decode_signal(sample[name], None, name)) for name in names}


def collate(samples: list[Sample]) -> dict[str, Tensor]:
    """Samples of any sizes to one batch; colours lie in memory behind each other, as they were decoded."""
    pixels = padded([sample.pixels for sample in samples])
    clips = pixels.ndim == 5
    batch = {
        "video" if clips else "images": pixels.movedim(-1, 1),
        "sizes": torch.tensor([sample.pixels.shape[-3:-1] for sample in samples]),
        "index": torch.tensor([sample.index for sample in samples]),
    }
    if clips:
        batch["frames"] = torch.tensor([len(sample.pixels) for sample in samples])
        batch["frame_rate_hz"] = torch.tensor([sample.frame_rate_hz for sample in samples])
        if all(sample.times is not None for sample in samples):
            batch["times"] = torch.stack([sample.times for sample in samples])
    if all(sample.label is not None for sample in samples):
        batch["label"] = torch.tensor([sample.label for sample in samples])
    if all(sample.depth is not None for sample in samples):
        batch["depth"] = padded([sample.depth for sample in samples])[:, None]
    # A signal of older shards may have the name of an entry, which it must not replace.
    return shared_signals([sample.signals for sample in samples]) | batch


def shared_signals(each: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The signals that all samples of a batch have, by name, as one tensor each."""
    names = set.intersection(*map(set, each))
    return {name: stacked_signals([signals[name] for signals in each]) for name in names}


def padded(arrays: list[Tensor]) -> Tensor:
    """Arrays of any sizes, with zeros behind each up to the largest of each dimension; the last may be of colours."""
    largest = [max(sizes) for sizes in zip(*(array.shape for array in arrays), strict=True)]
    dtype = max((array.dtype for array in arrays), key=lambda one: one.itemsize)
    make = torch.empty if all(list(array.shape) == largest for array in arrays) else torch.zeros
    whole = make(len(arrays), *largest, dtype=dtype)
    for place, array in zip(whole, arrays, strict=True):
        place[tuple(slice(side) for side in array.shape)] = array
    return whole


def stacked_signals(signals: list[Tensor]) -> Tensor:
    """Signals of equally many channels as one tensor, with NaN behind the shorter ones."""
    if signals[0].ndim == 1:
        return torch.stack(signals)
    longest = max(signal.shape[1] for signal in signals)
    return torch.stack([F.pad(signal, (0, longest - signal.shape[1]), value=float("nan")) for signal in signals])
