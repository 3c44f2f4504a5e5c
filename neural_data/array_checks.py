"""Shapes and kinds of one animal's arrays, each mistake as one line.

Comes in: arrays by the names of the layout (`arrays.py`). Goes out: the same arrays as the layout has them: text and
whole numbers where they should be, one value per repeat and stimulus where a file has one per stimulus, pixels from 0
to 255. Shapes and kinds only: of large arrays just the pixels are looked through, where they are not uint8.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from neural_data.array_layout import NEURONS, TRIAL_NAMES, TRIAL_TEXTS, TRIALS
from neural_data.stored_array import StoredRows, blocks
from neural_data.tables import NEURON_COLUMNS, POSITION_COLUMNS, TEXT_COLUMNS

NUMERIC = "iuf"
IMAGES = "(stimuli, height, width) or (stimuli, height, width, 2 or 3)"
VIDEOS = "(stimuli, frames, height, width) or (stimuli, frames, height, width, 2 or 3)"


@dataclass(frozen=True)
class GridShape:
    """Sizes of the axes of `responses`; `time` is None where they are not resolved in time."""

    repeats: int
    stimuli: int
    neurons: int
    time: int | None


def checked_group(start: str, group: dict[str, Any], matlab: bool = False) -> tuple[dict[str, Any], GridShape]:
    """The arrays of one animal as the layout has them. `start`: path and prefix, with which every message begins."""
    group = {name: _typed(f"{start}{name}", name, values, matlab) for name, values in group.items()}
    name = "videos" if "videos" in group else "images"
    _check_stimuli(f"{start}{name}", group[name], name)
    if matlab:
        _restore_axes(group, len(group[name]))
    size = _size(start, group, name)
    for name, values in group.items():
        if name in NEURON_COLUMNS or name.startswith(NEURONS):
            _check_neurons(f"{start}{name}", name, values, size)
        elif name in TRIAL_NAMES or name.startswith(TRIALS):
            group[name] = _per_trial(f"{start}{name}", name, values, size)
    _check_behavior(start, group, size)
    name = "videos" if "videos" in group else "images"
    group[name] = scaled(f"{start}{name}", group[name])
    return group, size


def number(start: str, values: Any) -> float:
    """The one number in an array; one that MATLAB wrote is 1 x 1."""
    if values.dtype.kind not in NUMERIC or int(np.prod(values.shape)) != 1:
        raise ValueError(f"{start}: found {values.dtype} of shape {values.shape}, expected one number")
    return float(np.asarray(values).reshape(()))


def texts(start: str, values: Any) -> np.ndarray:
    """An array of text, one-dimensional; bytes are decoded."""
    values = _text(start, values)
    if values.dtype.kind != "U":
        raise ValueError(f"{start}: found {values.dtype}, expected text")
    return np.atleast_1d(values).ravel()


def scaled(start: str, images: Any) -> Any:
    """Pixels from 0 to 255: uint8 untouched, other whole numbers as uint8, floats that end at 1 times 255.

    What is on disk stays there.
    """
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind not in NUMERIC:
        raise ValueError(f"{start}: found {images.dtype}, expected uint8 or floats")
    ends = np.array([(part.min(), part.max()) for part in (np.asarray(images[key]) for key in blocks(images))])
    low, high = ends[:, 0].min(), ends[:, 1].max()
    if not (low >= 0 and high <= 255):
        raise ValueError(f"{start}: found values from {low} to {high}, expected 0 to 255 or 0 to 1")
    if images.dtype.kind == "f" and high > 1:
        return images
    dtype, factor = (np.uint8, 1) if images.dtype.kind in "iu" else (images.dtype, 255)
    if type(images) is np.ndarray:
        return images.astype(dtype) if factor == 1 else images * images.dtype.type(factor)
    return StoredRows(images, np.arange(len(images))[:, None], dtype, factor)


def _typed(start: str, name: str, values: Any, matlab: bool) -> Any:
    """Text as text; of MATLAB, whose numbers are doubles, those that are whole as integers where names are expected."""
    values = _text(start, values)
    as_vector = name not in ("images", "videos", "responses", "behavior", "pupil_center")
    if not matlab or not as_vector:
        return values
    values = np.asarray(values)
    values = values.ravel() if 1 in values.shape else values
    named = name in TEXT_COLUMNS or name in (*TRIAL_TEXTS, "frames")
    whole = named and values.dtype.kind == "f" and bool((values == np.rint(values)).all())
    return values.astype(np.int64) if whole else values


def _text(start: str, values: Any) -> Any:
    if values.dtype.kind != "S":
        return values
    try:
        return np.char.decode(np.asarray(values), "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{start}: found bytes that are no UTF-8 text ({error.reason})") from None


def _restore_axes(group: dict[str, Any], stimuli: int) -> None:
    """Axes of length 1 at the end, which MATLAB does not keep: one neuron, one channel."""
    for name in ("responses", "behavior"):
        values = group.get(name)
        if values is not None and values.ndim == 2 and values.shape[1] == stimuli:
            group[name] = np.asarray(values)[:, :, None]


def _check_stimuli(start: str, stimuli: Any, name: str) -> None:
    grey, expected = (4, VIDEOS) if name == "videos" else (3, IMAGES)
    shape = tuple(stimuli.shape)
    if len(shape) not in (grey, grey + 1) or (len(shape) == grey + 1 and shape[-1] not in (2, 3)):
        raise ValueError(f"{start}: found shape {shape}, expected {expected}")
    if name == "videos" and len(shape) == grey and shape[-1] in (2, 3):
        raise ValueError(f"{start}: found a width of {shape[-1]} pixels, expected 4 or more")


def _size(start: str, group: dict[str, Any], stimuli: str) -> GridShape:
    shape, n = tuple(group["responses"].shape), len(group[stimuli])
    start = f"{start}responses"
    if len(shape) not in (3, 4):
        hint = "; one value per stimulus and neuron needs a first axis of length 1" if len(shape) == 2 else ""
        raise ValueError(f"{start}: found shape {shape}, expected (repeats, stimuli, neurons[, time]){hint}")
    if group["responses"].dtype.kind not in NUMERIC:
        raise ValueError(f"{start}: found {group['responses'].dtype}, expected numbers")
    if shape[1] != n:
        raise ValueError(f"{start}: found {shape[1]} stimuli (second axis), expected {n} as in {stimuli}")
    if 0 in shape or 0 in group[stimuli].shape:
        raise ValueError(f"{start}: found shape {shape}, expected no empty axis")
    if stimuli == "videos" and len(shape) == 4 and shape[3] != group[stimuli].shape[1]:
        frames = group[stimuli].shape[1]
        raise ValueError(f"{start}: found {shape[3]} samples in time, expected {frames}, one per frame of videos")
    return GridShape(*shape[:3], time=shape[3] if len(shape) == 4 else None)


def _check_neurons(start: str, name: str, values: Any, size: GridShape) -> None:
    if tuple(values.shape) != (size.neurons,):
        raise ValueError(f"{start}: found shape {tuple(values.shape)}, expected ({size.neurons},), one per neuron")
    if name in POSITION_COLUMNS:
        _check_kind(start, values, NUMERIC, "numbers")
    elif name in TEXT_COLUMNS:
        _check_kind(start, values, "Uiu", "text or whole numbers")
    else:
        _check_kind(start, values, "Ubiuf", "text, numbers, true or false")


def _per_trial(start: str, name: str, values: Any, size: GridShape) -> np.ndarray:
    """A column of the trials, (repeats, stimuli), or (1, stimuli) where it is the same for all repeats."""
    shape, grid = tuple(values.shape), (size.repeats, size.stimuli)
    if shape not in (grid, grid[1:]) and not (len(shape) == 1 and 1 in grid and shape[0] == max(grid)):
        raise ValueError(f"{start}: found shape {shape}, expected ({size.stimuli},), one per stimulus, or {grid}")
    values = np.asarray(values)
    values = values.reshape(grid) if values.size == size.repeats * size.stimuli else values[None]
    if name in TRIAL_TEXTS:
        _check_kind(start, values, "Uiu", "text or whole numbers")
    elif name == "withheld":
        return _truth(start, values)
    elif name == "frames":
        _check_frames(start, values, size)
    elif name == "start_s":
        _check_kind(start, values, NUMERIC, "numbers")
    else:
        _check_kind(start, values, "Ubiuf", "text, numbers, true or false")
    return values


def _truth(start: str, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "biuf" or not np.isin(values, (0, 1)).all():
        raise ValueError(f"{start}: found {values.dtype}, expected true or false, or 0 and 1")
    return values.astype(bool)


def _check_frames(start: str, values: np.ndarray, size: GridShape) -> None:
    if size.time is None:
        raise ValueError(f"{start}: found beside responses without an axis of time, expected it only with one")
    _check_kind(start, values, "iu", "whole numbers")
    if values.min() < 0 or values.max() > size.time:
        raise ValueError(f"{start}: found values from {values.min()} to {values.max()}, expected 0 to {size.time}")


def _check_behavior(start: str, group: dict[str, Any], size: GridShape) -> None:
    for name, width in (("behavior", None), ("pupil_center", 2)):
        if name not in group:
            continue
        shape, times = tuple(group[name].shape), ((), (size.time,))
        fits = len(shape) in (3, 4) and shape[:2] == (size.repeats, size.stimuli) and shape[2] == (width or shape[2])
        if not fits or shape[3:] not in times or 0 in shape:
            time = f"[, {size.time}]" if size.time else ""
            expected = f"({size.repeats}, {size.stimuli}, {width or 'channels'}{time})"
            raise ValueError(f"{start}{name}: found shape {shape}, expected {expected}: (repeats, stimuli, ...)")
        _check_kind(f"{start}{name}", group[name], NUMERIC, "numbers")
    if "behavior_names" not in group:
        return
    names = group["behavior_names"] = texts(f"{start}behavior_names", group["behavior_names"])
    channels = group["behavior"].shape[2] if "behavior" in group else 0
    if len(names) != channels:
        raise ValueError(
            f"{start}behavior_names: found {len(names)} names, expected {channels} as behavior has channels"
        )


def _check_kind(start: str, values: Any, kinds: str, expected: str) -> None:
    if values.dtype.kind not in kinds:
        raise ValueError(f"{start}: found {values.dtype}, expected {expected}")
