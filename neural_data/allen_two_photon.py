"""Sessions of Allen Visual Coding two-photon: responses of cells to images and movies.

Comes in: a session's file, NWB 1 or 2 (`two_photon_session.py`), and, for events in NWB 1, the file beside it. Goes
out: a `Recording` of the one animal, static, resolved in time, or of a movie.

Signals:
- "sweep": the AllenSDK's mean sweep response to an image (allensdk/brain_observatory/natural_scenes.py), in %:
  100 (F / F0 - 1), F0 the mean of the corrected fluorescence over the four sweeps before onset; a sweep is as many
  samples as an image is shown. Its mean is taken from onset over two sweeps.
- "dff": dF/F as the file has it.
- "events": what the L0 method detected in it, `ev` (cells, samples) in the AllenSDK's `<session>_events.npz`.
"""

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from neural_data import nwb_tables
from neural_data.presentations import movie_trials, scene_trials
from neural_data.recording import Recording
from neural_data.running_modulation import MIN_PRESENTATIONS, TWO_PHOTON_COLUMN, running_notes, running_p
from neural_data.stimulus_templates import images_of, is_movie, movie_of
from neural_data.tables import neuron_table
from neural_data.trace_means import mean_in_bins, stretch_means
from neural_data.two_photon_session import TwoPhotonSession, open_session

SIGNALS = {"sweep": "% of F0", "dff": "dF/F", "events": "events"}
SWEEPS_BEFORE, SWEEPS_AVERAGED = 4, 2
# Cells whose traces are in memory at a time; each has some 115,000 samples.
CELLS_AT_A_TIME = 64


def read_two_photon(
    path: str | Path,
    stimulus: str = "natural_scenes",
    signal: str | None = None,
    window_ms: tuple[float, float] | None = None,
    resolved: bool = False,
    stimuli: str | Path | None = None,
    events: str | Path | None = None,
) -> Recording:
    """The recording of one session's cells.

    `stimulus`: "natural_scenes", or a movie such as "natural_movie_one", of which each frame is a sample in time.
    `signal`: one of those above; None takes "sweep" for images and "dff" for movies. `window_ms`: what is averaged,
    relative to the onset of an image; None: two sweeps from onset. `resolved`: the samples in it one by one.
    `stimuli`, `events`: files beside the session's. Behaviour is the mean over the same time: `running_speed_cm_s`,
    `pupil_size_px`; `pupil_center` is the gaze on the monitor in cm. `neurons` has `p_run_mod_ns`
    (`running_modulation.py`) for images, where running is in the file. Raises FileNotFoundError, or ValueError naming
    the file, the field, what was found and what was expected.
    """
    path = Path(path)
    movie = is_movie(stimulus)
    signal = signal or ("dff" if movie else "sweep")
    _check_request(stimulus, signal, window_ms, resolved)
    with nwb_tables.open_nwb(path) as file:
        session = open_session(file)
        shown, notes = session.presentations(stimulus)
        try:
            videos, rows, trials, left_out = _trials(session, stimulus, shown, stimuli)
        except ValueError as error:
            line = str(error) if str(path) in str(error) else f"{path}: stimulus/presentation/{stimulus}: {error}"
            raise ValueError(line) from None
        start, stop = (shown[column].to_numpy()[rows] for column in ("start", "stop"))
        sweep = _sweep_length(shown)
        if movie:
            starts, stops = start, np.maximum(stop, start + 1)
        else:
            starts, stops = _windows(session, start, sweep, window_ms, resolved)
        baseline = (start - SWEEPS_BEFORE * sweep, start) if signal == "sweep" else None
        responses = _responses(session, signal, starts, stops, baseline, events)
        behavior, names, pupil_center = _behavior(session, starts, stops)
        neurons = neuron_table(session.cell_ids, session.animal, session.area, z_um=session.depth_um)
        if not movie:
            as_asked = responses if signal == "sweep" and window_ms is None and not resolved else None
            left_out += _add_run_p(session, neurons, trials, start, sweep, as_asked)
    kept = ~np.isnan(responses).all(axis=(1, 2))
    dynamic = movie or resolved
    notes += left_out
    notes += [f"{(~kept).sum()} trials left out: too near to an end of the session"] if not kept.all() else []
    notes += [] if "running_speed_cm_s" in names else ["no running speed in the file"]
    notes += [] if pupil_center is not None else ["no eye tracking in the file"]
    return Recording(
        name=path.stem,
        stimuli=videos,
        trials=trials[kept].reset_index(drop=True),
        responses=responses[kept] if dynamic else responses[kept, :, 0],
        neurons=neurons,
        behavior=_shaped(behavior, kept, dynamic),
        pupil_center=_shaped(pupil_center, kept, dynamic),
        sampling_rate_hz=_rate_hz(session, start, movie) if dynamic else None,
        source=f"Allen Visual Coding two-photon, session {session.session}, {stimulus}, {SIGNALS[signal]}",
        behavior_names=names,
        response_start_ms=0.0 if movie or window_ms is None else float(window_ms[0]),
        notes=tuple(notes),
    )


