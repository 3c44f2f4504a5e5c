"""Recordings of images packaged as mouse-vision's files are (`*_visual_data_with_reliabilities.pkl`).

Comes in: a `Recording` of images of one or several animals, resolved in time as that of Neuropixels or not as that of
two-photon; simulated, or of sessions that `read_sessions` merged. Goes out: the pickle that `allen_packaged.py`
describes and converts, written operation by operation: (trials, frame_id[, time_relative_to_stimulus_onset], units)
float64, NaN where an animal has no such repeat, mouse-vision's names for the levels of `units`, and the split-half
reliability of each unit, per bin (`splithalf_r_mean`, `splithalf_r_std`) or once (`reliability_mean`,
`reliability_std`). Layers and positions have no place in it.

Simulated spikes of a presentation fall anywhere in its 25 bins of 10 ms, so that bins share their rate.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from neural_data.allen_packaged import REPEATS, STIMULI, TIME, UNITS
from neural_data.allen_writer import unit_ids
from neural_data.pickle_writer import Call, pickle_parts, streamed_array
from neural_data.pickled_xarray_writer import data_array
from neural_data.recording import Recording
from neural_data.reliability import split_half
from neural_data.tables import NEURON_COLUMNS
from neural_data.whole_file import require_absent, whole_file

BINS, BIN_MS = 25, 10.0
HALVINGS = 900  # as in mouse-vision
FIRST_NUMBER = {True: 950_000_000, False: 517_000_000}  # of units, and of cells
SELECTIVITY_STEPS = 1000


def write_packaged(recording: Recording, path: str | Path, halvings: int = HALVINGS) -> Path:
    """Writes the file, which is whole or absent, and returns its path.

    `halvings`: random ones that reliability is the mean over. Animals are numbered if their names are no numbers; what
    else the neuron table has, such as `run_pval_ns`, becomes a level of `units`. Raises ValueError where the file
    exists, or for stimuli that are not grey images.
    """
    path = Path(path)
    require_absent(path)  # before the halvings, which take long
    if recording.video or len(recording.stimuli.shape) != 3:
        raise ValueError(f"{recording.name}: stimuli have shape {recording.stimuli.shape}, expected grey images")
    package = {"stimuli": np.asarray(recording.stimuli[:]), "neural_data": _neural_data(recording, halvings)}
    with whole_file(path) as unfinished, unfinished.open("wb") as file:
        file.writelines(pickle_parts(package))
    return path


def in_bins(recording: Recording, rng: np.random.Generator) -> Recording:
    """Spike counts (trials, neurons) of 250-ms presentations, in bins of 10 ms: spikes/s (trials, neurons, time)."""
    binned = np.empty((*recording.responses.shape, BINS), np.float32)
    for trial, into in enumerate(binned):
        counts = np.asarray(recording.responses[trial])
        missing = np.isnan(counts)
        into[:] = rng.multinomial(np.where(missing, 0, counts).astype(np.int64), np.full(BINS, 1 / BINS))
        into *= 1000 / BIN_MS
        into[missing] = np.nan
    return dataclasses.replace(recording, responses=binned, sampling_rate_hz=1000 / BIN_MS)


def _neural_data(recording: Recording, halvings: int) -> Call:
    n_repeats = int(recording.trials["repeat"].max()) + 1
    n_bins = recording.responses.shape[2:]
    shape = (n_repeats, len(recording.stimuli), *n_bins, len(recording.neurons))
    levels, extra = _levels(recording), {}
    mean, sd = _reliability(recording, halvings)
    labels = {REPEATS: np.arange(n_repeats) + 1, STIMULI: np.arange(len(recording.stimuli))}
    if recording.dynamic:
        bin_s = 1 / recording.sampling_rate_hz
        labels[TIME] = recording.response_start_ms / 1000 + bin_s * (np.arange(*n_bins) + 0.5)
        extra = {"splithalf_r_mean": ((TIME, UNITS), mean), "splithalf_r_std": ((TIME, UNITS), sd)}
    else:
        levels |= {"reliability_mean": mean[0], "reliability_std": sd[0]}
    values = streamed_array(shape, np.dtype(float), _repeat_by_repeat(recording, shape))
    return data_array((*labels, UNITS), values, labels, levels, extra)


def _repeat_by_repeat(recording: Recording, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Responses of one repeat after the other, (stimuli[, time], units)."""
    repeat, stimulus = (recording.trials[name].to_numpy() for name in ("repeat", "stimulus"))
    for number in range(shape[0]):
        values = np.full(shape[1:], np.nan)
        for row in np.flatnonzero(repeat == number):
            # A trial of one animal leaves what another has at the same place.
            response = np.asarray(recording.responses[row]).T
            there = ~np.isnan(response)
            values[stimulus[row]][there] = response[there]
        yield values


def _levels(recording: Recording) -> dict[str, np.ndarray]:
    """The levels of the index of units, in mouse-vision's names."""
    neurons, animal = recording.neurons, recording.neurons["animal"]
    numbered = animal.str.fullmatch(r"[0-9]{1,18}").all()
    specimen = animal.to_numpy().astype(np.int64) if numbered else animal.map(recording.animals.index).to_numpy() + 1
    levels = {
        "unit_id" if recording.dynamic else "cell_specimen_id": unit_ids(neurons, FIRST_NUMBER[recording.dynamic]),
        "specimen_id": specimen.astype(np.int64),
        "visual_area": neurons["area"].to_numpy(object),
        f"image_sel{'ectivity' if recording.dynamic else ''}_ns": _selectivity(recording),
    }
    return levels | {
        name: _level(neurons[name]) for name in neurons if name not in NEURON_COLUMNS and name not in levels
    }


def _level(column: pd.Series) -> np.ndarray:
    if column.dtype.kind == "f":
        return column.to_numpy(float)
    return column.to_numpy(np.int64) if column.dtype.kind in "iu" else column.to_numpy(object)


def _selectivity(recording: Recording) -> np.ndarray:
    """1 - 2 times the mean, over 1000 thresholds from the least to the largest mean response, of the share of images
    above it (allensdk/brain_observatory/ecephys/stimulus_analysis/natural_scenes.py); float64 (units,)."""
    selectivity = np.full(len(recording.neurons), np.nan)
    for animal in recording.animals:
        seen = recording.repeats(animal)
        responses = seen.responses.mean(axis=3) if recording.dynamic else seen.responses
        mean = np.nanmean(responses, axis=0)
        low, high = mean.min(axis=0), mean.max(axis=0)
        share = np.zeros(mean.shape[1])
        for step in range(SELECTIVITY_STEPS):
            share += (mean > low + step * (high - low) / SELECTIVITY_STEPS).mean(axis=0)
        selectivity[seen.neurons] = 1 - 2 * share / SELECTIVITY_STEPS
    return selectivity


def _reliability(recording: Recording, halvings: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over the halvings, float64 (bins, units)."""
    bins = recording.responses.shape[2] if recording.dynamic else 1
    mean, sd = np.full((2, bins, len(recording.neurons)), np.nan)
    for animal in recording.animals:
        seen = recording.repeats(animal, min_repeats=2)
        # All bins of all units at once: the halves of each halving are made only once.
        found = split_half(seen.responses.reshape(*seen.responses.shape[:2], -1), halvings)
        for values, of_animal in ((mean, found.mean), (sd, found.sd)):
            values[:, seen.neurons] = of_animal.reshape(-1, bins).T
    return mean, sd
