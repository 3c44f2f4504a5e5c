"""Submission files of Sensorium 2022: csv, a row per trial, and the scorer that reads them.

What comes in: predictions of trials, one at a time. What goes out: a file with the columns, in this order,

    trial_indices   the trial's id, an integer or the hashed text of the competition's mice
    image_ids       int
    prediction      text of a Python list of numbers, one per neuron; `responses`, standardised, in a ground truth
    neuron_ids      text of a Python list of integers, the same in every row

as sinzlab/sensorium writes them, row by row. `evaluate_2022` is its scorer (`Metrics`): rows are put in the order of
trials and neurons first, so that files may have others.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neural_data.explainable_variance import feve
from neural_data.recording import Recording
from pretrain.durable import write_atomically
from transfer.metrics import correlation, image_correlation_to_average, stack_repeats
from transfer.unit_ids import unit_ids

COLUMNS = ("trial_indices", "image_ids", "prediction", "neuron_ids")
TRUTH_COLUMNS = ("trial_indices", "image_ids", "responses", "neuron_ids")
FILES = {"test": "submission_file_live_test.csv", "final_test": "submission_file_final_test.csv"}
ROWS_AT_A_TIME = 16
MEASURES = ("Single Trial Correlation", "Correlation to Average", "FEVE")


@dataclass(frozen=True, eq=False)
class ImageRow:
    """One row: `values` float (neurons,), predictions or responses; `trial` int or text."""

    trial: Any
    image: int
    values: np.ndarray
    neuron_ids: np.ndarray


def write_2022(path: Path, rows: Iterable[ImageRow]) -> int:
    """Write a file, whole or not at all, and return its rows. Raises ValueError for what is not finite."""
    count = 0

    def write(file: Any) -> None:
        nonlocal count
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        table = csv.writer(text, lineterminator="\n")
        table.writerow(COLUMNS)
        for row in rows:
            if not np.isfinite(row.values).all():
                raise ValueError(f"trial {row.trial}: a prediction is not finite")
            table.writerow([row.trial, row.image, row.values.tolist(), row.neuron_ids.tolist()])
            count += 1
        text.flush()
        text.detach()

    write_atomically(path, write)
    return count


def read_2022(path: Path, columns: tuple[str, ...] = COLUMNS) -> Iterator[ImageRow]:
    """The rows of a file one after the other. Raises ValueError, one line, for a file or a row that is not as it has
    to be; FileNotFoundError."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    options = {"dtype": str, "keep_default_na": False, "chunksize": ROWS_AT_A_TIME}
    try:
        with pd.read_csv(path, **options) as table:
            for number, row in enumerate(row for chunk in table for row in checked(path, chunk, columns)):
                yield image_row(f"{path}: row {number} (trial {row[0]})", columns[2], row)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is no csv file ({' '.join(str(error).split())})") from None


