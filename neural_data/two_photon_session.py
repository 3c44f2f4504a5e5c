"""The file of an Allen Visual Coding two-photon session, in either of the layouts that were released.

Comes in: an open file. Goes out: `TwoPhotonSession`: who the cells are, when they were imaged, what was shown, and
where traces lie.

NWB 1 (allensdk/core/brain_observatory_nwb_data_set.py): all under `processing/brain_observatory_pipeline`, traces
(cells, samples), presentations with `frame_duration`, the first sample of each and the one after its last. NWB 2 (DANDI
000728, converted from it): `processing/ophys` and `processing/behavior`, traces (samples, cells), presentations with
the time of their onset only.

The conversion read grey, -1, as an unsigned number, which HDF5 makes 0: grey and image 0 cannot be told apart there.
"""

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from neural_data import nwb_tables
from neural_data.presentations import GREY

PIPELINE, OPHYS, BEHAVIOR = "processing/brain_observatory_pipeline", "processing/ophys", "processing/behavior"
PLANE = f"{PIPELINE}/Fluorescence/imaging_plane_1"
SCENE_S = 0.25  # an image is shown for so long


@dataclass(frozen=True)
class Layout:
    """Where a layout keeps what; of several places the first that is there counts."""

    cell_ids: tuple[str, ...]
    timestamps: str
    fluorescence: tuple[str, ...]
    neuropil: tuple[str, ...]
    contamination: tuple[str, ...]
    dff: tuple[str, ...]
    events: tuple[str, ...]
    area: tuple[str, ...]
    depth: tuple[str, ...]
    running: str
    pupil_size: str
    pupil_location: str


NWB_1 = Layout(
    cell_ids=(f"{PIPELINE}/ImageSegmentation/cell_specimen_ids",),
    timestamps=f"{PLANE}/timestamps",
    # From pipeline 2.0 on, neuropil is subtracted from demixed traces.
    fluorescence=(f"{PLANE}_demixed_signal/data", f"{PLANE}/data"),
    neuropil=(f"{PLANE}_neuropil_response/data", f"{PLANE}/neuropil_traces"),
    contamination=(f"{PLANE}_neuropil_response/r", f"{PLANE}/r"),
    dff=(f"{PIPELINE}/DfOverF/imaging_plane_1/data",),
    events=(),
    area=("general/optophysiology/imaging_plane_1/location",),
    depth=("general/optophysiology/imaging_plane_1/imaging depth",),
    running=f"{PIPELINE}/BehavioralTimeSeries/running_speed",
    pupil_size=f"{PIPELINE}/PupilTracking/pupil_size",
    pupil_location=f"{PIPELINE}/EyeTracking/pupil_location",
)
NWB_2 = Layout(
    cell_ids=tuple(f"{OPHYS}/ImageSegmentation/PlaneSegmentation/{name}" for name in ("global_roi_id", "id")),
    timestamps=f"{OPHYS}/Fluorescence/Corrected/timestamps",
    fluorescence=(f"{OPHYS}/Fluorescence/Demixed/data", f"{OPHYS}/Fluorescence/Corrected/data"),
    neuropil=(f"{OPHYS}/Fluorescence/Neuropil/data",),
    contamination=(f"{OPHYS}/ContaminationRatios/ratios",),
    dff=(f"{OPHYS}/DfOverF/DfOverF/data",),
    events=(f"{OPHYS}/DfOverF/DfOverFEvents/data",),
    area=("general/optophysiology/ImagingPlane/location",),
    depth=(),
    running=f"{BEHAVIOR}/BehavioralTimeSeries/running_speed",
    pupil_size=f"{BEHAVIOR}/PupilTracking/pupil_size",
    pupil_location=f"{BEHAVIOR}/EyeTracking/pupil_location",
)


