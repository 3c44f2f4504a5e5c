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
from transfer.choose_components import PLSMappingCV
from transfer.config import PredictivityConfig
from transfer.mapping import Mapping, PLSMapping, fit_predict_sets
from transfer.one_to_one import OneToOneMapping
from transfer.protocol import Halves, Score, Source
from transfer.random_projection import random_projection
from transfer.ridge import RidgeMapping
from transfer.sample_space import sample_coordinates
from transfer.similarity import cka, rsa

POPULATION = "population"
SIMILARITIES = {"rsa": rsa, "cka": cka}


@dataclass(frozen=True)
class Prepared:
    """Features as the scoring wants them, `values` (stimuli, coordinates), and how many the layer has.

    `projection_error`: the largest relative change of a squared distance by the random projection, NaN without one.
    """

    values: np.ndarray
    size: int
    projection_error: float


@dataclass(frozen=True)
class Scoring:
    """`prepare(features)` once per layer; `score` as `protocol.py` calls it; `population`: one score per group.

    `rotation_invariant`: whether coordinates of the stimuli may stand for features.
    """

    prepare: Callable[[np.ndarray], Prepared]
    score: Score
    rotation_invariant: bool
    population: bool = False

    def scored(self, neurons: pd.DataFrame) -> pd.DataFrame:
        """What scores are of: the neurons of a group, or the group as one."""
        if not self.population:
            return neurons
        return neurons.head(1).assign(neuron_id=POPULATION, reliability=neurons["reliability"].median())


def scoring(config: PredictivityConfig) -> Scoring:
    """How a config scores. Raises ValueError where its keys do not go together."""
    similar = config.mapping in SIMILARITIES
    if config.train_fraction == 0 and not similar:
        raise ValueError(f"train_fraction=0 leaves nothing to fit mapping={config.mapping} on; it is for rsa and cka")
    if config.train_fraction == 0 and config.report_train:
        raise ValueError("report_train=true with train_fraction=0: there are no train stimuli to score")
    if config.num_source_units and config.interanimal == "none":
        raise ValueError(f"num_source_units={config.num_source_units} are of other animals, found interanimal=none")
    if not config.num_source_units and config.source_draws != PredictivityConfig.source_draws:
        raise ValueError(f"source_draws={config.source_draws} are draws of num_source_units, which are not set")
    if config.component_choices and config.mapping != "pls":
        raise ValueError(f"component_choices are for mapping=pls, found mapping={config.mapping}")
    if similar:
        invariant = config.mapping == "cka"
        return Scoring(preparing(config, invariant), similarity_score(config), invariant, population=True)
    mapping = mapping_of(config)
    invariant = mapping.rotation_invariant
    return Scoring(preparing(config, invariant), mapping_score(mapping, config), invariant)


def mapping_of(config: PredictivityConfig) -> Mapping:
    if config.mapping == "ridge":
        return RidgeMapping()
    if config.mapping == "one_to_one":
        return OneToOneMapping()
    device = "cpu" if config.accelerator in ("auto", "cpu", "mps") else config.accelerator
    if config.component_choices:
        return PLSMappingCV(config.component_choices, device=device)
    return PLSMapping(config.components, device=device)


def preparing(config: PredictivityConfig, rotation_invariant: bool) -> Callable[[np.ndarray], Prepared]:
    """Features of a layer projected at random where that is asked for, and as coordinates where that is the same."""

    def prepare(features: np.ndarray) -> Prepared:
        size, error, values = features.shape[1], np.nan, features
        if 0 < config.random_projection < size:
            projected = random_projection(features, config.random_projection, seed=config.seed)
            values, error = projected.features, projected.max_distortion
        if rotation_invariant:
            values = sample_coordinates(values)
        return Prepared(values, size, error)

    return prepare


def mapping_score(mapping: Mapping, config: PredictivityConfig) -> Score:
    """Scores (halvings, neurons) by a mapping that is fitted to the train stimuli of each half."""

    def score(source: Source, halves: Halves, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        responses = np.concatenate([halves.first[:, train], halves.second[:, train]])
        predicted = fit_predict_sets(mapping, source.at(train), responses, source.at(test))
        first, second = np.split(predicted, 2)
        s1, s2 = halves.first[:, test], halves.second[:, test]
        of_pairs = (pearson(a, b, axis=1) for a, b in ((first, s2), (first, second), (s1, s2)))
        return noise_corrected(*of_pairs, mode=config.correction)

    return score


def similarity_score(config: PredictivityConfig) -> Score:
    """Scores (halvings, 1) by a similarity of all neurons' responses to the test stimuli, without a mapping."""
    similarity = SIMILARITIES[config.mapping]

    def score(source: Source, halves: Halves, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        features = source.at(test)
        first, second = np.split(features, 2) if features.ndim == 3 else (features, features)
        s1, s2 = halves.first[:, test], halves.second[:, test]
        of_pairs = (np.broadcast_to(similarity(a, b), len(s1)) for a, b in ((first, s2), (first, second), (s1, s2)))
        return noise_corrected(*of_pairs, mode=config.correction)[:, None]

    return score
