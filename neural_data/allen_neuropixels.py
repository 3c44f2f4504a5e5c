"""Sessions of Allen Visual Coding Neuropixels (NWB 2): spike counts of well isolated units around images and movies.

Comes in: a session's file. Goes out: a `Recording` of the one animal, static, resolved in time, or of a movie.

The tables are those of the released files (DANDI 000021; allensdk/brain_observatory/ecephys/write_nwb): `units` with
ragged `spike_times` (s) and `peak_channel_id`; `general/extracellular_ephys/electrodes`, whose `location` is the area,
`group_name` the probe, `x`, `y`, `z` the place in the common coordinate framework (anterior to posterior, dorsal to
ventral, left to right, in µm); `intervals/<stimulus>_presentations` with `start_time`, `stop_time` and `frame`;
`intervals/invalid_times` whose `tags` are scope, id and label; `processing/running/running_speed` (cm/s); and, in part
of the sessions, `processing/filtered_gaze_mapping` and `processing/eye_tracking`.

Units: the AllenSDK's default filters (ecephys_nwb_session_api.py). Invalid times (ecephys_session.py): presentations
that touch one labelled "stimulus" are no trials; responses that touch one of the unit's probe, or of "all_probes", are
missing; "optotagging" touches neither.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from neural_data import nwb_tables
from neural_data.presentations import movie_trials, scene_trials
from neural_data.recording import Recording
from neural_data.running_modulation import MIN_PRESENTATIONS, NEUROPIXELS_COLUMN, running_notes, running_p
from neural_data.spike_counts import bin_edges, count_spikes
from neural_data.stimulus_templates import images_of, is_movie, movie_of
from neural_data.tables import neuron_table
from neural_data.trace_means import mean_in_bins

ELECTRODES, INTERVALS = "general/extracellular_ephys/electrodes", "intervals"
RUNNING = ("processing/running/running_speed", "processing/running/speed")
PUPIL_AREA = ("processing/filtered_gaze_mapping/pupil_area", "processing/raw_gaze_mapping/pupil_area")
PUPIL_FITS = "processing/eye_tracking/pupil_ellipse_fits"
PUPIL_TIMES = ("processing/raw_gaze_mapping/eye_area", *PUPIL_AREA)
# What is kept of a unit beside its place, where the file has it.
METRICS = ("amplitude_cutoff", "presence_ratio", "isi_violations", "firing_rate", "snr")
NO_TRIAL, NO_SPIKES, HARMLESS = "stimulus", "all_probes", "optotagging"
# The part of a presentation in which the AllenSDK counts spikes for its metrics.
WHOLE_IMAGE_MS = (0.0, 250.0)


@dataclass(frozen=True)
class UnitQuality:
    """What a unit must reach; None leaves a limit out. The defaults are the AllenSDK's."""

    amplitude_cutoff_maximum: float | None = 0.1
    presence_ratio_minimum: float | None = 0.95
    isi_violations_maximum: float | None = 0.5
    quality: str | None = "good"

    @property
    def limits(self) -> list[tuple[str, float, bool]]:
        """Column of the units, limit, and whether it is a maximum."""
        limits = [
            ("amplitude_cutoff", self.amplitude_cutoff_maximum, True),
            ("presence_ratio", self.presence_ratio_minimum, False),
            ("isi_violations", self.isi_violations_maximum, True),
        ]
        return [(column, limit, over) for column, limit, over in limits if limit is not None]


