"""Animals whose arrays lie in one file with a prefix each, put together into one recording.

Comes in: the arrays of each animal, checked. Goes out: fields of a `Recording`, in memory: stimuli that animals share
are stored once, and the same repeat of the same stimulus is one trial.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neural_data.array_checks import GridShape
from neural_data.array_layout import NEURONS, TRIAL_TEXTS
from neural_data.array_trials import neurons_of, one_animal
from neural_data.tables import NEURON_COLUMNS


def merged_animals(path: Path, parts: Mapping[str, tuple[dict[str, Any], GridShape]]) -> dict[str, Any]:
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
    tables = [neurons_of(animal, group, size.neurons) for animal, (group, size) in parts.items()]
    return one_animal(path, group, size) | {"neurons": pd.concat(tables, ignore_index=True)}


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
            raise ValueError(
                f"{path}: {animal}_{column}: found {str(own[r, i])!r} for stimulus {i}, "
                f"expected {there[r, i]!r} as in another animal"
            )
        merged[: len(own), rows] = np.where(own == "", there, own)
    return merged.astype(str) if (merged != "").any() else None
