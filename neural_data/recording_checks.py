"""What every `Recording` must hold, whatever file it came from: shapes that agree, tables that are whole.

Comes in: a recording. Goes out: nothing, or a ValueError of one line with the recording, the part, what was found and
what was expected. Only shapes and tables are looked at, so that large arrays stay on disk.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from neural_data.tables import NEURON_COLUMNS, POSITION_COLUMNS, TEXT_COLUMNS, TRIAL_COLUMNS

if TYPE_CHECKING:
    from neural_data.recording import Recording


def check_recording(recording: "Recording") -> None:
    """Raises ValueError where a part does not fit the others."""
    _check_stimuli(recording)
    _check_trials(recording)
    _check_neurons(recording)
    _check_responses(recording)
    _check_time(recording)
    _check_behavior(recording)


def _check_stimuli(recording: "Recording") -> None:
    shape = tuple(recording.stimuli.shape)
    colour_at = {4: 3, 5: 4}.get(len(shape))
    if len(shape) not in (3, 4, 5) or (len(shape) == 5 and shape[colour_at] not in (2, 3)):
        raise ValueError(
            f"{recording.name}: stimuli have shape {shape}, expected images (stimuli, height, width[, 2 or 3]) "
            "or videos (stimuli, frames, height, width[, 2 or 3])"
        )


def _check_trials(recording: "Recording") -> None:
    trials, name = recording.trials, recording.name
    _check_columns(recording, "trials", trials, TRIAL_COLUMNS)
    for column in ("stimulus", "repeat"):
        if not pd.api.types.is_integer_dtype(trials[column]):
            raise ValueError(f"{name}: trials column {column} is {trials[column].dtype}, expected integers")
    stimulus = trials["stimulus"].to_numpy()
    outside = np.flatnonzero((stimulus < 0) | (stimulus >= len(recording.stimuli)))
    if len(outside):
        raise ValueError(
            f"{name}: trial {outside[0]} shows stimulus {stimulus[outside[0]]}, "
            f"expected 0 to {len(recording.stimuli) - 1}"
        )
    if (trials["repeat"] < 0).any():
        raise ValueError(f"{name}: a trial has repeat {trials['repeat'].min()}, expected 0 or more")
    _check_text(recording, "trials", trials, ("tier",))
    if "withheld" in trials and trials["withheld"].dtype != bool:
        raise ValueError(f"{name}: trials column withheld is {trials['withheld'].dtype}, expected true or false")


def _check_responses(recording: "Recording") -> None:
    shape, expected = tuple(recording.responses.shape), (len(recording.trials), len(recording.neurons))
    if shape[:2] != expected or len(shape) not in (2, 3):
        raise ValueError(
            f"{recording.name}: responses have shape {shape}, expected (trials, neurons[, time]) = {expected}"
        )


def _check_time(recording: "Recording") -> None:
    name, rate = recording.name, recording.sampling_rate_hz
    if not recording.dynamic:
        return
    length = recording.responses.shape[2]
    if rate is None or not rate > 0:
        raise ValueError(f"{name}: responses have {length} samples in time, but sampling_rate_hz is {rate}")
    if recording.video and recording.stimuli.shape[1] != length:
        raise ValueError(
            f"{name}: videos have {recording.stimuli.shape[1]} frames and responses {length} samples in time, "
            "expected as many: one sample per frame"
        )
    if "frames" not in recording.trials:
        return
    frames = recording.trials["frames"]
    if not pd.api.types.is_integer_dtype(frames) or not frames.between(0, length).all():
        raise ValueError(
            f"{name}: trials column frames holds {frames.dtype} from {frames.min()} to {frames.max()}, "
            f"expected whole numbers from 0 to {length}"
        )


def _check_neurons(recording: "Recording") -> None:
    neurons, name = recording.neurons, recording.name
    _check_columns(recording, "neurons", neurons, NEURON_COLUMNS)
    _check_text(recording, "neurons", neurons, TEXT_COLUMNS)
    for column in POSITION_COLUMNS:
        if not pd.api.types.is_numeric_dtype(neurons[column]):
            raise ValueError(f"{name}: neurons column {column} is {neurons[column].dtype}, expected µm as numbers")
    if not len(neurons):
        raise ValueError(f"{name}: the neuron table is empty, expected one row per neuron")
    twice = neurons.duplicated(["animal", "neuron_id"])
    if twice.any():
        row = neurons[twice].iloc[0]
        raise ValueError(f"{name}: neuron_id {row['neuron_id']} occurs twice in animal {row['animal']}")


def _check_behavior(recording: "Recording") -> None:
    time = tuple(recording.responses.shape[2:])
    for part, width in (("behavior", None), ("pupil_center", 2)):
        values = getattr(recording, part)
        if values is None:
            continue
        shape, n = tuple(values.shape), len(recording.trials)
        fits = len(shape) >= 2 and shape[0] == n and width in (None, shape[1]) and shape[2:] in ((), time)
        if not fits:
            expected = ", ".join(str(size) for size in (n, width or "channels", *time))
            raise ValueError(f"{recording.name}: {part} has shape {shape}, expected ({expected})")
    names = recording.behavior_names
    if names and (recording.behavior is None or len(names) != recording.behavior.shape[1]):
        channels = 0 if recording.behavior is None else recording.behavior.shape[1]
        raise ValueError(f"{recording.name}: behavior_names are {', '.join(names)}, expected {channels} names")


def _check_columns(recording: "Recording", table: str, frame: pd.DataFrame, columns: tuple[str, ...]) -> None:
    absent = [column for column in columns if column not in frame.columns]
    if absent:
        found = ", ".join(map(str, frame.columns))
        raise ValueError(f"{recording.name}: {table} lack {', '.join(absent)}; found {found}")


def _check_text(recording: "Recording", table: str, frame: pd.DataFrame, columns: tuple[str, ...]) -> None:
    for column in columns:
        if not frame[column].map(lambda value: isinstance(value, str)).all():
            raise ValueError(f"{recording.name}: {table} column {column} is {frame[column].dtype}, expected text")
