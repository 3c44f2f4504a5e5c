"""The file of a session of Allen Visual Coding two-photon, written in either of the layouts that were released.

Comes in: `TwoPhotonContent`, the traces of cells and what was shown at which samples. Goes out: the file, as
`two_photon_session.py` finds it: NWB 1 with h5py, as allensdk/core/brain_observatory_nwb_data_set.py reads it; NWB 2
with pynwb, as DANDI 000728 was converted from it.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from neural_data.neuropixels_file import save_nwb
from neural_data.two_photon_session import PIPELINE, PLANE
from neural_data.whole_file import whole_file

LARGEST = 2**32 - 1  # what -1, grey, is as an unsigned number


@dataclass(frozen=True)
class TwoPhotonContent:
    """`times`: float64 (samples,), s. Traces (cells, samples): `raw` fluorescence, `demixed` from that of neighbours,
    `neuropil`, of which each cell has the share `r` (cells,), `dff`, and `events` or None. `presentations`: by name of
    the stimulus `frame`, `start` and `stop` (samples). `templates`: images or frames by the same names. Where they were
    recorded: `running` in cm/s and `pupil`, its area in px^2 (samples,), and `gaze` in cm on the monitor (samples, 2).
    """

    name: str
    animal: str
    area: str
    cells: tuple[int, ...]
    times: np.ndarray
    raw: np.ndarray
    demixed: np.ndarray
    neuropil: np.ndarray
    r: np.ndarray
    dff: np.ndarray
    events: np.ndarray | None
    presentations: Mapping[str, pd.DataFrame]
    templates: Mapping[str, np.ndarray]
    running: np.ndarray | None = None
    pupil: np.ndarray | None = None
    gaze: np.ndarray | None = None
    depth_um: int = 175


def write_nwb_1(path: str | Path, content: TwoPhotonContent, demixed: bool = True) -> Path:
    """Writes the file, which holds no events, and returns its path.

    `demixed`: as pipelines from 2.0 on wrote it, else as those before. Raises ValueError where the file exists.
    """
    path = Path(path)
    with whole_file(path) as unfinished, h5py.File(unfinished, "w") as file:
        _write_facts(file, content)
        _write_traces(file, content, demixed)
        _write_behavior(file, content, demixed)
        _write_stimuli(file, content)
    return path


def write_nwb_2(path: str | Path, content: TwoPhotonContent, grey: int = LARGEST) -> Path:
    """Writes the file and returns its path. Raises ValueError where it exists.

    `grey`: what -1 becomes among the unsigned numbers of images; the conversion to NWB 2 made it 0.
    """
    from pynwb import NWBFile
    from pynwb.file import Subject

    file = NWBFile(
        session_description="two-photon",
        identifier=content.name,
        session_id=content.name,
        session_start_time=datetime(2016, 2, 1, tzinfo=UTC),
        subject=Subject(subject_id=content.animal, species="Mus musculus", age="P100D", sex="U"),
    )
    with warnings.catch_warnings():
        # Traces belong to cells of a table that is in the file, but are not yet in it themselves.
        warnings.filterwarnings("ignore", "The linked table for DynamicTableRegion")
        _add_traces(file, content)
    _add_behavior(file, content)
    _add_stimuli(file, content, grey)
    return save_nwb(file, path)


def _write_facts(file: h5py.File, content: TwoPhotonContent) -> None:
    file["nwb_version"] = "NWB-1.0.5"
    for name, value in {
        "general/session_id": content.name,
        "general/specimen_name": content.animal,
        "general/subject/subject_id": content.animal,
        "general/session_type": "three_session_B",
        "general/optophysiology/imaging_plane_1/location": content.area,
        "general/optophysiology/imaging_plane_1/imaging depth": f"{content.depth_um} microns",
    }.items():
        file[name] = np.bytes_(value)


def _write_traces(file: h5py.File, content: TwoPhotonContent, demixed: bool) -> None:
    file[f"{PIPELINE}/ImageSegmentation/cell_specimen_ids"] = np.array(content.cells)
    file[f"{PLANE}/data"] = content.raw
    file[f"{PLANE}/timestamps"] = content.times
    if demixed:
        file[f"{PLANE}_demixed_signal/data"] = content.demixed
        file[f"{PLANE}_neuropil_response/data"] = content.neuropil
        file[f"{PLANE}_neuropil_response/r"] = content.r
    else:
        file[f"{PLANE}/neuropil_traces"] = content.neuropil
        file[f"{PLANE}/r"] = content.r
    file[f"{PIPELINE}/DfOverF/imaging_plane_1/data"] = content.dff
    file[f"{PIPELINE}/DfOverF/imaging_plane_1/timestamps"] = h5py.SoftLink(f"/{PLANE}/timestamps")


def _write_behavior(file: h5py.File, content: TwoPhotonContent, demixed: bool) -> None:
    running = content.running
    if running is not None and not demixed:
        running = running[:, None]  # the first releases have it as one column
    for place, values in (
        ("BehavioralTimeSeries/running_speed", running),
        ("PupilTracking/pupil_size", content.pupil),
        ("EyeTracking/pupil_location", content.gaze),
    ):
        if values is not None:
            file[f"{PIPELINE}/{place}/data"] = values
            file[f"{PIPELINE}/{place}/timestamps"] = content.times


def _write_stimuli(file: h5py.File, content: TwoPhotonContent) -> None:
    for name, shown in content.presentations.items():
        place = f"stimulus/presentation/{name}" + ("_stimulus" if name == "natural_scenes" else "")
        file[f"{place}/data"] = shown["frame"].to_numpy(int)
        file[f"{place}/frame_duration"] = shown[["start", "stop"]].to_numpy()
        file[f"{place}/timestamps"] = content.times[shown["start"]]
    for name, stack in content.templates.items():
        file.create_dataset(
            f"stimulus/templates/{name}_image_stack/data", data=stack, chunks=(min(4, len(stack)), *stack.shape[1:])
        )


def _add_traces(file: Any, content: TwoPhotonContent) -> None:
    from hdmf.common import DynamicTable, VectorData
    from pynwb.ophys import DfOverF, Fluorescence, ImageSegmentation, PlaneSegmentation, RoiResponseSeries

    ophys = file.create_processing_module("ophys", "Contains processed optical physiology data.")
    plane = PlaneSegmentation(name="PlaneSegmentation", description="", imaging_plane=_imaging_plane(file, content))
    plane.add_column(name="global_roi_id", description="")
    for at, cell in enumerate(content.cells):
        plane.add_roi(id=at, pixel_mask=[(at, at, 1.0)], global_roi_id=cell)
    ophys.add(ImageSegmentation(name="ImageSegmentation", plane_segmentations=plane))
    rois = plane.create_roi_table_region(region=list(range(len(content.cells))), description="")

    def traces(name: str, values: np.ndarray, times: Any) -> Any:
        return RoiResponseSeries(name=name, data=values.T, timestamps=times, unit="n.a.", rois=rois)

    corrected = traces("Corrected", content.raw, content.times)
    others = [traces("Demixed", content.demixed, corrected), traces("Neuropil", content.neuropil, corrected)]
    ophys.add(Fluorescence(name="Fluorescence", roi_response_series=[corrected, *others]))
    dff = [traces("DfOverF", content.dff, corrected)]
    dff += [] if content.events is None else [traces("DfOverFEvents", content.events, corrected)]
    ophys.add(DfOverF(name="DfOverF", roi_response_series=dff))
    ratios = VectorData(name="ratios", description="", data=content.r)
    ophys.add(DynamicTable(name="ContaminationRatios", description="", columns=[ratios]))


def _imaging_plane(file: Any, content: TwoPhotonContent) -> Any:
    from pynwb.ophys import OpticalChannel

    return file.create_imaging_plane(
        name="ImagingPlane",
        optical_channel=OpticalChannel(name="OpticalChannel", description="", emission_lambda=520.0),
        description="",
        device=file.create_device(name="Microscope"),
        excitation_lambda=910.0,
        indicator="GCaMP6f",
        location=content.area,
    )


def _add_behavior(file: Any, content: TwoPhotonContent) -> None:
    from pynwb import TimeSeries
    from pynwb.behavior import BehavioralTimeSeries, EyeTracking, PupilTracking, SpatialSeries

    behavior = file.create_processing_module("behavior", "Processed behavioral data.")
    if content.running is not None:
        running = TimeSeries(name="running_speed", data=content.running, timestamps=content.times, unit="cm/s")
        behavior.add(BehavioralTimeSeries(time_series=running))
    if content.pupil is not None:
        pupil = TimeSeries(name="pupil_size", data=content.pupil, timestamps=content.times, unit="px")
        behavior.add(PupilTracking(time_series=[pupil]))
    if content.gaze is not None:
        where = {"unit": "m", "reference_frame": "centre of the monitor"}
        gaze = SpatialSeries(name="pupil_location", data=content.gaze, timestamps=content.times, **where)
        behavior.add(EyeTracking(spatial_series=[gaze]))


def _add_stimuli(file: Any, content: TwoPhotonContent, grey: int) -> None:
    """Scenes are one image each, which an index points to; movies are a stack."""
    from pynwb import TimeSeries
    from pynwb.image import GrayscaleImage, Images, ImageSeries, IndexSeries

    for name, shown in content.presentations.items():
        stack, scenes = content.templates[name], name == "natural_scenes"
        if scenes:
            images = [GrayscaleImage(name=f"NaturalScene{at}", data=np.uint8(image)) for at, image in enumerate(stack)]
            template = Images(name="natural_scenes_template", images=images)
        else:
            template = ImageSeries(name=name, data=stack, unit="n.a.", starting_time=np.nan, rate=np.nan)
        file.add_stimulus_template(template)
        frame = shown["frame"].replace(-1, grey).to_numpy().astype(np.uint32)
        what = {"name": f"{name}_stimulus", "data": frame, "unit": "N/A", "timestamps": content.times[shown["start"]]}
        # Movies were an IndexSeries of frames, too, which pynwb does not write any more.
        file.add_stimulus(IndexSeries(**what, indexed_images=template) if scenes else TimeSeries(**what))
