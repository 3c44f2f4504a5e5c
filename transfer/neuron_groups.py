"""Neurons that are mapped together: those of one area of one animal, with their responses to repeated stimuli.

Comes in: a static `Recording`, of images or of bins of videos. Goes out: `NeuronGroup`s, and a table of the neurons
that are in none, with the reason. Nothing else is left out, and stimuli that an animal saw only once are counted aloud.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from neural_data.halvings import halves_in_order, seeded_orders, valid_repeats
from neural_data.recording import Recording
from neural_data.reliability import split_half_reliability
from pretrain.progress import say
from transfer.clip_splits import BinPlaces
from transfer.config import PredictivityConfig
from transfer.video_bins import BinnedClips

SILENT, UNRELIABLE, UNSCORED = "silent", "unreliable", "unscored"
BLOCK_NEURONS = 64  # whose halves are held at a time
FEWEST_STIMULI = 4  # two to fit a mapping, two to correlate


@dataclass(frozen=True)
class NeuronGroup:
    """The scored neurons of one area of one animal.

    `responses` float64 (repeats, stimuli, neurons), NaN where a presentation is missing; `stimuli` int64 (stimuli,),
    rows of the recording's stimuli; `neurons`: `neuron_id`, `animal`, `area`, `reliability`; `places`: of bins of
    videos, where in time they lie.
    """

    recording: str
    animal: str
    area: str
    responses: np.ndarray
    stimuli: np.ndarray
    neurons: pd.DataFrame
    places: BinPlaces | None = None


def neuron_groups(recording: Recording, config: PredictivityConfig) -> tuple[list[NeuronGroup], pd.DataFrame]:
    """Every animal's areas as groups, and the neurons left out: neuron_id, animal, area, reason, reliability.

    Raises ValueError where an animal saw too few stimuli more than once, or the tier asked for is unknown.
    """
    groups, excluded = [], []
    for animal in recording.animals:
        repeated = recording.repeats(animal, min_repeats=2, tier=config.tier)
        if len(repeated.stimuli) < FEWEST_STIMULI:
            raise ValueError(
                f"{recording.name}: animal {animal!r} saw {len(repeated.stimuli)} stimuli at least twice; "
                f"a split into train and test stimuli and of the repeats into halves needs {FEWEST_STIMULI}"
            )
        if repeated.too_few:
            say(f"animal {animal}: {repeated.too_few:,} stimuli that it saw only once are left out")
        places = places_of(recording, animal, repeated.stimuli)
        reason, reliability = exclusions(repeated.responses, config)
        neurons = recording.neurons.iloc[repeated.neurons][["neuron_id", "animal", "area"]]
        neurons = neurons.assign(reliability=reliability)
        excluded.append(neurons[reason != ""].assign(reason=reason[reason != ""]))
        if (reason != "").all():
            say(f"animal {animal}: no neuron can be scored")
        for area in neurons["area"].unique():
            chosen = (reason == "") & (neurons["area"] == area).to_numpy()
            if chosen.any():
                responses = np.ascontiguousarray(repeated.responses[:, :, chosen])
                of_group = (responses, repeated.stimuli, neurons[chosen], places)
                groups.append(NeuronGroup(recording.name, animal, area, *of_group))
    columns = ["neuron_id", "animal", "area", "reason", "reliability"]
    return groups, pd.concat(excluded, ignore_index=True)[columns]


def places_of(recording: Recording, animal: str, stimuli: np.ndarray) -> BinPlaces | None:
    if not isinstance(recording.stimuli, BinnedClips):
        return None
    try:
        return recording.stimuli.bin_places(stimuli)
    except ValueError as error:
        raise ValueError(f"{recording.name}: animal {animal!r}: {error}") from None


def exclusions(responses: np.ndarray, config: PredictivityConfig) -> tuple[np.ndarray, np.ndarray]:
    """Why each neuron of (repeats, stimuli, neurons) is left out ("" if it is not), and its reliability.

    A neuron is silent if it has the same response to everything, unreliable below `min_reliability`, and unscored if a
    response is missing in all repeats of a half, so that no mapping can be fitted to it.
    """
    # These pass over NaN, and do not warn where there is nothing else.
    silent = np.fmax.reduce(responses, (0, 1)) == np.fmin.reduce(responses, (0, 1))
    reliability = split_half_reliability(responses, config.halvings)
    missing = without_a_half(responses, config.halvings)
    # In this order a silent neuron, whose reliability is undefined, is called silent.
    reason = np.select(
        [silent, missing, ~(reliability >= config.min_reliability)], [SILENT, UNSCORED, UNRELIABLE], default=""
    )
    return reason, reliability


def without_a_half(responses: np.ndarray, halvings: int) -> np.ndarray:
    """bool (neurons,): whether all repeats of a stimulus that fall into one half are missing, in any halving."""
    missing, valid = np.zeros(responses.shape[2], bool), valid_repeats(responses)
    (orders,) = seeded_orders(halvings, len(responses))
    gaps = np.flatnonzero(np.isnan(responses).any((0, 1)))
    for first in range(0, len(gaps), BLOCK_NEURONS):
        block = gaps[first : first + BLOCK_NEURONS]
        halves = halves_in_order(responses[:, :, block], orders, valid=valid)
        missing[block] = np.isnan(np.stack(halves)).any((0, 1, 2))
    return missing


def say_counts(groups: Sequence[NeuronGroup], excluded: pd.DataFrame) -> None:
    """How many neurons are scored, and how many are not and why. Raises ValueError where none is."""
    scored = sum(len(group.neurons) for group in groups)
    if scored == 0:
        raise ValueError("no neuron is reliable enough to be scored; lower min_reliability, or check the recording")
    counts = excluded["reason"].value_counts()
    parts = [f"{count:,} {reason}" for reason, count in counts.items()]
    say(f"{scored:,} neurons are scored; excluded: {', '.join(parts) or 'none'}")
