"""From the table of what was shown when to trials: which image or movie, and which repeat of it.

Comes in: the number of the frame of each presentation, in the order of time. Goes out: the presentations that make the
trials, the table of trials, and a line about those that were left out.
"""

import numpy as np
import pandas as pd

from neural_data.tables import trial_table

GREY = -1


def scene_trials(frame: np.ndarray, start_s: np.ndarray, n_images: int) -> tuple[np.ndarray, pd.DataFrame, list[str]]:
    """One trial per presentation of an image.

    `frame`: float or int (presentations,), the number of the image, -1 for grey, NaN for none; in the order of time.
    `start_s`: float (presentations,). Returns the presentations of the trials, int64 (trials,), their table, and notes.
    Raises ValueError for an image that is not among the `n_images`.
    """
    frame = np.asarray(frame, float)
    outside = np.flatnonzero((frame >= n_images) | (frame < GREY))
    if len(outside):
        raise ValueError(f"presentation {outside[0]} shows image {frame[outside[0]]:g}, expected -1 to {n_images - 1}")
    shown = np.flatnonzero(frame >= 0)
    stimulus = frame[shown].astype(np.int64)
    repeat = pd.Series(stimulus).groupby(stimulus).cumcount().to_numpy()
    trials = trial_table(stimulus, repeat).assign(start_s=start_s[shown])
    left_out = {"grey": int((frame == GREY).sum()), "without a frame number": int(np.isnan(frame).sum())}
    return shown, trials, [f"{n} presentations {what} left out" for what, n in left_out.items() if n]


def movie_trials(frame: np.ndarray, start_s: np.ndarray, n_frames: int) -> tuple[np.ndarray, pd.DataFrame, list[str]]:
    """One trial per showing of the whole movie, whose frames are presentations 0, 1, ..., `n_frames` - 1 in a row.

    Arguments as above. Returns the presentations of the trials' frames, int64 (trials, frames), their table, and notes.
    Raises ValueError for a frame that the movie does not have.
    """
    frame = np.asarray(frame, float)
    if (frame >= n_frames).any():
        raise ValueError(f"a presentation shows frame {np.nanmax(frame):g}, expected 0 to {n_frames - 1}")
    first = np.flatnonzero(frame == 0)
    first = first[first + n_frames <= len(frame)]
    rows = first[:, None] + np.arange(n_frames)
    rows = rows[(frame[rows] == np.arange(n_frames)).all(axis=1)]
    trials = trial_table(np.zeros(len(rows)), np.arange(len(rows))).assign(start_s=start_s[rows[:, 0]])
    lost = len(frame) - rows.size
    return rows, trials, [f"{lost} frames of incomplete showings left out"] if lost else []