def read_neuropixels(
    path: str | Path,
    stimulus: str = "natural_scenes",
    window_ms: tuple[float, float] = (0.0, 250.0),
    bin_ms: float | None = None,
    quality: UnitQuality = UnitQuality(),
    areas: tuple[str, ...] | None = None,
    stimuli: str | Path | None = None,
    rate: bool = True,
) -> Recording:
    """The recording of one session's units.

    `stimulus`: "natural_scenes", or a movie such as "natural_movie_one", of which each frame is a sample in time.
    `window_ms`, `bin_ms`: where images' spikes are counted, relative to onset, and in which bins; None makes one.
    `areas`: acronyms such as "VISp"; None for all that have one. `stimuli`: where the images are, if not in the file
    (`stimulus_templates.py`). `rate`: responses are spikes/s, or else counts. Behaviour is the mean over the same
    bins: `running_speed_cm_s`, `pupil_area_px2`; `pupil_center` in pixels of the eye camera. `neurons` has
    `run_pval_ns` (`running_modulation.py`) for images, where running is in the file. Notes say what was left out.
    Raises FileNotFoundError, or ValueError naming the file, the field, what was found and what was expected.
    """
    path = Path(path)
    with nwb_tables.open_nwb(path) as file:
        units, notes = _units(file, quality, areas)
        invalid = _invalid_times(file)
        shown, blocked = _presentations(file, stimulus, invalid)
        try:
            stimuli_shown, trials, edges, left_out = _trials(file, stimulus, shown, window_ms, bin_ms, stimuli)
        except ValueError as error:
            line = str(error) if str(path) in str(error) else f"{path}: {INTERVALS}/{stimulus}_presentations: {error}"
            raise ValueError(line) from None
        responses = count_spikes(_trains(file, units), len(units), edges)
        missing = _mark_missing(responses, edges, units["probe"].to_numpy(), invalid)
        neurons = _neurons(units, _animal(file, path))
        if not is_movie(stimulus):
            left_out += _add_run_p(file, neurons, units, trials, responses, edges, invalid)
        if rate:
            responses /= np.diff(edges, axis=1)[:, None, :].astype(np.float32)
        behavior, behavior_names, pupil_center = _behavior(file, edges)
        session = nwb_tables.text(file, "identifier") or path.stem
    kept = ~np.isnan(responses).all(axis=(1, 2))
    unit = "spikes/s" if rate else "spikes"
    dynamic = is_movie(stimulus) or bin_ms is not None
    # Of a movie the median over its frames.
    rate_hz = round(float(1 / np.median(np.diff(edges, axis=1))), 4) if bin_ms is None else 1000 / bin_ms
    return Recording(
        name=path.stem,
        stimuli=stimuli_shown,
        trials=trials[kept].reset_index(drop=True),
        responses=responses[kept] if dynamic else responses[kept, :, 0],
        neurons=neurons,
        behavior=_shaped(behavior, kept, dynamic),
        pupil_center=_shaped(pupil_center, kept, dynamic),
        sampling_rate_hz=rate_hz if dynamic else None,
        source=f"Allen Visual Coding Neuropixels, session {session}, {stimulus}, {unit}",
        behavior_names=behavior_names,
        response_start_ms=0.0 if is_movie(stimulus) else float(window_ms[0]),
        notes=tuple(notes + blocked + left_out + _lost(missing, ~kept, behavior_names, pupil_center)),
    )


def _units(file: h5py.File, quality: UnitQuality, areas: tuple[str, ...] | None) -> tuple[pd.DataFrame, list[str]]:
    """The units that pass, with the facts of their electrode, and a note for each reason that others failed."""
    units = _with_electrodes(file, quality)
    failed = {}
    if quality.quality is not None:
        failed[f"quality is not {quality.quality}"] = units["quality"] != quality.quality
        if "valid_data" in units:
            failed["the electrode's data is not valid"] = ~units["valid_data"].astype(bool)
    failed["no area"] = units["location"] == ""
    for column, limit, over in quality.limits:
        inside = units[column] <= limit if over else units[column] >= limit
        failed[f"{column} is {'above' if over else 'below'} {limit:g} or unknown"] = ~inside
    if areas is not None:
        failed["other areas"] = ~units["location"].isin(areas)
    return _passed(file, units, failed)


def _with_electrodes(file: h5py.File, quality: UnitQuality) -> pd.DataFrame:
    """The table of units, with `row` in the file and what is known of the electrode where each is strongest."""
    needed = ["peak_channel_id", *(column for column, _, _ in quality.limits)]
    needed += ["quality"] if quality.quality is not None else []
    units = nwb_tables.table(file, "units", needed, [name for name in METRICS if name not in needed])
    channels = nwb_tables.table(file, ELECTRODES, ("location", "group_name"), ("valid_data", "x", "y", "z"))
    known = channels.index[~channels.index.duplicated(keep=False)]
    unknown = units["peak_channel_id"][~units["peak_channel_id"].isin(known)]
    if len(unknown):
        found = f"units/peak_channel_id: found {unknown.iloc[0]}, which is not the id of one electrode in {ELECTRODES}"
        raise ValueError(f"{file.filename}: {found}")
    units = units.join(channels.loc[units["peak_channel_id"]].set_axis(units.index))
    units["location"] = units["location"].replace({"None": "", "nan": ""})
    return units.assign(row=np.arange(len(units))).rename(columns={"group_name": "probe"})


def _passed(file: h5py.File, units: pd.DataFrame, failed: dict[str, pd.Series]) -> tuple[pd.DataFrame, list[str]]:
    kept, notes = pd.Series(True, units.index), []
    for reason, of_unit in failed.items():
        now = kept & of_unit
        if now.any():
            notes.append(f"{now.sum()} units left out: {reason}")
        kept &= ~of_unit
    if not kept.any():
        raise ValueError(f"{file.filename}: units: none of {len(units)} is left ({'; '.join(notes)})")
    return units[kept], notes


