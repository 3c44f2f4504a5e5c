"""Simulated recordings written as sessions of Allen Visual Coding Neuropixels are.

Comes in: a static `Recording` of one animal whose responses are spike counts. Goes out: an NWB 2 file with the tables
of the released sessions (`allen_neuropixels.py` lists them), in which spikes fall such that counting them over the
window gives the responses back. What the real files have and a simulation has not (local field potentials, waveforms,
wheel voltages, the classes of the extension ndx-aibs-ecephys) is left out.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neural_data.recording import Recording

PRESENTED_S, SPONTANEOUS_S = 0.25, 30.0  # each image; before, between and after the blocks
BLOCKS = 3
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


@dataclass(frozen=True)
class _Session:
    """When what is shown: one row per presentation, `trial` -1 for grey."""

    shown: pd.DataFrame
    spontaneous: list[tuple[float, float]]
    stop_s: float


def write_neuropixels_nwb(
    recording: Recording,
    path: str | Path,
    seed: int = 0,
    window_ms: tuple[float, float] = (0.0, 250.0),
    poor_units: int = 0,
    templates: bool = True,
) -> Path:
    """Writes the file and returns its path; the same arguments give the same spikes.

    Each repeat shows all its images in a random order, and grey once, in three blocks with spontaneous activity around
    them. `poor_units`: further units, which the default filters leave out. `templates`: whether the images are in the
    file; the released ones lack them. Behaviour named `running_speed_cm_s` and `pupil_area_px2` and the pupil's centre
    are written where the recording has them. Raises ValueError where the file exists, or cannot hold the recording.
    """
    from pynwb import NWBHDF5IO, NWBFile
    from pynwb.file import Subject

    path = Path(path)
    if path.exists():
        raise ValueError(f"{path}: exists already; name a new file")
    counts = _counts(recording, window_ms)
    rng = np.random.default_rng(seed)
    session = _schedule(recording, rng)
    animal = recording.animals[0]
    file = NWBFile(
        session_description="Data and metadata for an Ecephys session",
        identifier=recording.name,
        session_start_time=datetime(2019, 1, 19, tzinfo=UTC),
        session_id=recording.name,
        subject=Subject(subject_id=animal, species="Mus musculus", age="P100D", sex="U"),
        stimulus_notes="brain_observatory_1.1",
    )
    _add_presentations(file, session)
    trains = _trains(counts, session, window_ms, rng)
    _add_units(file, recording.neurons, trains, poor_units, session.stop_s, rng)
    _add_behavior(file, recording, session)
    if templates:
        _add_templates(file, np.asarray(recording.stimuli[:]))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".unfinished.{path.name}")
    try:
        with NWBHDF5IO(str(unfinished), "w") as output:
            output.write(file)
        return unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _counts(recording: Recording, window_ms: tuple[float, float]) -> np.ndarray:
    """int64 (trials, neurons); trials without any response are -1."""
    name, start, stop = recording.name, *window_ms
    if recording.dynamic or recording.video or len(recording.stimuli.shape) != 3:
        raise ValueError(f"{name}: a session is written of grey images and responses without a time axis")
    if len(recording.animals) != 1:
        raise ValueError(f"{name}: has {len(recording.animals)} animals, a session has one")
    if (recording.neurons["area"] == "").any():
        raise ValueError(f"{name}: a neuron has no area, which a session keeps as the place of its electrode")
    if not 0 <= start < stop <= 1000 * PRESENTED_S:
        raise ValueError(
            f"window_ms: found {start:g} to {stop:g}, expected a part of the {1000 * PRESENTED_S:g} ms shown"
        )
    responses = np.asarray(recording.responses[:])
    missing = np.isnan(responses)
    if (missing.any(axis=1) != missing.all(axis=1)).any():
        raise ValueError(f"{name}: part of the neurons lack a response to a trial, which a session cannot hold")
    counts = np.where(missing, -1, responses)
    if (counts != np.rint(counts)).any() or (counts < -1).any() or (counts[~missing] < 0).any():
        raise ValueError(f"{name}: responses are no spike counts, expected whole numbers from 0 on")
    return counts.astype(np.int64)


def _schedule(recording: Recording, rng: np.random.Generator) -> _Session:
    trials = recording.trials
    absent = np.isnan(np.asarray(recording.responses[:])).all(axis=1)
    rounds = [
        np.flatnonzero((trials["repeat"] == repeat).to_numpy() & ~absent) for repeat in np.unique(trials["repeat"])
    ]
    now, rows, spontaneous = 0.0, [], []
    for block, chosen in enumerate(np.array_split(np.arange(len(rounds)), min(BLOCKS, len(rounds)))):
        spontaneous.append((now, now + SPONTANEOUS_S))
        now += SPONTANEOUS_S
        for number in chosen:
            order = rng.permutation(np.append(rounds[number], -1))
            rows += [(trial, now + place * PRESENTED_S, float(block)) for place, trial in enumerate(order)]
            now += len(order) * PRESENTED_S
    spontaneous.append((now, now + SPONTANEOUS_S))
    shown = pd.DataFrame(rows, columns=["trial", "start_time", "stimulus_block"])
    stimulus = np.append(trials["stimulus"].to_numpy(float), -1.0)  # the last one stands for grey
    shown["frame"] = stimulus[shown["trial"]]
    shown["stop_time"] = shown["start_time"] + PRESENTED_S
    return _Session(shown, spontaneous, now + SPONTANEOUS_S)


def _trains(
    counts: np.ndarray, session: _Session, window_ms: tuple[float, float], rng: np.random.Generator
) -> list[np.ndarray]:
    """Sorted spike times of each neuron: as many in a window as counted, and others at its mean rate between blocks."""
    onset = pd.Series(session.shown["start_time"].to_numpy(), session.shown["trial"].to_numpy())
    written = np.flatnonzero(counts.min(axis=1) >= 0)
    start, length = window_ms[0] / 1000, (window_ms[1] - window_ms[0]) / 1000
    trains = []
    for of_neuron in counts[written].T:
        begins = np.repeat(onset[written].to_numpy() + start, of_neuron)
        # Not at the edges of the window, where rounding decides on which side a spike is.
        spikes = begins + length * rng.uniform(1e-6, 1 - 1e-6, len(begins))
        between = [
            rng.uniform(low, high, rng.poisson(of_neuron.mean() / length * (high - low)))
            for low, high in session.spontaneous
        ]
        trains.append(np.sort(np.concatenate([spikes, *between])))
    return trains


def _add_presentations(file: Any, session: _Session) -> None:
    from pynwb import TimeSeries
    from pynwb.epoch import TimeIntervals

    times = session.shown["start_time"].to_numpy()
    stamps = TimeSeries(name="timestamps", data=times, timestamps=times, unit="s")
    file.create_processing_module("stimulus", "Stimulus Times processing").add(stamps)
    scenes = TimeIntervals(
        name="natural_scenes_presentations",
        description="Presentation times and stimuli details for 'natural_scenes' stimuli",
    )
    scenes.add_column(name="stimulus_name", description="Name of stimulus")
    scenes.add_column(name="stimulus_block", description="Index of contiguous presentations of one stimulus type")
    scenes.add_column(name="frame", description="Frame of movie stimulus")
    for row in session.shown.drop(columns="trial").to_dict("records"):
        scenes.add_interval(**row, stimulus_name="natural_scenes", tags=["stimulus_time_interval"])
    file.add_time_intervals(scenes)
    spontaneous = TimeIntervals(
        name="spontaneous_presentations", description="Presentation times and stimuli details for 'spontaneous' stimuli"
    )
    spontaneous.add_column(name="stimulus_name", description="Name of stimulus")
    for start, stop in session.spontaneous:
        spontaneous.add_interval(start_time=start, stop_time=stop, stimulus_name="spontaneous")
    file.add_time_intervals(spontaneous)


def _add_units(
    file: Any, neurons: pd.DataFrame, trains: list[np.ndarray], poor: int, stop_s: float, rng: np.random.Generator
) -> None:
    """One probe per area, one electrode per unit."""
    for column in ("probe_vertical_position", "probe_horizontal_position", "probe_id", "local_index", "valid_data"):
        file.add_electrode_column(column, f"{column} of the channel")
    for column in (*GOOD, "peak_channel_id", "cluster_id", "local_index", "firing_rate", "snr"):
        file.add_unit_column(column, f"{column} of the unit")
    areas = list(neurons["area"].unique())
    probes = [_add_probe(file, f"probe{chr(ord('A') + at)}") for at in range(len(areas))]
    places = neurons[["x_um", "y_um", "z_um"]].to_numpy()
    units = [(row, areas.index(area), GOOD, trains[row]) for row, area in enumerate(neurons["area"])]
    for extra in range(poor):
        noise = np.sort(rng.uniform(0, stop_s, rng.poisson(stop_s)))
        units.append((len(neurons) + extra, extra % len(areas), GOOD | POOR[extra % len(POOR)], noise))
    for row, probe, metrics, train in units:
        x, y, z = places[row] if row < len(places) else (np.nan,) * 3
        file.add_electrode(
            id=850_000_000 + row, x=x, y=y, z=z, imp=np.nan, location=areas[probe], filtering="none",
            group=probes[probe], probe_vertical_position=20 * row, probe_horizontal_position=43, probe_id=probe,
            local_index=row, valid_data=True,
        )  # fmt: skip
        file.add_unit(
            id=_unit_id(neurons, row), spike_times=train, peak_channel_id=850_000_000 + row, cluster_id=row,
            local_index=row, firing_rate=len(train) / stop_s, snr=3.0, **metrics,
        )  # fmt: skip


def _unit_id(neurons: pd.DataFrame, row: int) -> int:
    """The neuron's own number where it has one, as the real files have."""
    names = neurons["neuron_id"]
    if row < len(names) and names.str.fullmatch(r"[0-9]{1,18}").all():
        return int(names.iloc[row])
    return 950_000_000 + row


