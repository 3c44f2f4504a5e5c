"""The repeats of `values/static/metrics` as our arrays, and what the public programs gave on them.

Comes in: the folder of shared data. Goes out: responses and predictions (repeats, stimuli, neurons), NaN where a
stimulus has fewer repeats than others.
"""

from pathlib import Path

import numpy as np


def equal_repeats(shared: Path) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Responses, predictions, and the published figures by name."""
    stored = load(shared, "repeats")
    responses, predictions = (stored[f"in/{name}"].transpose(1, 0, 2) for name in ("responses", "predictions"))
    return responses, predictions, figures(stored)


def unequal_repeats(shared: Path) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    stored = load(shared, "repeats")
    counts = stored["in/uneq_repeats"]
    responses, predictions = (padded(stored[f"in/uneq_{name}"], counts) for name in ("responses", "predictions"))
    found = {name.removeprefix("uneq_"): values for name, values in figures(stored).items() if name.startswith("uneq_")}
    return responses, predictions, found


def load(shared: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(shared / f"reference/values/static/metrics/{name}.npz", allow_pickle=False) as stored:
        return dict(stored)


def figures(stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix("out/"): values for name, values in stored.items() if name.startswith("out/")}


def padded(flat: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(repeats, stimuli, neurons) from presentations (trials, neurons) that stand stimulus by stimulus."""
    arranged = np.full((counts.max(), len(counts), flat.shape[1]), np.nan)
    for stimulus, trials in enumerate(np.split(flat, np.cumsum(counts)[:-1])):
        arranged[: len(trials), stimulus] = trials
    return arranged
