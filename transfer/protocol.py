"""Splits of the stimuli, halves of the repeats: the noise-corrected score of every neuron.

Comes in: features (stimuli, features), or the halved responses of other animals, and a group of neurons. Goes out: one
row per neuron and split, mean over the halvings. With mappings M1, M2 fitted to the train stimuli of half 1 and half 2,
and on the test stimuli

    score = r(M1(x1), s2) / sqrt(SB(r(M1(x1), M2(x2))) SB(r(s1, s2))),   SB(r) = 2 r / (1 + r)

where x1 = x2 are a model's features, or x1, x2 halves of another animal's repeats. It is NaN where the product under
the root is negative, and can exceed 1 (Nayebi, Kong et al., PLOS Comput Biol 19(10):e1011506, 2023; the `correction`
of their code that its results use, and its other one).

Within each split a second score, of fewer halvings, is of train stimuli only: the layer that one number is reported of
is chosen by it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from neural_data.splits import image_splits
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

    def part(self, halvings: slice, stimuli: np.ndarray) -> np.ndarray:
        """Features (stimuli, features) of some stimuli; of animals (sets, stimuli, units), all of half 1 first."""
        if self.features.ndim == 2:
            return self.features[stimuli]
        chosen = self.features[:, halvings][:, :, stimuli]
        return chosen.reshape(-1, *chosen.shape[2:])


@dataclass(frozen=True)
class Halves:
    """Mean responses of one group to two halves of the repeats, float64 (halvings, stimuli, neurons) each."""

    first: np.ndarray
    second: np.ndarray


Score = Callable[[Source, Halves, slice, np.ndarray, np.ndarray], np.ndarray]


def score_halves(
    source: Source, halves: Halves, neurons: pd.DataFrame, score: Score, config: PredictivityConfig, choose: bool
) -> pd.DataFrame:
    """Scores of neurons, one row per neuron and split.

    Args:
        source: features of the stimuli that the halves are of.
        neurons: the columns that each row begins with, one row per score.
        score: `(source, halves, halvings, train, test) -> (halvings, neurons)`.
        choose: whether to score on train stimuli too.

    Returns: the columns of `neurons`, `split`, `score` (mean over the halvings where it is defined), `defined` (how
        many those are), `train_score` (NaN where it was not asked for).
    """
    tables = []
    for number, (train, test) in enumerate(stimulus_splits(halves.first.shape[1], config)):
        found = np.concatenate([score(source, halves, part, train, test) for part in blocks(halves, config.halvings)])
        in_train = np.full(found.shape[1], np.nan)
        if choose and len(train) >= FEWEST_STIMULI:
            fit, check = (train[rows] for rows in image_splits(len(train), 1)[0])
            in_train = mean_of_defined(score(source, halves, slice(0, config.choice_halvings), fit, check))
        columns = {"score": mean_of_defined(found), "defined": (~np.isnan(found)).sum(0), "train_score": in_train}
        tables.append(neurons.assign(split=number, **columns))
    return pd.concat(tables, ignore_index=True)


def stimulus_splits(stimuli: int, config: PredictivityConfig) -> list[tuple[np.ndarray, np.ndarray]]:
    """The config's splits into train and test; one split of test stimuli only where no train stimuli are asked for."""
    if config.train_fraction == 0:
        return [(np.array([], np.int64), np.arange(stimuli))]
    return image_splits(stimuli, config.splits, config.train_fraction)


def blocks(halves: Halves, halvings: int) -> Iterator[slice]:
    """Halvings that together hold about BLOCK_BYTES."""
    step = max(1, BLOCK_BYTES // (2 * 8 * halves.first[0].size))
    for first in range(0, halvings, step):
        yield slice(first, min(first + step, halvings))


def mean_of_defined(scores: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is not NaN; NaN where nothing is defined."""
    defined = ~np.isnan(scores)
    total = np.where(defined, scores, 0).sum(0)
    count = defined.sum(0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def mean_over_splits(table: pd.DataFrame) -> pd.DataFrame:
    """One row per neuron, model and layer: the mean over all splits and halvings, each halving counted once."""
    keys = ["neuron_id", "animal", "area", "model", "layer"]
    total = (table["score"] * table["defined"]).fillna(0.0)
    sums = table.assign(total=total).groupby(keys, sort=False)
    pooled = sums.agg(total=("total", "sum"), defined=("defined", "sum"), reliability=("reliability", "first"))
    pooled["score"] = pooled["total"] / pooled["defined"].where(pooled["defined"] > 0)
    return pooled.reset_index()[[*keys, "score", "reliability"]]
