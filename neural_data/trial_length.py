"""How long the trials of Sensorium 2023 are: decided here and nowhere else.

Comes in: the first line of each modality of each trial. Goes out: valid frames, int64 (trials,). A trial is padded with
NaN; its valid length is the index of the first NaN, and it depends on where one looks. Rules, each by its name:

    all         the shortest of videos, responses, behavior and pupil centre (the default): every sample exists
    statistics  as `all`, and no longer than the source's per-frame statistics: the organisers' loader (ecker-lab) and
                Dynamic-VFM, which look for NaN after normalising; with statistics as long as trials, the same as `all`
    video       the video's, other modalities cut or, where they are shorter, NaN: ViV1T and ViV1T-closed-loop
    responses   the responses'; the behavior's where responses are withheld: DwiseNeuro (lRomul)

ViV1T and DwiseNeuro moreover cut at 300 frames: `max_frames`. All five look at every element; padding is the same for
all neurons and pixels, so that here the first line of a file is read, which takes one page of it instead of all.
"""

import numpy as np

RULES = ("all", "statistics", "video", "responses")
# What the organisers' loader divides or subtracts, and therefore looks at.
NORMALISING = ("videos/all/mean", "videos/all/std", "responses/all/std", "behavior/all/std", "pupil_center/all/mean")


def valid_frames(line: np.ndarray) -> int:
    """Index of the first NaN, or the length if there is none."""
    if line.dtype.kind != "f":
        return len(line)
    gaps = np.isnan(line)
    return int(gaps.argmax()) if gaps.any() else len(line)


def trial_frames(
    valid: dict[str, np.ndarray], withheld: np.ndarray, rule: str, statistics: int | None, max_frames: int | None
) -> np.ndarray:
    """Valid frames of each trial by a rule, int64 (trials,).

    `valid`: for each modality that there is, its frames, int64 (trials,), -1 where the trial has no file. `withheld`:
    bool (trials,). `statistics`: frames of the per-frame statistics, None if there are none. Raises ValueError for
    another rule.
    """
    if rule not in RULES:
        raise ValueError(f"trial_length: found {rule!r}, expected one of {', '.join(RULES)}")
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"max_frames: found {max_frames}, expected 1 or more")
    longest = np.iinfo(np.int64).max
    known = {name: np.where(frames < 0, longest, frames) for name, frames in valid.items()}
    if rule == "video":
        frames = known["videos"]
    elif rule == "responses":
        other = known.get("behavior", known["videos"])
        frames = np.where(withheld, other, known.get("responses", other))
    else:
        frames = np.min(list(known.values()), axis=0)
    if rule == "statistics" and statistics is not None:
        frames = np.minimum(frames, statistics)
    return frames if max_frames is None else np.minimum(frames, max_frames)
