"""Scores of neurons become a table by layer, area and animal, and one number.

What comes in: a table with one row per neuron, model and layer. What goes out: medians with percentile bootstrap
intervals over neurons (Efron 1979), and the score of the best layer without the bias of having chosen it.
"""

import numpy as np
import pandas as pd

INTERVAL = (2.5, 97.5)
ALL = "all"


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
        excluded_silent, excluded_unreliable, excluded_unscored, reliability (median of the scored neurons).
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
                    "excluded_silent": int(reasons.get("silent", 0)),
                    "excluded_unreliable": int(reasons.get("unreliable", 0)),
                    "excluded_unscored": int(reasons.get("unscored", 0)) + len(group) - len(defined),
                    "reliability": defined["reliability"].median(),
                }
            )
    return pd.DataFrame(rows)


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
    rng = np.random.default_rng(seed)
    medians = np.median(values[rng.integers(len(values), size=(resamples, len(values)))], axis=1)
    low, high = np.percentile(medians, INTERVAL)
    return float(np.median(values)), float(low), float(high)


def best_layer_score(scores: pd.DataFrame, seed: int) -> float:
    """Median score of the best layer, where the layer is chosen on one half of the neurons and scored on the other.

    Both halves choose once; the mean of the two is returned. Choosing and scoring on the same neurons would favour
    models with many layers.
    """
    wide = scores.pivot_table(index=["animal", "neuron_id"], columns="layer", values="score", sort=False)
    order = np.random.default_rng(seed).permutation(len(wide))
    half = len(wide) // 2
    if half == 0:
        return float(wide.median().max())
    halves = wide.iloc[order[:half]], wide.iloc[order[half:]]
    found = [scored[chosen.median().idxmax()].median() for chosen, scored in (halves, halves[::-1])]
    return float(np.mean(found))
