"""A recording written as a folder of `.npy` files, in the layout that `arrays.py` reads and describes.

Comes in: a `Recording`. Goes out: a folder. Stimuli and trials are read and written block by block, so that neither
has to fit in memory.
"""

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neural_data.array_checks import scaled
from neural_data.array_layout import EXTRA, NEURONS, TRIAL_NAMES, TRIALS
from neural_data.recording import Recording
from neural_data.tables import NEURON_COLUMNS, POSITION_COLUMNS
from neural_data.whole_folder import require_free, whole_folder

PARTS = ("responses", "behavior", "pupil_center")
# Read and written at a time; large, as files in MATLAB's order are decompressed as a whole for every block.
BLOCK_BYTES = 2**28
SPARE_BYTES = 2**26


def write_arrays(recording: Recording, folder: str | Path) -> Path:
    """Writes the folder form without prefixes, such that `read_arrays` gives the recording back.

    Trials come back ordered by repeat and stimulus, with repeats numbered from 0, without those that have no response
    at all unless they are withheld; name and source become those of the folder. Nested statistics come back flat, their
    names joined by dots. Written beside the folder first and renamed, so that a folder of that name is always whole.
    Raises ValueError where the layout cannot hold the recording, the disk is too full, or the folder exists and is not
    empty.
    """
    folder = Path(folder)
    require_free(folder)
    numbers, repeat = np.unique(recording.trials["repeat"].to_numpy(), return_inverse=True)
    grid = (len(numbers), len(recording.stimuli))
    place = repeat * grid[1] + recording.trials["stimulus"].to_numpy()
    small = dict(_small_arrays(recording, place, grid))
    stimuli = scaled(f"{recording.name}: stimuli", recording.stimuli)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _check_space(recording, stimuli, grid, folder.parent)
    with whole_folder(folder) as unfinished:
        for name, values in small.items():
            np.save(unfinished / f"{name}.npy", values, allow_pickle=False)
        _write_stimuli(stimuli, unfinished / f"{'videos' if recording.video else 'images'}.npy")
        for part in PARTS:
            if getattr(recording, part) is not None:
                _write_grid(recording, part, place, grid, unfinished / f"{part}.npy")
    return folder


def _small_arrays(recording: Recording, place: np.ndarray, grid: tuple[int, int]) -> Iterator[tuple[str, np.ndarray]]:
    """All arrays but stimuli, responses, behavior and pupil_center, by name."""
    for column, series in recording.neurons.items():
        values = _plain(recording, f"neurons column {column}", series)
        name = column if column in NEURON_COLUMNS else _named(recording, NEURONS, column)
        yield name, values.astype(float) if column in POSITION_COLUMNS else values
    for column in [column for column in recording.trials if column not in ("stimulus", "repeat", "frames")]:
        name = column if column in TRIAL_NAMES else _named(recording, TRIALS, column)
        yield name, _per_trial(recording, column, recording.trials[column], place, grid)
    if recording.dynamic:
        yield "frames", _per_trial(recording, "frames", pd.Series(recording.frames), place, grid)
    yield from _of_the_recording(recording)


def _of_the_recording(recording: Recording) -> Iterator[tuple[str, np.ndarray]]:
    if recording.sampling_rate_hz is not None:
        yield "sampling_rate_hz", np.float64(recording.sampling_rate_hz)
    yield "response_start_ms", np.float64(recording.response_start_ms)
    for name in ("behavior_names", "notes"):
        if getattr(recording, name):
            yield name, np.array(getattr(recording, name), dtype=np.str_)
    for name, values in _flat(recording.statistics):
        yield _named(recording, EXTRA, name), _plain(recording, f"statistics {name}", values)


