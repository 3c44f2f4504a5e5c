"""How well predictions agree with responses, by the formulas of the competitions' public programs.

Comes in: responses and predictions of trials, (neurons, frames) each, of clips, (repeats, neurons, frames), or of
images, (repeats, stimuli, neurons) with NaN where a repeat is missing (`stack_repeats` makes them). Goes out: one score
per neuron, float64. Which frames count, in which response space, and how neurons are averaged: `score_protocol.py`.

    single_trial_correlation   all trials one after the other, one correlation (ecker-lab; ViV1T; lRomul; ViV1T-CL names
                               it `challenge_correlation`; Sensorium 2022 with one frame per trial)
    per_trial_correlation      within each trial, then the mean over trials (ViV1T-CL's `single_trial_correlation`)
    correlation_to_average     of responses and predictions averaged over repeats: "per_clip" is ViV1T-CL's, the mean
                               over clips; "concatenated" that of the competition's paper (arXiv:2407.09100) and, with
                               images for frames, of Sensorium 2022
    normalized_correlation     CC_norm of Schoppe et al. 2016, the mean over clips (ViV1T-CL)
    across_neurons             V1T's `normalized_correlation`, over the neurons of each image
    openretina_feve            FEVE with open-retina's clipping

FEVE of Sensorium 2022 is `neural_data.explainable_variance.feve`; the oracles are in `neural_data/oracle.py`, and are 0
in neuralpredictors where they are undefined here; `gini` is neuralpredictors'.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from neural_data.clips import mean_over_clips
from neural_data.explainable_variance import noise_variance, total_variance
from neural_data.signal_power import cc_norm, signal_power
from transfer.streamed_correlation import EPSILON, StreamedCorrelation

# ViV1T-CL: clips whose signal power is not above this are undefined.
LEAST_SIGNAL_POWER = 1e-4
# open-retina: the least explainable variance.
LEAST_EXPLAINABLE = 1e-9
TO_AVERAGE = ("per_clip", "concatenated")


def correlation(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
    """mean(z(a) z(b)) along an axis, with z(v) = (v - mean) / (std + 1e-8) and the std divided by the number.

    All of these programs add 1e-8, so that a trace that never varies scores 0 and not NaN.
    """
    a, b = _standardised(a, axis), _standardised(b, axis)
    return (a * b).mean(axis=axis)


def _standardised(values: np.ndarray, axis: int) -> np.ndarray:
    values = np.asarray(values, np.float64)
    centred = values - values.mean(axis=axis, keepdims=True)
    return centred / (np.sqrt((centred**2).mean(axis=axis, keepdims=True)) + EPSILON)


def single_trial_correlation(responses: Iterable[np.ndarray], predictions: Iterable[np.ndarray]) -> np.ndarray:
    """Correlation over all frames of all trials, (neurons,); of trials (neurons, frames), which are gone through once.

    Images are one trial whose frames are presentations.
    """
    streamed = None
    for response, prediction in zip(responses, predictions, strict=True):
        if response.shape != prediction.shape or response.ndim != 2:
            found = f"responses {response.shape} and predictions {prediction.shape}"
            raise ValueError(f"{found} are not both (neurons, frames)")
        streamed = streamed or StreamedCorrelation(len(response))
        streamed.add(prediction, response)
    if streamed is None:
        raise ValueError("no trials to correlate")
    return streamed.correlations()


def per_trial_correlation(responses: Iterable[np.ndarray], predictions: Iterable[np.ndarray]) -> np.ndarray:
    """Mean over trials (neurons, frames) of the correlation within each, (neurons,)."""
    total, trials = 0.0, 0
    for response, prediction in zip(responses, predictions, strict=True):
        total, trials = total + correlation(response, prediction), trials + 1
    if not trials:
        raise ValueError("no trials to correlate")
    return total / trials


def correlation_to_average(
    responses: Iterable[np.ndarray], predictions: Iterable[np.ndarray], definition: str = "per_clip"
) -> np.ndarray:
    """Correlation of responses and predictions averaged over repeats, (neurons,); of clips (repeats, neurons, frames).

    Clips shown once are left out. Raises ValueError for another `definition`, or where no clip is repeated.
    """
    if definition not in TO_AVERAGE:
        raise ValueError(f"correlation to average: found {definition!r}, expected {' or '.join(TO_AVERAGE)}")
    clips = (pair for pair in zip(responses, predictions, strict=True) if len(pair[0]) >= 2)
    averages = ((np.mean(r, axis=0, dtype=np.float64), np.mean(p, axis=0, dtype=np.float64)) for r, p in clips)
    first = next(averages, None)
    if first is None:
        raise ValueError("no clip is repeated: there is no average to correlate with")
    of_responses, of_predictions = zip(first, *averages, strict=True)
    kind = per_trial_correlation if definition == "per_clip" else single_trial_correlation
    return kind(of_responses, of_predictions)


def normalized_correlation(
    responses: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    least_signal_power: float = LEAST_SIGNAL_POWER,
) -> np.ndarray:
    """CC_norm, the mean over clips (repeats, neurons, frames) where it is defined, (neurons,).

    A clip counts where its signal power is above `least_signal_power`; there a constant prediction scores 0, as in
    ViV1T-CL. Clips shown once are left out. NaN where no clip counts.
    """
    repeated = [(r, p) for r, p in zip(responses, predictions, strict=True) if len(r) >= 2]
    if not repeated:
        return np.full(responses[0].shape[1] if len(responses) else 0, np.nan)
    clips = ([np.moveaxis(clip, 1, 2) for clip in side] for side in zip(*repeated, strict=True))
    return mean_over_clips(_cc_norm_or_zero, *clips, least_signal_power=least_signal_power)


def _cc_norm_or_zero(responses: np.ndarray, predictions: np.ndarray, least_signal_power: float) -> np.ndarray:
    found = cc_norm(responses, predictions, least_signal_power=least_signal_power)
    unvaried = np.isnan(found) & (signal_power(responses) > least_signal_power)
    return np.where(unvaried, 0.0, found)


def stack_repeats(stimulus: np.ndarray, *values: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Presentations arranged by stimulus: stimuli shown twice or more, in ascending order, and for each of `values`
    (trials, neurons) float64 (repeats, stimuli, neurons), NaN where a stimulus has fewer repeats than others."""
    shown, place, counts = np.unique(stimulus, return_inverse=True, return_counts=True)
    order = np.argsort(place, kind="stable")
    repeat = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = counts >= 2
    column = (np.cumsum(kept) - 1)[place[order]]
    use = kept[place[order]]
    stacked = []
    for each in values:
        arranged = np.full((counts.max(initial=0), int(kept.sum()), each.shape[1]), np.nan)
        arranged[repeat[use], column[use]] = each[order[use]]
        stacked.append(arranged)
    return shown[kept], stacked


