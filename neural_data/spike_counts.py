"""How often each unit fires in bins around the onsets of stimuli.

Comes in: sorted spike times in s, and edges of bins in s, (windows, bins + 1). Goes out: counts. A bin holds the spikes
from its first edge on and before its second; the AllenSDK counts a spike that falls on an edge in both bins.
"""

from collections.abc import Iterable, Sequence

import numpy as np


def bin_edges(onsets_s: np.ndarray, window_ms: Sequence[float], bin_ms: float | None = None) -> np.ndarray:
    """Edges float64 (onsets, bins + 1) in s, of one bin that is the whole window, or of bins of `bin_ms`.

    Raises ValueError for a window that does not end after it begins, or is no whole number of bins.
    """
    start, stop = window_ms
    if not start < stop:
        raise ValueError(f"window_ms: found {start:g} to {stop:g}, expected an end after the beginning")
    n = 1.0
    if bin_ms is not None:
        n = (stop - start) / bin_ms if bin_ms > 0 else 0.0
        if round(n) < 1 or abs(n - round(n)) > 1e-6:
            raise ValueError(f"bin_ms: found {bin_ms:g}, expected a part of the window of {stop - start:g} ms")
    return np.asarray(onsets_s, float)[:, None] + np.linspace(start, stop, round(n) + 1) / 1000


def count_spikes(trains: Iterable[np.ndarray], n_units: int, edges_s: np.ndarray) -> np.ndarray:
    """Spikes of each unit in each bin, float32 (windows, units, bins).

    `trains`: for each of `n_units` the sorted spike times in s, (spikes,). `edges_s`: float (windows, bins + 1), rising
    along each row. Windows may overlap and come in any order.
    """
    windows, n_edges = edges_s.shape
    counts = np.empty((windows, n_units, n_edges - 1), np.float32)
    for unit, spikes in zip(range(n_units), trains, strict=True):
        counts[:, unit] = np.diff(np.searchsorted(spikes, edges_s.ravel()).reshape(edges_s.shape), axis=1)
    return counts