def _trains(file: h5py.File, units: pd.DataFrame) -> Iterator[np.ndarray]:
    """The sorted spike times of each unit, s; only those of the units that are left are read."""
    spikes, starts, ends = nwb_tables.lists(file, "units", "spike_times")
    for row in units["row"]:
        train = spikes[starts[row] : ends[row]]
        yield train if (np.diff(train) >= 0).all() else np.sort(train)


def _presentations(file: h5py.File, stimulus: str, invalid: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """What was shown when, in the order of time, without presentations that touch an invalid time of the stimulus."""
    location = f"{INTERVALS}/{stimulus}_presentations"
    if location not in file:
        there = [name.removesuffix("_presentations") for name in file.get(INTERVALS, ()) if "presentations" in name]
        raise ValueError(f"{file.filename}: {location}: is not there; stimuli are {', '.join(there) or 'none'}")
    shown = nwb_tables.table(file, location, ("start_time", "stop_time", "frame"))
    shown = shown.sort_values("start_time", kind="stable")
    edges = shown[["start_time", "stop_time"]].to_numpy(float)
    touched = _touching(edges, invalid[invalid["label"] == NO_TRIAL])
    notes = [f"{touched.sum()} presentations left out: the stimulus was invalid"] if touched.any() else []
    return shown[~touched], notes


def _trials(
    file: h5py.File,
    stimulus: str,
    shown: pd.DataFrame,
    window_ms: tuple[float, float],
    bin_ms: float | None,
    stimuli: str | Path | None,
) -> tuple[object, pd.DataFrame, np.ndarray, list[str]]:
    """Stimuli, trials, edges (trials, bins + 1) in s, and notes."""
    frame, start, stop = (shown[column].to_numpy() for column in ("frame", "start_time", "stop_time"))
    if is_movie(stimulus):
        if bin_ms is not None:
            raise ValueError(f"bin_ms: found {bin_ms:g}, but {stimulus} has one bin per frame")
        movie = movie_of(file, stimulus, stimuli)
        rows, trials, notes = movie_trials(frame, start, movie.shape[1])
        edges = np.column_stack([start[rows], stop[rows[:, -1:]]]) if len(rows) else np.empty((0, movie.shape[1] + 1))
        stimuli_shown = movie
    elif stimulus == "natural_scenes":
        stimuli_shown = images_of(file, stimulus, stimuli)
        rows, trials, notes = scene_trials(frame, start, len(stimuli_shown))
        edges = bin_edges(start[rows], window_ms, bin_ms)
        trials["trial_id"] = shown.index[rows].astype(str)
    else:
        raise ValueError(
            f"stimulus: found {stimulus!r}, expected natural_scenes or a natural movie that is not shuffled"
        )
    if not len(trials):
        raise ValueError("no presentation is left")
    return stimuli_shown, trials, edges, notes


def _invalid_times(file: h5py.File) -> pd.DataFrame:
    """`start`, `stop` in s and the `label` of each invalid time that matters; one without a label concerns all."""
    location = f"{INTERVALS}/invalid_times"
    if location not in file:
        return pd.DataFrame({"start": [], "stop": [], "label": []})
    times = nwb_tables.table(file, location, ("start_time", "stop_time"))
    label = [NO_SPIKES] * len(times)
    if f"{location}/tags" in file:
        _, starts, ends = nwb_tables.lists(file, location, "tags")
        tags = nwb_tables.values(file, f"{location}/tags")
        label = [tags[end - 1] if end > start else NO_SPIKES for start, end in zip(starts, ends, strict=True)]
    invalid = pd.DataFrame({"start": times["start_time"].to_numpy(), "stop": times["stop_time"].to_numpy()})
    invalid["label"] = label
    return invalid[invalid["label"] != HARMLESS]


def _touching(spans: np.ndarray, invalid: pd.DataFrame) -> np.ndarray:
    """bool (...): which of the spans (..., 2) in s share a moment with an invalid time."""
    touched = np.zeros(spans.shape[:-1], bool)
    for start, stop in zip(invalid["start"], invalid["stop"], strict=True):
        touched |= (spans[..., 0] <= stop) & (spans[..., 1] >= start)
    return touched


def _mark_missing(responses: np.ndarray, edges: np.ndarray, probe: np.ndarray, invalid: pd.DataFrame) -> np.ndarray:
    """Writes NaN where a bin touches an invalid time of the unit's probe; returns how many responses that are."""
    spans = np.stack([edges[:, :-1], edges[:, 1:]], axis=-1)
    missing = 0
    for name in np.unique(probe):
        touched = _touching(spans, invalid[invalid["label"].isin([name, NO_SPIKES])])
        of_probe = np.flatnonzero(probe == name)
        missing += int(touched.sum()) * len(of_probe)
        for window in np.flatnonzero(touched.any(axis=1)):
            responses[window, of_probe[:, None], np.flatnonzero(touched[window])] = np.nan
    return missing


def _behavior(file: h5py.File, edges: np.ndarray) -> tuple[np.ndarray | None, tuple[str, ...], np.ndarray | None]:
    """Behaviour (trials, channels, bins) with names, and the centre of the pupil (trials, 2, bins); None if absent."""
    channels = {}
    for name, places in (("running_speed_cm_s", RUNNING), ("pupil_area_px2", PUPIL_AREA)):
        found = nwb_tables.first_there(file, places)
        if found:
            channels[name] = mean_in_bins(*nwb_tables.series(file, found), edges)
    behavior = np.stack(list(channels.values()), axis=1).astype(np.float32) if channels else None
    return behavior, tuple(channels), _pupil_center(file, edges)


def _pupil_center(file: h5py.File, edges: np.ndarray) -> np.ndarray | None:
    """Times are a column of the fits in newer files; in the released ones they are those of the gaze."""
    if PUPIL_FITS not in file:
        return None
    fits = nwb_tables.table(file, PUPIL_FITS, ("center_x", "center_y"), ("timestamps",))
    if "timestamps" in fits:
        times = fits["timestamps"].to_numpy(float)
    else:
        gaze = nwb_tables.first_there(file, PUPIL_TIMES)
        if gaze is None:
            return None
        times = nwb_tables.timestamps(file, gaze, len(fits))
    parts = [mean_in_bins(times, fits[name].to_numpy(float), edges) for name in ("center_x", "center_y")]
    return np.stack(parts, axis=1).astype(np.float32)


def _shaped(values: np.ndarray | None, kept: np.ndarray, dynamic: bool) -> np.ndarray | None:
    if values is None:
        return None
    return values[kept] if dynamic else values[kept, :, 0]


def _add_run_p(
    file: h5py.File,
    neurons: pd.DataFrame,
    units: pd.DataFrame,
    trials: pd.DataFrame,
    counts: np.ndarray,
    edges: np.ndarray,
    invalid: pd.DataFrame,
) -> list[str]:
    """Adds the column, where running is in the file; returns notes. `counts`: those in the bins of `edges`."""
    place = nwb_tables.first_there(file, RUNNING)
    if place is None:
        return []
    whole = bin_edges(trials["start_s"].to_numpy(), WHOLE_IMAGE_MS)
    if not np.allclose(edges[:, [0, -1]], whole, rtol=0, atol=1e-9):
        counts = count_spikes(_trains(file, units), len(units), whole)
        _mark_missing(counts, whole, units["probe"].to_numpy(), invalid)
    speed = mean_in_bins(*nwb_tables.series(file, place), whole)[:, 0]
    column = NEUROPIXELS_COLUMN
    p = running_p(counts.sum(axis=2, dtype=float), trials["stimulus"].to_numpy(), speed, MIN_PRESENTATIONS[column])
    neurons[column] = p
    return running_notes(p, column)


def _animal(file: h5py.File, path: Path) -> str:
    return nwb_tables.text(file, "general/subject/subject_id") or nwb_tables.text(file, "identifier") or path.stem


def _neurons(units: pd.DataFrame, animal: str) -> pd.DataFrame:
    """The neuron table, with the probe and the metrics of each unit; outside of the atlas coordinates are unknown."""
    places = {f"{axis}_um": units[axis].where(units[axis] >= 0).to_numpy(float) for axis in "xyz" if axis in units}
    neurons = neuron_table(units.index, animal, units["location"], **places)
    for column in ("probe", *METRICS):
        if column in units:
            neurons[column] = units[column].to_numpy()
    return neurons


def _lost(missing: int, dropped: np.ndarray, names: tuple[str, ...], pupil_center: np.ndarray | None) -> list[str]:
    notes = [f"{missing} responses missing: invalid times of the probe"] if missing else []
    notes += [f"{dropped.sum()} trials left out: no unit has a response"] if dropped.any() else []
    notes += [] if "running_speed_cm_s" in names else ["no running speed in the file"]
    absent = [
        what for what, there in (("area", "pupil_area_px2" in names), ("centre", pupil_center is not None)) if not there
    ]
    return notes + ([f"no {' and '.join(absent)} of the pupil in the file"] if absent else [])
