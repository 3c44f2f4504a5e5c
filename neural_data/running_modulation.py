"""Whether a unit answers to the image that it prefers differently while the animal runs.

Comes in: responses to images, and the running speed during each. Goes out: a p-value per unit, which mouse-vision's
choice of units asks for (`unit_selection.py`).

Source: the AllenSDK. The image with the largest mean response is the preferred one; of its presentations, those during
which the animal ran at 1 cm/s or more on average are compared with the others by Welch's t-test. Neuropixels
(ecephys/stimulus_analysis/stimulus_analysis.py, `run_pval_ns`): spikes in the 250 ms of an image, from two
presentations of each kind on. Two-photon (brain_observatory/natural_scenes.py, `p_run_mod_ns`): mean sweep responses,
from five of each kind on. There a presentation whose speed is unknown counts as stationary in the first, and not at all
in the second; here in neither.
"""

import numpy as np

RUNNING_CM_S = 1.0
NEUROPIXELS_COLUMN, TWO_PHOTON_COLUMN = "run_pval_ns", "p_run_mod_ns"
MIN_PRESENTATIONS = {NEUROPIXELS_COLUMN: 2, TWO_PHOTON_COLUMN: 5}


def running_p(
    responses: np.ndarray, stimulus: np.ndarray, speed_cm_s: np.ndarray, min_presentations: int
) -> np.ndarray:
    """p-value of each unit, float64 (units,).

    `responses`: float (trials, units), NaN where one is missing. `stimulus`: int (trials,). `speed_cm_s`: float
    (trials,), NaN where unknown. NaN where fewer than `min_presentations` of the preferred image are running ones or
    stationary ones, where their responses do not vary at all, or where all responses are missing.
    """
    from scipy.stats import ttest_ind_from_stats

    n_units = responses.shape[1]
    if not len(responses):
        return np.full(n_units, np.nan)
    ordered, speed = _by_repeat(responses, stimulus), _by_repeat(speed_cm_s[:, None], stimulus)[..., 0]
    mean = _mean(ordered)
    preferred = np.argmax(np.where(np.isnan(mean), -np.inf, mean), axis=0)
    chosen, speed = ordered[:, preferred, np.arange(n_units)], speed[:, preferred]
    kinds = [np.where(kind, chosen, np.nan) for kind in (speed >= RUNNING_CM_S, speed < RUNNING_CM_S)]
    n = [(~np.isnan(kind)).sum(axis=0) for kind in kinds]
    enough = np.minimum(*n) >= max(2, min_presentations)
    p = np.full(n_units, np.nan)
    stats = []
    for kind, number in zip(kinds, n, strict=True):
        values = kind[:, enough]
        stats += [_mean(values), _deviation(values, number[enough]), number[enough]]
    with np.errstate(divide="ignore", invalid="ignore"):  # responses that do not vary
        p[enough] = ttest_ind_from_stats(*stats, equal_var=False).pvalue
    return p


def running_notes(p: np.ndarray, column: str) -> list[str]:
    """A line about the units without a p-value, if there are any."""
    unknown = int(np.isnan(p).sum())
    few = MIN_PRESENTATIONS[column]
    reason = f"fewer than {few} running or {few} stationary presentations of the image they prefer, or none varies"
    return [f"{column} is unknown for {unknown} of {len(p)} units: {reason}"] if unknown else []


def _by_repeat(values: np.ndarray, stimulus: np.ndarray) -> np.ndarray:
    """Values (trials, n) as (repeats, stimuli, n), NaN where a stimulus has fewer."""
    shown, column = np.unique(stimulus, return_inverse=True)
    order = np.argsort(column, kind="stable")
    times = np.bincount(column)
    repeat = np.arange(len(column)) - np.repeat(np.cumsum(times) - times, times)
    ordered = np.full((times.max(), len(shown), values.shape[1]), np.nan)
    ordered[repeat, column[order]] = values[order]
    return ordered


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis without NaN; NaN where there is nothing else."""
    there = ~np.isnan(values)
    n = there.sum(axis=0)
    return np.divide(np.where(there, values, 0).sum(axis=0), n, out=np.full(n.shape, np.nan), where=n > 0)


def _deviation(values: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Standard deviation over the first axis without NaN, n - 1 in the divisor; `n` are there."""
    return np.sqrt(np.nansum((values - _mean(values)) ** 2, axis=0) / (n - 1))
