"""Oracles: how well the other repeats of a stimulus predict a single presentation.

Comes in: responses float (repeats, stimuli, neurons), NaN where a presentation is missing. Goes out: one correlation
per neuron, float64, NaN where the neuron never varies; neuralpredictors, whose formulas these are
(`measures/np_functions.py`; the jackknife is that of Walker et al., Nature Neuroscience 22:2060, 2019), has 0 there.

Both are taken for the highest correlation with single presentations, sqrt(S / (S + N)) for signal variance S and
noise variance N, and both are off, by a known amount with R repeats. The jackknife tends to
S / sqrt((S + N) (S + N / (R - 1))): too low, because the mean over the others is noisy. The conservative one tends to
sqrt((S + N / R) / (S + N)): too high, because the mean holds the presentation itself. `single_trial_ceiling` in
`signal_power.py` is right.
"""

import numpy as np

from neural_data.correlation import weighted_scatter
from neural_data.stimulus_moments import in_neuron_blocks, ratio, root, stimulus_moments, total, total_scatter


@in_neuron_blocks
def oracle_jackknife(responses: np.ndarray, *, weights: np.ndarray | None = None) -> np.ndarray:
    """Correlation over all presentations of the response and the mean over the stimulus' other repeats, (neurons,).

    With unequal repeats each presentation counts once. A stimulus of which a neuron has one response is left out for
    that neuron. With `weights` (resamples, stimuli), how often each stimulus counts, (resamples, neurons).
    """
    m = stimulus_moments(responses)
    others = np.maximum(m.number - 1, 1)
    presentations, sums = total(m.number, weights), total(m.number * m.mean, weights)
    # With r = mean + d the mean over the others is mean - d / (R - 1): the sums need no list of presentations.
    square = m.number * m.mean**2
    response = weighted_scatter(total(square + m.scatter, weights), sums, presentations)
    oracle = weighted_scatter(total(square + m.scatter / others**2, weights), sums, presentations)
    product = total(square - m.scatter / others, weights) - sums**2 / np.maximum(presentations, 1)
    return np.clip(ratio(product, np.sqrt(response * oracle)), -1.0, 1.0)


@in_neuron_blocks
def oracle_conservative(responses: np.ndarray, *, weights: np.ndarray | None = None) -> np.ndarray:
    """v / sqrt(v (v + n)), (neurons,): v variance over stimuli of the mean over repeats, n mean variance over repeats.

    Both variances are divided by the number. Stimuli and `weights` as for `oracle_jackknife`.
    """
    m = stimulus_moments(responses)
    stimuli = total(m.used, weights)
    of_means = ratio(total_scatter(m.mean, stimuli, weights), stimuli)
    of_repeats = ratio(total(m.scatter / np.maximum(m.number, 1), weights), stimuli)
    return root(ratio(of_means, of_means + of_repeats))
