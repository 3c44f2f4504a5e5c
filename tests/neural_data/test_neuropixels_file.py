"""Files of Neuropixels sessions: valid by the NWB standard, whole or absent; eye tracking in all its parts."""

import dataclasses

import h5py
import numpy as np
import pandas as pd
import pytest

from neural_data.allen_neuropixels import read_neuropixels
from neural_data.neuropixels_file import write_neuropixels_session
from tests.neural_data.nwb_files import neuropixels


def test_the_standard_is_kept(tmp_path):
    from pynwb import NWBHDF5IO, validate

    parts = neuropixels(invalid=[(5.0, 6.0, ["EcephysSession", "715093703", "stimulus"])])
    path = write_neuropixels_session(parts, tmp_path / "new/session.nwb")
    assert not validate(path=str(path))
    with NWBHDF5IO(str(path), "r") as file:
        session = file.read()
        movie = session.intervals["natural_movie_one_presentations"].to_dataframe()
        pd.testing.assert_frame_equal(
            movie[["start_time", "stop_time", "frame"]].reset_index(drop=True),
            parts.presentations["natural_movie_one"][["start_time", "stop_time", "frame"]],
        )
        assert movie["tags"].tolist() == [["stimulus_time_interval"]] * len(movie)
        np.testing.assert_array_equal(session.units["spike_times"][3], parts.trains[3])


@pytest.mark.parametrize("kept", [["center_x", "center_y"], ["pupil_area"], ["pupil_area", "center_x", "center_y"]])
def test_parts_of_the_eye(tmp_path, kept):
    whole = neuropixels()
    eye = whole.eye[["timestamps", *kept]]
    paths = [
        write_neuropixels_session(dataclasses.replace(whole, eye=part, running=None), tmp_path / f"{name}.nwb")
        for name, part in (("whole", whole.eye), ("part", eye))
    ]
    expected, found = (read_neuropixels(path) for path in paths)
    assert found.behavior_names == (("pupil_area_px2",) if "pupil_area" in kept else ())
    if "pupil_area" in kept:
        np.testing.assert_array_equal(found.behavior, expected.behavior)
    if "center_x" in kept:
        np.testing.assert_array_equal(found.pupil_center, expected.pupil_center)
    assert (found.pupil_center is None) == ("center_x" not in kept)
    assert "run_pval_ns" not in found.neurons


def test_a_file_is_whole_or_absent(tmp_path):
    path = write_neuropixels_session(neuropixels(), tmp_path / "a.nwb")
    with pytest.raises(ValueError, match=r"a\.nwb: exists already; name a new file"):
        write_neuropixels_session(neuropixels(), path)
    with pytest.raises(TypeError):
        write_neuropixels_session(neuropixels(templates={"natural_scenes": object()}), tmp_path / "b.nwb")
    assert [file.name for file in tmp_path.iterdir()] == ["a.nwb"]
    with h5py.File(path) as file:
        assert len(file["units/id"]) == len(neuropixels().units)
