"""Trials and neurons of arrays: the grid of repeats and stimuli becomes the rows of a recording.

Comes in: the arrays of one animal, checked, as `array_checks.py` gives them. Goes out: fields of a `Recording`. Arrays
on disk stay there: of each only the places of its trials are noted.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neural_data.array_checks import GridShape
from neural_data.array_layout import NEURONS, TRIAL_NAMES, TRIAL_TEXTS, TRIALS
from neural_data.stored_array import StoredArray, StoredRows, blocks
from neural_data.tables import NEURON_COLUMNS, neuron_table, trial_table


def one_animal(path: Path, group: dict[str, Any], size: GridShape) -> dict[str, Any]:
    """Fields of the recording whose arrays have no prefix; they stay where they are."""
    columns = {name: group[name] for name in TRIAL_NAMES if name in group}
    columns |= {key.removeprefix(TRIALS): values for key, values in group.items() if key.startswith(TRIALS)}
    presented, frames = _presented(path, group["responses"], size, columns.get("withheld"), columns.pop("frames", None))
    repeat, stimulus = np.nonzero(presented)
    trials = trial_table(stimulus, repeat)
    for name, values in columns.items():
        trials[name] = _column(np.broadcast_to(values, presented.shape)[presented], name in TRIAL_TEXTS)
    if frames is not None:
        trials["frames"] = frames[presented].astype(np.int64)
    stimuli = group["videos"] if "videos" in group else group["images"]
    return {
        "stimuli": StoredRows(stimuli, np.arange(size.stimuli)[:, None]) if _stored(stimuli) else stimuli,
        "trials": trials,
        "responses": _trial_rows(group["responses"], presented),
        "neurons": neurons_of(path.stem, group, size.neurons),
        "behavior": _trial_rows(group.get("behavior"), presented),
        "pupil_center": _trial_rows(group.get("pupil_center"), presented),
        "behavior_names": tuple(group.get("behavior_names", np.array([])).tolist()),
    }


def _stored(array: Any) -> bool:
    return isinstance(array, StoredArray)


def _presented(
    path: Path, responses: Any, size: GridShape, withheld: np.ndarray | None, frames: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Which presentations there are, bool (repeats, stimuli), and the samples of each; None where all are full."""
    grid = (size.repeats, size.stimuli)
    withheld = np.broadcast_to(False if withheld is None else withheld, grid)
    known = frames is not None and len(frames) == size.repeats
    lengths = frames if known else _lengths(path, responses, size)
    presented = (lengths > 0) | withheld
    if not presented.any():
        raise ValueError(f"{path}: responses: found no response at all, expected numbers")
    if frames is not None or size.time is None:
        return presented, None if frames is None else np.broadcast_to(frames, grid)
    # How long a withheld trial was, nothing tells: it is as long as can be.
    frames = np.where((lengths == 0) & withheld, size.time, lengths)
    return presented, frames if (frames[presented] < size.time).any() else None


def _lengths(path: Path, responses: Any, size: GridShape) -> np.ndarray:
    """int (repeats, stimuli): samples until the last one at which any neuron has a response. Read block by block."""
    lengths = np.zeros((size.repeats, size.stimuli), np.int64)
    for key in blocks(responses):
        values = np.asarray(responses[key])
        if np.isinf(values).any():
            raise ValueError(f"{path}: responses: found infinite values, expected NaN where there is no response")
        seen = ~np.isnan(values).all(axis=2).reshape(*values.shape[:2], -1)
        last = np.where(seen, np.arange(seen.shape[2]) + 1, 0).max(axis=2)
        first = key[3].start if size.time else 0
        lengths[key[:2]] = np.maximum(lengths[key[:2]], np.where(last, last + first, 0))
    return lengths


def _trial_rows(grid: Any, presented: np.ndarray) -> Any:
    """(trials, ...) of an array (repeats, stimuli, ...): a view where it can be one, on disk where it is there."""
    if grid is None:
        return None
    if isinstance(grid, np.ndarray) and grid.flags.c_contiguous:
        rows = grid.reshape(presented.size, *grid.shape[2:])
        if presented.all():
            return rows
    if type(grid) is np.ndarray:
        return grid[presented]
    return StoredRows(grid, np.argwhere(presented))


def _column(values: np.ndarray, text: bool) -> Any:
    """A column of a table: text, or numbers as they are."""
    if text or values.dtype.kind == "U":
        return pd.Series([str(value) for value in values.tolist()], dtype="str")
    return np.array(values)


def neurons_of(animal: str, group: Mapping[str, Any], n: int) -> pd.DataFrame:
    """The neuron table of one group, with what the layout says of absent names."""
    columns = {name: group[name] for name in NEURON_COLUMNS if name in group}
    table = neuron_table(**({"neuron_id": np.arange(n), "animal": animal} | columns))
    more = {key.removeprefix(NEURONS): values for key, values in group.items() if key.startswith(NEURONS)}
    return table.assign(**{name: _column(np.asarray(values), False) for name, values in more.items()})
