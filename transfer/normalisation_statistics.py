"""What a normalisation subtracts and divides by: the source's own statistics, or those of training trials.

What comes in: a `Rule`, a recording of one animal, and the rows of its training trials. What goes out: moments of each
modality in the layout of trials, and standard deviations of responses. Trials are read one at a time, and only where
the source has no statistics that serve.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from neural_data.recording import Recording
from transfer.frame_statistics import STIMULI, Moments, frame_statistics
from transfer.normalisation_rules import Rule

OWN_FRAMES = 300  # what ViV1T looks at of a trial
NEEDED = {"z": ("mean", "std"), "scale": ("std",), "min-max": ("min", "max"), "std-mean": ("mean", "std")}
SOURCE_NAMES = {"video": "videos"}


def response_stds(recording: Recording, rows: np.ndarray, spaces: Sequence[str]) -> dict[str, np.ndarray]:
    """Standard deviations of raw responses that a space needs, float64, for scores in it.

    "per_frame_std" (neurons, frames) are the source's own where there are any, "per_neuron_std" (neurons,) those over
    all frames of the trials `rows`, of images the source's own where there are any. Trials are read once, one at a
    time, where needed.
    """
    known = {space: values for space, values in source_std(recording).items() if space in spaces}
    absent = [space for space in spaces if space not in known and space != "raw"]
    if absent:
        own = frame_statistics(recording, rows, ("responses",))["responses"]
        computed = {"per_frame_std": own.per_frame().std, "per_neuron_std": own.over_time().std}
        known |= {space: computed[space] for space in absent}
    return known


def inputs_of(recording: Recording) -> list[str]:
    """What a model may see of a recording, by the names of batches."""
    signals = [part for part in ("behavior", "pupil_center") if getattr(recording, part) is not None]
    return ["video" if recording.video else "images", *signals]


def moments_of(rule: Rule, recording: Recording, rows: np.ndarray, changed: Mapping[str, str]) -> dict[str, Moments]:
    """Of each modality that is changed; of "responses" where their standard deviation has to be computed too."""
    found = {}
    for part, change in changed.items():
        provided = source_moments(recording, part, NEEDED[change]) if rule.provided else None
        if provided is not None:
            found[part] = provided
    absent = [part for part in changed if part not in found]
    own_std = not rule.provided or rule.response_space not in source_std(recording)
    if rule.response_space != "raw" and own_std:
        absent.append("responses")
    if absent:
        most = None if rule.provided else OWN_FRAMES
        for part, own in frame_statistics(recording, rows, absent, most).items():
            # ViV1T standardises responses per frame, however its inputs are.
            per_frame = rule.over == "frame" or (part == "responses" and rule.response_space == "per_frame_std")
            over_all = rule.over == "all" and part in STIMULI
            found[part] = own.per_frame() if per_frame else own.over_all() if over_all else own.over_time()
            if part in ("behavior", "pupil_center") and not per_frame:
                found[part] = Moments(*(values[:, None] for values in vars(found[part]).values()))
    return found


def source_std(recording: Recording) -> dict[str, np.ndarray]:
    """The source's own standard deviations of responses, by the space that they make."""
    values = _source_array(recording, "responses", "std")
    if values is None:
        return {}
    neurons = len(recording.neurons)
    if recording.dynamic:
        return {"per_frame_std": values} if values.ndim == 2 and values.shape[0] == neurons else {}
    return {"per_neuron_std": values.reshape(-1)} if values.size == neurons else {}


def source_moments(recording: Recording, part: str, needed: Sequence[str]) -> Moments | None:
    """The source's own statistics of an input, in the layout of trials; None where one of `needed` is not there."""
    found = {}
    for statistic in ("mean", "std", "min", "max"):
        values = _source_array(recording, part, statistic)
        if values is None:
            if statistic in needed:
                return None
            values = np.array(np.nan)
        elif part not in STIMULI:
            values = values.reshape(-1, 1) if not recording.dynamic or values.ndim == 1 else values
        elif values.size == 1:
            values = values.reshape(())
        else:
            values = np.moveaxis(values, -1, 0) if part == "video" else np.moveaxis(values, 0, -1)
        found[statistic] = values
    return Moments(**found)


def _source_array(recording: Recording, part: str, statistic: str) -> np.ndarray | None:
    name = f"{SOURCE_NAMES.get(part, part)}/all/{statistic}"
    return np.asarray(recording.statistics[name], float) if name in recording.statistics else None


def affine(change: str, moments: Moments, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """What is subtracted, and what the rest is divided by; what never varies is divided by 1."""
    if change == "z":
        offset, divisor = moments.mean, moments.std + eps
    elif change == "scale":
        offset, divisor = np.zeros_like(moments.std), moments.std
    elif change == "min-max":
        offset, divisor = moments.min, moments.max - moments.min
    else:
        offset, divisor = moments.mean, moments.std - moments.mean
    return offset, np.where(divisor == 0, 1.0, divisor)


def known_frames(recording: Recording, divisor: Mapping[str, np.ndarray], std: Mapping[str, np.ndarray]) -> int | None:
    """Frames before the first one that some statistic per frame does not have, None where none is per frame."""
    lengths = []
    for part, values in divisor.items():
        if part == "video" and values.ndim == len(recording.stimuli.shape) - 1:
            lengths.append(_finite(values.reshape(len(values), -1).T))
        elif part not in STIMULI and values.shape[1] > 1:
            lengths.append(_finite(values))
    # NaN among standard deviations of responses counts as too small, as there.
    lengths += [values.shape[1] for values in std.values() if values.ndim == 2]
    return min(lengths, default=None)


def _finite(values: np.ndarray) -> int:
    there = np.isfinite(values).all(axis=0)
    return len(there) if there.all() else int(there.argmin())
