"""From spikes to what is recorded of them: counts, calcium traces, or deconvolved traces.

Comes in: rates float (neurons, frames), expected spikes per frame. Goes out: traces float32 of the same shape, and
their exact mean and variance over trials.

Spikes are Poisson. A trace is their convolution with a kernel, plus Gaussian noise for calcium:

    calcium       exp(-t / decay) - exp(-t / rise), causal, its peak 1; white noise of a given standard deviation
    deconvolved   a Gaussian of sum 1, centred, because deconvolution errs to both sides; never negative
    spikes        the counts themselves

Before a trial nobody fires, and its calcium starts at 0.

Spikes in different frames are independent, so with the kernel's matrix K the mean is rates @ K and the variance
rates @ K^2 + noise^2 (K^2 elementwise; Campbell's theorem).
"""

from dataclasses import dataclass

import numpy as np

from neural_data.simulation_config import VideoConfig


@dataclass(frozen=True)
class Indicator:
    """How spikes are recorded: `response` "spikes", "calcium" or "deconvolved", and its time constants."""

    response: str
    frame_rate_hz: float
    rise_ms: float
    decay_ms: float
    blur_ms: float
    noise: float

    @classmethod
    def of(cls, videos: VideoConfig) -> "Indicator":
        """The indicator that a config asks for; only calcium traces have noise."""
        noise = videos.noise if videos.response == "calcium" else 0.0
        return cls(videos.response, videos.frame_rate_hz, videos.rise_ms, videos.decay_ms, videos.blur_ms, noise)

    def kernel_matrix(self, frames: int) -> np.ndarray:
        """K, float32 (frames of spikes, frames of the trace)."""
        lag = np.arange(frames) - np.arange(frames)[:, None]
        since_ms = lag * 1000 / self.frame_rate_hz
        if self.response == "spikes":
            return np.eye(frames, dtype=np.float32)
        if self.response == "deconvolved":
            reach = np.arange(-frames, frames + 1) * 1000 / self.frame_rate_hz
            total = np.exp(-(reach**2) / (2 * self.blur_ms**2)).sum()
            return (np.exp(-(since_ms**2) / (2 * self.blur_ms**2)) / total).astype(np.float32)
        peak_ms = np.log(self.decay_ms / self.rise_ms) / (1 / self.rise_ms - 1 / self.decay_ms)
        # Spikes fall anywhere in their frame; the middle of the frame stands for all.
        after = np.maximum(since_ms + 500 / self.frame_rate_hz, 0)
        return np.where(lag >= 0, self._transient(after) / self._transient(peak_ms), 0).astype(np.float32)

    def mean(self, rates: np.ndarray) -> np.ndarray:
        """Mean of the traces over trials, in the shape and kind of the rates."""
        return rates if self.response == "spikes" else rates @ self.kernel_matrix(rates.shape[-1])

    def variance(self, rates: np.ndarray) -> np.ndarray:
        """Variance of the traces over trials of the same rates, in the shape and kind of the rates."""
        return rates if self.response == "spikes" else rates @ self.kernel_matrix(rates.shape[-1]) ** 2 + self.noise**2

    def record(self, rates: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One trial: traces float32 (neurons, frames)."""
        trace = self.mean(rng.poisson(rates).astype(np.float32))
        if self.noise:
            trace += self.noise * rng.standard_normal(trace.shape, np.float32)
        return trace

    def _transient(self, after_ms: np.ndarray | float) -> np.ndarray:
        return np.exp(-np.asarray(after_ms) / self.decay_ms) - np.exp(-np.asarray(after_ms) / self.rise_ms)
