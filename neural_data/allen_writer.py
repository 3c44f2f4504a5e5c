"""Simulated recordings written as sessions of Allen Visual Coding Neuropixels are.

Comes in: a `Recording` of one animal whose responses are spike counts, of images or of videos. Goes out: an NWB 2 file
(`neuropixels_file.py`) in which spikes fall such that counting them over the window after each image, or over each
frame of a movie, gives the responses back.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from neural_data.neuropixels_file import NeuropixelsSession, write_neuropixels_session
from neural_data.recording import Recording
from neural_data.session_behavior import SessionBehavior, session_behavior
from neural_data.session_schedule import PRESENTED_S, Schedule, schedule_of
from neural_data.whole_file import require_absent

CAMERA_HZ = 60.0
GOOD = {"quality": "good", "amplitude_cutoff": 0.01, "presence_ratio": 0.99, "isi_violations": 0.05}
# Units of the kinds that the default filters leave out.
POOR = (
    {"quality": "noise"},
    {"amplitude_cutoff": 0.3},
    {"presence_ratio": 0.5},
    {"isi_violations": 2.0},
    {"amplitude_cutoff": np.nan},
)
FIRST_UNIT = 950_000_000


def write_neuropixels_nwb(
    recording: Recording,
    path: str | Path,
    seed: int = 0,
    window_ms: tuple[float, float] = (0.0, 250.0),
    poor_units: int = 0,
    templates: bool = True,
) -> Path:
    """Writes the file and returns its path; the same arguments give the same spikes.

    When what is shown: `session_schedule.py`. Each video is a movie, `movie_lengths` says of which name; of showings
    that differ in length only the frames that all have are written. `window_ms`: where the spikes fall that a static
    response counts. `poor_units`: further units, which the default filters leave out. `templates`: whether the stimuli
    are in the file; the released ones lack them. Behaviour: `session_behavior.py`. Raises ValueError where the file
    exists, or cannot hold the recording.
    """
    path = Path(path)
    require_absent(path)
    rng = np.random.default_rng(seed)
    schedule = schedule_of(recording, rng)
    trains = _trains(recording, schedule, window_ms, rng)
    units, trains = _units(recording.neurons, trains, poor_units, schedule.stop_s, rng)
    times_s = np.arange(int(schedule.stop_s * CAMERA_HZ)) / CAMERA_HZ
    behavior = session_behavior(recording, schedule, times_s)
    session = NeuropixelsSession(
        name=recording.name,
        animal=recording.animals[0],
        units=units,
        trains=trains,
        presentations=_presentations(schedule),
        running=None if behavior.running_cm_s is None else (times_s, behavior.running_cm_s),
        eye=_eye(behavior),
        templates=schedule.templates if templates else {},
    )
    return write_neuropixels_session(session, path)


def unit_ids(neurons: pd.DataFrame, first: int) -> np.ndarray:
    """Numbers of units, int64 (neurons,): their own where all have one, else from `first` on."""
    names = neurons["neuron_id"]
    if names.str.fullmatch(r"[0-9]{1,18}").all():
        return names.to_numpy().astype(np.int64)
    return first + np.arange(len(names))


def spike_counts_of(recording: Recording, trial: int, samples: int) -> np.ndarray:
    """Spikes of a trial, int64 (neurons, samples). Raises ValueError for responses that are no counts."""
    counts = recording.trial(trial, 0, samples)["responses"].reshape(len(recording.neurons), samples)
    missing = np.isnan(counts)
    if missing.any():
        raise ValueError(
            f"{recording.name}: part of the neurons lack a response to trial {trial}, which a session cannot hold"
        )
    if (counts != np.rint(counts)).any() or (counts < 0).any():
        raise ValueError(f"{recording.name}: responses are no spike counts, expected whole numbers from 0 on")
    return counts.astype(np.int64)


def _trains(
    recording: Recording, schedule: Schedule, window_ms: tuple[float, float], rng: np.random.Generator
) -> list[np.ndarray]:
    """Sorted spike times of each neuron: as many after an image or in a frame as were counted, and others, at its mean
    rate, while nothing is shown."""
    start_s, stop_s = _window_s(recording, window_ms)
    shown = schedule.shown[schedule.shown["trial"] >= 0]
    onset_s, n = shown["start_time"].to_numpy(), len(recording.neurons)
    units, times, total = [], [], np.zeros(n)
    for trial, rows in shown.groupby("trial", sort=False).indices.items():
        counts = spike_counts_of(recording, int(trial), len(rows))
        unit, sample = (np.repeat(place.ravel(), counts.ravel()) for place in np.indices(counts.shape))
        # Not at the edges of the window, where rounding decides on which side a spike is.
        within_s = start_s + (stop_s - start_s) * rng.uniform(1e-6, 1 - 1e-6, len(unit))
        units.append(unit)
        times.append(onset_s[rows][sample] + within_s)
        total += counts.sum(axis=1)
    rates_hz = total / (len(shown) * (stop_s - start_s))
    for low_s, high_s in schedule.spontaneous:
        units.append(np.repeat(np.arange(n), rng.poisson(rates_hz * (high_s - low_s))))
        times.append(rng.uniform(low_s, high_s, len(units[-1])))
    unit, time = np.concatenate(units), np.concatenate(times)
    order = np.lexsort((time, unit))
    return np.split(time[order], np.cumsum(np.bincount(unit, minlength=n))[:-1])


def _window_s(recording: Recording, window_ms: tuple[float, float]) -> tuple[float, float]:
    if recording.video:
        return 0.0, 1 / recording.sampling_rate_hz
    start, stop = window_ms
    if not 0 <= start < stop <= 1000 * PRESENTED_S:
        raise ValueError(
            f"window_ms: found {start:g} to {stop:g}, expected a part of the {1000 * PRESENTED_S:g} ms shown"
        )
    return start / 1000, stop / 1000


def _units(
    neurons: pd.DataFrame, trains: list[np.ndarray], poor: int, session_s: float, rng: np.random.Generator
) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """The table of units and their spikes; one probe per area, and the poor units spread over them."""
    areas = list(neurons["area"].unique())
    units = neurons[["area", "x_um", "y_um", "z_um"]].assign(unit_id=unit_ids(neurons, FIRST_UNIT), **GOOD)
    further = pd.DataFrame(
        [GOOD | POOR[at % len(POOR)] | {"area": areas[at % len(areas)]} for at in range(poor)]
    ).assign(unit_id=max(FIRST_UNIT, units["unit_id"].max()) + 1 + np.arange(poor))
    units = pd.concat([units, further], ignore_index=True) if poor else units
    trains = trains + [np.sort(rng.uniform(0, session_s, rng.poisson(session_s))) for _ in range(poor)]
    probe = [f"probe{chr(ord('A') + areas.index(area))}" for area in units["area"]]
    rate_hz = [len(train) / session_s for train in trains]
    return units.assign(probe=probe, valid_data=True, firing_rate=rate_hz, snr=3.0), trains


def _presentations(schedule: Schedule) -> dict[str, pd.DataFrame]:
    shown = schedule.shown.drop(columns=["trial", "sample"])
    tables = dict(tuple(shown.groupby("stimulus_name", sort=False)))
    return tables | {"spontaneous": pd.DataFrame(schedule.spontaneous, columns=["start_time", "stop_time"])}


def _eye(behavior: SessionBehavior) -> pd.DataFrame | None:
    columns = {"timestamps": behavior.times_s}
    if behavior.pupil_area_px2 is not None:
        columns["pupil_area"] = behavior.pupil_area_px2
    if behavior.pupil_center is not None:
        columns |= {"center_x": behavior.pupil_center[:, 0], "center_y": behavior.pupil_center[:, 1]}
    return pd.DataFrame(columns) if len(columns) > 1 else None
