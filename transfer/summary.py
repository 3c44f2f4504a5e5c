"""Scores of neurons become a table by layer, area and animal.

What comes in: a table with one row per neuron, model and layer. What goes out: medians with percentile bootstrap
intervals over neurons (Efron 1979), and the score of the best layer without the bias of having chosen it.
"""

import numpy as np
import pandas as pd

INTERVAL = (2.5, 97.5)
ALL = "all"
BLOCK_BYTES = 64 * 2**20  # of resampled values held at a time


def summarise(
    scores: pd.DataFrame, excluded: pd.DataFrame, feature_counts: dict[tuple[str, str], int], resamples: int, seed: int
) -> pd.DataFrame:
    """One row per model, layer and group of neurons: everything, each area, each animal of each area.

    Args:
        scores: columns neuron_id, animal, area, model, layer, score, reliability; NaN scores are counted, not averaged.
        excluded: columns animal, area, reason.
        feature_counts: features by (model, layer).
        resamples, seed: of the bootstrap.

    Returns: columns model, layer, features, area, animal, median, low, high (95 % interval of the median), neurons,
        excluded_unselected, excluded_silent, excluded_unreliable, excluded_unscored, reliability (their median).
    """
    rows = []
    for (model, layer), table in scores.groupby(["model", "layer"], sort=False):
        for area, animal in neuron_groups(pd.concat([scores, excluded])):
            group, left_out = select(table, area, animal), select(excluded, area, animal)
            defined = group[group["score"].notna()]
            reasons = left_out["reason"].value_counts()
            median, low, high = bootstrap_median(defined["score"].to_numpy(), resamples, seed)
            rows.append(
                {
                    "model": model,
                    "layer": layer,
                    "features": feature_counts[model, layer],
                    "area": area,
                    "animal": animal,
                    "median": median,
                    "low": low,
                    "high": high,
                    "neurons": len(defined),
                    "excluded_unselected": int(reasons.get("unselected", 0)),
                    "excluded_silent": int(reasons.get("silent", 0)),
                    "excluded_unreliable": int(reasons.get("unreliable", 0)),
                    "excluded_unscored": int(reasons.get("unscored", 0)) + len(group) - len(defined),
                    "reliability": defined["reliability"].median(),
                }
            )
    return pd.DataFrame(rows)


def median_over_neurons(scores: pd.DataFrame, table: pd.DataFrame, column: str) -> list[float]:
    """The median of a column of neurons for each row of a table that `summarise` gave; NaN are passed over."""
    of_layer = dict(iter(scores.groupby(["model", "layer"], sort=False)))
    return [
        float(select(of_layer[row.model, row.layer], row.area, row.animal)[column].median())
        for row in table.itertuples()
    ]


def neuron_groups(neurons: pd.DataFrame) -> list[tuple[str, str]]:
    """(area, animal) pairs: all neurons, each area, each animal of each area; in order of appearance."""
    pairs = list(neurons[["area", "animal"]].drop_duplicates().itertuples(index=False, name=None))
    areas = list(dict.fromkeys(area for area, _ in pairs))
    return [(ALL, ALL), *((area, ALL) for area in areas), *pairs]


def select(table: pd.DataFrame, area: str, animal: str) -> pd.DataFrame:
    chosen = np.ones(len(table), bool)
    if area != ALL:
        chosen &= (table["area"] == area).to_numpy()
    if animal != ALL:
        chosen &= (table["animal"] == animal).to_numpy()
    return table[chosen]


def bootstrap_median(values: np.ndarray, resamples: int, seed: int) -> tuple[float, float, float]:
    """Median of values (n,) and its 95 % percentile bootstrap interval; NaN for no values."""
    if not len(values):
        return np.nan, np.nan, np.nan
    low, high = np.percentile(bootstrap_medians(values[:, None], resamples, seed), INTERVAL)
    return float(np.median(values)), float(low), float(high)


def bootstrap_medians(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Medians (resamples, columns) of rows drawn with replacement from values (n, columns)."""
    rng = np.random.default_rng(seed)
    step = max(1, BLOCK_BYTES // (8 * values.size))
    found = []
    for first in range(0, resamples, step):
        drawn = rng.integers(len(values), size=(min(step, resamples - first), len(values)))
        found.append(np.median(values[drawn], axis=1))
    return np.concatenate(found)
