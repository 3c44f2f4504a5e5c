"""Trials as a model is to see them, in the space that its program trains in.

What comes in: trials of a recording, uint8 or float, as `Recording.trial` gives them. What goes out: float32 `video`
(channels, time, height, width) or `images` (channels, height, width), `behavior` (K[, time]), `pupil_center` (2[,
time]) and `responses` (neurons[, time]); and the space that responses, and so predictions, are then in.
`normalisation_rules.py` has what each program does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from neural_data.recording import Recording
from transfer.frame_statistics import STIMULI
from transfer.normalisation_rules import NORMALISATIONS
from transfer.normalisation_statistics import affine, inputs_of, known_frames, moments_of, source_std
from transfer.response_space import response_precision, response_scale


@dataclass(frozen=True, eq=False)
class Normalisation:
    """A fitted normalisation of one animal.

    `offset`, `divisor`: by modality, of stimuli float32 (), (height, width[, channels]) or with frames before these, of
    signals float64 (K, 1) or (K, frames); a modality without them stays as it is. `std_by_space`: float32 standard
    deviations of raw responses: "per_frame_std" (neurons, frames), "per_neuron_std" (neurons,), as far as they are
    known; those of `response_space` always are. `frames`: the longest trial that statistics per frame know, None where
    there are none. `scale`: by which pictures are resized.
    """

    name: str
    response_space: str
    offset: Mapping[str, np.ndarray] = field(default_factory=dict)
    divisor: Mapping[str, np.ndarray] = field(default_factory=dict)
    std_by_space: Mapping[str, np.ndarray] = field(default_factory=dict)
    frames: int | None = None
    rectified: bool = False
    scale: float = 1.0

    def apply(self, trial: Mapping[str, np.ndarray], frames: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """A trial, or a window of one, as the model is to see it: float32, in the layout of the module's docstring.

        `trial`: `video` (time, height, width[, channels]) or `images` (height, width[, channels]), `behavior`,
        `pupil_center` and `responses`, each optional. `frames`: int (time,), the original number of each frame; of
        images None. Raises ValueError for frames that the statistics do not have.
        """
        frames = np.zeros(1, np.int64) if frames is None else np.asarray(frames)
        self._check(frames)
        at = _evenly_spaced(frames)
        return {
            part: self._responses(values, at) if part == "responses" else self._input(part, np.asarray(values), at)
            for part, values in trial.items()
        }

    def state(self) -> dict[str, Any]:
        """Plain data and tensors, from which `from_state` makes the same normalisation; safe in a checkpoint."""
        import torch

        arrays = {"offset": self.offset, "divisor": self.divisor, "std_by_space": self.std_by_space}
        plain = {key: getattr(self, key) for key in ("name", "response_space", "frames", "rectified", "scale")}
        return plain | {
            kind: {part: torch.from_numpy(np.array(values)) for part, values in of_parts.items()}
            for kind, of_parts in arrays.items()
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Normalisation":
        """The normalisation that `state` was made of. Raises ValueError where something is missing."""
        missing = [key for key in cls.__dataclass_fields__ if key not in state]
        if missing:
            raise ValueError(f"state of a normalisation: found no {', '.join(missing)}")
        kinds = ("offset", "divisor", "std_by_space")
        arrays = {kind: {part: np.asarray(values) for part, values in state[kind].items()} for kind in kinds}
        return cls(**{key: state[key] for key in cls.__dataclass_fields__ if key not in kinds}, **arrays)

    @cached_property
    def _response_scale(self) -> np.ndarray:
        """float32 (neurons, 1 or frames), once and for all trials."""
        std = self.std_by_space.get(self.response_space)
        length = std.shape[1] if std is not None and std.ndim == 2 else 1
        return response_scale(self.response_space, np.arange(length), self.std_by_space).astype(np.float32)

    def _check(self, frames: np.ndarray) -> None:
        if self.frames is not None and len(frames) and frames.max() >= self.frames:
            raise ValueError(
                f"normalisation {self.name}: found frame {frames.max()} of a trial, its statistics end at frame "
                f"{self.frames - 1}; read the recording with max_frames={self.frames}"
            )

    @cached_property
    def _response_scale_time_first(self) -> np.ndarray:
        return np.ascontiguousarray(self._response_scale.T)

    def _responses(self, values: np.ndarray, frames: slice | np.ndarray) -> np.ndarray:
        """Responses (neurons[, time]), which lie in memory as they did before: time first of the prepared layout."""
        responses = np.asarray(values, np.float32)
        if self.rectified:
            responses = np.maximum(responses, 0)
        if self.response_space == "raw":
            return responses
        if responses.ndim == 1:
            return responses * self._response_scale[:, 0]
        if self._response_scale.shape[1] == 1:
            return responses * self._response_scale
        if responses.flags.c_contiguous:
            return responses * self._response_scale[:, frames]
        return (responses.T * self._response_scale_time_first[frames]).T

    def _input(self, part: str, values: np.ndarray, frames: slice | np.ndarray) -> np.ndarray:
        changed = np.asarray(values, np.float32)
        if part in self.divisor:
            offset, divisor = (_of_frames(part, stored[part], values, frames) for stored in (self.offset, self.divisor))
            changed = ((changed - offset) / divisor).astype(np.float32)
        if part not in STIMULI:
            return changed
        grey = changed.ndim == (3 if part == "video" else 2)
        changed = changed[None] if grey else np.moveaxis(changed, -1, 0)
        return resized(changed, self.scale) if self.scale != 1 else np.ascontiguousarray(changed)


def fit_normalisation(name: str, recording: Recording, rows: np.ndarray, scale: float = 1.0) -> Normalisation:
    """The normalisation called `name` for one animal.

    `rows`: int (trials,), the training trials. `scale`: by which stimuli are resized afterwards, 0.25 where the models
    of Sensorium 2022 see 36 x 64 of 144 x 256 pixels. Raises ValueError for another name, for a recording of several
    animals, for one without the times or values that the normalisation is about, and for training trials with NaN.
    """
    if name not in NORMALISATIONS:
        raise ValueError(f"normalisation: found {name!r}, expected one of {', '.join(NORMALISATIONS)}")
    if len(recording.animals) != 1:
        raise ValueError(f"{recording.name}: holds {len(recording.animals)} animals, a normalisation is of one")
    if not scale > 0:
        raise ValueError(f"scale: found {scale:g}, expected above 0")
    rule = NORMALISATIONS[name]
    if rule.response_space == "per_frame_std" and not recording.dynamic:
        raise ValueError(f"{recording.name}: normalisation {name} is per frame, the responses have no time axis")
    changed = {part: rule.change(part) for part in inputs_of(recording) if rule.change(part)}
    moments = moments_of(rule, recording, rows, changed)
    std = source_std(recording)
    if "responses" in moments:
        std[rule.response_space] = moments["responses"].std
    if rule.response_space != "raw":
        _check_std(recording, std[rule.response_space])
    offset, divisor = {}, {}
    for part, change in changed.items():
        # Gaze is a hundred pixels give or take four: its mean is taken off in float64, which costs nothing.
        dtype = np.float32 if part in STIMULI else np.float64
        offset[part], divisor[part] = (value.astype(dtype) for value in affine(change, moments[part], rule.eps))
    return Normalisation(
        name=name,
        response_space=rule.response_space,
        offset=offset,
        divisor=divisor,
        std_by_space={space: values.astype(np.float32) for space, values in std.items()},
        frames=known_frames(recording, divisor, std if rule.response_space == "per_frame_std" else {}),
        rectified=rule.rectified,
        scale=scale,
    )


def _check_std(recording: Recording, std: np.ndarray) -> None:
    try:
        response_precision(std)
    except ValueError as error:
        raise ValueError(f"{recording.name}: {error}") from None


def _evenly_spaced(frames: np.ndarray) -> slice | np.ndarray:
    """Frames as a slice where they are evenly spaced, which needs no copy of what is indexed."""
    step = int(frames[1] - frames[0]) if len(frames) > 1 else 1
    if step < 1 or not len(frames) or (np.diff(frames) != step).any():
        return frames
    return slice(int(frames[0]), int(frames[-1]) + 1, step)


def _of_frames(part: str, stored: np.ndarray, values: np.ndarray, frames: slice | np.ndarray) -> np.ndarray:
    """What belongs to the frames of `values`, in a shape that fits them."""
    if part in STIMULI:
        return stored[frames] if part == "video" and stored.ndim == values.ndim else stored
    of_frames = stored if stored.shape[1] == 1 else stored[:, frames]
    return of_frames if values.ndim == 2 else of_frames[:, 0]


def resized(pictures: np.ndarray, scale: float) -> np.ndarray:
    """Pictures (..., height, width) resized: bilinear, neither with antialiasing nor with corners aligned, as
    scikit-image's `rescale` of order 1 that the loaders of Sensorium call."""
    import torch

    size = [round(scale * length) for length in pictures.shape[-2:]]
    flat = torch.from_numpy(pictures.reshape(1, -1, *pictures.shape[-2:]))
    small = torch.nn.functional.interpolate(flat, size=size, mode="bilinear", align_corners=False)
    return small.numpy().reshape(*pictures.shape[:-2], *size)
