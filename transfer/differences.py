"""Model against model on the same neurons: differences of medians with paired bootstrap intervals.

Comes in: one row per neuron and model. Goes out: one row per pair of models and area. The same resampled neurons serve
both models (Efron and Tibshirani 1993, ch. 8), so that what neurons have in common cancels.
"""

from itertools import combinations

import numpy as np
import pandas as pd

from transfer.summary import ALL, INTERVAL, bootstrap_medians

COLUMNS = ["model_a", "model_b", "area", "difference", "low", "high", "neurons"]


def paired_differences(scores: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    """Median of model a minus median of model b over the neurons that both have a score of.

    Args:
        scores: columns neuron_id, animal, area, model, score; one row per neuron and model.
        resamples, seed: of the bootstrap.

    Returns: model_a, model_b, area (`all` first), difference, low, high (95 % interval), neurons.
    """
    wide = scores.pivot(index=["area", "animal", "neuron_id"], columns="model", values="score")
    wide = wide[list(dict.fromkeys(scores["model"]))]
    areas = {ALL: wide} | {area: wide.xs(area, level="area") for area in dict.fromkeys(scores["area"])}
    rows = []
    for area, table in areas.items():
        for a, b in combinations(wide.columns, 2):
            both = table[[a, b]].dropna().to_numpy()
            rows.append([a, b, area, *difference_of_medians(both, resamples, seed), len(both)])
    return pd.DataFrame(rows, columns=COLUMNS)


def difference_of_medians(pairs: np.ndarray, resamples: int, seed: int) -> tuple[float, float, float]:
    """Difference and 95 % interval of pairs (neurons, 2); NaN for no neurons."""
    if not len(pairs):
        return np.nan, np.nan, np.nan
    medians = bootstrap_medians(pairs, resamples, seed)
    low, high = np.percentile(medians[:, 0] - medians[:, 1], INTERVAL)
    first, second = np.median(pairs, axis=0)
    return float(first - second), float(low), float(high)
