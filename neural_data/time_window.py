"""Which part of a response in time counts, and the mean over it.

Comes in: responses float (..., time), and per bin how reliable a population is. Goes out: a window of bins, and means.

Source: mouse-vision (Nayebi, Kong et al., PLOS Comput Biol 19(10):e1011506, 2023) averages an animal's responses in an
area over the longest unbroken run of 10-ms bins in which the median reliability of its neurons is at least 0.3, or
over a window that the user names. There a run of one bin is an error; here it is a window.
"""

import math

import numpy as np


def longest_run(above: np.ndarray) -> slice:
    """The longest run of true bins in bool (time,), the first of several. Raises ValueError where none is true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(above, np.int8), [0]])))
    starts, stops = edges[::2], edges[1::2]
    if not len(starts):
        raise ValueError("no bin is reliable enough; lower the threshold or name a window")
    first = int(np.argmax(stops - starts))
    return slice(int(starts[first]), int(stops[first]))


def reliable_window(reliability: np.ndarray, min_median: float) -> slice:
    """The bins to average over for one population, by `longest_run`.

    `reliability`: float (time, neurons), NaN where undefined. `min_median`: what the median must reach.
    """
    return longest_run(median_reliability(reliability) >= min_median)


def median_reliability(reliability: np.ndarray) -> np.ndarray:
    """Median over the neurons per bin, float64 (time,), without those that are NaN; NaN where all are."""
    median = np.full(len(reliability), np.nan)
    defined = ~np.isnan(reliability).all(axis=1)
    median[defined] = np.nanmedian(reliability[defined], axis=1)
    return median


def named_window(window_ms: tuple[float, float], n_bins: int, bin_ms: float, start_ms: float = 0.0) -> slice:
    """The bins whose centres lie from `window_ms[0]` to `window_ms[1]`, both included, as mouse-vision selects them.

    `start_ms`: where the first bin begins, relative to the onset of the stimulus. Raises ValueError for a window that
    holds no centre.
    """
    # The centre of a bin is rounded, so that 45.00000001 ms still is 45 ms.
    first = math.ceil(round((window_ms[0] - start_ms) / bin_ms - 0.5, 6))
    last = math.floor(round((window_ms[1] - start_ms) / bin_ms - 0.5, 6))
    first, last = max(first, 0), min(last, n_bins - 1)
    if first > last:
        stop_ms = start_ms + n_bins * bin_ms
        raise ValueError(
            f"window_ms: {window_ms[0]:g} to {window_ms[1]:g} ms holds no centre of a {bin_ms:g}-ms bin; "
            f"responses reach from {start_ms:g} to {stop_ms:g} ms"
        )
    return slice(first, last + 1)


def mean_over(responses: np.ndarray, window: slice) -> np.ndarray:
    """Mean over the bins of a window, (..., time) -> (...), without those that are NaN; NaN where all are."""
    part = responses[..., window]
    there = ~np.isnan(part)
    total = np.where(there, part, 0).sum(axis=-1, dtype=np.float64)
    n = there.sum(axis=-1)
    return np.divide(total, n, out=np.full(total.shape, np.nan), where=n > 0)
