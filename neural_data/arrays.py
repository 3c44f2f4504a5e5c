"""Recordings as plain arrays in one layout, in whichever file: `.npz`, a folder of `.npy`, `.mat`, HDF5, zarr.

Comes in: a path. Goes out: a `Recording`. The layout, of which all but stimuli and responses is optional:

    images      (stimuli, height, width) grey or (stimuli, height, width, 2 or 3) in colour; uint8, or numbers from 0 to
                255; floats of which none is above 1 are taken to reach from 0 to 1 and are multiplied by 255
    videos      instead of images: (stimuli, frames, height, width[, 2 or 3])
    responses   (repeats, stimuli, neurons), or (repeats, stimuli, neurons, time); of videos one sample per frame. NaN
                where a neuron has no response to a repeat, and after a trial's end
    sampling_rate_hz            a number; needed with videos or an axis of time
    response_start_ms           a number: when the first sample begins, ms after the onset of the stimulus; 0 if absent
    neuron_id, animal, area, layer      (neurons,) text
    x_um, y_um, z_um                    (neurons,) numbers, µm
    neurons_<name>                      (neurons,) a further column of the neuron table
    tier, stimulus_class, trial_id      text, such as "train"; each (stimuli,) or (repeats, stimuli)
    start_s, withheld, trials_<name>    likewise: seconds; true where responses exist but are not published; any column
    frames      likewise: valid samples in time, 0 where there was no such repeat. If absent, a trial lasts until the
                last sample at which any neuron has a response
    behavior, pupil_center      (repeats, stimuli, channels[, time]) and (repeats, stimuli, 2[, time]), of one animal
    behavior_names              (channels,) text
    extra_<name>                any array; goes to `Recording.statistics[<name>]`
    notes                       text, one per note
    truth_*                     passed over: the truth of a simulation

Without `neuron_id` neurons are numbered from 0; without `animal` all belong to one, named after the file. In a folder
the arrays of neurons may instead be columns of `neurons.csv`, further ones included, and notes lines of `notes.txt`.
A repeat of a stimulus that has no response of any neuron is padding and becomes no trial, unless it is withheld; with
`frames` (repeats, stimuli) these are believed and responses are not looked through.

Animals that saw different stimuli: every name carries the animal as a prefix (`m1_images`, `m1_responses`, `m1_area`,
...; no `animal`), except `sampling_rate_hz`, `response_start_ms`, `notes` and `extra_*`. Images that two animals share
are stored once. They are put together in memory, and behavior, pupil_center and columns of trials other than text
need a file per animal.

MATLAB: axes are those that MATLAB shows; vectors may be 1 x N or N x 1; text is a char matrix or a cell array of
character vectors; the arrays are variables, or the fields of the only struct. HDF5 and zarr: the arrays are at the root
or in the only group. HDF5 that `h5write` of MATLAB made has its axes the other way round and looks like any other: save
with `save -v7.3`. Files are opened again in each process, and large arrays (256 MB) stay in them; `.npz` and `.mat` up
to version 7 are read whole. From compressed files trials are slow to fetch: `write_arrays` makes a folder, once.

Nothing is unpickled: arrays of Python objects are refused.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neural_data.array_checks import GridShape, checked_group, number, texts
from neural_data.array_containers import NEURON_FILE, NamedArrays, load_arrays
from neural_data.array_layout import (
    EXTRA,
    NEURONS,
    NUMBERS,
    TRIAL_NAMES,
    TRIAL_TEXTS,
    TRIALS,
    by_animal,
    misspelt_columns,
)
from neural_data.arrays_writer import write_arrays
from neural_data.recording import Recording
from neural_data.stored_array import StoredArray, StoredRows, blocks
from neural_data.tables import NEURON_COLUMNS, neuron_table, trial_table

__all__ = ["read_arrays", "write_arrays"]


def read_arrays(path: str | Path) -> Recording:
    """The recording in a file or folder of the layout above.

    Trials are ordered by repeat, then stimulus. Large arrays stay on disk, except those of animals with prefixes.
    Raises FileNotFoundError, or ValueError naming the file, the array, what was found and what was expected.
    """
    path = Path(path)
    named = load_arrays(path)
    groups, whole = by_animal(path, named.arrays)
    _add_table(path, groups, named)
    parts = {animal: checked_group(_start(path, animal), group, named.matlab) for animal, group in groups.items()}
    known = {name: number(f"{path}: {name}", whole[name]) for name in NUMBERS if name in whole}
    _check_rate(path, groups, known, [size for _, size in parts.values()])
    stored = "" in parts
    fields = _one_animal(path, *parts[""]) if stored else _merged(path, parts)
    notes = [*(texts(f"{path}: notes", whole["notes"]).tolist() if "notes" in whole else []), *named.notes]
    statistics = {name.removeprefix(EXTRA): values for name, values in whole.items() if name.startswith(EXTRA)}
    try:
        return Recording(
            name=path.stem,
            source=path.name,
            notes=(*notes, *misspelt_columns(fields["neurons"].columns)),
            statistics=statistics,
            **known,
            **fields,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {str(error).removeprefix(f'{path.stem}: ')}") from None


def _start(path: Path, animal: str) -> str:
    return f"{path}: {animal}_" if animal else f"{path}: "


def _add_table(path: Path, groups: dict[str, dict[str, Any]], named: NamedArrays) -> None:
    """Columns of `neurons.csv` become arrays of the one group."""
    if named.table and "" not in groups:
        raise ValueError(
            f"{path / NEURON_FILE}: found beside arrays with prefixes, expected {', '.join(groups)}_area, ..."
        )
    for column, values in named.table.items():
        groups[""][column if column in NEURON_COLUMNS else f"{NEURONS}{column}"] = values


def _check_rate(path: Path, groups: Mapping, known: Mapping[str, float], sizes: list[GridShape]) -> None:
    rate, times = known.get("sampling_rate_hz"), {size.time for size in sizes}
    if len(times) > 1:
        raise ValueError(f"{path}: responses: found {times} samples in time, expected as many of every animal")
    if rate is None and (times != {None} or any("videos" in group for group in groups.values())):
        raise ValueError(f"{path}: sampling_rate_hz: not there, expected with videos or responses resolved in time")
    if rate is not None and not 0 < rate < np.inf:
        raise ValueError(f"{path}: sampling_rate_hz: found {rate}, expected more than 0")


def _one_animal(path: Path, group: dict[str, Any], size: GridShape) -> dict[str, Any]:
    """Fields of the recording whose arrays have no prefix; they stay where they are."""
    columns = {name: group[name] for name in TRIAL_NAMES if name in group}
    columns |= {key.removeprefix(TRIALS): values for key, values in group.items() if key.startswith(TRIALS)}
    presented, frames = _presented(path, group["responses"], size, columns.get("withheld"), columns.pop("frames", None))
    repeat, stimulus = np.nonzero(presented)
    trials = trial_table(stimulus, repeat)
    for name, values in columns.items():
        trials[name] = _column(values[presented], name in TRIAL_TEXTS)
    if frames is not None:
        trials["frames"] = frames[presented].astype(np.int64)
    stimuli = group["videos"] if "videos" in group else group["images"]
    return {
        "stimuli": StoredRows(stimuli, np.arange(size.stimuli)[:, None]) if _stored(stimuli) else stimuli,
        "trials": trials,
        "responses": _trial_rows(group["responses"], presented),
        "neurons": _neurons(path.stem, group, size.neurons),
        "behavior": _trial_rows(group.get("behavior"), presented),
        "pupil_center": _trial_rows(group.get("pupil_center"), presented),
        "behavior_names": tuple(group.get("behavior_names", np.array([])).tolist()),
    }


def _stored(array: Any) -> bool:
    return isinstance(array, StoredArray)


def _presented(
    path: Path, responses: Any, size: GridShape, withheld: np.ndarray | None, frames: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Which presentations there are, bool (repeats, stimuli), and their samples where these are not all there are."""
    withheld = np.zeros((size.repeats, size.stimuli), bool) if withheld is None else withheld
    full = size.time or 1
    lengths = frames if frames is not None and (frames == 0).any() else _lengths(path, responses, size)
    presented = (lengths > 0) | withheld
    if not presented.any():
        raise ValueError(f"{path}: responses: found NaN only, expected responses")
    if frames is None and size.time:
        # How long a withheld trial was, nothing tells: it is as long as can be.
        frames = np.where((lengths == 0) & withheld, full, lengths)
        frames = frames if (frames[presented] < full).any() else None
    return presented, frames


