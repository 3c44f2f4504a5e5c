"""Devices of an experanto folder that map times to values: sequences, labelled intervals of time, and spikes.

Comes in: a folder with `meta.yml`. Goes out: `Sequence`, `TimeIntervals` or `Spikes`. All answer `at(times_s)` with the
values at all times that were asked for and a mask: values (times, ...) are NaN (False) where the mask bool (times,) is.
Of the format's two readers (sensorium-competition/experanto) branch `main` gives `values[mask]` and branch
`foundation_model` that and `mask`; what is NaN in the file stays NaN here, where theirs may put the mean of a query.

Times are seconds on the recording's one clock, float64, since clocks may count from 1970. Files are opened, as memory
maps, when values are asked for: a device is small and can be handed to another process.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter1d

from neural_data.experanto_meta import Meta, file_inside
from neural_data.trial_files import npy_file

INTERPOLATIONS = ("nearest", "linear")
# A time that misses a sample by no more than this many steps of the clock's own float64 is a time of that sample.
CLOCK_STEPS = 4
# How much longer the samples may last than the time that they are said to take: rates in files are rounded.
RATE_TOLERANCE = 0.01

Sampled = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Sequence:
    """Signals on a regular grid: row r of (n_timestamps, n_signals) is at `start_s` + r / `sampling_rate_hz`.

    `phase_shifts_s`: float64 (n_signals,), how much later than that each signal was sampled (two-photon microscopes
    scan), or None. `signal_names`: text, () where the file does not say.
    """

    folder: Path
    sampling_rate_hz: float
    start_s: float
    end_s: float
    shape: tuple[int, int]
    dtype: np.dtype | None = None
    phase_shifts_s: np.ndarray | None = None
    signal_names: tuple[str, ...] = ()

    @property
    def interval_s(self) -> tuple[float, float]:
        """First and last time that all signals have."""
        if self.phase_shifts_s is None:
            return self.start_s, self.end_s
        return self.start_s + self.phase_shifts_s.max(), self.end_s + self.phase_shifts_s.min()

    def at(self, times_s: np.ndarray, interpolation: str = "nearest") -> Sampled:
        """Values (times, n_signals) of the file's dtype, float64 for integers and for "linear".

        "nearest", as the format calls it, is the last sample at or before the time; "linear" blends it with the next.
        Times are valid within `interval_s`, ends included, where there are the samples.
        """
        times, data, valid = np.asarray(times_s, np.float64), self.data(), self.valid(times_s, interpolation)
        position = self._position(times[valid, None])
        row = np.floor(position).astype(np.int64)
        keep = np.result_type(data.dtype, np.float32) if interpolation == "nearest" else np.float64
        values = np.full((len(times), self.shape[1]), np.nan, keep)
        values[valid] = _take(data, row)
        if interpolation == "linear":
            upper, fraction = _take(data, np.minimum(row + 1, self.shape[0] - 1)), position - row
            # A time of the grid takes nothing of the next sample, not even its NaN.
            values[valid] = np.where(fraction > 0, (1 - fraction) * values[valid] + fraction * upper, values[valid])
        return values, valid

    def valid(self, times_s: np.ndarray, interpolation: str = "nearest") -> np.ndarray:
        """bool (times,): the mask that `at` would give; nothing is read."""
        if interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation: found {interpolation!r}, expected {' or '.join(INTERPOLATIONS)}")
        times, (start, end) = np.asarray(times_s, np.float64), self.interval_s
        earliest, latest = self._extremes(times)
        needed = np.ceil(latest) if interpolation == "linear" else np.floor(latest)
        return (times >= start) & (times <= end) & (earliest >= 0) & (needed < self.shape[0])

    def _extremes(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The first and the last place on the grid that any signal has at each of the times."""
        if self.phase_shifts_s is None:
            return self._position(times), self._position(times)
        return self._position(times, self.phase_shifts_s.max()), self._position(times, self.phase_shifts_s.min())

    def _position(self, times: np.ndarray, shifts_s: np.ndarray | float | None = None) -> np.ndarray:
        """Place on the grid in samples, for each signal unless shifts are given; what only rounding keeps off the grid
        is on it."""
        own = 0.0 if self.phase_shifts_s is None else self.phase_shifts_s
        position = (times - (own if shifts_s is None else shifts_s) - self.start_s) * self.sampling_rate_hz
        nearest = np.round(position)
        resolution = CLOCK_STEPS * np.spacing(np.abs(times)) * self.sampling_rate_hz
        return np.where(np.abs(position - nearest) <= resolution, nearest, position)

    def covers(self, start_s: np.ndarray, stop_s: np.ndarray) -> np.ndarray:
        """bool (windows,): whether all signals were recorded from start to stop; the last sample lasts like others."""
        start, end = self.interval_s
        inside = (start <= start_s) & (stop_s <= end + 1 / self.sampling_rate_hz)
        return inside & (self._extremes(stop_s)[1] <= self.shape[0])

    def windows(self, start_s: np.ndarray, stop_s: np.ndarray) -> np.ndarray:
        """float64 (windows, n_signals): averages from start to stop; a sample counts for the time it shares with them.

        NaN samples are left out; NaN where there is no other, or the window lies partly outside of the recording.
        """
        data, averages = self.data(), np.full((len(start_s), self.shape[1]), np.nan)
        for at in np.flatnonzero(self.covers(start_s, stop_s)):
            first, last = self._position(start_s[at]), self._position(stop_s[at])
            row = int(np.floor(first.min()))
            block = np.asarray(data[row : int(np.ceil(last.max()))], np.float64)
            rows = np.arange(row, row + len(block))[:, None]
            shared = np.maximum(np.minimum(last, rows + 1) - np.maximum(first, rows), 0.0)
            weight = np.where(np.isnan(block), 0.0, shared)
            total = weight.sum(axis=0)
            np.divide((weight * np.nan_to_num(block)).sum(axis=0), total, out=averages[at], where=total > 0)
        return averages

    def data(self) -> np.ndarray:
        """The whole sequence (n_timestamps, n_signals) as a memory map."""
        if self.dtype is None:
            return npy_file(self.folder / "data.npy")
        return np.memmap(self.folder / "data.mem", self.dtype, "r", shape=self.shape)


