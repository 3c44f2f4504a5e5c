"""Every metric of some neurons, from the trials of one tier.

What comes in: responses and predictions of trials, each (neurons, frames that count), and which stimulus each trial
showed. What goes out: by metric, one score per neuron, float64; NaN where stimuli would have to be repeated and are
not. Frames of clips count as stimuli for FEVE, oracles and the ceiling (`neural_data/clips.py`).
"""

from collections.abc import Sequence

import numpy as np

from neural_data.clips import pool_clips
from neural_data.explainable_variance import feve
from neural_data.oracle import oracle_conservative, oracle_jackknife
from neural_data.signal_power import cc_norm, single_trial_ceiling
from transfer.metrics import (
    correlation,
    correlation_to_average,
    image_correlation_to_average,
    normalized_correlation,
    per_trial_correlation,
    single_trial_correlation,
    stack_repeats,
)
from transfer.score_protocol import ScoreProtocol

METRICS = (
    "single_trial_correlation",
    "per_trial_correlation",
    "correlation_to_average",
    "normalized_correlation",
    "feve",
    "oracle_jackknife",
    "oracle_conservative",
    "single_trial_ceiling",
)
Trials = Sequence[np.ndarray]


def score_trials(
    responses: Trials, predictions: Trials, stimulus: np.ndarray, protocol: ScoreProtocol
) -> dict[str, np.ndarray]:
    """Of videos. Repeats of a clip are cut to the shortest of them where they are compared with each other."""
    found = {
        "single_trial_correlation": single_trial_correlation(responses, predictions),
        "per_trial_correlation": per_trial_correlation(responses, predictions),
    }
    clips = repeated(responses, stimulus), repeated(predictions, stimulus)
    if not clips[0]:
        return found | dict.fromkeys(METRICS[2:], np.full(len(responses[0]), np.nan))
    pooled, predicted = (pool_clips([np.moveaxis(clip, 1, 2) for clip in side])[0] for side in clips)
    return found | {
        "correlation_to_average": correlation_to_average(*clips, protocol.to_average),
        "normalized_correlation": normalized_correlation(*clips),
        "feve": feve(pooled, predicted, least_fraction=protocol.least_explainable),
    } | ceilings(pooled)  # fmt: skip


def score_images(
    responses: Trials, predictions: Trials, stimulus: np.ndarray, protocol: ScoreProtocol
) -> dict[str, np.ndarray]:
    """Of images, each trial (neurons, 1)."""
    shown = [np.concatenate(side, axis=1, dtype=np.float64).T for side in (responses, predictions)]
    found = {"single_trial_correlation": correlation(shown[1], shown[0], axis=0)}
    images, (repeats, predicted) = stack_repeats(stimulus, *shown)
    if len(images) < 2:
        return found | dict.fromkeys(METRICS[2:], np.full(shown[0].shape[1], np.nan))
    return found | {
        "correlation_to_average": image_correlation_to_average(repeats, predicted),
        "normalized_correlation": cc_norm(repeats, predicted),
        "feve": feve(repeats, predicted, least_fraction=protocol.least_explainable),
    } | ceilings(repeats)  # fmt: skip


def ceilings(repeats: np.ndarray) -> dict[str, np.ndarray]:
    """How well single presentations can be predicted, by three estimates, of (repeats, stimuli, neurons)."""
    return {
        "oracle_jackknife": oracle_jackknife(repeats),
        "oracle_conservative": oracle_conservative(repeats),
        "single_trial_ceiling": single_trial_ceiling(repeats),
    }


def repeated(trials: Trials, stimulus: np.ndarray) -> list[np.ndarray]:
    """Clips shown twice or more, each float64 (repeats, neurons, frames), in ascending order of their number."""
    clips = []
    for number in np.unique(stimulus):
        of_clip = [trials[place] for place in np.flatnonzero(stimulus == number)]
        if len(of_clip) >= 2:
            frames = min(trial.shape[1] for trial in of_clip)
            clips.append(np.stack([trial[:, :frames] for trial in of_clip]).astype(np.float64))
    return clips
