"""One number per model and area: the layer is chosen on train stimuli, its score is of test stimuli.

Comes in: one row per neuron, model, layer and split, with `score` (test stimuli) and `train_score` (a mapping fitted
to one half of the train stimuli, scored on the other). Goes out: one row per neuron and model. Choosing the best of
many layers by the score that is then reported would favour models with many layers.
"""

from collections.abc import Sequence

import pandas as pd

from transfer.protocol import mean_over_splits
from transfer.summary import ALL, bootstrap_median

CHOSEN = "chosen"


def choose_layers(scores: pd.DataFrame) -> pd.DataFrame:
    """The layer of each model, area and split with the highest median `train_score` over the area's neurons.

    Returns columns model, area, split, layer. Of equal layers, and of one that has no train score, the first.
    """
    keys = ["model", "area", "split"]
    medians = scores.groupby([*keys, "layer"], sort=False)["train_score"].median()
    table = medians.fillna(-1e9).reset_index()
    return table.loc[table.groupby(keys, sort=False)["train_score"].idxmax(), [*keys, "layer"]].reset_index(drop=True)


def chosen_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores at the chosen layers: neuron_id, animal, area, model, layer (`chosen`), score, reliability."""
    rows = scores.merge(choose_layers(scores), on=["model", "area", "split", "layer"])
    return mean_over_splits(rows.assign(layer=CHOSEN))


def often_chosen(scores: pd.DataFrame) -> dict[tuple[str, str], str]:
    """By model and area, the layers in order of how many splits chose them: `features.7 (8 of 10), features.10 (2)`."""
    counts = choose_layers(scores).groupby(["model", "area"], sort=False)["layer"].value_counts()
    found = {}
    for key, of_layer in counts.groupby(level=["model", "area"], sort=False):
        found[key] = in_words([str(layer) for *_, layer in of_layer.index], of_layer.tolist())
    return found


def in_words(layers: Sequence[str], counts: Sequence[int]) -> str:
    total = sum(counts)
    if len(layers) == 1:
        return layers[0]
    first = f"{layers[0]} ({counts[0]} of {total})"
    return ", ".join([first, *(f"{layer} ({count})" for layer, count in zip(layers[1:], counts[1:], strict=True))])


def one_number(scores: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    """The score of each model in each area at its chosen layers, and over all areas, each at its own.

    Returns columns model, area (`all` first), median, low, high (95 % interval over neurons), neurons, layers.
    """
    chosen, words = chosen_scores(scores), often_chosen(scores)
    rows = []
    for model, table in chosen.groupby("model", sort=False):
        areas = list(dict.fromkeys(table["area"]))
        for area in [ALL, *areas]:
            values = table.loc[(table["area"] == area) | (area == ALL), "score"].dropna().to_numpy()
            layers = words[model, area] if area != ALL else words[model, areas[0]] if len(areas) == 1 else "by area"
            rows.append([model, area, *bootstrap_median(values, resamples, seed), len(values), layers])
    return pd.DataFrame(rows, columns=["model", "area", "median", "low", "high", "neurons", "layers"])
