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

from neural_data.array_animals import merged_animals
from neural_data.array_checks import GridShape, checked_group, number, texts
from neural_data.array_containers import NEURON_FILE, NamedArrays, load_arrays
from neural_data.array_layout import EXTRA, NEURONS, NUMBERS, by_animal, misspelt_columns
from neural_data.array_trials import one_animal
from neural_data.arrays_writer import write_arrays
from neural_data.recording import Recording
from neural_data.tables import NEURON_COLUMNS

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
    fields = one_animal(path, *parts[""]) if "" in parts else merged_animals(path, parts)
    notes = [*(texts(f"{path}: notes", whole["notes"]).tolist() if "notes" in whole else []), *named.notes]
    statistics = {name.removeprefix(EXTRA): values for name, values in whole.items() if name.startswith(EXTRA)}
    try:
        return Recording(
            name=path.stem,
            source=path.name,
            notes=(*notes, *misspelt_columns(name for group in groups.values() for name in group)),
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
    rate, times = known.get("sampling_rate_hz"), list(dict.fromkeys(size.time for size in sizes))
    if len(times) > 1:
        raise ValueError(
            f"{path}: responses: found {', '.join(map(str, times))} samples in time, expected as many of every animal"
        )
    if rate is None and (times != [None] or any("videos" in group for group in groups.values())):
        raise ValueError(f"{path}: sampling_rate_hz: not there, expected with videos or responses resolved in time")
    if rate is not None and not 0 < rate < np.inf:
        raise ValueError(f"{path}: sampling_rate_hz: found {rate}, expected more than 0")
