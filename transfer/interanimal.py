"""How well other animals predict an animal: the ceiling that models are compared with.

Comes in: groups of neurons. Goes out: scores of each group's neurons, with other animals' responses to the same stimuli
in the place of a model's features. As in mouse-vision (Nayebi, Kong et al., PLOS Comput Biol 19(10):e1011506, 2023):
`holdout`, all other animals' neurons of the area together, or `pairwise`, each other animal alone, averaged; halving i
permutes the target's repeats first, then the source's, with one legacy generator seeded i.
"""

from collections.abc import Sequence
from functools import reduce

import numpy as np
import pandas as pd

from neural_data.halvings import halves_in_order, seeded_orders
from transfer.config import PredictivityConfig
from transfer.corrected_score import Scoring
from transfer.neuron_groups import FEWEST_STIMULI, NeuronGroup
from transfer.protocol import Halves, Source, score_halves
from transfer.sample_space import coordinates_of_each

ANIMALS = "animals"


def other_animals(groups: Sequence[NeuronGroup], how: str) -> list[tuple[NeuronGroup, list[list[NeuronGroup]]]]:
    """Each group with its sources: lists of groups of the same area of other animals, who saw half its stimuli or more.

    One source of all of them for `holdout`, one of each for `pairwise`, none for `none`. A group without a source, or
    whose sources share too few stimuli with it, is left out.
    """
    found = []
    for group in groups if how != "none" else ():
        others = [other for other in groups if is_source(other, group)]
        shared = reduce(np.intersect1d, [group.stimuli, *(other.stimuli for other in others)])
        if others and len(shared) >= FEWEST_STIMULI:
            found.append((group, [others] if how == "holdout" else [[other] for other in others]))
    return found


def is_source(other: NeuronGroup, group: NeuronGroup) -> bool:
    same_place = (other.area, other.recording) == (group.area, group.recording) and other.animal != group.animal
    return same_place and 2 * len(np.intersect1d(other.stimuli, group.stimuli)) >= len(group.stimuli)


def score_from_animals(
    group: NeuronGroup, sources: Sequence[Sequence[NeuronGroup]], how: Scoring, config: PredictivityConfig
) -> pd.DataFrame:
    """Scores of a group as `score_group` gives them; over several sources the mean of what is defined."""
    tables = [score_from(group, source, how, config) for source in sources]
    if len(tables) == 1:
        return tables[0]
    stacked = pd.concat(tables)
    keys = [column for column in tables[0] if column not in ("score", "defined", "features")]
    total = (stacked["score"] * stacked["defined"]).fillna(0.0)
    sums = stacked.assign(total=total).groupby(keys, sort=False, dropna=False)
    pooled = sums.agg(total=("total", "sum"), defined=("defined", "sum"), features=("features", "max")).reset_index()
    return pooled.assign(score=pooled["total"] / pooled["defined"].where(pooled["defined"] > 0)).drop(columns="total")


def score_from(
    group: NeuronGroup, source: Sequence[NeuronGroup], how: Scoring, config: PredictivityConfig
) -> pd.DataFrame:
    """Scores of a group from the units of one source, on the stimuli that all its animals saw."""
    stimuli = reduce(np.intersect1d, [group.stimuli, *(other.stimuli for other in source)])
    first, second = [], []
    for other in source:
        target_order, order = seeded_orders(config.halvings, len(group.responses), len(other.responses))
        halves = halves_in_order(of_stimuli(other, stimuli), order)
        first.append(halves[0])
        second.append(halves[1])
    units = np.stack([np.concatenate(first, axis=2), np.concatenate(second, axis=2)])
    number = units.shape[3]
    if how.rotation_invariant:
        units = coordinates_of_each(units)
    target = Halves(*halves_in_order(of_stimuli(group, stimuli), target_order))
    table = score_halves(Source(units), target, how.scored(group.neurons), how.score, config, choose=False)
    return table.assign(features=number)


def of_stimuli(group: NeuronGroup, stimuli: np.ndarray) -> np.ndarray:
    """Responses (repeats, stimuli, neurons) to some of the group's stimuli."""
    return group.responses[:, np.searchsorted(group.stimuli, stimuli)]
