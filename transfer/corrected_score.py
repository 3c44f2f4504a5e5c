"""What `mapping` and `correction` of the config stand for: how features become scores corrected for noise.

Comes in: a config. Goes out: `Scoring`, which makes features ready once per layer and scores halvings by it. Mappings
give one score per neuron. Similarities of representations (RSA, CKA) give one per group of neurons, with the same
corrections; they fit nothing, so of a model M1(x) = M2(x) = x.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from neural_data.noise_correction import noise_corrected
from neural_data.reliability import pearson
from transfer.choose_components import ChosenPLSMapping
from transfer.config import PredictivityConfig
from transfer.mapping import Mapping, PLSMapping
from transfer.one_to_one import OneToOneMapping
from transfer.protocol import Halves, Score, Source
from transfer.random_projection import project
from transfer.ridge import RidgeMapping
from transfer.sample_space import sample_coordinates
from transfer.similarity import linear_cka, rsa

POPULATION = "population"
SIMILARITIES = {"rsa": rsa, "cka": linear_cka}


@dataclass(frozen=True)
class Prepared:
    """Features as the scoring wants them, `values` (stimuli, coordinates), and how many the layer has."""

    values: np.ndarray
    size: int


@dataclass(frozen=True)
class Scoring:
    """`prepare(features)` once per layer; `score` as `protocol.py` calls it; `population`: one score per group."""

    prepare: Callable[[np.ndarray], Prepared]
    score: Score
    population: bool = False

    def scored(self, neurons: pd.DataFrame) -> pd.DataFrame:
        """What scores are of: the neurons of a group, or the group as one."""
        if not self.population:
            return neurons
        return neurons.head(1).assign(neuron_id=POPULATION, reliability=neurons["reliability"].median())
