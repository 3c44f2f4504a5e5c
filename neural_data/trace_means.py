"""Running, pupil and fluorescence averaged over stretches of time.

Comes in: traces, and where stretches begin and end. Goes out: the mean over each.
"""

import numpy as np

# Bins that are shorter than a sample take the value between their neighbours; over longer gaps nothing is made up.
LONGEST_GAP_S = 0.2


def stretch_means(traces: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Mean over samples `starts` to before `stops` of each trace, float64 (traces, ...).

    `traces`: float (traces, samples), NaN where a sample is missing. `starts`, `stops`: int (...). A stretch without
    samples, or that reaches outside of the trace, is NaN.
    """
    n_samples = traces.shape[1]
    inside = (starts >= 0) & (stops <= n_samples) & (starts < stops)
    first, last = np.where(inside, starts, 0), np.where(inside, stops, 0)
    there = ~np.isnan(traces)
    total = _between(np.where(there, traces, 0).astype(float), first, last)
    n = np.broadcast_to(last - first, total.shape) if there.all() else _between(there.astype(np.int64), first, last)
    return np.divide(total, n, out=np.full(total.shape, np.nan), where=n > 0)


def mean_in_bins(timestamps_s: np.ndarray, trace: np.ndarray, edges_s: np.ndarray) -> np.ndarray:
    """Mean of the samples in each bin, float64 (windows, bins).

    `timestamps_s`, `trace`: (samples,), NaN where a sample is missing. `edges_s`: (windows, bins + 1); a bin holds the
    samples from its first edge on and before its second. A bin without a sample takes the trace at its centre, drawn
    straight between the samples around it where they are at most `LONGEST_GAP_S` apart, and else
    NaN; a bin with an edge that is NaN is NaN.
    """
    there = np.isfinite(trace) & np.isfinite(timestamps_s)
    order = np.argsort(timestamps_s[there], kind="stable")
    times, samples = timestamps_s[there][order], np.asarray(trace, float)[there][order]
    places = np.searchsorted(times, edges_s)
    means = stretch_means(samples[None], places[:, :-1], places[:, 1:])[0]
    means[np.isnan(edges_s[:, :-1] + edges_s[:, 1:])] = np.nan
    empty = places[:, :-1] == places[:, 1:]
    if empty.any() and len(times) > 1:
        centres = ((edges_s[:, :-1] + edges_s[:, 1:]) / 2)[empty]
        after = np.searchsorted(times, centres)
        between = (after > 0) & (after < len(times))
        gap = times[np.minimum(after, len(times) - 1)] - times[np.maximum(after - 1, 0)]
        drawn = np.interp(centres, times, samples)
        means[empty] = np.where(between & (gap <= LONGEST_GAP_S), drawn, np.nan)
    return means


def _between(values: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Sums (traces, ...) over samples `first` to before `last`."""
    sums = np.zeros((len(values), values.shape[1] + 1), values.dtype)
    np.cumsum(values, axis=1, out=sums[:, 1:])
    return sums[:, last] - sums[:, first]