def image_correlation_to_average(responses: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Correlation over images of the averages over repeats, (neurons,); of (repeats, stimuli, neurons).

    The competition's of 2022: `correlation_to_average` with one frame per clip, "concatenated".
    """
    return correlation(np.nanmean(responses, axis=0), np.nanmean(predictions, axis=0), axis=0)


def across_neurons(responses: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """V1T's `normalized_correlation`, (stimuli,): CC_norm of each image over neurons; of (repeats, stimuli, neurons).

    Differences between neurons' mean responses count as signal: it is no measure of any neuron's tuning. NaN where the
    signal power over neurons is not positive.
    """
    return cc_norm(responses.swapaxes(1, 2), predictions.swapaxes(1, 2))


def openretina_feve(responses: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """FEVE of (repeats, stimuli, neurons), (neurons,), with what open-retina clips: the residual variance and the
    result at 0, the explainable variance at 1e-9."""
    noise, variance = noise_variance(responses), total_variance(responses)
    predictions = np.broadcast_to(predictions, responses.shape)
    residual = np.nanmean((responses - predictions) ** 2, axis=(0, 1)) - noise
    explained = 1 - np.maximum(residual, 0.0) / np.maximum(variance - noise, LEAST_EXPLAINABLE)
    return np.maximum(explained, 0.0)


def gini(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Gini coefficient of values that are not negative along an axis: 0 where all are equal, near 1 where few have all.

    (n + 1 - 2 sum(cumulated / total)) / n of the sorted values, as neuralpredictors has it.
    """
    ordered = np.cumsum(np.sort(np.asarray(values, np.float64), axis=axis), axis=axis)
    n = ordered.shape[axis]
    return (n + 1 - 2 * ordered.sum(axis=axis) / np.take(ordered, -1, axis=axis)) / n
