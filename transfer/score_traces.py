"""Measured and predicted responses of a few neurons over time, for the eye.

What comes in: an animal that is scored, and its neurons' scores on a tier whose clips are repeated. What goes out: the
rows of `traces.csv`: `animal`, `tier`, `neuron_id`, `which` ("best", "median"), `frame` of the trial, `measured` and
`predicted` (means over the repeats of a clip, in the protocol's space), `low` and `high` (standard error of the
measured mean on either side), `score` (single-trial correlation) and its `ceiling`.
"""

import numpy as np
import pandas as pd

from transfer.scored_animals import Scored

SCORE, CEILING = "single_trial_correlation", "single_trial_ceiling"


def traces(scored: Scored, trials: pd.DataFrame, neurons: pd.DataFrame) -> pd.DataFrame | None:
    """Two neurons of one animal over the clip that was shown most often; None where no clip is repeated.

    `trials`: rows of `Scored.rows` of one tier. `neurons`: table with the columns of `neurons.csv`, in the order of the
    recording.
    """
    counts = trials["stimulus"].value_counts()
    if not scored.recording.dynamic or counts.iloc[0] < 2 or not neurons[SCORE].notna().any():
        return None
    repeats = trials[trials["stimulus"] == counts.index[0]]
    ranked = neurons[SCORE].dropna().sort_values(ascending=False, kind="stable").index
    chosen = {"best": int(ranked[0]), "median": int(ranked[len(ranked) // 2])}
    return pd.concat([trace(scored, repeats, neurons.iloc[place], which, place) for which, place in chosen.items()])


def trace(scored: Scored, repeats: pd.DataFrame, neuron: pd.Series, which: str, place: int) -> pd.DataFrame:
    """One neuron over the frames that count in all repeats of a clip."""
    pairs = scored.read(repeats, slice(place, place + 1))
    frames = min(each.shape[1] for each in pairs[0])
    measured, predicted = (np.concatenate([each[:, :frames] for each in side]) for side in pairs)
    mean, error = measured.mean(axis=0), measured.std(axis=0, ddof=1) / np.sqrt(len(measured))
    table = {"frame": int(repeats["start"].min()) + np.arange(frames), "measured": mean}
    table |= {"low": mean - error, "high": mean + error, "predicted": predicted.mean(axis=0)}
    said = {name: neuron[name] for name in ("animal", "tier", "neuron_id")} | {"which": which}
    return pd.DataFrame(table).assign(**said, score=neuron[SCORE], ceiling=neuron.get(CEILING, np.nan))
