"""Correlation over time of predicted and measured responses that come trial by trial and are not kept.

What comes in: predictions and measurements (neurons, samples), trial by trial. What goes out: one correlation per
neuron over all samples of all trials together,

    mean((a - mean a) / (sd a + 1e-8) * (b - mean b) / (sd b + 1e-8)),

with population standard deviations: the single-trial correlation of Sensorium 2023 (ecker-lab `utility/scores.py`,
ViV1T `single_trial_correlation`). Sums are merged in float64 by Chan, Golub & LeVeque 1979, so that they do not cancel.
"""

import numpy as np

EPSILON = 1e-8


class StreamedCorrelation:
    """Means, squared deviations and their products, of as many samples as were added."""

    def __init__(self, neurons: int) -> None:
        self.samples = 0
        self.means = np.zeros((2, neurons))
        self.squares = np.zeros((2, neurons))
        self.products = np.zeros(neurons)

    def add(self, predicted: np.ndarray, measured: np.ndarray) -> None:
        """Take in samples (neurons, samples) of both."""
        both = np.stack([predicted, measured]).astype(np.float64)
        added = both.shape[2]
        if not added:
            return
        means = both.mean(axis=2)
        off = both - means[:, :, None]
        apart, total = means - self.means, self.samples + added
        weight = self.samples * added / total
        self.squares += (off**2).sum(axis=2) + weight * apart**2
        self.products += (off[0] * off[1]).sum(axis=1) + weight * apart[0] * apart[1]
        self.means += apart * (added / total)
        self.samples = total

    def correlations(self) -> np.ndarray:
        """float64 (neurons,), about 0 where either never varies. Raises ValueError where nothing was added."""
        if not self.samples:
            raise ValueError("no samples to correlate; are all validation trials shorter than validation.first_frame?")
        deviations = np.sqrt(self.squares / self.samples) + EPSILON
        return self.products / self.samples / deviations.prod(axis=0)