def _add_probe(file: Any, name: str) -> Any:
    device = file.create_device(name=name, description="Neuropixels 1.0 Probe")
    return file.create_electrode_group(
        name=name, description="Ecephys Electrode Group", location="See electrode locations", device=device
    )


def _add_behavior(file: Any, recording: Recording, session: _Session) -> None:
    """Traces that hold the value of a trial as long as it is shown, and 0 in between."""
    from hdmf.common import DynamicTable
    from pynwb import TimeSeries

    times = np.arange(int(session.stop_s * CAMERA_HZ)) / CAMERA_HZ
    place = np.searchsorted(session.shown["start_time"], times, side="right") - 1
    of_trial = session.shown["trial"].to_numpy()[np.maximum(place, 0)]
    shown = (place >= 0) & (of_trial >= 0) & (times < session.shown["stop_time"].to_numpy()[np.maximum(place, 0)])

    def trace(of_trials: np.ndarray) -> np.ndarray:
        return np.where(shown, np.asarray(of_trials, float)[of_trial], 0.0)

    for channel, name in enumerate(recording.behavior_names):
        values = trace(recording.behavior[:, channel])
        if name == "running_speed_cm_s":
            module = file.create_processing_module("running", "running speed data")
            module.add(TimeSeries(name="running_speed", data=values, timestamps=times, unit="cm/s"))
        elif name == "pupil_area_px2":
            module = file.create_processing_module("filtered_gaze_mapping", "Gaze mapping filtered outputs")
            module.add(TimeSeries(name="pupil_area", data=values, timestamps=times, unit="Pixels ^ 2"))
    if recording.pupil_center is not None:
        center = {f"center_{axis}": trace(recording.pupil_center[:, at]) for at, axis in enumerate("xy")}
        fits = pd.DataFrame(center | {"timestamps": times})
        module = file.create_processing_module("eye_tracking", "Eye tracking processing module")
        module.add(DynamicTable.from_dataframe(fits, "pupil_ellipse_fits", table_description="fits of the pupil"))


def _add_templates(file: Any, images: np.ndarray) -> None:
    from pynwb.image import ImageSeries

    series = ImageSeries(
        name="natural_scenes", description="The images", data=images, unit="n.a.", rate=1 / PRESENTED_S, format="raw"
    )
    file.add_stimulus_template(series)