def _lengths(path: Path, responses: Any, size: GridShape) -> np.ndarray:
    """int (repeats, stimuli): samples until the last one at which any neuron has a response. Read block by block."""
    lengths = np.zeros((size.repeats, size.stimuli), np.int64)
    for key in blocks(responses):
        values = np.asarray(responses[key])
        if np.isinf(values).any():
            raise ValueError(f"{path}: responses: found infinite values, expected NaN where there is no response")
        seen = ~np.isnan(values).all(axis=2).reshape(*values.shape[:2], -1)
        last = np.where(seen, np.arange(seen.shape[2]) + 1, 0).max(axis=2)
        first = key[3].start if size.time else 0
        lengths[key[:2]] = np.maximum(lengths[key[:2]], np.where(last, last + first, 0))
    return lengths


def _trial_rows(grid: Any, presented: np.ndarray) -> Any:
    """(trials, ...) of an array (repeats, stimuli, ...): a view where it can be one, on disk where it is there."""
    if grid is None:
        return None
    if isinstance(grid, np.ndarray) and grid.flags.c_contiguous:
        rows = grid.reshape(presented.size, *grid.shape[2:])
        if presented.all():
            return rows
    if type(grid) is np.ndarray:
        return grid[presented]
    return StoredRows(grid, np.argwhere(presented))


