"""Which units and animals are compared with models, and over which part of their responses.

Comes in: a `Recording`, resolved in time or not, of one or several animals. Goes out: a static `Recording` of the units
that are reliable, do not follow running, and belong to animals with enough of them; and a table of all others with
the reason for each.

Source: the selection of mouse-vision (Nayebi, Kong et al., PLOS Comput Biol 19(10):e1011506, 2023), in each area apart:
1. units whose split-half reliability reaches 0.5 in some bin (two-photon: 0.75), and whose running p-value is above
   0.05 or unknown;
2. animals whose median reliability over these units reaches 0.3 in some bin (two-photon: all);
3. animals with as many such units as the 75th percentile over the animals that are left, rounded up.
"""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from neural_data.recording import BLOCK_BYTES, Recording
from neural_data.reliability import split_half_reliability
from neural_data.running_modulation import NEUROPIXELS_COLUMN, TWO_PHOTON_COLUMN
from neural_data.time_window import mean_over, median_reliability, named_window, reliable_window

VISUAL_AREAS = ("VISp", "VISl", "VISrl", "VISal", "VISpm", "VISam")
# What the sources call the reliability of a unit: Neuropixels, two-photon.
RELIABILITY_IN_TIME, RELIABILITY_COLUMN = "splithalf_r_mean", "reliability_mean"


@dataclass(frozen=True)
class SelectionRule:
    """The thresholds above; `NEUROPIXELS` and `TWO_PHOTON` are those of mouse-vision.

    `min_median`: None keeps animals whatever their median is. `min_units`: "75th percentile", "median", or a number.
    """

    min_reliability: float = 0.5
    min_run_p: float = 0.05
    min_median: float | None = 0.3
    min_units: str | int = "75th percentile"


NEUROPIXELS = SelectionRule()
TWO_PHOTON = SelectionRule(min_reliability=0.75, min_median=None)


def select_units(
    recording: Recording,
    rule: SelectionRule = NEUROPIXELS,
    window_ms: tuple[float, float] | None = None,
    areas: tuple[str, ...] | None = VISUAL_AREAS,
    reliability: np.ndarray | None = None,
) -> tuple[Recording, pd.DataFrame]:
    """The static recording of the selected units, and the excluded ones.

    Responses are averaged over `window_ms` (bins whose centres it holds), or else, in each area of each animal, over
    the longest run of bins whose median reliability is `rule.min_median`; `neurons` gets `window_start_ms` and
    `window_stop_ms`. `areas`: None for all. `reliability`: float (neurons,) or (time, neurons); by default the
    recording's own, or, where it has none, the split-half reliability of each bin over 100 halvings.
    The table has `animal`, `area`, `neuron_id`, `reason`. Raises ValueError where no unit is left, and for settings
    that do not fit the recording.
    """
    if recording.video:
        raise ValueError(f"{recording.name}: stimuli are videos, and a mean over their frames is no response to one")
    reliability = _reliability(recording, reliability)
    neurons = recording.neurons
    reason = unit_reasons(reliability, _run_p(neurons), rule)
    if areas is not None:
        reason[~neurons["area"].isin(areas).to_numpy()] = f"area is none of {', '.join(areas)}"
    for area in neurons["area"].unique():
        _exclude_animals(reason, (neurons["area"] == area).to_numpy(), neurons["animal"], reliability, rule)
    kept = np.flatnonzero(reason == "")
    if not len(kept):
        common = pd.Series(reason).value_counts()
        raise ValueError(f"{recording.name}: no unit is left of {len(neurons)}; most often: {common.index[0]}")
    excluded = neurons.loc[reason != "", ["animal", "area", "neuron_id"]].assign(reason=reason[reason != ""])
    windows = _windows(recording, kept, reliability, rule, window_ms)
    return _averaged(recording, kept, windows), excluded.reset_index(drop=True)


def unit_reasons(reliability: np.ndarray, run_p: np.ndarray, rule: SelectionRule) -> np.ndarray:
    """Why a unit is left out by step 1, text (neurons,), "" where it is kept.

    `reliability`: float (time, neurons), NaN where undefined; `run_p`: float (neurons,), NaN where unknown.
    """
    best = np.fmax.reduce(reliability, axis=0)
    reason = np.full(len(best), "", object)
    reason[run_p <= rule.min_run_p] = f"running: p is at most {rule.min_run_p:g}"
    reason[~(best >= rule.min_reliability)] = f"reliability is below {rule.min_reliability:g} in all bins"
    return reason


def enough_units(counts: np.ndarray, min_units: str | int) -> int:
    """How many units an animal must have (step 3), given the counts (animals,) of those that are left."""
    if not isinstance(min_units, str):
        return min_units
    percentiles = {"75th percentile": 75, "median": 50}
    if min_units not in percentiles:
        raise ValueError(f"min_units: found {min_units!r}, expected {', '.join(map(repr, percentiles))} or a number")
    return math.ceil(np.percentile(counts, percentiles[min_units]))


