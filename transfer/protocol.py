"""Splits of the stimuli, halves of the repeats: the noise-corrected score of every neuron.

Comes in: features (stimuli, features), or the halved responses of other animals, and a group of neurons. Goes out: one
row per neuron and split, mean over the halvings. With mappings M1, M2 fitted to the train stimuli of half 1 and half 2,
and on the test stimuli

    score = r(M1(x1), s2) / sqrt(SB(r(M1(x1), M2(x2))) SB(r(s1, s2))),   SB(r) = 2 r / (1 + r)

where x1 = x2 are a model's features, or x1, x2 halves of another animal's repeats. It is NaN where the product under
the root is negative, and can exceed 1 (Nayebi, Kong et al., PLOS Comput Biol 19(10):e1011506, 2023; the `correction`
of their code that its results use, and its other one).

Within each split a second score, of fewer halvings, is of train stimuli only: the layer that one number is reported of
is chosen by it. Bins of videos are split by clip, or by blocks of time (`clip_splits.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from neural_data.halvings import halves_in_order, valid_repeats
from neural_data.splits import image_splits
from transfer.clip_splits import BinPlaces, Split
from transfer.config import PredictivityConfig
from transfer.neuron_groups import FEWEST_STIMULI

# Halved responses and predictions held at a time, of which about ten are alive at once.
BLOCK_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Source:
    """What neurons are predicted from.

    `features`: (stimuli, features) of a model, the same for both halves and every halving; or, of other animals,
    (2, halvings, stimuli, units), what belongs to half 1 and to half 2.
    """

    features: np.ndarray

    def of(self, halvings: slice) -> "Source":
        """What belongs to some of the halvings."""
        return self if self.features.ndim == 2 else Source(self.features[:, halvings])

    def at(self, stimuli: np.ndarray) -> np.ndarray:
        """Features (stimuli, features) of some stimuli; of animals (sets, stimuli, units), all of half 1 first."""
        if self.features.ndim == 2:
            return self.features[stimuli]
        chosen = self.features[:, :, stimuli]
        return chosen.reshape(-1, *chosen.shape[2:])


@dataclass(frozen=True)
class Halves:
    """Mean responses of one group to two halves of the repeats, float64 (halvings, stimuli, neurons) each."""

    first: np.ndarray
    second: np.ndarray


@dataclass(frozen=True)
class HalvedRepeats:
    """Responses float (repeats, stimuli, neurons) and the orders (halvings, repeats) that halve their repeats.

    All means together are as many times the responses as there are halvings: they are made a few at a time.
    """

    responses: np.ndarray
    orders: np.ndarray

    def halves(self, halvings: slice) -> Halves:
        return Halves(*halves_in_order(self.responses, self.orders[halvings], valid=self.valid))

    @cached_property
    def valid(self) -> np.ndarray:
        return valid_repeats(self.responses)

    def blocks(self) -> Iterator[slice]:
        """Halvings whose means together hold about BLOCK_BYTES."""
        step = max(1, BLOCK_BYTES // (2 * 8 * self.responses[0].size))
        for first in range(0, len(self.orders), step):
            yield slice(first, min(first + step, len(self.orders)))


# (source, halves, train, test) -> scores (halvings, neurons)
Score = Callable[[Source, Halves, np.ndarray, np.ndarray], np.ndarray]


def score_halves(
    source: Source,
    repeats: HalvedRepeats,
    neurons: pd.DataFrame,
    score: Score,
    config: PredictivityConfig,
    choose: bool,
    places: BinPlaces | None = None,
) -> pd.DataFrame:
    """Scores of neurons, one row per neuron and split.

    Args:
        source: features of the stimuli that the repeats are of.
        neurons: the columns that each row begins with, one row per score.
        choose: whether to score on train stimuli too.
        places: where in time the stimuli lie, of bins of videos.

    Returns: the columns of `neurons`, `split`, `score` (mean over the halvings where it is defined), `defined` (how
        many those are), `train_score` (NaN where it was not asked for), and with the config's `report_train`
        `fitted_score`, of the stimuli that the mapping was fitted to.
    """
    splits = stimulus_splits(repeats.responses.shape[1], config, places)
    scores = scores_of_splits(source, repeats, score, splits)
    columns = [{"score": mean_of_defined(found), "defined": (~np.isnan(found)).sum(0)} for found in scores]
    trains = [train for train, _ in splits]
    chosen = choice_scores(source, repeats, score, config, trains, places) if choose else [np.nan] * len(splits)
    for of_split, in_train in zip(columns, chosen, strict=True):
        of_split["train_score"] = in_train
    if config.report_train:
        fitted = scores_of_splits(source, repeats, score, [(train, train) for train in trains])
        for of_split, found in zip(columns, fitted, strict=True):
            of_split["fitted_score"] = mean_of_defined(found)
    tables = [neurons.assign(split=number, **of_split) for number, of_split in enumerate(columns)]
    return pd.concat(tables, ignore_index=True)


def scores_of_splits(source: Source, repeats: HalvedRepeats, score: Score, splits: Sequence[Split]) -> list[np.ndarray]:
    """Scores (halvings, neurons) of each split; halves are made once for all splits, a few at a time."""
    found: list[list[np.ndarray]] = [[] for _ in splits]
    for part in repeats.blocks():
        halves, of_part = repeats.halves(part), source.of(part)
        for of_split, (train, test) in zip(found, splits, strict=True):
            of_split.append(score(of_part, halves, train, test))
    return [np.concatenate(of_split) for of_split in found]


def choice_scores(
    source: Source,
    repeats: HalvedRepeats,
    score: Score,
    config: PredictivityConfig,
    trains: Sequence[np.ndarray],
    places: BinPlaces | None,
) -> list[np.ndarray | float]:
    """For each split the scores (neurons,) of train stimuli by a mapping that was fitted to others of them.

    NaN where a split has too few train stimuli, or bins of one block alone.
    """
    part = slice(0, config.choice_halvings)
    halves, of_part = repeats.halves(part), source.of(part)
    found: list[np.ndarray | float] = []
    for train in trains:
        few_blocks = places is not None and len(np.unique(places.block[train])) < 2
        if len(train) < FEWEST_STIMULI or few_blocks:
            found.append(np.nan)
            continue
        within = image_splits(len(train), 1) if places is None else places.of(train).splits(1, 0.5)
        fit, check = (train[rows] for rows in within[0])
        found.append(mean_of_defined(score(of_part, halves, fit, check)))
    return found


def stimulus_splits(stimuli: int, config: PredictivityConfig, places: BinPlaces | None = None) -> list[Split]:
    """The config's splits into train and test; one split of test stimuli only where no train stimuli are asked for."""
    if config.train_fraction == 0:
        return [(np.array([], np.int64), np.arange(stimuli))]
    if places is not None:
        return places.splits(config.splits, config.train_fraction)
    return image_splits(stimuli, config.splits, config.train_fraction)


def mean_of_defined(scores: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is not NaN; NaN where nothing is defined."""
    defined = ~np.isnan(scores)
    total = np.where(defined, scores, 0).sum(0)
    count = defined.sum(0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def mean_over_splits(table: pd.DataFrame) -> pd.DataFrame:
    """One row per neuron, model and layer: the mean over all splits and halvings, each halving counted once.

    A `fitted_score` is the mean over the splits.
    """
    keys = ["neuron_id", "animal", "area", "model", "layer"]
    fitted = {"fitted_score": ("fitted_score", "mean")} if "fitted_score" in table else {}
    total = (table["score"] * table["defined"]).fillna(0.0)
    sums = table.assign(total=total).groupby(keys, sort=False)
    first = {"reliability": ("reliability", "first")}
    pooled = sums.agg(total=("total", "sum"), defined=("defined", "sum"), **first, **fitted)
    pooled["score"] = pooled["total"] / pooled["defined"].where(pooled["defined"] > 0)
    return pooled.reset_index()[[*keys, "score", "reliability", *fitted]]