def _column(values: np.ndarray, text: bool) -> Any:
    """A column of a table: text, or numbers as they are."""
    if text or values.dtype.kind == "U":
        return pd.Series([str(value) for value in values.tolist()], dtype="str")
    return np.array(values)


def _neurons(animal: str, group: Mapping[str, Any], n: int) -> pd.DataFrame:
    """The neuron table of one group, with what the layout says of absent names."""
    columns = {name: group[name] for name in NEURON_COLUMNS if name in group}
    table = neuron_table(**({"neuron_id": np.arange(n), "animal": animal} | columns))
    more = {key.removeprefix(NEURONS): values for key, values in group.items() if key.startswith(NEURONS)}
    return table.assign(**{name: _column(np.asarray(values), False) for name, values in more.items()})


def _merged(path: Path, parts: Mapping[str, tuple[dict[str, Any], GridShape]]) -> dict[str, Any]:
    """Fields of one recording of animals with stimuli of their own; they share trials where they share stimuli."""
    name = _stimuli_name(path, parts)
    place = _shared_stimuli(path, name, {animal: group[name] for animal, (group, _) in parts.items()})
    stimuli = np.concatenate([np.asarray(group[name])[place[animal][0]] for animal, (group, _) in parts.items()])
    sizes = [size for _, size in parts.values()]
    grid_shape = (max(size.repeats for size in sizes), len(stimuli))
    n_neurons = [size.neurons for size in sizes]
    dtype = np.result_type(np.float32, *(group["responses"].dtype for group, _ in parts.values()))
    time = () if sizes[0].time is None else (sizes[0].time,)
    grid = np.full((*grid_shape, sum(n_neurons), *time), np.nan, dtype=dtype)
    for (animal, (group, size)), end in zip(parts.items(), np.cumsum(n_neurons), strict=True):
        rows = place[animal][1]
        grid[: size.repeats, rows, end - size.neurons : end] = group["responses"]
    columns = {column: _shared_column(path, column, parts, place, grid_shape) for column in TRIAL_TEXTS}
    size = GridShape(*grid_shape, sum(n_neurons), *(time or (None,)))
    group = {name: stimuli, "responses": grid} | {
        column: values for column, values in columns.items() if values is not None
    }
    tables = [_neurons(animal, group, size.neurons) for animal, (group, size) in parts.items()]
    return _one_animal(path, group, size) | {"neurons": pd.concat(tables, ignore_index=True)}


