"""Which trials of each animal train an encoder, and which ones measure it.

What comes in: recordings by animal and `TrialsConfig`: tiers, folds of clips, or lists of one's own. What goes out:
rows of each recording's trial table, int64, in ascending order. A trial whose responses are withheld, that lasts no
frame, or that is too short for the window, does neither; how many were left out is said.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from neural_data.recording import Recording
from pretrain.progress import say
from pretrain.randomness import derived_seed
from transfer.fit_config import TrialsConfig

LIST_COLUMNS = ("animal", "row")


@dataclass(frozen=True)
class ChosenTrials:
    """Rows that train and that measure, by animal; an animal can have no rows that measure."""

    train: dict[str, np.ndarray]
    validation: dict[str, np.ndarray]


def choose_trials(
    recordings: Mapping[str, Recording], config: TrialsConfig, seed: int, shortest: int = 1
) -> ChosenTrials:
    """The trials of each animal.

    Args:
        recordings: by animal.
        config: the keys below `trials`.
        seed: of the draw of `train_limit` trials.
        shortest: frames that the window of training needs.

    Raises:
        ValueError: one line, where an animal is left without a trial to train on, or a list or tier is wrong.
    """
    require_consistent(config)
    train, validation = {}, {}
    folds = folds_of(recordings, config) if config.folds else {}
    for animal, recording in recordings.items():
        usable = has_responses(recording, max(shortest, config.min_frames))
        if config.train_list:
            train[animal] = listed(config.train_list, animal, recording, usable)
        else:
            train[animal] = of_tiers(recording, config.train_tiers, usable)
            if folds:
                train[animal] = train[animal][folds[animal][train[animal]] != config.fold]
        validation[animal] = validation_rows(animal, recording, config, usable, folds)
        require_some(animal, recording, train[animal], config)
        train[animal] = limited(train[animal], config.train_limit, derived_seed(seed, "limit", animal))
    if config.validation_animals:
        validation = {a: rows if a in config.validation_animals else rows[:0] for a, rows in validation.items()}
    return ChosenTrials(train, validation)


def require_consistent(config: TrialsConfig) -> None:
    if config.folds == 1 or (config.folds and not config.fold < config.folds):
        raise ValueError(f"trials.fold={config.fold} is not one of trials.folds={config.folds}, counted from 0")
    if bool(config.train_list) != bool(config.validation_list):
        raise ValueError("trials.train_list and trials.validation_list go together; one of them is not set")
    if config.folds and config.train_list:
        raise ValueError("trials.folds and trials.train_list exclude each other; set one of them")


def has_responses(recording: Recording, shortest: int) -> np.ndarray:
    """bool (trials,): whether responses were published, and the trial is long enough and not of tier `none`."""
    long_enough = recording.frames >= (shortest if recording.dynamic else 1)
    return ~recording.withheld & long_enough & (recording.trials["tier"] != "none").to_numpy()


def of_tiers(recording: Recording, tiers: list[str], usable: np.ndarray) -> np.ndarray:
    """Usable rows of some tiers, of all where there are none; what is left out is said."""
    tier = recording.trials["tier"]
    chosen = tier.isin(tiers).to_numpy() if tiers else np.ones(len(tier), bool)
    return np.flatnonzero(chosen & usable)


def validation_rows(
    animal: str, recording: Recording, config: TrialsConfig, usable: np.ndarray, folds: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Rows that measure: of a list, of the fold that is left out, or of tiers."""
    if config.validation_list:
        return listed(config.validation_list, animal, recording, usable)
    if folds:
        rows = of_tiers(recording, config.train_tiers, usable)
        return rows[folds[animal][rows] == config.fold]
    return of_tiers(recording, config.validation_tiers, usable) if config.validation_tiers else np.empty(0, np.int64)


def listed(path: str, animal: str, recording: Recording, usable: np.ndarray) -> np.ndarray:
    """Rows of an animal in a list of one's own. Raises ValueError for a row that is not there or has no responses."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such list; expected a .csv file with columns animal and row")
    table = pd.read_csv(path, dtype={"animal": str})
    if absent := [column for column in LIST_COLUMNS if column not in table]:
        raise ValueError(f"{path}: lacks column {absent[0]}; found {', '.join(table.columns)}")
    rows = np.unique(table.loc[table["animal"].isin([animal, recording.name]), "row"].to_numpy(np.int64))
    wrong = rows[(rows < 0) | (rows >= len(recording.trials))]
    if len(wrong):
        raise ValueError(f"{path}: animal {animal} has no trial {wrong[0]}, only 0 to {len(recording.trials) - 1}")
    if len(without := rows[~usable[rows]]):
        raise ValueError(f"{path}: trial {without[0]} of animal {animal} has no responses, or is too short")
    return rows


def folds_of(recordings: Mapping[str, Recording], config: TrialsConfig) -> dict[str, np.ndarray]:
    """The fold of every trial by animal, int64 (trials,)."""
    from neural_data.video_folds import video_folds

    return {animal: video_folds(recording, config.folds) for animal, recording in recordings.items()}


def require_some(animal: str, recording: Recording, rows: np.ndarray, config: TrialsConfig) -> None:
    if len(rows):
        return
    tiers = ", ".join(map(repr, recording.trials["tier"].unique()))
    raise ValueError(
        f"animal {animal!r} has no trial with responses in trials.train_tiers={config.train_tiers}"
        f"{f' outside of fold {config.fold}' if config.folds else ''}; its tiers are {tiers}"
    )


def limited(rows: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """At most `limit` of the rows, drawn at random, in ascending order; all for 0 (V1T's `limit_data`)."""
    if not limit or limit >= len(rows):
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, limit, replace=False))


def say_trials(chosen: ChosenTrials, recordings: Mapping[str, Recording]) -> None:
    """One line per animal: how many trials train, measure and do neither."""
    for animal, recording in recordings.items():
        train, validation = chosen.train[animal], chosen.validation[animal]
        rest = len(recording.trials) - len(np.union1d(train, validation))
        withheld = int(recording.withheld.sum())
        say(
            f"{animal}: {len(recording.neurons):,} neurons; {len(train)} trials train, {len(validation)} measure, "
            f"{rest} do neither ({withheld} withheld)"
        )
