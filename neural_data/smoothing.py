"""Traces smoothed in time, and noise that is smooth: what moves slowly in a simulation is made of these.

Comes in: traces (..., samples) or a number of samples, a time constant, a rate. Goes out: traces of the same shape.
"""

import numpy as np
import pandas as pd

BEFORE = 10  # time constants until nothing is left of the start


def smooth(traces: np.ndarray, time_s: float, rate_hz: float) -> np.ndarray:
    """Causal exponential average along the last axis with the time constant `time_s`, starting at the first value."""
    series = pd.DataFrame(traces.reshape(-1, traces.shape[-1]).T)
    averaged = series.ewm(alpha=1 - _kept(time_s, rate_hz), adjust=False).mean()
    return averaged.to_numpy().T.reshape(traces.shape)


def smooth_noise(count: int, samples: int, time_s: float, rate_hz: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise of zero mean and unit variance without jerks, float64 (count, samples): white noise that is
    smoothed twice with the same time constant."""
    before = int(np.ceil(BEFORE * time_s * rate_hz))
    white = rng.standard_normal((count, before + samples))
    keep = _kept(time_s, rate_hz)
    # Variance of white noise after two first-order filters: sum over lags of ((lag + 1) (1 - keep)^2 keep^lag)^2.
    variance = (1 - keep) ** 4 * (1 + keep**2) / (1 - keep**2) ** 3
    return smooth(smooth(white, time_s, rate_hz), time_s, rate_hz)[:, before:] / np.sqrt(variance)


def standardised(trace: np.ndarray) -> np.ndarray:
    """A trace less its mean, over its standard deviation; zeros where it does not vary."""
    centred = trace - trace.mean()
    spread = centred.std()
    return centred / spread if spread > 0 else centred


def _kept(time_s: float, rate_hz: float) -> float:
    return float(np.exp(-1 / (time_s * rate_hz)))
