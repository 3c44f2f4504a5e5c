"""Small session files with the tables of the real ones, and what is in them.

Neuropixels: written with pynwb, table by table as DANDI 000021 lists them. Two-photon: NWB 1 with h5py, as
brain_observatory_nwb_data_set.py reads it; NWB 2 with pynwb, as DANDI 000728 was converted from it.
"""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

GOOD = {"quality": "good", "amplitude_cutoff": 0.02, "presence_ratio": 0.99, "isi_violations": 0.1}
# Of each unit its area, its probe, whether its electrode is valid, and what is wrong with it.
UNITS = [
    (950911932, "VISp", "probeA", True, {}),
    (950911933, "VISl", "probeA", True, {}),
    (950911934, "LP", "probeB", True, {}),
    (950911935, "VISp", "probeA", True, {"quality": "noise"}),
    (950911936, "VISp", "probeA", True, {"amplitude_cutoff": np.nan}),
    (950911937, "VISp", "probeA", False, {}),
    (950911938, "None", "probeB", True, {}),
    (950911939, "VISl", "probeB", True, {"isi_violations": 0.51}),
    (950911940, "VISl", "probeB", True, {"presence_ratio": 0.94}),
]
IMAGES, REPEATS, FRAMES, SHOWINGS = 4, 5, 12, 4


@dataclass(frozen=True)
class Neuropixels:
    """What a session's file is made of; times in s."""

    trains: list[np.ndarray]
    scenes: pd.DataFrame  # start_time, stop_time, frame, stimulus_block
    movie: pd.DataFrame
    running: tuple[np.ndarray, np.ndarray]
    eye: dict[str, np.ndarray]
    invalid: list[tuple[float, float, list[str]]] = field(default_factory=list)
    templates: dict[str, np.ndarray] = field(default_factory=dict)


