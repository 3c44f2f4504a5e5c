"""Other animals as the source: who predicts whom, and what animals that share a signal reach."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from transfer.config import PredictivityConfig
from transfer.corrected_score import scoring
from transfer.interanimal import other_animals, score_from_animals
from transfer.neuron_groups import NeuronGroup


def group(
    animal: str, seed: int, area: str = "V1", neurons: int = 12, repeats: int = 10, noise: float = 0.5
) -> NeuronGroup:
    """Neurons that are mixtures of the same six signals, the same for all animals of a test, with noise."""
    signals = np.random.default_rng(0).normal(size=(60, 6))
    rng = np.random.default_rng(seed)
    rates = signals @ rng.normal(size=(6, 12))
    responses = rates + 0.5 * rng.normal(size=(repeats, 60, 12))
    names = [f"{animal}{area}{n}" for n in range(12)]
    table = pd.DataFrame({"neuron_id": names, "animal": animal, "area": area, "reliability": 0.9})
    return NeuronGroup("rec", animal, area, responses, np.arange(60), table)


CONFIG = PredictivityConfig(splits=2, halvings=6, components=6)


def names(pairs: list[tuple[NeuronGroup, list[list[NeuronGroup]]]]) -> list[tuple[str, list[list[str]]]]:
    return [(target.animal, [[other.animal for other in source] for source in sources]) for target, sources in pairs]


def test_sources_are_other_animals_of_the_same_area():
    groups = [group("a", 1), group("b", 2), group("c", 3), group("a", 4, "LM"), group("d", 5, "AL")]
    assert names(other_animals(groups, "holdout")) == [("a", [["b", "c"]]), ("b", [["a", "c"]]), ("c", [["a", "b"]])]
    pairwise = [("a", [["b"], ["c"]]), ("b", [["a"], ["c"]]), ("c", [["a"], ["b"]])]
    assert names(other_animals(groups, "pairwise")) == pairwise
    assert other_animals(groups, "none") == []


def test_animals_that_saw_other_stimuli_predict_nobody():
    other = dataclasses.replace(group("b", 2), stimuli=np.arange(57, 117))
    assert other_animals([group("a", 1), other], "holdout") == []
    pairs = other_animals([group("a", 1), other, group("c", 3)], "holdout")
    assert names(pairs) == [("a", [["c"]]), ("c", [["a"]])], "the others go without it"


@pytest.mark.parametrize("kind", ["holdout", "pairwise"])
def test_a_shared_signal_is_predicted_up_to_one(kind):
    groups = [group("a", 1), group("b", 2), group("c", 3, repeats=8)]
    target, sources = other_animals(groups, kind)[0]
    table = score_from_animals(target, sources, scoring(CONFIG), CONFIG)
    assert list(table["neuron_id"].unique()) == list(target.neurons["neuron_id"])
    assert len(table) == 12 * 2
    assert 0.9 < table["score"].median() < 1.05
    assert (table["defined"] == 6 * len(sources)).all()
    assert table["features"].unique().tolist() == [24 if kind == "holdout" else 12]


def test_only_stimuli_that_all_saw_are_used():
    part = np.arange(40)
    seen = dataclasses.replace(group("b", 2), stimuli=part, responses=group("b", 2).responses[:, part])
    (target, sources), (_, back) = other_animals([group("a", 1), seen], "holdout")
    table = score_from_animals(target, sources, scoring(CONFIG), CONFIG)
    assert table["score"].median() > 0.8
    assert back[0][0].animal == "a"


def test_unrelated_animals_predict_nothing():
    stranger = group("b", 2)
    rng = np.random.default_rng(9)
    rates = rng.normal(size=(60, 12))
    stranger = dataclasses.replace(stranger, responses=rates + 0.5 * rng.normal(size=(10, 60, 12)))
    target, sources = other_animals([group("a", 1), stranger], "holdout")[0]
    table = score_from_animals(target, sources, scoring(CONFIG), CONFIG)
    assert abs(np.nanmedian(table["score"])) < 0.3
