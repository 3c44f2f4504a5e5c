"""How reliable a neuron's responses are: correlation between two halves of its repeats.

Comes in: responses float (repeats, stimuli, neurons), NaN where a presentation is missing. Goes out: one reliability
per neuron, float64, and how it spreads over the halvings.

Source: Spearman-Brown corrected split-half correlation (Spearman 1910; Brown 1910, British J. Psychology 3), mean
over halvings as in mouse-vision (Nayebi, Kong et al., PLOS Comput Biol 19(10):e1011506, 2023), where it is called
inter-trial consistency. It estimates the squared correlation of the mean over all repeats with the true response,
S / (S + N / R) for signal variance S, noise variance N and R repeats. The correction is concave, so that its mean is
a little low where halves are noisy; docs/noise_ceilings.md says how much.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from neural_data.correlation import check_weights, pearson, weighted_pearson
from neural_data.halvings import all_orders, halves_in_order, seeded_orders, valid_repeats
from neural_data.halvings import halves as halves
from neural_data.halvings import halves_batch as halves_batch

# Half means held at a time; Pearson needs about three times as much again.
BLOCK_BYTES = 64 * 2**20
# Halvings of a block; with more, the neurons of a block would be too few for fast products of matrices.
BLOCK_HALVINGS = 256

Halvings = int | Literal["all"] | np.ndarray


@dataclass(frozen=True)
class SplitHalf:
    """Reliability of each neuron over halvings: `mean` and `sd` (divided by the number), float64 (neurons,), NaN
    where no halving is defined; `defined`, int (neurons,), for how many of the `halvings` it is defined."""

    mean: np.ndarray
    sd: np.ndarray
    defined: np.ndarray
    halvings: int


def split_half_reliability(
    responses: np.ndarray,
    halvings: Halvings = 100,
    *,
    balanced: bool = True,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Spearman-Brown corrected split-half correlation over stimuli, float64 (neurons,), mean over the
    halvings.

    `halvings`: that many random ones (halving i is `halves(responses, seed=i)`), "all", or orders as `halvings.py`
    makes them. `balanced`: whether the valid repeats of each stimulus are halved, or all repeat numbers, as
    `halves_in_order` says. With `weights` (resamples, stimuli), how often each stimulus counts, the result is
    (resamples, neurons). Halvings whose correlation is undefined are left out of the mean; a neuron for which all are
    undefined (it never varies) is NaN.

    Raises ValueError as `halves` does, where "all" are too many, and for "all" with `balanced` where repeats are
    missing.
    """
    means = []
    for parts in _corrected(responses, halvings, balanced, weights):
        total, number = 0.0, 0
        for corrected in parts:
            defined = ~np.isnan(corrected)
            total = total + np.where(defined, corrected, 0.0).sum(axis=0)
            number = number + defined.sum(axis=0)
        means.append(np.divide(total, number, out=np.full(np.shape(total), np.nan), where=number > 0))
    return np.concatenate(means, axis=-1)


def split_half(responses: np.ndarray, halvings: Halvings = 100, *, balanced: bool = True) -> SplitHalf:
    """`split_half_reliability` with its standard deviation over the halvings, as mouse-vision stores both.

    The halvings share their presentations: the deviation divided by the root of their number is no standard error.
    `bootstrap.py` has intervals.
    """
    mean, sd, defined = [], [], []
    for parts in _corrected(responses, halvings, balanced, None):
        corrected = np.concatenate(list(parts))
        known = ~np.isnan(corrected)
        defined.append(known.sum(axis=0))
        mean.append(_mean(corrected, known))
        sd.append(np.sqrt(_mean((corrected - mean[-1]) ** 2, known)))
    number = len(_orders(halvings, len(responses)))
    return SplitHalf(np.concatenate(mean), np.concatenate(sd), np.concatenate(defined), number)


def spearman_brown(r: np.ndarray | float, times: float = 2) -> np.ndarray:
    """Reliability of `times` as many repeats, t r / (1 + (t - 1) r); any shape.

    From the reliability of all R repeats, `times` = 1 / R leads to that of one presentation. NaN where the divisor is
    not positive, for two halves at r <= -1.
    """
    r = np.asarray(r, dtype=np.float64)
    divisor = 1 + (times - 1) * r
    return np.divide(times * r, divisor, out=np.full(r.shape, np.nan), where=divisor > 0)


def _mean(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is known; NaN where nothing is."""
    total, number = np.where(known, values, 0.0).sum(axis=0), known.sum(axis=0)
    return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)


def _orders(halvings: Halvings, repeats: int) -> np.ndarray:
    if isinstance(halvings, str):
        if halvings != "all":
            raise ValueError(f'halvings must be a number, "all" or orders of the repeats, found {halvings!r}')
        return all_orders(repeats)
    if isinstance(halvings, np.ndarray):
        return halvings
    return seeded_orders(halvings, repeats)[0]


def _corrected(
    responses: np.ndarray, halvings: Halvings, balanced: bool, weights: np.ndarray | None
) -> Iterator[Iterator[np.ndarray]]:
    """For each block of neurons, the corrected correlations (halvings, [resamples,] neurons), part by part of the
    halvings."""
    valid = valid_repeats(responses)
    orders = _orders(halvings, len(responses))
    if isinstance(halvings, str) and balanced and not valid.all():
        raise ValueError(
            f'"all" halvings need every repeat of every stimulus, {int((~valid).sum())} are missing; '
            "pass balanced=False to halve the repeat numbers, or a number of random halvings"
        )
    n_stimuli, n_neurons = responses.shape[1:]
    if weights is not None:
        check_weights(weights, n_stimuli)
    at_once = min(len(orders), BLOCK_HALVINGS, max(1, BLOCK_BYTES // (8 * valid.size)))
    rows = max(n_stimuli, 0 if weights is None else 3 * len(weights))
    in_block = max(1, BLOCK_BYTES // (2 * 8 * at_once * rows))
    for first in range(0, n_neurons, in_block):
        block = responses[:, :, first : first + in_block]
        yield (
            _corrected_part(block, orders[part : part + at_once], balanced, valid, weights)
            for part in range(0, len(orders), at_once)
        )


def _corrected_part(
    block: np.ndarray, orders: np.ndarray, balanced: bool, valid: np.ndarray, weights: np.ndarray | None
) -> np.ndarray:
    half1, half2 = halves_in_order(block, orders, balanced=balanced, valid=valid)
    r = pearson(half1, half2, axis=1) if weights is None else weighted_pearson(half1, half2, weights)
    return spearman_brown(r)
