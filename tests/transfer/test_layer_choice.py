"""Layers are chosen on train stimuli alone, for each area and split, and scored on test stimuli."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from transfer.layer_choice import choose_layers, chosen_scores, often_chosen, one_number


def table(rng: np.random.Generator, layers: int, neurons: int = 30, signal: float = 0.0) -> pd.DataFrame:
    """Scores of layers in 4 splits, equally good but for noise; `signal` is common to train and test."""
    rows = []
    for layer, split in product(range(layers), range(4)):
        quality = signal * rng.normal()
        for n in range(neurons):
            neuron = {"neuron_id": n, "animal": "m", "area": ("V1", "LM")[n % 2], "reliability": 0.8}
            score, train_score = (quality + 0.2 * rng.normal() for _ in range(2))
            scores = {"score": 0.5 + score, "train_score": train_score, "defined": 10}
            rows.append(neuron | scores | {"model": "trained", "layer": f"layer{layer}", "split": split})
    return pd.DataFrame(rows)


def test_the_layer_with_the_best_train_score_is_taken_whatever_its_test_score():
    scores = table(np.random.default_rng(0), 3)
    scores["train_score"] = scores["layer"].map({"layer0": 0.1, "layer1": 0.9, "layer2": 0.3})
    scores["score"] = scores["layer"].map({"layer0": 0.8, "layer1": 0.2, "layer2": 0.9})
    assert set(choose_layers(scores)["layer"]) == {"layer1"}
    chosen = chosen_scores(scores)
    assert len(chosen) == 30
    assert set(chosen["layer"]) == {"chosen"}
    np.testing.assert_allclose(chosen["score"], 0.2)


def test_areas_and_splits_choose_for_themselves():
    scores = table(np.random.default_rng(0), 2)
    best = (scores["area"] == "V1") & (scores["split"] < 3)
    scores["train_score"] = np.where(best == (scores["layer"] == "layer1"), 1.0, 0.0)
    assert often_chosen(scores) == {("trained", "V1"): "layer1 (3 of 4), layer0 (1)", ("trained", "LM"): "layer0"}


def test_many_layers_of_nothing_but_noise_do_not_raise_the_number():
    """The maximum over layers of the test score rises with their number; the chosen score stays at the truth."""
    rng = np.random.default_rng(1)
    chosen, largest = [], []
    for _ in range(40):
        scores = table(rng, layers=12, neurons=10)
        chosen.append(chosen_scores(scores)["score"].median())
        largest.append(scores.groupby("layer")["score"].median().max())
    assert np.mean(largest) > 0.55
    assert np.mean(chosen) == pytest.approx(0.5, abs=0.02)


def test_what_is_better_on_train_and_test_is_found():
    scores = table(np.random.default_rng(2), layers=6, signal=0.5)
    assert chosen_scores(scores)["score"].mean() > 0.8


def test_a_model_of_one_layer_has_nothing_to_choose():
    scores = table(np.random.default_rng(0), 1).assign(train_score=np.nan)
    assert set(choose_layers(scores)["layer"]) == {"layer0"}


def test_one_number_for_all_areas_and_each():
    scores = table(np.random.default_rng(0), 2)
    numbers = one_number(scores, 100, 0)
    assert numbers["area"].tolist() == ["all", "V1", "LM"]
    assert numbers["neurons"].tolist() == [30, 15, 15]
    assert numbers["layers"].iloc[0] == "by area"
    assert ((numbers["low"] <= numbers["median"]) & (numbers["median"] <= numbers["high"])).all()
    chosen = chosen_scores(scores)
    assert numbers["median"].iloc[1] == chosen.loc[chosen["area"] == "V1", "score"].median()


def test_neurons_of_the_same_name_in_two_animals_are_two():
    scores = table(np.random.default_rng(0), 1, neurons=20)
    scores["animal"] = np.where(scores["neuron_id"] < 10, "a", "b")
    scores["neuron_id"] %= 10
    assert len(chosen_scores(scores)) == 20