def _check_request(stimulus: str, signal: str, window_ms: tuple[float, float] | None, resolved: bool) -> None:
    if signal not in SIGNALS:
        raise ValueError(f"signal: found {signal!r}, expected {', '.join(SIGNALS)}")
    if is_movie(stimulus) and (signal == "sweep" or window_ms is not None or resolved):
        raise ValueError(f"{stimulus}: is a movie; expected signal dff or events, without window_ms and resolved")
    if not is_movie(stimulus) and stimulus != "natural_scenes":
        raise ValueError(f"stimulus: found {stimulus!r}, expected natural_scenes or a natural movie")
    if window_ms is not None and not window_ms[0] < window_ms[1]:
        raise ValueError(f"window_ms: found {window_ms[0]:g} to {window_ms[1]:g}, expected an end after the beginning")


def _trials(
    session: TwoPhotonSession, stimulus: str, shown: pd.DataFrame, stimuli: str | Path | None
) -> tuple[Any, np.ndarray, pd.DataFrame, list[str]]:
    """Stimuli, the presentations of the trials (trials[, frames]), their table, and notes."""
    frame, start = shown["frame"].to_numpy(), shown["start"].to_numpy()
    if len(start) and not 0 <= start.min() <= start.max() < len(session.timestamps_s):
        raise ValueError(f"starts at samples {start.min()} to {start.max()} of {len(session.timestamps_s)}")
    onset_s = session.timestamps_s[start]
    if is_movie(stimulus):
        videos = movie_of(session.file, stimulus, stimuli)
        rows, trials, notes = movie_trials(frame, onset_s, videos.shape[1])
    else:
        videos = images_of(session.file, stimulus, stimuli)
        rows, trials, notes = scene_trials(frame, onset_s, len(videos))
    if not len(trials):
        raise ValueError("no presentation is left")
    return videos, rows, trials, notes


def _sweep_length(shown: pd.DataFrame) -> int:
    """Samples that an image is shown; the AllenSDK takes those of the second presentation."""
    second = shown.iloc[min(1, len(shown) - 1)]
    return int(second["stop"] - second["start"])


def _windows(
    session: TwoPhotonSession, start: np.ndarray, sweep: int, window_ms: tuple[float, float] | None, resolved: bool
) -> tuple[np.ndarray, np.ndarray]:
    """First sample, and the one after the last, of each bin: int64 (trials, bins)."""
    if window_ms is None:
        first, n = start, np.full(len(start), SWEEPS_AVERAGED * sweep)
    else:
        onset_s = session.timestamps_s[start]
        # A µs is forgiven, so that a sample that begins at the very edge belongs to what follows.
        first, last = (np.searchsorted(session.timestamps_s, onset_s + edge / 1000 - 1e-6) for edge in window_ms)
        n = last - first
    if not resolved:
        return first[:, None], (first + n)[:, None]
    samples = first[:, None] + np.arange(int(np.median(n)))
    return samples, samples + 1


def _responses(
    session: TwoPhotonSession,
    signal: str,
    starts: np.ndarray,
    stops: np.ndarray,
    baseline: tuple[np.ndarray, np.ndarray] | None,
    events: str | Path | None,
) -> np.ndarray:
    """float32 (trials, cells, bins), block by block of cells."""
    detected = _events(events, session) if signal == "events" and events is not None else None
    n_cells = len(session.cell_ids)
    responses = np.empty((len(starts), n_cells, starts.shape[1]), np.float32)
    for first in range(0, n_cells, CELLS_AT_A_TIME):
        cells = slice(first, first + CELLS_AT_A_TIME)
        if detected is not None:
            traces = detected[cells].astype(float)
        elif signal == "sweep":
            traces = session.corrected_fluorescence(cells)
        else:
            traces = session.traces(_places(session, signal), cells)
        means = stretch_means(traces, starts, stops)
        if baseline is not None:
            before = stretch_means(traces, *baseline)[..., None]
            means = 100 * (np.divide(means, before, out=np.full(means.shape, np.nan), where=before != 0) - 1)
        responses[:, cells] = means.transpose(1, 0, 2)
    return responses