@dataclass(frozen=True, eq=False)
class TimeIntervals:
    """Labels that hold in intervals [start, end) of time; `intervals`: label -> float64 (k, 2)."""

    start_s: float
    end_s: float
    intervals: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def interval_s(self) -> tuple[float, float]:
        return self.start_s, self.end_s

    def at(self, times_s: np.ndarray) -> Sampled:
        """Values bool (times, labels): whether the label holds. Intervals that end before they start hold nothing."""
        times = np.asarray(times_s, np.float64)
        valid = (times >= self.start_s) & (times <= self.end_s)
        values = np.zeros((len(times), len(self.intervals)), bool)
        for column, bounds in enumerate(self.intervals.values()):
            begin, end = np.sort(bounds[bounds[:, 0] < bounds[:, 1]].T, axis=1)
            # More have begun than have ended: that is also right where intervals overlap.
            values[:, column] = np.searchsorted(begin, times, "right") > np.searchsorted(end, times, "right")
        return values & valid[:, None], valid


@dataclass(frozen=True, eq=False)
class Spikes:
    """Spike times, sorted, neuron after neuron: those of neuron i are `indices[i]` to `indices[i + 1]`."""

    folder: Path
    start_s: float
    end_s: float
    indices: np.ndarray
    dtype: np.dtype | None = None

    @property
    def interval_s(self) -> tuple[float, float]:
        return self.start_s, self.end_s

    @property
    def shape(self) -> tuple[None, int]:
        """As a sequence's: no grid, neurons."""
        return None, len(self.indices) - 1

    def at(
        self, times_s: np.ndarray, window_s: float = 0.3, align: str = "center", smoothing_queries: float = 0.0
    ) -> Sampled:
        """Counts float64 (times, neurons) in [t, t + window) for "left", [t - window, t) for "right", or around t.

        `smoothing_queries`: standard deviation of a Gaussian along the valid times, in queries.
        """
        before = {"left": 0.0, "center": window_s / 2, "right": window_s}
        if align not in before:
            raise ValueError(f"align: found {align!r}, expected {', '.join(before)}")
        times = np.asarray(times_s, np.float64)
        valid = (times >= self.start_s) & (times <= self.end_s)
        begin = times[valid] - before[align]
        counts = self._counts(begin, times[valid] + window_s / 2 if align == "center" else begin + window_s)
        if smoothing_queries > 0 and len(counts) > 1:
            counts = gaussian_filter1d(counts, smoothing_queries, axis=0)
        values = np.full((len(times), self.shape[1]), np.nan)
        values[valid] = counts
        return values, valid

    def covers(self, start_s: np.ndarray, stop_s: np.ndarray) -> np.ndarray:
        """bool (windows,): whether spikes were recorded from start to stop."""
        return (self.start_s <= start_s) & (stop_s <= self.end_s)

    def windows(self, start_s: np.ndarray, stop_s: np.ndarray) -> np.ndarray:
        """float64 (windows, neurons): spikes from start to stop; NaN where not all of that was recorded."""
        return np.where(self.covers(start_s, stop_s)[:, None], self._counts(start_s, stop_s), np.nan)

    def _counts(self, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Spikes in [begin, end), float64 (windows, neurons)."""
        spikes = self.data()
        counts = np.empty((len(begin), self.shape[1]))
        for neuron, (first, last) in enumerate(zip(self.indices[:-1], self.indices[1:], strict=True)):
            own = spikes[first:last]
            counts[:, neuron] = np.searchsorted(own, end) - np.searchsorted(own, begin)
        return counts

    def data(self) -> np.ndarray:
        """All spike times as a memory map."""
        if self.dtype is None:
            return npy_file(self.folder / "spikes.npy")
        # A file of no bytes cannot be mapped.
        n = int(self.indices[-1])
        return np.memmap(self.folder / "spikes.mem", self.dtype, "r", shape=(n,)) if n else np.empty(0, self.dtype)


def open_sequence(folder: Path, meta: Meta) -> Sequence:
    """Raises FileNotFoundError, or ValueError where the file does not hold what `meta` says."""
    rate, (start, end) = meta.number("sampling_rate"), _interval(meta)
    if not rate > 0:
        raise meta.wrong("sampling_rate", "samples per second, more than 0")
    signals = meta.whole("n_signals")
    if meta.flag("is_mem_mapped", not (folder / "data.npy").exists()):
        shape, dtype = (meta.whole("n_timestamps"), signals), _dtype(meta)
        _check_size(folder / "data.mem", shape, dtype, "n_timestamps x n_signals")
    else:
        data, dtype = npy_file(folder / "data.npy"), None
        shape, expected = data.shape, f"numbers of shape (time, n_signals = {signals})"
        if len(shape) != 2 or shape[1] != signals or data.dtype.kind not in "iuf":
            raise ValueError(f"{folder / 'data.npy'}: found {data.dtype} of shape {shape}, expected {expected}")
    lasts, said = (shape[0] - 1) / rate, end - start
    if abs(lasts - said) > RATE_TOLERANCE * said + 2 / rate:
        expected = f"{shape[0]} samples that last {said:g} s, from start_time to end_time; these last {lasts:g} s"
        raise meta.wrong("sampling_rate", expected)
    shifts = _phase_shifts(folder, signals) if meta.flag("phase_shift_per_signal", False) else None
    names = meta.texts("signal_names")
    if names and len(names) != signals:
        raise meta.wrong("signal_names", f"{signals} names, one per signal")
    return Sequence(folder, rate, start, end, shape, dtype, shifts, names)


def open_time_intervals(folder: Path, meta: Meta) -> TimeIntervals:
    """Raises FileNotFoundError, or ValueError for a label whose file is no (k, 2) array of times."""
    intervals = {}
    for label, name in meta.names("labels").items():
        path = file_inside(folder, name, meta)
        bounds = np.asarray(npy_file(path), np.float64)
        if bounds.size and (bounds.ndim != 2 or bounds.shape[1] != 2):
            raise ValueError(f"{path}: found shape {bounds.shape}, expected (intervals, 2): start and end in seconds")
        intervals[label] = bounds.reshape(-1, 2)
    return TimeIntervals(*_interval(meta), intervals)


def open_spikes(folder: Path, meta: Meta) -> Spikes:
    """Raises FileNotFoundError, or ValueError where the offsets do not fit the file."""
    expected = "offsets of each neuron's spikes and their end, from 0, none smaller than the one before"
    indices = np.array(meta.wholes("spike_indices", expected), np.int64)
    if len(indices) < 2 or indices[0] != 0 or (np.diff(indices) < 0).any():
        raise meta.wrong("spike_indices", expected)
    if meta.whole("n_signals", len(indices) - 1) != len(indices) - 1:
        raise meta.wrong("n_signals", f"{len(indices) - 1}, one less than spike_indices")
    dtype = None
    if meta.flag("is_mem_mapped", False):
        dtype = _dtype(meta, "float64")
        _check_size(folder / "spikes.mem", (int(indices[-1]),), dtype, "spikes")
    elif (found := npy_file(folder / "spikes.npy").shape) != (int(indices[-1]),):
        raise ValueError(f"{folder / 'spikes.npy'}: found shape {found}, expected ({indices[-1]},) by spike_indices")
    return Spikes(folder, *_interval(meta), indices, dtype)


def _take(data: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Rows of all signals, or for each signal its own."""
    return np.take_along_axis(data, row, axis=0) if row.shape[1] > 1 else data[row[:, 0]]


def _interval(meta: Meta) -> tuple[float, float]:
    start, end = meta.number("start_time"), meta.number("end_time")
    if not start <= end < np.inf:
        raise meta.wrong("end_time", f"seconds on the clock of start_time, not before {start:g}")
    return start, end


def _dtype(meta: Meta, default: str | None = None) -> np.dtype:
    expected = "a type of numbers such as float32"
    try:
        dtype = np.dtype(meta.text("dtype", default))
    except TypeError:
        raise meta.wrong("dtype", expected) from None
    if dtype.kind not in "iuf":
        raise meta.wrong("dtype", expected)
    return dtype


def _check_size(path: Path, shape: tuple[int, ...], dtype: np.dtype, fields: str) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    found, expected = path.stat().st_size, int(np.prod(shape)) * dtype.itemsize
    if found != expected:
        sizes = " x ".join(map(str, shape))
        raise ValueError(f"{path}: found {found} bytes, expected {expected} ({fields} = {sizes} of {dtype})")


def _phase_shifts(folder: Path, signals: int) -> np.ndarray:
    path = folder / "meta" / "phase_shifts.npy"
    shifts = np.asarray(npy_file(path), np.float64).reshape(-1)
    if len(shifts) != signals or not np.isfinite(shifts).all():
        raise ValueError(f"{path}: found {len(shifts)} values, expected {signals} seconds, one per signal")
    return shifts
