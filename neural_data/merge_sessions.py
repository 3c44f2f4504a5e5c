"""Sessions of several animals that saw the same stimuli, as one recording.

Comes in: one `Recording` per session. Goes out: a `Recording` whose trials are repeats of stimuli that the animals
share, NaN where a session has no such repeat.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
import pandas as pd

from neural_data.recording import Recording
from neural_data.tables import trial_table

# Images or frames compared at a time.
COMPARED = 64


def merge_sessions(sessions: Iterable[Recording], name: str) -> Recording:
    """All neurons of the sessions, in their order; trials are ordered by repeat, then stimulus.

    The n-th repeat of a stimulus in one session shares its row with the n-th in the others. Behaviour and times belong
    to single sessions and are left out. Raises ValueError where stimuli or bins differ.
    """
    recordings: list[Recording] = []
    for session in sessions:
        recordings.append(_sharing_stimuli(recordings[0], session) if recordings else session)
    if not recordings:
        raise ValueError("there are no sessions to merge")
    first = recordings[0]
    shown = pd.concat([recording.trials[["repeat", "stimulus"]] for recording in recordings])
    shown = shown.drop_duplicates().sort_values(["repeat", "stimulus"])
    rows = pd.MultiIndex.from_frame(shown)
    n_neurons = sum(len(recording.neurons) for recording in recordings)
    responses = np.full((len(rows), n_neurons, *first.responses.shape[2:]), np.nan, np.float32)
    place = 0
    for recording in recordings:
        own = pd.MultiIndex.from_frame(recording.trials[["repeat", "stimulus"]])
        if own.has_duplicates:
            raise ValueError(f"{recording.name}: two trials are the same repeat of a stimulus")
        neurons = slice(place, place := place + len(recording.neurons))
        responses[rows.get_indexer(own), neurons] = recording.responses
    notes = [f"{recording.name}: {note}" for recording in recordings for note in recording.notes]
    if any(recording.behavior is not None or recording.pupil_center is not None for recording in recordings):
        notes.append("behaviour and pupil left out: they belong to single sessions")
    return Recording(
        name=name,
        stimuli=first.stimuli,
        trials=trial_table(shown["stimulus"].to_numpy(), shown["repeat"].to_numpy()),
        responses=responses,
        neurons=pd.concat([recording.neurons for recording in recordings], ignore_index=True),
        sampling_rate_hz=first.sampling_rate_hz,
        response_start_ms=first.response_start_ms,
        source="; ".join(dict.fromkeys(recording.source for recording in recordings)),
        notes=tuple(notes),
    )


def _sharing_stimuli(first: Recording, other: Recording) -> Recording:
    """The other session with the first one's stimuli, so that they are in memory once."""
    for what in ("stimuli", "responses"):
        a, b = (getattr(recording, what).shape for recording in (first, other))
        a, b = (a, b) if what == "stimuli" else (a[2:], b[2:])
        if a != b:
            part = "stimuli of shape" if what == "stimuli" else "bins in time"
            raise ValueError(f"{other.name}: found {part} {b}, expected {a} as in {first.name}")
    rates = [recording.sampling_rate_hz or 0 for recording in (first, other)]
    # The refresh rate of a monitor is measured, and differs in the third digit between sessions.
    if not np.isclose(*rates, rtol=0.01) or first.response_start_ms != other.response_start_ms:
        raise ValueError(f"{other.name}: bins of {rates[1]:g} Hz, expected {rates[0]:g} Hz as in {first.name}")
    if not _equal(first, other):
        raise ValueError(f"{other.name}: shows other images than {first.name}; sessions of one stimulus can be merged")
    return dataclasses.replace(other, stimuli=first.stimuli)


def _equal(first: Recording, other: Recording) -> bool:
    """Whether the stimuli have the same pixels; of movies a stretch of frames is in memory at a time."""
    if not first.video:
        return np.array_equal(first.stimuli, other.stimuli)
    stretches = [slice(at, at + COMPARED) for at in range(0, first.stimuli.shape[1], COMPARED)]
    return all(
        np.array_equal(first.stimuli[row, frames], other.stimuli[row, frames])
        for row in range(len(first.stimuli))
        for frames in stretches
    )
