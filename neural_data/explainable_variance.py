"""How much of a neuron's variance the stimulus explains, and how much of that a prediction does.

Comes in: responses float (repeats, stimuli, neurons), NaN where a presentation is missing; predictions
(stimuli, neurons), or (repeats, stimuli, neurons) where they differ between repeats. Goes out: one figure per neuron,
float64; variances in the response's unit squared, NaN where undefined.

Source: the formulas of neuralpredictors (`measures/np_functions.py`) and of the Sensorium 2022 competition (Willeke et
al. 2022, arXiv:2206.08666); FEVE is from Cadena et al., PLOS Comput Biol 15(4):e1006897, 2019. Noise variance is the
mean over stimuli of the variance over repeats; total variance is over all presentations. With I stimuli and R repeats
the total is low by (R - 1) / (I R - 1) of the signal's variance, less than 1 in I.

A stimulus of which a neuron has fewer than 2 responses is left out for that neuron. With `weights`
(resamples, stimuli), how often each stimulus counts, results are (resamples, neurons).
"""

import numpy as np

from neural_data.correlation import weighted_scatter
from neural_data.stimulus_moments import (
    StimulusMoments,
    in_neuron_blocks,
    ratio,
    stimulus_moments,
    total,
    total_scatter,
)


@in_neuron_blocks
def noise_variance(responses: np.ndarray, *, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean over stimuli of the variance over repeats (divided by repeats - 1), (neurons,)."""
    return _noise(stimulus_moments(responses), weights)


@in_neuron_blocks
def total_variance(responses: np.ndarray, *, weights: np.ndarray | None = None) -> np.ndarray:
    """Variance over all presentations (divided by their number - 1), (neurons,)."""
    return _total(stimulus_moments(responses), weights)


@in_neuron_blocks
def explainable_variance(responses: np.ndarray, *, weights: np.ndarray | None = None) -> np.ndarray:
    """Total less noise variance, (neurons,); not clipped, so that a silent tuning is 0 on average."""
    m = stimulus_moments(responses)
    return _total(m, weights) - _noise(m, weights)


@in_neuron_blocks
def explainable_fraction(responses: np.ndarray, *, weights: np.ndarray | None = None) -> np.ndarray:
    """FEV, (total - noise) / total variance, (neurons,); estimates S / (S + N). NaN where a neuron never varies.

    neuralpredictors' `explainable_var` is this with 1e-9 added to the divisor.
    """
    m = stimulus_moments(responses)
    variance = _total(m, weights)
    return ratio(variance - _noise(m, weights), variance)


@in_neuron_blocks
def feve(
    responses: np.ndarray,
    predictions: np.ndarray,
    *,
    least_fraction: float | None = 0.15,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Fraction of explainable variance explained, 1 - (MSE - noise) / (total - noise variance), (neurons,).

    MSE is over all presentations. Not clipped: it can exceed 1, and be very negative. NaN where less than
    `least_fraction` of the variance is explainable (the competition's 0.15), because the ratio means little there;
    None keeps every neuron.
    """
    m = stimulus_moments(responses)
    noise, variance = _noise(m, weights), _total(m, weights)
    # Centred responses are 0 where they are missing, and so must the error be.
    present = ~np.isnan(responses) & m.used
    error = np.where(present, responses - predictions, 0.0)
    mse = ratio(total((error**2).sum(axis=0), weights), total(m.number, weights))
    explainable = variance - noise
    explained = 1 - np.divide(mse - noise, explainable, out=np.full(mse.shape, np.nan), where=explainable != 0)
    if least_fraction is None:
        return explained
    return np.where(ratio(explainable, variance) >= least_fraction, explained, np.nan)


@in_neuron_blocks
def anscombe_snr(responses: np.ndarray, *, weights: np.ndarray | None = None) -> np.ndarray:
    """Signal-to-noise ratio of spike counts, (neurons,): variance over stimuli of the mean over repeats, divided by the
    noise variance.

    Counts x become 2 sqrt(x + 3 / 8) first, whose noise is about 1 for Poisson spikes (Anscombe, Biometrika 35:246,
    1948). As in neuralpredictors the signal's variance is divided by the number of stimuli and holds the noise of the
    mean: a neuron without tuning tends to 1 / repeats, not to 0. Raises ValueError for counts below 0.
    """
    if (responses < 0).any():
        raise ValueError(f"anscombe_snr needs spike counts, 0 or more; the lowest response is {np.nanmin(responses)}")
    m = stimulus_moments(2 * np.sqrt(responses + 3 / 8))
    stimuli = total(m.used, weights)
    return ratio(ratio(total_scatter(m.mean, stimuli, weights), stimuli), _noise(m, weights))


def _noise(m: StimulusMoments, weights: np.ndarray | None) -> np.ndarray:
    return ratio(total(m.variance, weights), total(m.used, weights))


def _total(m: StimulusMoments, weights: np.ndarray | None) -> np.ndarray:
    presentations = total(m.number, weights)
    squares = total(m.number * m.mean**2 + m.scatter, weights)
    return ratio(weighted_scatter(squares, total(m.number * m.mean, weights), presentations), presentations - 1)