def checked(path: Path, chunk: pd.DataFrame, columns: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The rows of a part of the table, if it has the right columns."""
    if tuple(chunk.columns) != columns:
        found = ", ".join(map(str, chunk.columns[:8]))
        raise ValueError(f"{path}: columns are {found}, expected {', '.join(columns)} in this order")
    return list(chunk.itertuples(index=False, name=None))


def image_row(where: str, name: str, row: tuple[str, ...]) -> ImageRow:
    """A row of texts as numbers."""
    trial, image, values, ids = row
    if not image.lstrip("-").isdecimal():
        raise ValueError(f"{where}: image_ids is {image[:20]!r}, expected an integer")
    numbers, neuron_ids = listed(where, name, values, float), listed(where, "neuron_ids", ids, int)
    if len(numbers) != len(neuron_ids):
        raise ValueError(f"{where}: {len(numbers)} values of {name} and {len(neuron_ids)} neuron_ids, expected as many")
    return ImageRow(int(trial) if trial.isdecimal() else trial, int(image), numbers, neuron_ids)


def listed(where: str, name: str, text: str, kind: type) -> np.ndarray:
    """The numbers in the text of a list. Raises ValueError where there is anything else in it."""
    expected = "a list of integers" if kind is int else "a list of finite numbers"
    try:
        values = json.loads(text)
        whole = isinstance(values, list) and bool(values) and not any(isinstance(each, bool | str) for each in values)
        numbers = np.array(values, np.float64 if kind is float else np.int64) if whole else np.zeros(0)
    except (ValueError, TypeError, OverflowError):
        numbers = np.zeros(0)
    if numbers.ndim != 1 or not len(numbers) or not np.isfinite(numbers).all():
        raise ValueError(f"{where}: {name} is {text[:30]!r}..., expected {expected}")
    return numbers


def check_2022(path: Path, recording: Recording | None = None) -> str:
    """Look at a whole file, and say in one line what is in it.

    `recording`: what it must be of: every trial of a tier, and every neuron. Raises ValueError, one line, for the
    first thing that is wrong.
    """
    trials: dict[Any, int] = {}
    ids: np.ndarray | None = None
    for row in read_2022(path):
        ids = row.neuron_ids if ids is None else ids
        if row.trial in trials:
            raise ValueError(f"{path}: trial {row.trial} is there twice")
        if len(np.unique(row.neuron_ids)) < len(row.neuron_ids):
            raise ValueError(f"{path}: trial {row.trial}: a neuron id is there twice")
        if not np.array_equal(row.neuron_ids, ids):
            raise ValueError(f"{path}: trial {row.trial}: neuron_ids are others than in the first row")
        trials[row.trial] = row.image
    if ids is None:
        raise ValueError(f"{path}: has no rows, expected one per trial")
    if recording is not None:
        check_recording(path, trials, ids, recording)
    return f"{path}: {len(trials)} trials of {len(set(trials.values()))} images, {len(ids)} neurons"


def check_recording(path: Path, trials: dict[Any, int], ids: np.ndarray, recording: Recording) -> None:
    """Fail where trials, images or neurons are not those of a tier of the recording."""
    known = set(unit_ids(recording).tolist())
    if missing := len(known ^ set(ids.tolist())):
        raise ValueError(f"{path}: {missing} neuron_ids are not in both, the file and {recording.name}")
    table = trial_ids(recording).set_index("trial")
    for trial, image in trials.items():
        if trial not in table.index:
            raise ValueError(f"{path}: trial {trial} is not in {recording.name}")
        if table["image"][trial] != image:
            raise ValueError(f"{path}: trial {trial} shows image {table['image'][trial]}, found {image}")
    tiers = table["tier"][list(trials)].unique()
    if len(tiers) > 1:
        raise ValueError(f"{path}: holds trials of tiers {', '.join(sorted(tiers))}, expected one tier")
    expected = table.index[table["tier"] == tiers[0]]
    if missing := [trial for trial in expected if trial not in trials]:
        raise ValueError(f"{path}: lacks {len(missing)} of {len(expected)} trials of {tiers[0]}, such as {missing[0]}")


def trial_ids(recording: Recording) -> pd.DataFrame:
    """`trial` (the source's own id, int or text, else the row), `image` and `tier` of each row of a recording.

    Raises ValueError where images have no ids."""
    trials = recording.trials
    if "image_id" not in trials:
        raise ValueError(f"{recording.name}: images have no ids, which a submission needs")
    own = trials["trial_id"].tolist() if "trial_id" in trials else list(range(len(trials)))
    own = [int(each) if str(each).isdecimal() else each for each in own]
    images = trials["image_id"].astype(np.int64).to_numpy()
    return pd.DataFrame({"trial": pd.Series(own, dtype=object), "image": images, "tier": trials["tier"].to_numpy()})


def evaluate_2022(submission: Path, truth: Path) -> dict[str, float]:
    """The competition's three scores, means over neurons; FEVE over those of which 15 % is explainable.

    Raises ValueError where trials or neurons are not those of the ground truth.
    """
    predicted, measured = ordered(submission, COLUMNS), ordered(truth, TRUTH_COLUMNS)
    for kind, found, expected in zip(("trials", "neurons"), predicted[:2], measured[:2], strict=True):
        if found != expected:
            raise ValueError(f"{submission}: {kind} are not those of {truth}")
    single = np.nan_to_num(correlation(predicted[3], measured[3], axis=0))
    _, (repeats, predictions) = stack_repeats(measured[2], measured[3], predicted[3])
    scores = single, image_correlation_to_average(repeats, predictions), feve(repeats, predictions)
    return {name: float(np.nanmean(values)) for name, values in zip(MEASURES, scores, strict=True)}


def ordered(path: Path, columns: tuple[str, ...]) -> tuple[list[Any], list[int], np.ndarray, np.ndarray]:
    """Trials, neuron ids, image ids (trials,) and values (trials, neurons), in the order of trials and neurons."""
    rows = sorted(read_2022(path, columns), key=lambda row: (isinstance(row.trial, str), row.trial))
    if not rows:
        raise ValueError(f"{path}: has no rows, expected one per trial")
    values = np.stack([row.values[np.argsort(row.neuron_ids)] for row in rows])
    ids = np.sort(rows[0].neuron_ids).tolist()
    return [row.trial for row in rows], ids, np.array([row.image for row in rows]), values
