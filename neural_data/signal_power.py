"""Signal power, noise power, and correlations relative to the best that a model can reach.

Comes in: responses float (repeats, stimuli, neurons) or, of one clip, (repeats, frames, neurons), NaN where a
presentation is missing; predictions (stimuli, neurons) or (repeats, stimuli, neurons). Goes out: one figure per
neuron, float64; powers in the response's unit squared.

Source: Sahani & Linden, NIPS 2002; Schoppe, Harper, Willmore, King & Schnupp, Frontiers in Computational Neuroscience
10:10, 2016. Signal power is the mean over pairs of repeats of their covariance over stimuli, so that an offset of a
whole repeat (drift) is no noise. Of a neuron with missing presentations the offsets are fitted and taken off by least
squares first, and signal power is the variance of its means less what noise adds to them; where nothing is missing that
is the same.

A stimulus of which a neuron has fewer than 2 responses is left out for that neuron. With `weights`
(resamples, stimuli), how often each stimulus counts, results are (resamples, neurons). Several clips: `clips.py`.
"""

from dataclasses import dataclass

import numpy as np

from neural_data.correlation import ROUNDING, weighted_scatter
from neural_data.stimulus_moments import (
    centre,
    in_neuron_blocks,
    ratio,
    root,
    stimulus_moments,
    total,
    total_scatter,
    without_offsets,
)


@in_neuron_blocks
def signal_power(responses: np.ndarray, *, weights: np.ndarray | None = None) -> np.ndarray:
    """SP, the variance of the true response over stimuli, (neurons,); not clipped: 0 on average without tuning."""
    return _powers(responses, weights).signal


@in_neuron_blocks
def noise_power(responses: np.ndarray, *, weights: np.ndarray | None = None) -> np.ndarray:
    """NP = TP - SP, the variance of the noise of one presentation, (neurons,)."""
    return _powers(responses, weights).noise


@in_neuron_blocks
def cc_max(responses: np.ndarray, *, weights: np.ndarray | None = None) -> np.ndarray:
    """sqrt(SP / variance of the mean), (neurons,): how well the true response correlates with the mean over repeats.

    The highest correlation with the mean that a model can be expected to reach. Its square is the reliability of the
    mean, Cronbach's alpha of the repeats (Psychometrika 16:297, 1951). NaN where SP is negative.
    """
    powers = _powers(responses, weights)
    return root(ratio(powers.signal, powers.of_mean))


@in_neuron_blocks
def single_trial_ceiling(responses: np.ndarray, *, weights: np.ndarray | None = None) -> np.ndarray:
    """sqrt(SP / (SP + NP)), (neurons,): how well the true response correlates with single presentations.

    The highest correlation with single presentations that a model of the stimulus can be expected to reach, which
    both oracles (`oracle.py`) miss. NaN where SP is negative.
    """
    powers = _powers(responses, weights)
    return root(ratio(powers.signal, powers.signal + powers.noise))


@in_neuron_blocks
def cc_abs(responses: np.ndarray, predictions: np.ndarray, *, weights: np.ndarray | None = None) -> np.ndarray:
    """Correlation of prediction and response, both averaged over repeats, (neurons,); NaN where either is constant."""
    fit = _fit(responses, predictions, weights)
    return np.clip(ratio(fit.covariance, np.sqrt(fit.prediction * fit.powers.of_mean)), -1.0, 1.0)


