"""Scores of a model, or of another animal, corrected for the noise of both halves of the repeats.

Comes in: correlations of any one shape, such as (halvings, neurons), that a mapping has led to. Goes out: scores of
that shape, float64. Nothing here fits a mapping.

A halving gives target halves s1, s2 and source halves x1, x2 (the same features twice for a model). With mappings M1,
M2 fitted to (x1, s1) and (x2, s2) on train stimuli, and on test stimuli
    r_prediction_target = r(M1(x1), s2), r_prediction_prediction = r(M1(x1), M2(x2)), r_target_target = r(s1, s2),
r being a correlation per neuron, or between dissimilarity matrices of all neurons. `seeded_orders` in `halvings.py`
draws the halves of target and source.

Source: mouse-vision (Nayebi, Kong et al., PLOS Comput Biol 19(10):e1011506, 2023), names of modes included; the idea is
Spearman's correction for attenuation (American J. Psychology 15:72, 1904).
"""

from typing import Literal, get_args

import numpy as np

from neural_data.reliability import spearman_brown
from neural_data.stimulus_moments import ratio

CorrectionMode = Literal["spearman_brown_split_half_denominator", "spearman_brown_split_half"]


def noise_corrected(
    r_prediction_target: np.ndarray,
    r_prediction_prediction: np.ndarray,
    r_target_target: np.ndarray,
    mode: CorrectionMode = "spearman_brown_split_half_denominator",
) -> np.ndarray:
    """r_prediction_target divided by the geometric mean of the two reliabilities; shapes broadcast.

    With SB the Spearman-Brown correction of halves, the modes are, of r_pt, r_pp and r_tt for short:
    "spearman_brown_split_half_denominator": r_pt / sqrt(SB(r_pp) SB(r_tt)), the one of published results;
    "spearman_brown_split_half": SB(r_pt / sqrt(r_pp r_tt)), whose values are higher, near 1 for any good model.
    Without a source the second is the reliability itself: `split_half_reliability`.

    NaN where the product under the root is not positive, and where SB is undefined (at -1 and below). Can exceed 1.
    Raises ValueError for another mode.
    """
    if mode not in get_args(CorrectionMode):
        raise ValueError(f"mode must be one of {', '.join(get_args(CorrectionMode))}, found {mode!r}")
    if mode == "spearman_brown_split_half":
        return spearman_brown(_attenuated(r_prediction_target, r_prediction_prediction, r_target_target))
    return _attenuated(r_prediction_target, spearman_brown(r_prediction_prediction), spearman_brown(r_target_target))


def _attenuated(r: np.ndarray, reliability1: np.ndarray, reliability2: np.ndarray) -> np.ndarray:
    """r / sqrt(reliability1 reliability2), NaN where the product is not positive."""
    return ratio(r, np.sqrt(np.maximum(np.asarray(reliability1) * reliability2, 0.0)))
