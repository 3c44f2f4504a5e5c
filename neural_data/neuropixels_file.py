"""The file of a session of Allen Visual Coding Neuropixels, NWB 2, written table by table as the released ones are.

Comes in: `NeuropixelsSession`, what was shown when and what was recorded. Goes out: the file, with the tables of DANDI
000021 (`allen_neuropixels.py` lists those that are read). What the real files have and a simulation has not (local
field potentials, waveforms, wheel voltages, the classes of the extension ndx-aibs-ecephys) is left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neural_data.whole_file import whole_file

PLACE = ("unit_id", "area", "probe", "valid_data", "x_um", "y_um", "z_um")
FIRST_CHANNEL = 850_000_000
MOVIE_HZ = 30.0


@dataclass(frozen=True)
class NeuropixelsSession:
    """All times in s since the session began.

    `units`: one row per unit: `unit_id`, `area`, `probe`, `valid_data` and `x_um`, `y_um`, `z_um` of the electrode
    where it is strongest, and its metrics, as `quality`. `trains`: sorted spike times of each unit. `presentations`:
    by name of the stimulus, a table with `start_time`, `stop_time` and further columns. `running`: times and speed in
    cm/s. `eye`: table with `timestamps`, and `pupil_area` (px^2) or `center_x` and `center_y` (px) or all. `invalid`:
    start, end and tags. `templates`: images or frames by name of the stimulus; the released files have none.
    """

    name: str
    animal: str
    units: pd.DataFrame
    trains: Sequence[np.ndarray]
    presentations: Mapping[str, pd.DataFrame]
    running: tuple[np.ndarray, np.ndarray] | None = None
    eye: pd.DataFrame | None = None
    invalid: Sequence[tuple[float, float, list[str]]] = ()
    templates: Mapping[str, np.ndarray] = field(default_factory=dict)


def write_neuropixels_session(session: NeuropixelsSession, path: str | Path) -> Path:
    """Writes the file, which is whole or absent, and returns its path. Raises ValueError where it exists."""
    from pynwb import NWBFile
    from pynwb.file import Subject
    from pynwb.image import ImageSeries

    file = NWBFile(
        session_description="Data and metadata for an Ecephys session",
        identifier=session.name,
        session_id=session.name,
        session_start_time=datetime(2019, 1, 19, 8, 54, 18, tzinfo=UTC),
        institution="Allen Institute for Brain Science",
        stimulus_notes="brain_observatory_1.1",
        subject=Subject(subject_id=session.animal, species="Mus musculus", age="P118D", sex="U"),
    )
    _add_presentations(file, session)
    for start, stop, tags in session.invalid:
        file.add_invalid_time_interval(start_time=start, stop_time=stop, tags=tags)
    _add_units(file, session.units, session.trains)
    if session.running is not None:
        _add_running(file, *session.running)
    if session.eye is not None:
        _add_eye(file, session.eye)
    for name, stack in session.templates.items():
        file.add_stimulus_template(ImageSeries(name=name, data=stack, unit="n.a.", rate=MOVIE_HZ, format="raw"))
    return save_nwb(file, path)


def save_nwb(file: Any, path: str | Path) -> Path:
    """A pynwb file at its path, whole or absent. Raises ValueError where a file is there already."""
    from pynwb import NWBHDF5IO

    path = Path(path)
    with whole_file(path) as unfinished, NWBHDF5IO(str(unfinished), "w") as output:
        output.write(file)
    return path


def _add_presentations(file: Any, session: NeuropixelsSession) -> None:
    from pynwb import TimeSeries

    onsets = np.sort(np.concatenate([table["start_time"].to_numpy(float) for table in session.presentations.values()]))
    stamps = TimeSeries(name="timestamps", data=onsets, timestamps=onsets, unit="s")
    file.create_processing_module("stimulus", "Stimulus Times processing").add(stamps)
    for name, table in session.presentations.items():
        file.add_time_intervals(_intervals(name, table))


def _intervals(stimulus: str, table: pd.DataFrame) -> Any:
    """A table of intervals, made of whole columns: row by row a movie of 36,000 frames would take minutes."""
    from pynwb.epoch import TimeIntervals

    table = table.assign(stimulus_name=stimulus)
    tags = ["stimulus_time_interval"] * len(table)
    return TimeIntervals(
        name=f"{stimulus}_presentations",
        description=f"Presentation times and stimuli details for '{stimulus}' stimuli",
        columns=[*_columns(table), *_lists("tags", tags, np.arange(1, len(table) + 1))],
        colnames=[*table.columns, "tags"],
    )


def _columns(table: pd.DataFrame) -> list[Any]:
    from hdmf.common import VectorData

    return [VectorData(name=name, description="No description", data=table[name].tolist()) for name in table]


def _lists(name: str, flat: Any, ends: np.ndarray) -> list[Any]:
    """A column of lists: where each ends, and all of them one after the other."""
    from hdmf.common import VectorData, VectorIndex

    values = VectorData(name=name, description="No description", data=flat)
    return [VectorIndex(name=f"{name}_index", target=values, data=ends), values]


def _add_units(file: Any, units: pd.DataFrame, trains: Sequence[np.ndarray]) -> None:
    """One electrode per unit; the table of units in whole columns, as all spikes of a session are many."""
    from pynwb.misc import Units

    for column in ("probe_vertical_position", "probe_horizontal_position", "probe_id", "local_index", "valid_data"):
        file.add_electrode_column(column, f"{column} of the channel")
    probes = {name: _add_probe(file, name) for name in units["probe"].unique()}
    for row, unit in enumerate(units.to_dict("records")):
        file.add_electrode(
            id=FIRST_CHANNEL + row, x=unit["x_um"], y=unit["y_um"], z=unit["z_um"], imp=np.nan, location=unit["area"],
            filtering="AP band: 500 Hz high-pass", group=probes[unit["probe"]], probe_vertical_position=20 * row,
            probe_horizontal_position=43, probe_id=list(probes).index(unit["probe"]), local_index=row,
            valid_data=bool(unit["valid_data"]),
        )  # fmt: skip
    at = np.arange(len(units))
    table = units.drop(columns=list(PLACE)).assign(peak_channel_id=FIRST_CHANNEL + at, cluster_id=at, local_index=at)
    spikes = _lists("spike_times", np.concatenate(trains), np.cumsum([len(train) for train in trains]))
    file.units = Units(
        name="units",
        description="Units of all probes",
        id=units["unit_id"].to_numpy(np.int64),
        columns=[*_columns(table), *spikes],
        colnames=[*table.columns, "spike_times"],
    )


def _add_probe(file: Any, name: str) -> Any:
    device = file.create_device(name=name, description="Neuropixels 1.0 Probe")
    return file.create_electrode_group(
        name=name, description="Ecephys Electrode Group", location="See electrode locations", device=device
    )


def _add_running(file: Any, times: np.ndarray, speed: np.ndarray) -> None:
    from pynwb import TimeSeries

    module = file.create_processing_module("running", "running speed data")
    running = TimeSeries(name="running_speed", data=speed, timestamps=times, unit="cm/s")
    module.add(running)
    module.add(TimeSeries(name="running_wheel_rotation", data=speed, timestamps=running, unit="radians"))


def _add_eye(file: Any, eye: pd.DataFrame) -> None:
    """The fits of ellipses and the areas that follow; without areas, the times are a column of the fits."""
    from hdmf.common import DynamicTable
    from pynwb import TimeSeries

    if "center_x" in eye:
        fits = eye[["center_x", "center_y"]].assign(height=1.0, width=1.0, phi=0.0)
        fits = fits if "pupil_area" in eye else fits.assign(timestamps=eye["timestamps"])
        module = file.create_processing_module("eye_tracking", "Eye tracking processing module")
        for name in ("pupil_ellipse_fits", "cr_ellipse_fits", "eye_ellipse_fits"):
            module.add(DynamicTable.from_dataframe(fits, name, table_description="ellipses"))
    if "pupil_area" not in eye:
        return
    area, times = eye["pupil_area"].to_numpy(float), eye["timestamps"].to_numpy(float)
    for kind, values in (("raw", np.nan_to_num(area, nan=1e6)), ("filtered", area)):
        module = file.create_processing_module(f"{kind}_gaze_mapping", "Gaze mapping processing module outputs")
        for name in ("eye_area", "pupil_area"):
            module.add(TimeSeries(name=name, data=values, timestamps=times, unit="Pixels ^ 2"))