def _add_run_p(
    session: TwoPhotonSession,
    neurons: pd.DataFrame,
    trials: pd.DataFrame,
    start: np.ndarray,
    sweep: int,
    responses: np.ndarray | None,
) -> list[str]:
    """Adds the column, where running is in the file; returns notes. `responses`: mean sweep responses, if known."""
    starts = start[:, None]
    stops = starts + SWEEPS_AVERAGED * sweep
    behavior, names, _ = _behavior(session, starts, stops)
    if "running_speed_cm_s" not in names:
        return []
    speed = behavior[:, names.index("running_speed_cm_s"), 0]
    layout = session.layout
    for places in (layout.fluorescence, layout.neuropil, layout.contamination):
        if responses is None and nwb_tables.first_there(session.file, places) is None:
            return [f"{TWO_PHOTON_COLUMN} is unknown: {places[0]} is not in the file"]
    if responses is None:
        responses = _responses(session, "sweep", starts, stops, (start - SWEEPS_BEFORE * sweep, start), None)
    column = TWO_PHOTON_COLUMN
    neurons[column] = running_p(responses[..., 0], trials["stimulus"].to_numpy(), speed, MIN_PRESENTATIONS[column])
    return running_notes(neurons[column].to_numpy(), column)


def _places(session: TwoPhotonSession, signal: str) -> tuple[str, ...]:
    places = session.layout.dff if signal == "dff" else session.layout.events
    if not places or (signal == "events" and nwb_tables.first_there(session.file, places) is None):
        raise ValueError(
            f"{session.file.filename}: holds no events; give events=, the AllenSDK's <session>_events.npz beside it"
        )
    return places


def _events(path: str | Path, session: TwoPhotonSession) -> np.ndarray:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected the AllenSDK's <session>_events.npz")
    try:
        with np.load(path, allow_pickle=False) as archive:
            detected = archive["ev"]
    except (ValueError, OSError, EOFError, KeyError, TypeError, IndexError, BadZipFile) as error:
        line = " ".join(str(error).split())
        raise ValueError(f"{path}: ev: cannot be read, expected events (cells, samples) in an .npz ({line})") from None
    expected = (len(session.cell_ids), len(session.timestamps_s))
    if detected.shape != expected or detected.dtype.kind not in "iuf":
        raise ValueError(f"{path}: ev: found {detected.dtype} of shape {detected.shape}, expected numbers {expected}")
    return detected


def _behavior(
    session: TwoPhotonSession, starts: np.ndarray, stops: np.ndarray
) -> tuple[np.ndarray | None, tuple[str, ...], np.ndarray | None]:
    """Behaviour (trials, channels, bins) with names, and the gaze (trials, 2, bins); None where it is absent."""
    edges = _edges_s(session.timestamps_s, starts, stops)
    channels = {}
    for name, place in (("running_speed_cm_s", session.layout.running), ("pupil_size_px", session.layout.pupil_size)):
        found = nwb_tables.series(session.file, place)
        if found is not None:
            # The first releases hold running speed as one column.
            channels[name] = mean_in_bins(found[0], found[1].reshape(len(found[1]), -1)[:, 0], edges)
    gaze = nwb_tables.series(session.file, session.layout.pupil_location)
    center = None
    if gaze is not None:
        center = np.stack([mean_in_bins(gaze[0], gaze[1][:, axis], edges) for axis in (0, 1)], axis=1).astype(
            np.float32
        )
    behavior = np.stack(list(channels.values()), axis=1).astype(np.float32) if channels else None
    return behavior, tuple(channels), center


def _edges_s(times: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Times (trials, bins + 1) between which the samples of the bins lie; outside of the session NaN."""
    longer = np.append(times, times[-1] + np.median(np.diff(times)))
    samples = np.concatenate([starts, stops[:, -1:]], axis=1)
    inside = (samples >= 0) & (samples < len(longer))
    return np.where(inside, longer[np.where(inside, samples, 0)], np.nan)


def _rate_hz(session: TwoPhotonSession, start: np.ndarray, movie: bool) -> float:
    """Samples per second: of a movie its frames, else those of the microscope."""
    if movie:
        spans = session.timestamps_s[start[:, -1]] - session.timestamps_s[start[:, 0]]
        return round(float((start.shape[1] - 1) / np.median(spans)), 4)
    return round(float(1 / np.median(np.diff(session.timestamps_s))), 4)


def _shaped(values: np.ndarray | None, kept: np.ndarray, dynamic: bool) -> np.ndarray | None:
    if values is None:
        return None
    return values[kept] if dynamic else values[kept, :, 0]