@dataclass(frozen=True)
class TwoPhotonSession:
    """`cell_ids`: int64 (cells,). `timestamps_s`: float64 (samples,). `depth_um`: NaN if unknown."""

    file: h5py.File
    layout: Layout
    cell_ids: np.ndarray
    timestamps_s: np.ndarray
    animal: str
    session: str
    area: str
    depth_um: float

    def traces(self, places: tuple[str, ...], cells: slice) -> np.ndarray:
        """Traces of some cells, float64 (cells, samples), from the first of the places that is there."""
        found = nwb_tables.first_there(self.file, places)
        stored = nwb_tables.dataset(self.file, found or places[0])
        n_cells, n_samples = len(self.cell_ids), len(self.timestamps_s)
        if stored.shape == (n_cells, n_samples):
            return stored[cells].astype(float)
        if stored.shape == (n_samples, n_cells):
            return stored[:, cells].T.astype(float)
        expected = f"{n_cells} cells and {n_samples} samples"
        raise ValueError(f"{self.file.filename}: {found}: found shape {stored.shape}, expected {expected}")

    def corrected_fluorescence(self, cells: slice) -> np.ndarray:
        """Fluorescence less its share of the neuropil's, float64 (cells, samples), as the AllenSDK corrects it."""
        place = nwb_tables.first_there(self.file, self.layout.contamination) or self.layout.contamination[0]
        share = nwb_tables.numbers(self.file, place)
        if share.shape != self.cell_ids.shape:
            raise ValueError(f"{self.file.filename}: {place}: found {len(share)}, expected one per cell")
        neuropil = self.traces(self.layout.neuropil, cells)
        return self.traces(self.layout.fluorescence, cells) - share[cells, None] * neuropil

    def presentations(self, stimulus: str) -> tuple[pd.DataFrame, list[str]]:
        """`frame`, `start`, `stop` (samples) of each presentation in the order of time, and notes."""
        names = [f"stimulus/presentation/{name}" for name in (f"{stimulus}_stimulus", stimulus)]
        place = nwb_tables.first_there(self.file, names)
        if place is None:
            there = [name.removesuffix("_stimulus") for name in self.file.get("stimulus/presentation", ())]
            raise ValueError(
                f"{self.file.filename}: {names[0]}: is not there; stimuli are {', '.join(there) or 'none'}"
            )
        frame = nwb_tables.numbers(self.file, f"{place}/data").astype(np.int64)
        if not len(frame):
            raise ValueError(f"{self.file.filename}: {place}/data: is empty, expected one number per presentation")
        if f"{place}/frame_duration" in self.file:
            samples = nwb_tables.numbers(self.file, f"{place}/frame_duration", axes=2).astype(np.int64)
            if samples.shape != (len(frame), 2):
                found = f"{place}/frame_duration: found shape {samples.shape}, expected ({len(frame)}, 2)"
                raise ValueError(f"{self.file.filename}: {found}")
            shown = pd.DataFrame({"frame": frame, "start": samples[:, 0], "stop": samples[:, 1]})
            return shown.sort_values(["start", "stop"], kind="stable", ignore_index=True), []
        onset_s = nwb_tables.timestamps(self.file, place, len(frame))
        order = np.argsort(onset_s, kind="stable")
        start = np.searchsorted(self.timestamps_s, onset_s[order])
        if stimulus == "natural_scenes":
            n = int(SCENE_S / np.median(np.diff(self.timestamps_s)))
        else:
            # A frame lasts until the next one, but the last of a block no longer than others.
            until_next = np.diff(start, append=start[-1:] + 1)
            n = np.minimum(until_next, max(1, round(np.median(until_next))))
        return _without_clipped_grey(pd.DataFrame({"frame": frame[order], "start": start, "stop": start + n}), stimulus)


def open_session(file: h5py.File) -> TwoPhotonSession:
    """The session in an open file. Raises ValueError where it has neither of the two layouts."""
    layout = NWB_1 if PIPELINE in file else NWB_2
    if layout is NWB_2 and OPHYS not in file:
        raise ValueError(
            f"{file.filename}: processing: holds neither brain_observatory_pipeline (NWB 1) nor ophys (NWB 2)"
        )
    cells = nwb_tables.first_there(file, layout.cell_ids) or layout.cell_ids[0]
    names = ("general/subject/subject_id", "general/specimen_name", "general/session_id")
    depth = "".join(nwb_tables.text(file, place) for place in layout.depth).split()
    return TwoPhotonSession(
        file=file,
        layout=layout,
        cell_ids=nwb_tables.numbers(file, cells).astype(np.int64),
        timestamps_s=nwb_tables.numbers(file, layout.timestamps).astype(float),
        animal=next(filter(None, (nwb_tables.text(file, name) for name in names)), Path(file.filename).stem),
        session=nwb_tables.text(file, "general/session_id") or Path(file.filename).stem,
        area="".join(nwb_tables.text(file, place) for place in layout.area),
        depth_um=float(depth[0]) if depth and depth[0].isdigit() else np.nan,
    )


def _without_clipped_grey(shown: pd.DataFrame, stimulus: str) -> tuple[pd.DataFrame, list[str]]:
    """Grey is -1 again where it was kept as the largest unsigned number; where it became 0, image 0 is left out."""
    frame = shown["frame"].where(shown["frame"] < 2**32 - 1, GREY)
    shown = shown.assign(frame=frame)
    times = frame[frame >= 0].value_counts()
    others = times.drop(0, errors="ignore").median()
    if stimulus != "natural_scenes" or (frame == GREY).any() or not times.get(0, 0) > 1.5 * others:
        return shown, []
    found = f"it has {times[0]} presentations, others {others:g}"
    note = f"image 0 left out: {found}; the conversion to NWB 2 stored grey as 0"
    return shown[frame != 0].reset_index(drop=True), [note]
