"""Mean and scatter of a neuron's repeats of each stimulus: all that most noise ceilings need.

Comes in: responses float (repeats, stimuli, neurons), NaN where a presentation is missing. Goes out: per stimulus and
neuron, the number of repeats, their mean and their scatter, float64; and sums of such quantities over stimuli, once or
for many resamples at a time (a product of matrices).

A stimulus of which a neuron has fewer than 2 responses says nothing of its noise, and is left out for that neuron.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from neural_data.correlation import check_weights, weighted_scatter
from neural_data.halvings import valid_repeats

# Responses that are looked at together; an estimate holds about six times as much.
BLOCK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class StimulusMoments:
    """Of each stimulus and neuron, float64 (stimuli, neurons), 0 where the stimulus is left out.

    `number`: repeats. `mean`: of the repeats, less the neuron's mean over everything. `scatter`: sum over the repeats
    of their squared deviation from `mean`. `used`: bool, whether there are 2 repeats or more. `centred`
    (repeats, stimuli, neurons): responses less the neuron's mean over everything, 0 where missing or left out.
    """

    number: np.ndarray
    mean: np.ndarray
    scatter: np.ndarray
    used: np.ndarray
    centred: np.ndarray

    @property
    def variance(self) -> np.ndarray:
        """Variance over the repeats, divided by one less than their number."""
        return self.scatter / np.maximum(self.number - 1, 1)

    @property
    def complete(self) -> np.ndarray:
        """bool (neurons,): whether a neuron has every repeat of every stimulus."""
        return (self.number == len(self.centred)).all(axis=0)


def stimulus_moments(responses: np.ndarray) -> StimulusMoments:
    """The moments of responses (repeats, stimuli, neurons)."""
    present = ~np.isnan(responses)
    number = present.sum(axis=0)
    used = number >= 2
    present = present & used
    number = np.where(used, number, 0).astype(np.float64)
    centred = centre(np.asarray(responses, dtype=np.float64), present)
    mean = centred.sum(axis=0) / np.maximum(number, 1)
    scatter = (np.where(present, centred - mean, 0.0) ** 2).sum(axis=0)
    return StimulusMoments(number, mean, scatter, used, centred)


def without_offsets(responses: np.ndarray) -> np.ndarray:
    """Responses (repeats, stimuli, neurons) less each repeat's offset from the others, such as drift, for each neuron.

    Offsets are those of the least-squares fit of a value per stimulus and an offset per repeat.
    """
    m = stimulus_moments(responses)
    present = (~np.isnan(responses) & m.used).astype(np.float64).transpose(2, 0, 1)  # (neurons, repeats, stimuli)
    deviations = np.where(present > 0, (m.centred - m.mean).transpose(2, 0, 1), 0.0).sum(axis=2)
    # With the values per stimulus eliminated, the normal equations are one for each repeat.
    shared = (present / np.maximum(m.number, 1).T[:, None]) @ present.transpose(0, 2, 1)
    equations = present.sum(axis=2)[:, :, None] * np.eye(len(responses)) - shared
    offsets = np.linalg.pinv(equations, hermitian=True) @ deviations[:, :, None]
    return responses - offsets[:, :, 0].T[:, None]


def centre(values: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Values (..., neurons) less each neuron's mean, 0 where not `present`; of equal values exactly 0."""
    flat, known = values.reshape(-1, values.shape[-1]), present.reshape(-1, values.shape[-1])
    first = np.take_along_axis(flat, known.argmax(axis=0)[None], axis=0)
    # The first is taken off before the mean, because the mean of equal numbers need not be that number.
    flat = np.where(known, flat - first, 0.0)
    mean = flat.sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return np.where(known, flat - mean, 0.0).reshape(values.shape)


def total(values: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Sum over stimuli of values (..., stimuli, neurons), or (..., resamples, neurons) with weights."""
    return values.sum(axis=-2) if weights is None else weights @ values


def total_scatter(values: np.ndarray, count: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Sum over stimuli of squared deviations from the mean over stimuli, `count` of which are not left out."""
    return weighted_scatter(total(values**2, weights), total(values, weights), count)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The ratio where the denominator is positive, NaN elsewhere."""
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, dtype=np.float64), denominator)
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)


def root(values: np.ndarray) -> np.ndarray:
    """The square root where it exists, NaN elsewhere."""
    return np.sqrt(values, out=np.full(np.shape(values), np.nan), where=values >= 0)


def in_neuron_blocks(estimate: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Makes an estimate of (responses, [predictions,] *, weights, ...) check its input and go block by block.

    The result is (neurons,), or (resamples, neurons) with weights. Raises ValueError for responses that are not
    (repeats, stimuli, neurons) or infinite, a stimulus with fewer than 2 repeats, and other shapes that do not match.
    """

    @functools.wraps(estimate)
    def blocked(
        responses: np.ndarray, *predictions: np.ndarray, weights: np.ndarray | None = None, **options: Any
    ) -> np.ndarray:
        valid_repeats(responses)
        n_repeats, n_stimuli, n_neurons = responses.shape
        for each in predictions:
            if each.shape not in (responses.shape, responses.shape[1:]):
                raise ValueError(
                    f"predictions have shape {each.shape}, expected (stimuli, neurons) = {responses.shape[1:]} "
                    f"or (repeats, stimuli, neurons) = {responses.shape}"
                )
        if weights is not None:
            check_weights(weights, n_stimuli)
        rows = n_repeats * max(n_stimuli, 0 if weights is None else len(weights))
        in_block = max(1, BLOCK_BYTES // (8 * rows))
        results = []
        for first in range(0, n_neurons, in_block):
            block = (array[..., first : first + in_block] for array in (responses, *predictions))
            results.append(estimate(*block, weights=weights, **options))
        return np.concatenate(results, axis=-1)

    return blocked