def _exclude_animals(
    reason: np.ndarray, in_area: np.ndarray, animal: pd.Series, reliability: np.ndarray, rule: SelectionRule
) -> None:
    """Steps 2 and 3 in one area: writes a reason for the units of each animal that is left out."""
    units = {name: np.flatnonzero(in_area & (reason == "") & (animal == name)) for name in animal[in_area].unique()}
    if rule.min_median is not None:
        for name, rows in list(units.items()):
            median = median_reliability(reliability[:, rows])
            if not (median >= rule.min_median).any():
                reason[rows] = f"the animal's median reliability is below {rule.min_median:g} in all bins"
                del units[name]
    if not units:
        return
    enough = enough_units(np.array([len(rows) for rows in units.values()]), rule.min_units)
    for rows in units.values():
        if len(rows) < enough:
            reason[rows] = f"the animal has {len(rows)} such units in the area, fewer than {enough}"


def _reliability(recording: Recording, given: np.ndarray | None) -> np.ndarray:
    """float (time, neurons)."""
    n = len(recording.neurons)
    bins = recording.responses.shape[2] if recording.dynamic else 1
    if given is None:
        given = recording.statistics.get(RELIABILITY_IN_TIME)
    if given is None and not recording.dynamic and RELIABILITY_COLUMN in recording.neurons:
        given = recording.neurons[RELIABILITY_COLUMN].to_numpy(float)
    if given is None:
        return _split_half(recording)
    reliability = np.atleast_2d(np.asarray(given, float))
    if reliability.shape not in ((bins, n), (1, n)):
        raise ValueError(
            f"{recording.name}: reliability has shape {reliability.shape}, expected (time, neurons) = {(bins, n)}"
        )
    return np.broadcast_to(reliability, (bins, n))


def _split_half(recording: Recording) -> np.ndarray:
    """Split-half reliability of each bin, float64 (time, neurons), one animal after the other."""
    bins = recording.responses.shape[2] if recording.dynamic else 1
    reliability = np.full((bins, len(recording.neurons)), np.nan)
    for animal in recording.animals:
        seen = recording.repeats(animal, min_repeats=2)
        responses = seen.responses if recording.dynamic else seen.responses[..., None]
        for time in range(bins):
            reliability[time, seen.neurons] = split_half_reliability(responses[..., time])
    return reliability


def _run_p(neurons: pd.DataFrame) -> np.ndarray:
    column = next((name for name in (NEUROPIXELS_COLUMN, TWO_PHOTON_COLUMN) if name in neurons), None)
    return np.full(len(neurons), np.nan) if column is None else neurons[column].to_numpy(float)


def _windows(
    recording: Recording,
    kept: np.ndarray,
    reliability: np.ndarray,
    rule: SelectionRule,
    window_ms: tuple[float, float] | None,
) -> dict[tuple[int, int], np.ndarray]:
    """Which of the kept units (places in `kept`) are averaged over which bins, from the first to before the last."""
    everyone = np.arange(len(kept))
    if not recording.dynamic:
        if window_ms is not None:
            raise ValueError(f"{recording.name}: responses have no time axis, window_ms must be left out")
        return {(0, 1): everyone}
    bins = recording.responses.shape[2]
    if window_ms is not None:
        window = named_window(window_ms, bins, 1000 / recording.sampling_rate_hz, recording.response_start_ms)
        return {(window.start, window.stop): everyone}
    if rule.min_median is None:
        raise ValueError(f"{recording.name}: responses are resolved in time; name window_ms, or give rule.min_median")
    windows: dict[tuple[int, int], list[int]] = {}
    of_group = recording.neurons.iloc[kept].reset_index(drop=True).groupby(["animal", "area"], sort=False).indices
    for places in of_group.values():
        window = reliable_window(reliability[:, kept[places]], rule.min_median)
        windows.setdefault((window.start, window.stop), []).extend(places)
    return {window: np.array(places) for window, places in windows.items()}


def _averaged(recording: Recording, kept: np.ndarray, windows: dict[tuple[int, int], np.ndarray]) -> Recording:
    """The static recording of the kept units; read in blocks of trials."""
    stored, n_trials = recording.responses, len(recording.trials)
    responses = np.empty((n_trials, len(kept)), np.float64 if recording.dynamic else stored.dtype)
    step = max(1, BLOCK_BYTES // (8 * int(np.prod(stored.shape[1:]))))
    for first in range(0, n_trials, step):
        rows = slice(first, first + step)
        block = np.asarray(stored[rows])
        for (start, stop), places in windows.items():
            part = block[:, kept[places]]
            responses[rows, places] = mean_over(part, slice(start, stop)) if recording.dynamic else part
    neurons = recording.neurons.iloc[kept].reset_index(drop=True)
    changed = {"responses": responses, "neurons": neurons, "statistics": {}}
    if recording.dynamic:
        bin_ms, start_ms = 1000 / recording.sampling_rate_hz, recording.response_start_ms
        for (start, stop), places in windows.items():
            neurons.loc[places, "window_start_ms"] = start_ms + start * bin_ms
            neurons.loc[places, "window_stop_ms"] = start_ms + stop * bin_ms
        changed |= {"sampling_rate_hz": None, "response_start_ms": float(neurons["window_start_ms"].min())}
        changed["trials"] = recording.trials.drop(columns="frames", errors="ignore")
        for part in ("behavior", "pupil_center"):
            values = getattr(recording, part)
            if values is not None and len(values.shape) == 3:
                changed[part] = mean_over(np.asarray(values[:]), slice(None))
    left_out = f"{len(recording.neurons) - len(kept)} of {len(recording.neurons)} units left out by the selection"
    return dataclasses.replace(recording, **changed, notes=(*recording.notes, left_out))
