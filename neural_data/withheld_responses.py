"""Which trials' responses were recorded but not published, found out without reading them all.

Comes in: a mouse in Sensorium's layout and its responses. Goes out: bool (trials,), and notes for people. Competitions
withhold the responses of whole tiers: the files are absent (copies of 2023), or hold nothing but zeros, until the end
of the trial or of the padding (2022, 2023).
"""

import math

import numpy as np

from neural_data.sensorium_folder import SensoriumFolder, TrialPart, all_zero

# Neurons looked at in a trial of a tier whose first trial is zero throughout.
GLANCE = 16
# So many samples of one trial that are all zero are no silence: fewer are withheld only with their whole tier.
NO_SILENCE = 1000


def withheld_trials(folder: SensoriumFolder, responses: TrialPart | None, silent: np.ndarray) -> np.ndarray:
    """bool (trials,); the folder's notes say for which tiers, and why.

    `silent`: bool (trials,), whether the responses could be zero throughout; False where a glance has shown a number.
    A tier is withheld if its first trial is zero, as ViV1T has it, and a glance at its middle and last one shows
    nothing else. Where some trials of a tier are zero and others are not, the zero ones are withheld if they have
    NO_SILENCE samples or more. Raises ValueError where only some files of a tier are absent.
    """
    withheld = np.zeros(len(folder.tiers), bool)
    for tier in dict.fromkeys(folder.tiers.tolist()):
        rows = np.flatnonzero(folder.tiers == tier)
        if responses is None or not responses.present[rows].any():
            withheld[rows] = True
            folder.notes.append(f"tier {tier}: no response files for its {len(rows)} trials, withheld")
            continue
        _check_whole(responses, tier, rows)
        zero = _zero_trials(responses, rows, silent[rows])
        withheld[zero] = True
        if len(zero):
            some = "all" if len(zero) == len(rows) else f"{len(zero)} of"
            folder.notes.append(f"tier {tier}: responses are zero in {some} {len(rows)} trials, withheld")
    return withheld


def _check_whole(responses: TrialPart, tier: str, rows: np.ndarray) -> None:
    absent = rows[~responses.present[rows]]
    if len(absent):
        raise responses.folder.wrong(
            f"data/responses/{absent[0]}.npy",
            f"no such file ({len(rows) - len(absent)} of {len(rows)} trials of tier {tier} have one)",
            "responses to all trials of a tier, or to none",
        )


def _zero_trials(responses: TrialPart, rows: np.ndarray, silent: np.ndarray) -> np.ndarray:
    """The trials among `rows` that are withheld: all, none, or those that are zero where others are not."""
    could_be = rows[silent]
    if len(could_be) == len(rows):
        first = responses.read(rows[0])
        if np.isnan(first).all():
            expected = "numbers; responses that are withheld are zeros, or have no files"
            raise responses.folder.wrong(responses.files[rows[0]], "NaN throughout", expected)
        if not all_zero(first):
            return rows[:0]
        if all(_glance_zero(responses.read(row)) for row in (rows[len(rows) // 2], rows[-1])):
            return rows
    if math.prod(responses.shape) < NO_SILENCE:
        return rows[:0]
    return np.array([row for row in could_be if all_zero(responses.read(row))], np.int64)


def _glance_zero(values: np.ndarray) -> bool:
    return all_zero(values[:: max(1, len(values) // GLANCE)])
