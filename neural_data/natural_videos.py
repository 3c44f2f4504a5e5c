"""Grey clips made on the spot: pictures under a wandering gaze, flashed images, noise, drifting Gabors.

Comes in: a kind of clip, its size in pixels and frames, its rate, a generator. Goes out: uint8 (frames, height, width).

- `movie`: scenes of 2 to 5 s, each a photograph or a dead-leaves picture (see `natural_images.py`), seen through a
  window that drifts and zooms smoothly and jumps as gaze does, about once a second.
- `flashes`: natural images of 500 ms with 300 ms of grey between them, as in the Sensorium 2022 competition (Willeke
  et al., 2022, https://arxiv.org/abs/2206.08666).
- `noise`: independent Gaussian pixels in each frame, to map receptive fields with.
- `drifting_gabor`: a large Gabor that changes place, orientation, frequency and speed every second.

Photographs come from their test part, so that a model pretrained on the train part has not seen them.
"""

import numpy as np

from neural_data.natural_images import LABELS, dead_leaves, grey, photograph_part, photograph_patches
from neural_data.smoothing import smooth_noise

GREY = 128  # what the screen shows when it shows nothing
PHOTOGRAPHS = 0.3  # share of the scenes; the test part has trees and sky in one, and little but dark in the other
SCENE_S = (2.0, 5.0)
DRIFT_PX_PER_S = 15.0  # standard deviation of either component of the window's speed
SMOOTH_S = 0.5  # time constant of drift and zoom
JUMPS_HZ = 1.0
ZOOM = 0.15  # standard deviation of the logarithm of the window's size within a scene
FLASH_MS, BLANK_MS = 500.0, 300.0
NOISE_CONTRAST = 0.33  # standard deviation, of half of the range of grey levels
GABOR_S = 1.0
GABOR_CYCLES_PER_PX = (0.04, 0.15)
GABOR_HZ = (1.0, 4.0)


def make_clip(
    kind: str, frames: int, height: int, width: int, frame_rate_hz: float, rng: np.random.Generator
) -> np.ndarray:
    """One clip, uint8 (frames, height, width). `kind`: a name from the list above."""
    if kind == "noise":
        levels = 127.5 * (1 + NOISE_CONTRAST * rng.standard_normal((frames, height, width), np.float32))
        return np.clip(np.round(levels), 0, 255).astype(np.uint8)
    make = {"movie": _movie, "flashes": _flashes, "drifting_gabor": _drifting_gabors}[kind]
    return make(frames, height, width, frame_rate_hz, rng)


def _movie(frames: int, height: int, width: int, frame_rate_hz: float, rng: np.random.Generator) -> np.ndarray:
    clip = np.empty((frames, height, width), np.uint8)
    first = 0
    while first < frames:
        last = min(frames, first + max(1, round(rng.uniform(*SCENE_S) * frame_rate_hz)))
        clip[first:last] = _scene(last - first, height, width, frame_rate_hz, rng)
        first = last
    return clip


def _scene(frames: int, height: int, width: int, frame_rate_hz: float, rng: np.random.Generator) -> np.ndarray:
    """One picture under a window of about half to all of the largest one that fits."""
    from PIL import Image

    picture = _picture(height, width, rng)
    largest = min(picture.shape[1] / width, picture.shape[0] / height)
    zoom = np.exp(ZOOM * smooth_noise(1, frames, SMOOTH_S, frame_rate_hz, rng)[0])
    scale = np.minimum(rng.uniform(0.5, 0.9) * largest * zoom, largest)
    room = np.array([[picture.shape[1]], [picture.shape[0]]]) - scale * [[width], [height]]
    steps = DRIFT_PX_PER_S / frame_rate_hz * smooth_noise(2, frames, SMOOTH_S, frame_rate_hz, rng)
    jumps = rng.random(frames) < JUMPS_HZ / frame_rate_hz
    # A scene's first frame is a jump to anywhere.
    jumps[0] = True
    steps += jumps * rng.uniform(-0.5, 0.5, (2, frames)) * picture.shape[0]
    corner = _folded(np.cumsum(steps, axis=1), room)
    image = Image.fromarray(picture)
    boxes = np.concatenate([corner, corner + scale * [[width], [height]]]).T
    # The largest window can end a rounding error outside of the picture.
    boxes = np.clip(boxes, 0, 2 * (picture.shape[1], picture.shape[0]))
    seen = [image.resize((width, height), Image.Resampling.BILINEAR, box=tuple(box)) for box in boxes.tolist()]
    return np.stack([np.asarray(frame) for frame in seen])


def _picture(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Something to look at, uint8 (rows, columns), larger than a clip's frame if it can be: a photograph or leaves."""
    if rng.random() < PHOTOGRAPHS:
        picture = photograph_part(LABELS.index("china"), "test")
    else:
        picture = dead_leaves(1, round(1.5 * max(height, width)), rng)[0]
    return grey(picture[:, ::-1] if rng.random() < 0.5 else picture)


def _flashes(frames: int, height: int, width: int, frame_rate_hz: float, rng: np.random.Generator) -> np.ndarray:
    shown, blank = (max(1, round(ms * frame_rate_hz / 1000)) for ms in (FLASH_MS, BLANK_MS))
    clip = np.full((frames, height, width), GREY, np.uint8)
    starts = range(blank, frames, shown + blank)
    images, _ = photograph_patches(len(starts), max(height, width), rng, "test")
    for start, image in zip(starts, images, strict=True):
        clip[start : start + shown] = grey(image[:height, :width])
    return clip


def _drifting_gabors(
    frames: int, height: int, width: int, frame_rate_hz: float, rng: np.random.Generator
) -> np.ndarray:
    number = np.arange(frames) // max(1, round(GABOR_S * frame_rate_hz))
    count = number[-1] + 1
    centre = rng.uniform(0.25, 0.75, (2, count)) * [[height - 1], [width - 1]]
    direction = rng.uniform(0, 2 * np.pi, count)
    frequency, speed = rng.uniform(*GABOR_CYCLES_PER_PX, count), rng.uniform(*GABOR_HZ, count)
    y, x = np.mgrid[:height, :width]
    dy, dx = (axis - at[number, None, None] for axis, at in zip((y, x), centre, strict=True))
    towards = direction[number, None, None]
    cycles = frequency[number, None, None] * (dx * np.cos(towards) + dy * np.sin(towards))
    cycles -= (speed[number] * np.arange(frames) / frame_rate_hz)[:, None, None]
    window = np.exp(-(dy**2 + dx**2) / (2 * (min(height, width) / 4) ** 2))
    return np.round(127.5 * (1 + window * np.cos(2 * np.pi * cycles))).astype(np.uint8)


def _folded(place: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Places mirrored at 0 and at `room`, so that they stay between the two."""
    room = np.maximum(room, 1e-6)
    return room - np.abs(np.mod(place, 2 * room) - room)
