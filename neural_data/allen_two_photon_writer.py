"""Simulated recordings written as sessions of Allen Visual Coding two-photon are.

Comes in: a `Recording` of one area of one animal whose responses are spike counts, of images or of videos. Goes out: a
session's file (`two_photon_file.py`), in NWB 2, or in NWB 1 with events in `<session>_events.npz` beside it.

The spikes themselves are the events. They go through calcium (`calcium.py`), all along the session, which gives dF/F;
fluorescence is F0 (1 + dF/F) plus its share of the neuropil's. A movie has one sample of the microscope per frame; an
image, shown for 7 or 8 samples in turn, has its spikes in the first 7, a sweep.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd

from neural_data.allen_writer import spike_counts_of, unit_ids
from neural_data.calcium import Indicator
from neural_data.recording import Recording
from neural_data.session_behavior import session_behavior
from neural_data.session_schedule import PRESENTED_S, Schedule, schedule_of
from neural_data.simulation_config import VideoConfig
from neural_data.two_photon_file import TwoPhotonContent, write_nwb_1, write_nwb_2

LAYOUTS = ("NWB 1", "NWB 2")
IMAGING_HZ = 30.0  # of images
FIRST_CELL = 517_000_000
DFF_PER_SPIKE = 0.1
BASELINE, NEUROPIL, CONTAMINATION = (200.0, 400.0), (50.0, 100.0), (0.0, 0.9)  # drawn for each cell
NEUROPIL_NOISE = 0.05  # standard deviation, share of the neuropil
FORGOTTEN = 10  # decay times after which a spike is no longer seen
CELLS_AT_A_TIME = 64


def write_two_photon_nwb(
    recording: Recording,
    path: str | Path,
    layout: str = "NWB 2",
    seed: int = 0,
    indicator: Indicator | None = None,
) -> Path:
    """Writes the file and returns its path; the same arguments give the same traces.

    When what is shown: `session_schedule.py`; behaviour: `session_behavior.py`. `indicator`: how calcium answers to a
    spike, by default as `VideoConfig` has it. The traces of all cells are in memory. Raises ValueError where the file
    exists, or cannot hold the recording.
    """
    path = Path(path)
    areas = recording.neurons["area"].unique()
    if layout not in LAYOUTS:
        raise ValueError(f"layout: found {layout!r}, expected {' or '.join(LAYOUTS)}")
    if len(areas) != 1:
        raise ValueError(f"{recording.name}: has the areas {', '.join(areas)}, a two-photon session has one")
    rng = np.random.default_rng(seed)
    schedule = schedule_of(recording, rng)
    rate_hz = recording.sampling_rate_hz if recording.video else IMAGING_HZ
    indicator = indicator or Indicator.of(VideoConfig(response="calcium"))
    content = _content(recording, schedule, dataclasses.replace(indicator, frame_rate_hz=rate_hz), rng)
    if layout == "NWB 2":
        return write_nwb_2(path, content)
    written = write_nwb_1(path, content)
    np.savez_compressed(path.with_name(f"{path.stem}_events.npz"), ev=content.events)
    return written


def _content(
    recording: Recording, schedule: Schedule, indicator: Indicator, rng: np.random.Generator
) -> TwoPhotonContent:
    rate_hz = indicator.frame_rate_hz
    times = np.arange(int(schedule.stop_s * rate_hz)) / rate_hz
    samples = _samples(schedule, rate_hz, 1 if recording.video else int(PRESENTED_S * rate_hz))
    events = _events(recording, schedule, samples, len(times), rng)
    dff = DFF_PER_SPIKE * _calcium(events, indicator, rng)
    n = len(events)
    r = rng.uniform(*CONTAMINATION, n)
    neuropil = rng.uniform(*NEUROPIL, (n, 1)) * (1 + NEUROPIL_NOISE * rng.standard_normal(dff.shape, np.float32))
    raw = (rng.uniform(*BASELINE, (n, 1)) * (1 + dff) + r[:, None] * neuropil).astype(np.float32)
    # In the middle of samples, where rounding does not decide what is shown.
    behavior = session_behavior(recording, schedule, times + 0.5 / rate_hz)
    return TwoPhotonContent(
        name=recording.name,
        animal=recording.animals[0],
        area=str(recording.neurons["area"].iloc[0]),
        cells=tuple(unit_ids(recording.neurons, FIRST_CELL).tolist()),
        times=times,
        raw=raw,
        demixed=raw,  # simulated cells do not overlap
        neuropil=neuropil.astype(np.float32),
        r=r,
        dff=dff,
        events=events,
        presentations=dict(tuple(samples.groupby(schedule.shown["stimulus_name"], sort=False))),
        templates=schedule.templates,
        running=behavior.running_cm_s,
        pupil=behavior.pupil_area_px2,
        gaze=behavior.pupil_center,
    )


def _samples(schedule: Schedule, rate_hz: float, length: int) -> pd.DataFrame:
    """`frame`, `start` and `stop` in samples of the microscope of each presentation."""
    start = np.floor(schedule.shown["start_time"].to_numpy() * rate_hz + 0.5).astype(np.int64)
    return pd.DataFrame({"frame": schedule.shown["frame"].astype(np.int64), "start": start, "stop": start + length})


def _events(
    recording: Recording, schedule: Schedule, samples: pd.DataFrame, n_samples: int, rng: np.random.Generator
) -> np.ndarray:
    """Spikes in each sample, float32 (cells, samples); while nothing is shown as many as on average."""
    shown = schedule.shown[schedule.shown["trial"] >= 0]
    starts, stops = (samples[name].to_numpy()[shown.index] for name in ("start", "stop"))
    events = np.zeros((len(recording.neurons), n_samples), np.float32)
    for trial, rows in shown.groupby("trial", sort=False).indices.items():
        counts = spike_counts_of(recording, int(trial), len(rows))
        cell, sample = (np.repeat(place.ravel(), counts.ravel()) for place in np.indices(counts.shape))
        within = rng.integers(0, stops[rows[0]] - starts[rows[0]], len(cell))
        np.add.at(events, (cell, starts[rows][sample] + within), 1)
    mean = events.sum(axis=1, keepdims=True) / (stops - starts).sum()
    for low, high in np.round(np.array(schedule.spontaneous) * n_samples / schedule.stop_s).astype(int):
        events[:, low:high] += rng.poisson(np.broadcast_to(mean, (len(events), high - low)))
    return events


def _calcium(events: np.ndarray, indicator: Indicator, rng: np.random.Generator) -> np.ndarray:
    """Traces float32 (cells, samples), in units of the peak that one spike causes, with noise."""
    from scipy.signal import oaconvolve

    length = int(np.ceil(FORGOTTEN * indicator.decay_ms * indicator.frame_rate_hz / 1000))
    kernel = indicator.kernel_matrix(length)[:1]
    traces = indicator.noise * rng.standard_normal(events.shape, np.float32)
    for first in range(0, len(events), CELLS_AT_A_TIME):
        block = events[first : first + CELLS_AT_A_TIME]
        traces[first : first + CELLS_AT_A_TIME] += oaconvolve(block, kernel, axes=1)[:, : events.shape[1]]
    return traces.astype(np.float32)
