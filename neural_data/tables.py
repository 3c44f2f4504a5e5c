"""The two tables of a recording: its trials and its neurons.

Comes in: arrays of a reader. Goes out: pandas tables with the columns that a `Recording` must have; readers may add
columns of their own.

Of a trial, further columns are understood where they are there: `frames` (valid samples in time, the rest is padding),
`withheld` (true where the responses exist but were not published), `stimulus_class` (text), `trial_id` (text, the
source's own), `start_s` (seconds since the session began).
"""

from typing import Any

import numpy as np
import pandas as pd

TRIAL_COLUMNS = ("stimulus", "repeat", "tier")
TEXT_COLUMNS = ("neuron_id", "animal", "area", "layer")
POSITION_COLUMNS = ("x_um", "y_um", "z_um")
NEURON_COLUMNS = TEXT_COLUMNS + POSITION_COLUMNS


def trial_table(stimulus: np.ndarray, repeat: np.ndarray, tier: Any = "") -> pd.DataFrame:
    """A table of trials: int64 `stimulus` and `repeat`, text `tier`; each an array (trials,), tier also one
    text."""
    columns = {"stimulus": np.asarray(stimulus, np.int64), "repeat": np.asarray(repeat, np.int64)}
    return pd.DataFrame(columns).assign(tier=_text(tier, len(stimulus)))


def neuron_table(
    neuron_id: Any,
    animal: Any,
    area: Any = "",
    layer: Any = "",
    x_um: Any = np.nan,
    y_um: Any = np.nan,
    z_um: Any = np.nan,
) -> pd.DataFrame:
    """A table of neurons; each column an array (neurons,) or, except `neuron_id`, one value for all."""
    n = len(neuron_id)
    texts = dict(zip(TEXT_COLUMNS, (neuron_id, animal, area, layer), strict=True))
    positions = dict(zip(POSITION_COLUMNS, (x_um, y_um, z_um), strict=True))
    columns = {column: _text(values, n) for column, values in texts.items()}
    columns |= {column: np.broadcast_to(np.asarray(values, float), n) for column, values in positions.items()}
    return pd.DataFrame(columns)


def _text(values: Any, n: int) -> pd.Series:
    # Through an object array, so that numbers as names become their digits and no fixed width cuts a text.
    texts = [str(value) for value in np.broadcast_to(np.asarray(values), n).tolist()]
    return pd.Series(texts, dtype="str")