@in_neuron_blocks
def cc_norm(
    responses: np.ndarray,
    predictions: np.ndarray,
    *,
    least_signal_power: float = 0.0,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """cov(mean prediction, mean response) / sqrt(var(mean prediction) SP) = CC_abs / CC_max, (neurons,).

    Estimates the correlation of the prediction with the true response; the estimate can exceed 1. NaN where the
    prediction is constant, or SP is not above `least_signal_power` (ViV1T-CL takes 1e-4 of responses near 1).
    """
    fit = _fit(responses, predictions, weights)
    signal = np.where(fit.powers.signal > least_signal_power, fit.powers.signal, np.nan)
    return ratio(fit.covariance, np.sqrt(fit.prediction * signal))


@in_neuron_blocks
def unbiased_r_squared(
    responses: np.ndarray, predictions: np.ndarray, *, weights: np.ndarray | None = None
) -> np.ndarray:
    """Squared correlation of the prediction with the true response, corrected above and below the line, (neurons,).

    CC_norm^2 less what noise of the mean adds to the squared covariance, NP / (R (stimuli - 1) SP): the estimator of
    Pospisil & Bair, PLOS Comput Biol 17(8):e1009212, 2021, which holds for noise that does not depend on the stimulus
    (of spike counts, take roots first). Not clipped; NaN as for `cc_norm`.
    """
    fit = _fit(responses, predictions, weights)
    chance = fit.prediction * (fit.powers.of_mean - fit.powers.signal) / (fit.stimuli - 1)
    return ratio(fit.covariance**2 - chance, fit.prediction * np.where(fit.powers.signal > 0, fit.powers.signal, 0.0))


@dataclass(frozen=True)
class _Powers:
    """`signal` and `noise` power; `of_mean`, variance over stimuli of the mean over repeats."""

    signal: np.ndarray
    noise: np.ndarray
    of_mean: np.ndarray


@dataclass(frozen=True)
class _Fit:
    """`covariance` of mean prediction and mean response, variance of the mean `prediction`, number of `stimuli`."""

    powers: _Powers
    covariance: np.ndarray
    prediction: np.ndarray
    stimuli: np.ndarray


def _powers(responses: np.ndarray, weights: np.ndarray | None) -> _Powers:
    m = stimulus_moments(responses)
    stimuli, repeats = total(m.used, weights), len(responses)
    of_mean = ratio(total_scatter(m.mean, stimuli, weights), stimuli - 1)
    # Scatter of every repeat about its own mean over stimuli, which an offset of the repeat leaves as it is.
    sums = np.linalg.norm(total(m.centred, weights), axis=0)
    scatter = weighted_scatter(total(m.scatter + m.number * m.mean**2, weights), sums, stimuli)
    total_power = ratio(scatter, repeats * (stimuli - 1))
    signal = (repeats * of_mean - total_power) / (repeats - 1)
    # Of counts it is often exactly 0, and rounding of it must not become a divisor.
    signal = np.where(np.abs(signal) > ROUNDING * of_mean, signal, 0.0)
    noise = total_power - signal
    partial = ~m.complete
    if partial.any():
        signal[..., partial], noise[..., partial] = _powers_of_partial(responses[..., partial], weights)
    return _Powers(signal, noise, of_mean)


def _powers_of_partial(responses: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Signal and noise power of neurons with missing presentations; in resamples with the offsets of all stimuli."""
    m = stimulus_moments(without_offsets(responses))
    stimuli = total(m.used, weights)
    # One degree of freedom is lost with every offset but one.
    free = (m.number - m.used).sum(axis=0)
    offsets = (~np.isnan(responses) & m.used).any(axis=1).sum(axis=0) - 1
    lost = ratio(free, free - offsets)
    noise = ratio(total(m.variance, weights), stimuli) * lost
    of_mean = ratio(total_scatter(m.mean, stimuli, weights), stimuli - 1)
    return of_mean - ratio(total(m.variance / np.maximum(m.number, 1), weights), stimuli) * lost, noise


def _fit(responses: np.ndarray, predictions: np.ndarray, weights: np.ndarray | None) -> _Fit:
    m = stimulus_moments(responses)
    if predictions.ndim == 3:
        present = ~np.isnan(responses) & m.used
        predictions = np.where(present, predictions, 0.0).sum(axis=0) / np.maximum(m.number, 1)
    predicted = centre(np.asarray(predictions, dtype=np.float64), m.used)
    mean = centre(m.mean, m.used)
    stimuli = total(m.used, weights)
    product = total(predicted * mean, weights)
    product = product - ratio(total(predicted, weights) * total(mean, weights), stimuli)
    variance = ratio(total_scatter(predicted, stimuli, weights), stimuli - 1)
    return _Fit(_powers(responses, weights), ratio(product, stimuli - 1), variance, stimuli)
