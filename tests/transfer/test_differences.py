"""Paired differences: right by hand, narrower than unpaired ones, and of neurons that both models have."""

import numpy as np
import pandas as pd
import pytest

from transfer.differences import difference_of_medians, paired_differences
from transfer.summary import bootstrap_median


def scores(rng: np.random.Generator, models: tuple[str, ...], neurons: int = 60, effect: float = 0.05) -> pd.DataFrame:
    """Neurons that differ much from each other and little between models; model i is i times `effect` better."""
    common = rng.normal(0.5, 0.2, neurons)
    rows = []
    for place, model in enumerate(models):
        values = common + effect * place + 0.02 * rng.normal(size=neurons)
        rows += [
            {"neuron_id": n, "animal": f"m{n % 2}", "area": ("V1", "LM")[n % 3 == 0], "model": model, "score": value}
            for n, value in enumerate(values)
        ]
    return pd.DataFrame(rows)


def test_every_pair_in_every_area():
    table = scores(np.random.default_rng(0), ("b", "a", "c"))
    found = paired_differences(table, 200, 0)
    assert found[["model_a", "model_b"]].drop_duplicates().to_numpy().tolist() == [["b", "a"], ["b", "c"], ["a", "c"]]
    assert found["area"].unique().tolist() == ["all", "LM", "V1"]
    row = found[(found["area"] == "all") & (found["model_a"] == "a")].iloc[0]
    medians = table.groupby("model")["score"].median()
    assert row["difference"] == pytest.approx(medians["a"] - medians["c"])
    assert row["low"] <= row["difference"] <= row["high"]
    assert row["neurons"] == 60


def test_pairing_finds_what_two_intervals_do_not():
    table = scores(np.random.default_rng(0), ("a", "b"))
    pairs = table.pivot(index="neuron_id", columns="model", values="score").to_numpy()
    _, low, high = difference_of_medians(pairs, 1000, 0)
    assert high < 0
    alone = [bootstrap_median(pairs[:, place], 1000, 0) for place in (0, 1)]
    assert alone[0][2] > alone[1][1], "the intervals of the two medians overlap"
    assert high - low < (alone[0][2] - alone[0][1]) / 2


def test_only_neurons_with_both_scores_count():
    table = scores(np.random.default_rng(0), ("a", "b"), neurons=10)
    table.loc[[0, 13], "score"] = np.nan
    found = paired_differences(table, 100, 0)
    assert found[found["area"] == "all"]["neurons"].item() == 8
    table["score"] = np.where(table["model"] == "a", np.nan, table["score"])
    assert np.isnan(paired_differences(table, 100, 0)["difference"]).all()


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(3)
    inside = []
    for _ in range(150):
        pairs = rng.normal(size=(80, 1)) + 0.3 * rng.normal(size=(80, 2)) + [0.0, 0.1]
        _, low, high = difference_of_medians(pairs, 300, 0)
        inside.append(low <= -0.1 <= high)
    assert 0.88 < np.mean(inside) <= 1