def _stimuli_name(path: Path, parts: Mapping[str, tuple[dict[str, Any], GridShape]]) -> str:
    """`images` or `videos`, the same of every animal; refuses what belongs to one animal."""
    names = {animal: "videos" if "videos" in group else "images" for animal, (group, _) in parts.items()}
    for animal, (group, _) in parts.items():
        shared = (*TRIAL_TEXTS, *NEURON_COLUMNS, "responses", names[animal])
        own = next((key for key in group if key not in shared and not key.startswith(NEURONS)), None)
        if own is not None:
            raise ValueError(f"{path}: {animal}_{own}: belongs to one animal; put each animal into a file of its own")
    (first, name), *others = names.items()
    for animal, other in others:
        if other != name:
            raise ValueError(
                f"{path}: {animal}_{other}: found beside {first}_{name}, expected the same of every animal"
            )
    return name


def _shared_stimuli(
    path: Path, name: str, stimuli: Mapping[str, np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Per animal: which of its stimuli are new, and the row of each among all that are stored once.

    One that an animal has twice stays two stimuli: only those of different animals are the same stimulus.
    """
    first, reference = next(iter(stimuli.items()))
    rows: dict[tuple[bytes, int], int] = {}
    place = {}
    for animal, images in stimuli.items():
        if images.shape[1:] != reference.shape[1:] or images.dtype != reference.dtype:
            raise ValueError(
                f"{path}: {animal}_{name}: found {images.dtype} {name} of shape {images.shape[1:]}, expected "
                f"{reference.dtype} of {reference.shape[1:]} as in {first}_{name}"
            )
        seen: dict[bytes, int] = {}
        new, own = [], []
        for i in range(len(images)):
            pixels = np.asarray(images[i]).tobytes()
            seen[pixels] = seen.get(pixels, -1) + 1
            key = (pixels, seen[pixels])
            if key not in rows:
                rows[key] = len(rows)
                new.append(i)
            own.append(rows[key])
        place[animal] = (np.array(new, dtype=np.int64), np.array(own))
    return place


def _shared_column(
    path: Path, column: str, parts: Mapping, place: Mapping, shape: tuple[int, int]
) -> np.ndarray | None:
    """Text (repeats, stimuli) on which all animals that have it agree; None where none has it."""
    merged = np.full(shape, "", dtype=object)
    for animal, (group, size) in parts.items():
        if column not in group:
            continue
        own = group[column].astype(object).astype(str)
        # Per stimulus it holds for the repeats of the others, too.
        same = (own == own[0]).all()
        rows = place[animal][1]
        own = np.broadcast_to(own[0], (shape[0], size.stimuli)) if same else own
        there = merged[: len(own), rows]
        conflict = np.argwhere((there != "") & (own != "") & (there != own))
        if len(conflict):
            r, i = conflict[0]
            found, expected = str(own[r, i]), there[r, i]
            raise ValueError(
                f"{path}: {animal}_{column}: found {found!r} for stimulus {i}, expected {expected!r} as in another animal"
            )
        merged[: len(own), rows] = np.where(own == "", there, own)
    return merged.astype(str) if (merged != "").any() else None
