"""The unit that responses are in, and how to get from one to another.

What comes in: responses (neurons, time) in one space, and standard deviations. What goes out: the same responses in
another. Spaces, each by its name:

    raw             as the source has them: deconvolved calcium of Sensorium
    per_frame_std   each neuron at each frame of a trial divided by its standard deviation over trials at that frame:
                    what the competition of 2023 was scored in, because its statistics are per frame
    per_neuron_std  each neuron divided by its standard deviation over all frames and trials: ViV1T-closed-loop, and the
                    images of 2022, of which a trial has one sample

The second is no constant for a neuron, so that correlations differ between it and the other two: a score means nothing
without its space. None of them takes a mean away; zero stays zero.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

RESPONSE_SPACES = ("raw", "per_frame_std", "per_neuron_std")
# Of the mean over neurons: what varies less is divided by this instead (neuralpredictors' NeuroNormalizer).
LEAST_SHARE = 0.01


def response_precision(std: Any) -> np.ndarray:
    """What responses are multiplied by, in the shape and precision of `std`: (neurons,) or (neurons, frames).

    1 / s where s > 0.01 nanmean(s), otherwise 1 / (0.01 nanmean(s)), as `NeuroNormalizer` of neuralpredictors and all
    programs after it have it; NaN counts as too small. Raises ValueError where there is no positive number in it.
    """
    std = np.asarray(std)
    std = std if std.dtype.kind == "f" else std.astype(float)
    known = std[np.isfinite(std)]
    if not len(known) or not known.any() or known.min() < 0:
        found = f"{len(known)} finite values" + (f" from {known.min():g} to {known.max():g}" if len(known) else "")
        raise ValueError(f"standard deviations of responses: found {found}, expected some above 0 and none below")
    least = LEAST_SHARE * np.nanmean(std)
    # A comparison with NaN is False, as there.
    return 1 / np.where(std > least, std, least)


def response_scale(space: str, frames: np.ndarray, std_by_space: Mapping[str, Any]) -> np.ndarray:
    """What raw responses are multiplied by to be in a space: (1, 1), (neurons, 1) or (neurons, time).

    `frames`: int (time,), the original frame number of each sample. `std_by_space`: "per_frame_std" (neurons, frames of
    a trial) and "per_neuron_std" (neurons,), each where it is needed. Raises ValueError for another space, for missing
    standard deviations, and for frames that they do not have.
    """
    if space not in RESPONSE_SPACES:
        raise ValueError(f"response space: found {space!r}, expected one of {', '.join(RESPONSE_SPACES)}")
    if space == "raw":
        return np.ones((1, 1))
    if space not in std_by_space:
        known = ", ".join(std_by_space) or "none"
        raise ValueError(f"response space {space}: its standard deviations are not known; there are {known}")
    std = np.asarray(std_by_space[space])
    axes = 2 if space == "per_frame_std" else 1
    if std.ndim != axes:
        expected = "(neurons, frames)" if axes == 2 else "(neurons,)"
        raise ValueError(f"response space {space}: found standard deviations of shape {std.shape}, expected {expected}")
    precision = response_precision(std)
    if axes == 1:
        return precision[:, None]
    frames = np.asarray(frames)
    if len(frames) and not 0 <= frames.min() <= frames.max() < std.shape[1]:
        found = f"frames {frames.min()} to {frames.max()}"
        raise ValueError(f"response space {space}: found {found}, its standard deviations have {std.shape[1]} frames")
    return precision[:, frames]


def convert(
    values: np.ndarray, frames: np.ndarray, source: str, target: str, std_by_space: Mapping[str, Any]
) -> np.ndarray:
    """Responses (neurons, time) of one space in another; what is in the same space comes back as it is.

    `frames`: int (time,), the original frame number of each sample. Images have responses (neurons, 1) and frame 0.
    Raises ValueError as `response_scale` does, and where there are not as many neurons or frames.
    """
    known = {space: response_scale(space, frames, std_by_space) for space in dict.fromkeys((source, target))}
    for space, scale in known.items():
        if values.ndim != 2 or scale.shape[0] not in (1, values.shape[0]) or values.shape[1] != len(frames):
            expected = f"({scale.shape[0] if space != 'raw' else 'neurons'}, {len(frames)})"
            raise ValueError(f"responses: found shape {values.shape}, expected {expected}")
    if source == target:
        return values
    return values * (known[target] / known[source]).astype(np.result_type(values.dtype, np.float32))
