"""The running and the eye of a simulated Allen session, as its wheel and its camera trace them.

Comes in: a `Recording` of one animal and its `Schedule`. Goes out: traces (samples,) at chosen times, which hold the
value of a trial, or of a frame of it, as long as that is shown. In between the animal rests, and its pupil is unknown.

Simulated animals have `running_speed` (cm/s) and `pupil_dilation` (diameter in pixels of the camera); a session keeps
the pupil's area. Other channels, such as the change of dilation, have no place in it.
"""

from dataclasses import dataclass

import numpy as np

from neural_data.recording import Recording
from neural_data.session_schedule import Schedule

RUNNING, AREA, DIAMETER = ("running_speed_cm_s", "running_speed"), ("pupil_area_px2", "pupil_size_px"), "pupil_dilation"


@dataclass(frozen=True)
class SessionBehavior:
    """Traces at `times_s`, each None where it was not recorded: `running_cm_s`, `pupil_area_px2` (samples,), and
    `pupil_center` (samples, 2)."""

    times_s: np.ndarray
    running_cm_s: np.ndarray | None
    pupil_area_px2: np.ndarray | None
    pupil_center: np.ndarray | None


def session_behavior(recording: Recording, schedule: Schedule, times_s: np.ndarray) -> SessionBehavior:
    """The traces of the whole session at rising times."""
    shown = schedule.shown
    row = np.searchsorted(shown["start_time"], times_s, side="right") - 1
    seen = (row >= 0) & (times_s < shown["stop_time"].to_numpy()[row]) & (shown["trial"].to_numpy()[row] >= 0)
    trial, sample = (shown[name].to_numpy()[row[seen]] for name in ("trial", "sample"))

    def trace(values: np.ndarray, between: float) -> np.ndarray:
        """Of values (trials[, time])."""
        held = np.full(len(times_s), between)
        held[seen] = values[trial, sample] if values.ndim == 2 else values[trial]
        return held

    channels = dict(zip(recording.behavior_names, range(len(recording.behavior_names)), strict=True))
    found = {name: np.asarray(recording.behavior[:, at], float) for name, at in channels.items()}
    running = next((found[name] for name in RUNNING if name in found), None)
    area = next((found[name] for name in AREA if name in found), None)
    if area is None and DIAMETER in found:
        area = np.pi / 4 * found[DIAMETER] ** 2
    center = recording.pupil_center
    return SessionBehavior(
        times_s,
        running_cm_s=None if running is None else trace(running, 0.0),
        pupil_area_px2=None if area is None else trace(area, np.nan),
        pupil_center=None if center is None else np.stack([trace(center[:, at], np.nan) for at in (0, 1)], axis=1),
    )