def _flat(statistics: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name in statistics:
        if isinstance(statistics[name], Mapping):
            yield from _flat(statistics[name], f"{above}{name}.")
        else:
            yield f"{above}{name}".replace("/", "."), statistics[name]


def _named(recording: Recording, start: str, name: Any) -> str:
    if not re.fullmatch(r"[^/\\\x00]+", str(name)):
        raise ValueError(f"{recording.name}: found the name {name!r}, expected one that a file can have")
    return f"{start}{name}"


def _plain(recording: Recording, what: str, values: Any) -> np.ndarray:
    """Numbers, truths or text as an array; text that is missing is ""."""
    if isinstance(values, pd.Series) and values.dtype.kind not in "biuf":
        values = values.astype(object).where(values.notna(), "")
        values = np.array([str(value) for value in values], dtype=np.str_)
    values = np.asarray(values)
    if values.dtype.kind not in "biufU":
        raise ValueError(f"{recording.name}: {what}: found {values.dtype}, expected numbers or text")
    return values


def _per_trial(
    recording: Recording, column: str, values: pd.Series, place: np.ndarray, grid: tuple[int, int]
) -> np.ndarray:
    """(stimuli,) where all repeats agree, else (repeats, stimuli); empty where there was no presentation.

    `frames` and `withheld` are always (repeats, stimuli), as they say where there was one.
    """
    values = _plain(recording, f"trials column {column}", values.reset_index(drop=True))
    empty = "" if values.dtype.kind == "U" else np.nan if values.dtype.kind == "f" else 0
    whole = np.full(grid, empty, dtype=values.dtype)
    whole.ravel()[place] = values
    stored = whole.ravel()[place]
    differs = np.flatnonzero((stored != values) & ~((stored != stored) & (values != values)))
    if len(differs):
        row = differs[0]
        raise ValueError(
            f"{recording.name}: trial {row} has {column} {values[row]!r}, expected {stored[row]!r} as in another trial "
            "of the same repeat and stimulus; write each animal into a folder of its own"
        )
    if column in ("frames", "withheld"):
        return whole
    per_stimulus = np.full(grid[1], empty, dtype=values.dtype)
    per_stimulus[place % grid[1]] = values
    kept = per_stimulus[place % grid[1]]
    same = ((kept == values) | ((kept != kept) & (values != values))).all()
    return per_stimulus if same else whole


def _check_space(recording: Recording, stimuli: Any, grid: tuple[int, int], folder: Path) -> None:
    parts = [getattr(recording, part) for part in PARTS if getattr(recording, part) is not None]
    shapes = [(*grid, *part.shape[1:]) for part in parts]
    items = sum(float(np.prod(shape)) * _float(part).itemsize for shape, part in zip(shapes, parts, strict=True))
    needed = items + float(np.prod(stimuli.shape)) * stimuli.dtype.itemsize + SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"{folder}: {free / 2**30:.1f} GB are free, {recording.name} needs {needed / 2**30:.1f} "
            f"as {grid[0]} repeats of {grid[1]} stimuli"
        )


def _float(array: Any) -> np.dtype:
    return np.result_type(np.float32, array.dtype)


def _write_stimuli(stimuli: Any, file: Path) -> None:
    stored = np.lib.format.open_memmap(file, mode="w+", dtype=stimuli.dtype, shape=tuple(stimuli.shape))
    for rows in _blocks(stimuli):
        stored[rows] = stimuli[rows]
    stored.flush()


def _blocks(array: Any) -> list[slice]:
    step = max(1, BLOCK_BYTES // (array.dtype.itemsize * int(np.prod(array.shape[1:]))))
    return [slice(first, first + step) for first in range(0, len(array), step)]


def _write_grid(recording: Recording, part: str, place: np.ndarray, grid: tuple[int, int], file: Path) -> None:
    """Fills (repeats, stimuli, ...) on disk, block by block of trials, NaN where there was no presentation."""
    array = getattr(recording, part)
    stored = np.lib.format.open_memmap(file, mode="w+", dtype=_float(array), shape=(*grid, *array.shape[1:]))
    for at in np.setdiff1d(np.arange(grid[0] * grid[1]), place):
        stored[divmod(int(at), grid[1])] = np.nan
    order, before = np.argsort(place, kind="stable"), -1
    for block in _blocks(array):
        rows = order[block]
        for row, values in zip(rows, np.asarray(array[rows], dtype=stored.dtype), strict=True):
            at = divmod(int(place[row]), grid[1])
            stored[at] = _joined(recording, part, int(row), stored[at], values) if place[row] == before else values
            before = place[row]
    stored.flush()


def _joined(recording: Recording, part: str, row: int, there: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Animals may each have a row of their own for the same presentation: such rows fill each other's gaps."""
    if (~np.isnan(there) & ~np.isnan(values)).any():
        what = "a neuron has two responses" if part == "responses" else f"{part} has two values"
        repeat = recording.trials["repeat"].iat[row]
        raise ValueError(f"{recording.name}: {what} to one repeat {repeat} of a stimulus")
    return np.where(np.isnan(there), values, there)
