"""How well other animals predict an animal: the ceiling that models are compared with.

Comes in: groups of neurons. Goes out: scores of each group's neurons, with other animals' responses to the same stimuli
in the place of a model's features. As in mouse-vision (Nayebi, Kong et al., PLOS Comput Biol 19(10):e1011506, 2023):
`holdout`, all other animals' neurons of the area together, or `pairwise`, each other animal alone, averaged; halving i
permutes the target's repeats first, then the source's, with one legacy generator seeded i. With `num_source_units` so
many of a source's units are drawn, `source_draws` times for each halving: the generator permutes the units, then the
target's repeats, then the source's, and goes on to the next draw.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import pandas as pd

from neural_data.halvings import halves_in_order, seeded_orders
from transfer.config import PredictivityConfig
from transfer.corrected_score import Scoring
from transfer.neuron_groups import FEWEST_STIMULI, NeuronGroup
from transfer.protocol import HalvedRepeats, Source, score_halves
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
        if others and len(shared) >= FEWEST_STIMULI and enough_blocks(group, shared):
            found.append((group, [others] if how == "holdout" else [[other] for other in others]))
    return found


def enough_blocks(group: NeuronGroup, stimuli: np.ndarray) -> bool:
    """Whether splits have anything to choose from; of images they choose stimuli, of videos blocks of bins."""
    if group.places is None:
        return True
    return len(np.unique(group.places.of(np.searchsorted(group.stimuli, stimuli)).block)) > 1


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
    means = {"fitted_score": ("fitted_score", "mean")} if config.report_train else {}
    keys = [column for column in tables[0] if column not in ("score", "defined", "features", *means)]
    total = (stacked["score"] * stacked["defined"]).fillna(0.0)
    sums = stacked.assign(total=total).groupby(keys, sort=False, dropna=False)
    pooled = sums.agg(
        total=("total", "sum"), defined=("defined", "sum"), features=("features", "max"), **means
    ).reset_index()
    return pooled.assign(score=pooled["total"] / pooled["defined"].where(pooled["defined"] > 0)).drop(columns="total")


def score_from(
    group: NeuronGroup, source: Sequence[NeuronGroup], how: Scoring, config: PredictivityConfig
) -> pd.DataFrame:
    """Scores of a group from the units of one source, on the stimuli that all its animals saw."""
    stimuli = reduce(np.intersect1d, [group.stimuli, *(other.stimuli for other in source)])
    drawn = draw_orders(
        config, len(group.responses), [len(other.responses) for other in source],
        sum(len(other.neurons) for other in source),
    )  # fmt: skip
    halves = [
        halves_in_order(of_stimuli(other, stimuli), order) for other, order in zip(source, drawn.sources, strict=True)
    ]
    units = np.stack([np.concatenate(half, axis=2) for half in zip(*halves, strict=True)])
    if drawn.units is not None:
        units = np.take_along_axis(units, drawn.units[None, :, None], axis=3)
    number = units.shape[3]
    if how.rotation_invariant:
        units = coordinates_of_each(units)
    target = HalvedRepeats(of_stimuli(group, stimuli), drawn.target)
    places = None if group.places is None else group.places.of(np.searchsorted(group.stimuli, stimuli))
    table = score_halves(
        Source(units), target, how.scored(group.neurons), how.score, config, choose=False, places=places
    )
    return table.assign(features=number)


@dataclass(frozen=True)
class DrawnOrders:
    """Orders of the target's repeats, int64 (halvings, repeats), and of each source animal's; the units of the sources
    together that count in each halving, int64 (halvings, units), None for all."""

    target: np.ndarray
    sources: list[np.ndarray]
    units: np.ndarray | None = None


def draw_orders(config: PredictivityConfig, target: int, sources: Sequence[int], units: int) -> DrawnOrders:
    """Halvings of `target` repeats and of those of each source animal, which together have so many `units`.

    Where units are drawn, there are `source_draws` halvings in the place of each; source animals with fewer repeats
    than another have theirs in the order of the other's, as in the published arrays, which are padded to the same
    number.
    """
    if not config.num_source_units:
        orders = [seeded_orders(config.halvings, target, repeats) for repeats in sources]
        return DrawnOrders(orders[0][0], [order for _, order in orders])
    found = []
    for seed in range(config.halvings):
        generator = np.random.RandomState(seed)
        for _ in range(config.source_draws):
            chosen = generator.permutation(units)[: config.num_source_units]
            found.append((chosen, generator.permutation(target), generator.permutation(max(sources))))
    chosen, target_orders, orders = (np.stack(each) for each in zip(*found, strict=True))
    of_sources = [orders[orders < repeats].reshape(len(orders), repeats) for repeats in sources]
    return DrawnOrders(target_orders, of_sources, chosen)


def of_stimuli(group: NeuronGroup, stimuli: np.ndarray) -> np.ndarray:
    """Responses (repeats, stimuli, neurons) to some of the group's stimuli."""
    return group.responses[:, np.searchsorted(group.stimuli, stimuli)]