def neuropixels(seed: int = 0, **changed: Any) -> Neuropixels:
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(np.append(np.arange(IMAGES), -1)) for _ in range(REPEATS)]).astype(float)
    start = 10 + 0.25021 * np.arange(len(order))
    scenes = pd.DataFrame({"start_time": start, "stop_time": start + 0.25021, "frame": order, "stimulus_block": 6.0})
    frame = np.tile(np.arange(FRAMES, dtype=float), SHOWINGS)
    start = 30 + np.cumsum(rng.uniform(0.033, 0.0337, len(frame))) + 20 * (np.arange(len(frame)) >= len(frame) // 2)
    stop = np.append(start[1:], start[-1] + 0.0334)
    stop[len(frame) // 2 - 1] = start[len(frame) // 2 - 1] + 0.0334
    movie = pd.DataFrame({"start_time": start, "stop_time": stop, "frame": frame, "stimulus_block": 7.0})
    movie.loc[len(frame) // 2 :, "stimulus_block"] = 9.0
    wheel = np.arange(5, 60, 1 / 60)
    camera = np.arange(4, 61, 1 / 30)
    eye = {"times": camera, "area": rng.uniform(500, 900, len(camera)), "x": rng.normal(300, 5, len(camera))}
    eye["y"] = rng.normal(200, 5, len(camera))
    eye["area"][40:45] = np.nan
    parts = Neuropixels(
        trains=[np.sort(rng.uniform(0, 65, rng.integers(1500, 4000))) for _ in UNITS],
        scenes=scenes,
        movie=movie,
        running=(wheel, rng.normal(5, 10, len(wheel))),
        eye=eye,
        templates={
            "natural_scenes": rng.integers(0, 256, (IMAGES, 6, 8)).astype(np.uint8),
            "natural_movie_one": rng.integers(0, 256, (FRAMES, 5, 7)).astype(np.uint8),
        },
    )
    return replace(parts, **changed)


def write_neuropixels(path: Path, parts: Neuropixels) -> Path:
    from pynwb import NWBHDF5IO, NWBFile, TimeSeries
    from pynwb.file import Subject
    from pynwb.image import ImageSeries

    file = NWBFile(
        session_description="Data and metadata for an Ecephys session",
        identifier="715093703",
        session_id="715093703",
        session_start_time=datetime(2019, 1, 19, 8, 54, 18, tzinfo=UTC),
        institution="Allen Institute for Brain Science",
        stimulus_notes="brain_observatory_1.1",
        subject=Subject(
            subject_id="699733581", species="Mus musculus", age="P118D", sex="M", genotype="Sst-IRES-Cre/wt"
        ),
    )
    stamps = parts.scenes["start_time"].to_numpy()
    stimulus = file.create_processing_module("stimulus", "Stimulus Times processing")
    stimulus.add(TimeSeries(name="timestamps", data=stamps, timestamps=stamps, unit="s"))
    _add_intervals(file, parts)
    _add_units(file, parts.trains)
    _add_running(file, *parts.running)
    _add_eye(file, parts.eye)
    for name, stack in parts.templates.items():
        file.add_stimulus_template(ImageSeries(name=name, data=stack, unit="n.a.", rate=30.0, format="raw"))
    with NWBHDF5IO(str(path), "w") as output:
        output.write(file)
    return path


def _add_intervals(file: Any, parts: Neuropixels) -> None:
    from pynwb.epoch import TimeIntervals

    grating = pd.DataFrame({"start_time": [1.0, 4.0], "stop_time": [3.0, 6.0], "orientation": [45.0, np.nan]})
    columns = ("start_time", "stop_time", "frame", "stimulus_block")
    tables = {"natural_scenes": parts.scenes, "natural_movie_one": parts.movie, "drifting_gratings": grating}
    tables["natural_movie_one_shuffled"] = parts.movie
    tables["spontaneous"] = pd.DataFrame({"start_time": [0.0, 20.0], "stop_time": [1.0, 29.0]})
    for name, rows in tables.items():
        table = TimeIntervals(name=f"{name}_presentations", description=f"Presentation times for '{name}' stimuli")
        further = {column: rows[column] for column in rows if column not in ("start_time", "stop_time")}
        further |= (
            {"stimulus_name": name, "stimulus_index": 1.0} if set(columns) <= set(rows) else {"stimulus_name": name}
        )
        for column in further:
            table.add_column(name=column, description="No description")
        for row in rows.assign(**further).to_dict("records"):
            table.add_interval(**row, tags=["stimulus_time_interval"])
        file.add_time_intervals(table)
    if parts.invalid:
        for start, stop, tags in parts.invalid:
            file.add_invalid_time_interval(start_time=start, stop_time=stop, tags=tags)


def _add_units(file: Any, trains: list[np.ndarray]) -> None:
    probes = {}
    for name in ("probeA", "probeB"):
        device = file.create_device(name=name, description="Neuropixels 1.0 Probe")
        probes[name] = file.create_electrode_group(
            name=name, description="Ecephys Electrode Group", location="See electrode locations", device=device
        )
    for column in ("probe_vertical_position", "probe_horizontal_position", "probe_id", "local_index", "valid_data"):
        file.add_electrode_column(column, column)
    metrics = (
        "PT_ratio",
        "cumulative_drift",
        "d_prime",
        "firing_rate",
        "isolation_distance",
        "l_ratio",
        "max_drift",
        "snr",
    )
    for column in (*metrics, *GOOD, "cluster_id", "local_index", "peak_channel_id"):
        file.add_unit_column(column, "no description")
    for at, (unit, area, probe, valid, wrong) in enumerate(UNITS):
        file.add_electrode(
            id=850128900 + at, x=8000.0 + at, y=500.0 + 10 * at, z=-1.0 if at == 2 else 7000.0, imp=np.nan,
            location=area, filtering="AP band: 500 Hz high-pass", group=probes[probe], probe_vertical_position=20 * at,
            probe_horizontal_position=43, probe_id=729445648, local_index=at, valid_data=valid,
        )  # fmt: skip
        file.add_unit(
            id=unit, spike_times=trains[at], peak_channel_id=850128900 + at, cluster_id=at, local_index=at,
            waveform_mean=np.zeros(82), **dict.fromkeys(metrics, 1.5), **(GOOD | wrong),
        )  # fmt: skip


def _add_running(file: Any, times: np.ndarray, speed: np.ndarray) -> None:
    from pynwb import TimeSeries

    module = file.create_processing_module("running", "running speed data")
    running = TimeSeries(name="running_speed", data=speed, timestamps=times, unit="cm/s")
    module.add(running)
    ends = TimeSeries(name="running_speed_end_times", data=np.full(len(times), np.nan), timestamps=times, unit="cm/s")
    module.add(ends)
    module.add(TimeSeries(name="running_wheel_rotation", data=speed, timestamps=running, unit="radians"))
    file.add_acquisition(TimeSeries(name="raw_running_wheel_rotation", data=speed, timestamps=times, unit="radians"))


def _add_eye(file: Any, eye: dict[str, np.ndarray]) -> None:
    from hdmf.common import DynamicTable
    from pynwb import TimeSeries

    fits = pd.DataFrame({"center_x": eye["x"], "center_y": eye["y"], "height": 1.0, "width": 1.0, "phi": 0.0})
    module = file.create_processing_module("eye_tracking", "Eye tracking processing module")
    for name in ("pupil_ellipse_fits", "cr_ellipse_fits", "eye_ellipse_fits"):
        module.add(DynamicTable.from_dataframe(fits, name, table_description="ellipses"))
    for kind, area in (("raw", np.nan_to_num(eye["area"], nan=1e6)), ("filtered", eye["area"])):
        module = file.create_processing_module(f"{kind}_gaze_mapping", "Gaze mapping processing module outputs")
        for name in ("eye_area", "pupil_area"):
            module.add(TimeSeries(name=name, data=area, timestamps=eye["times"], unit="Pixels ^ 2"))


@dataclass(frozen=True)
class TwoPhoton:
    """What a two-photon session's file is made of; traces (cells, samples)."""

    times: np.ndarray
    demixed: np.ndarray
    neuropil: np.ndarray
    r: np.ndarray
    raw: np.ndarray
    dff: np.ndarray
    events: np.ndarray
    scenes: pd.DataFrame  # frame, start, stop in samples
    movie: pd.DataFrame
    images: np.ndarray
    frames: np.ndarray
    running: np.ndarray
    gaze: np.ndarray
    pupil: np.ndarray
    cells: tuple[int, ...] = (517398740, 517398741, 517398742)


def two_photon(seed: int = 0) -> TwoPhoton:
    rng = np.random.default_rng(seed)
    n, cells = 1500, 3
    times = 2.5 + np.cumsum(rng.uniform(0.0330, 0.0334, n))
    order = np.concatenate([rng.permutation(np.append(np.arange(IMAGES), -1)) for _ in range(REPEATS)])
    start = 100 + 8 * np.arange(len(order)) - np.arange(len(order)) // 2
    # The second presentation lasts 7 samples, which makes a sweep; others 7 or 8.
    scenes = pd.DataFrame({"frame": order, "start": start, "stop": start + np.where(np.arange(len(order)) % 3, 7, 8)})
    frame = np.tile(np.arange(FRAMES), SHOWINGS)
    start = 700 + np.arange(len(frame)) + 300 * (np.arange(len(frame)) >= len(frame) // 2)
    movie = pd.DataFrame({"frame": frame, "start": start, "stop": start + 1})
    raw = rng.uniform(200, 400, (cells, n)).astype(np.float32)
    return TwoPhoton(
        times=times,
        demixed=(raw + rng.normal(0, 5, raw.shape)).astype(np.float32),
        neuropil=rng.uniform(50, 100, raw.shape).astype(np.float32),
        r=np.array([0.3, 0.0, 0.9]),
        raw=raw,
        dff=rng.normal(0.1, 0.2, raw.shape).astype(np.float32),
        events=np.maximum(rng.normal(-1, 1, raw.shape), 0),
        scenes=scenes,
        movie=movie,
        images=rng.integers(0, 256, (IMAGES, 6, 8)).astype(np.float32),
        frames=rng.integers(0, 256, (FRAMES, 5, 7)).astype(np.uint8),
        running=rng.normal(5, 10, n),
        gaze=rng.normal(0, 3, (n, 2)),
        pupil=rng.uniform(500, 900, n),
    )


def write_nwb_1(path: Path, parts: TwoPhoton, demixed: bool = True, behavior: bool = True) -> Path:
    """`demixed`: as from pipeline 2.0 on, else as before it."""
    pipeline = "processing/brain_observatory_pipeline"
    plane = f"{pipeline}/Fluorescence/imaging_plane_1"
    with h5py.File(path, "w") as file:
        file["nwb_version"] = "NWB-1.0.5"
        for name, value in {
            "general/session_id": "501794235",
            "general/specimen_name": "Cux2-CreERT2;Camk2a-tTA;Ai93-222424",
            "general/subject/subject_id": "495726109",
            "general/session_type": "three_session_B",
            "general/optophysiology/imaging_plane_1/location": "VISl",
            "general/optophysiology/imaging_plane_1/imaging depth": "175 microns",
        }.items():
            file[name] = np.bytes_(value)
        file[f"{pipeline}/ImageSegmentation/cell_specimen_ids"] = np.array(parts.cells)
        file[f"{plane}/data"] = parts.raw
        file[f"{plane}/timestamps"] = parts.times
        if demixed:
            file[f"{plane}_demixed_signal/data"] = parts.demixed
            file[f"{plane}_neuropil_response/data"] = parts.neuropil
            file[f"{plane}_neuropil_response/r"] = parts.r
        else:
            file[f"{plane}/neuropil_traces"] = parts.neuropil
            file[f"{plane}/r"] = parts.r
        file[f"{pipeline}/DfOverF/imaging_plane_1/data"] = parts.dff
        file[f"{pipeline}/DfOverF/imaging_plane_1/timestamps"] = h5py.SoftLink(f"/{plane}/timestamps")
        if behavior:
            running = f"{pipeline}/BehavioralTimeSeries/running_speed"
            file[f"{running}/data"] = parts.running if demixed else parts.running[:, None]
            file[f"{running}/timestamps"] = parts.times
            file[f"{pipeline}/PupilTracking/pupil_size/data"] = parts.pupil
            file[f"{pipeline}/PupilTracking/pupil_size/timestamps"] = parts.times
            file[f"{pipeline}/EyeTracking/pupil_location/data"] = parts.gaze
            file[f"{pipeline}/EyeTracking/pupil_location/timestamps"] = parts.times
        for name, shown, suffix in (
            ("natural_scenes", parts.scenes, "_stimulus"),
            ("natural_movie_one", parts.movie, ""),
        ):
            place = f"stimulus/presentation/{name}{suffix}"
            file[f"{place}/data"] = shown["frame"].to_numpy()
            file[f"{place}/frame_duration"] = shown[["start", "stop"]].to_numpy()
            file[f"{place}/timestamps"] = parts.times[shown["start"]]
        file["stimulus/templates/natural_scenes_image_stack/data"] = parts.images
        file.create_dataset(
            "stimulus/templates/natural_movie_one_image_stack/data", data=parts.frames, chunks=(4, 5, 7)
        )
    return path


def write_nwb_2(path: Path, parts: TwoPhoton, grey: int = 0) -> Path:
    """`grey`: what -1 became; the conversion made it 0."""
    from hdmf.common import DynamicTable, VectorData
    from pynwb import NWBHDF5IO, NWBFile, TimeSeries
    from pynwb.behavior import BehavioralTimeSeries, EyeTracking, PupilTracking, SpatialSeries
    from pynwb.file import Subject
    from pynwb.image import GrayscaleImage, Images, ImageSeries, IndexSeries
    from pynwb.ophys import (
        DfOverF,
        Fluorescence,
        ImageSegmentation,
        OpticalChannel,
        PlaneSegmentation,
        RoiResponseSeries,
    )

    file = NWBFile(
        session_description="two-photon",
        identifier="a",
        session_id="501794235-StimB",
        session_start_time=datetime(2016, 2, 1, tzinfo=UTC),
        subject=Subject(subject_id="495726109", species="Mus musculus", age="P100D", sex="M"),
    )
    microscope = file.create_device(name="Microscope")
    channel = OpticalChannel(name="OpticalChannel", description="", emission_lambda=520.0)
    imaged = file.create_imaging_plane(
        name="ImagingPlane", optical_channel=channel, description="", device=microscope, excitation_lambda=910.0,
        indicator="GCaMP6f", location="VISl",
    )  # fmt: skip
    ophys = file.create_processing_module("ophys", "Contains processed optical physiology data.")
    plane = PlaneSegmentation(name="PlaneSegmentation", description="", imaging_plane=imaged)
    plane.add_column(name="global_roi_id", description="")
    for at, cell in enumerate(parts.cells):
        plane.add_roi(id=at, pixel_mask=[(at, at, 1.0)], global_roi_id=cell)
    ophys.add(ImageSegmentation(name="ImageSegmentation", plane_segmentations=plane))
    rois = plane.create_roi_table_region(region=[0, 1, 2], description="")

    def traces(name: str, values: np.ndarray, times: Any, unit: str = "n.a.") -> Any:
        return RoiResponseSeries(name=name, data=values, timestamps=times, unit=unit, rois=rois)

    corrected = traces("Corrected", parts.raw.T, parts.times)
    others = [traces("Demixed", parts.demixed.T, corrected), traces("Neuropil", parts.neuropil.T, corrected)]
    ophys.add(Fluorescence(name="Fluorescence", roi_response_series=[corrected, *others]))
    dff = [traces("DfOverF", parts.dff.T, corrected), traces("DfOverFEvents", parts.events.T, corrected)]
    ophys.add(DfOverF(name="DfOverF", roi_response_series=dff))
    ratios = VectorData(name="ratios", description="", data=parts.r)
    ophys.add(DynamicTable(name="ContaminationRatios", description="", columns=[ratios]))
    behavior = file.create_processing_module("behavior", "Processed behavioral data.")
    running = TimeSeries(name="running_speed", data=parts.running, timestamps=parts.times, unit="cm/s")
    behavior.add(BehavioralTimeSeries(time_series=running))
    pupil = TimeSeries(name="pupil_size", data=parts.pupil, timestamps=parts.times, unit="px")
    behavior.add(PupilTracking(time_series=[pupil]))
    gaze = SpatialSeries(
        name="pupil_location",
        data=parts.gaze,
        timestamps=parts.times,
        unit="m",
        reference_frame="centre of the monitor",
    )
    behavior.add(EyeTracking(spatial_series=[gaze]))
    images = [
        GrayscaleImage(name=f"NaturalScene{at}", data=image.astype(np.uint8)) for at, image in enumerate(parts.images)
    ]
    scenes = Images(name="natural_scenes_template", images=images)
    file.add_stimulus_template(scenes)
    movie = ImageSeries(name="natural_movie_one", data=parts.frames, unit="n.a.", starting_time=np.nan, rate=np.nan)
    file.add_stimulus_template(movie)
    for name, shown in (("natural_scenes_stimulus", parts.scenes), ("natural_movie_one_stimulus", parts.movie)):
        frame = shown["frame"].replace(-1, grey).to_numpy().astype(np.uint32)
        what = {"name": name, "data": frame, "unit": "N/A", "timestamps": parts.times[shown["start"]]}
        # The movie was an IndexSeries of frames, too, which pynwb does not write any more.
        scenes_shown = name.startswith("natural_scenes")
        file.add_stimulus(IndexSeries(**what, indexed_images=scenes) if scenes_shown else TimeSeries(**what))
    with NWBHDF5IO(str(path), "w") as output:
        output.write(file)
    return path
