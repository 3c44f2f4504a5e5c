"""Files of two-photon sessions: valid by the NWB standard where there is one, whole or absent."""

import dataclasses

import h5py
import pytest

from neural_data.allen_two_photon import read_two_photon
from neural_data.two_photon_file import write_nwb_1, write_nwb_2
from tests.neural_data.nwb_files import two_photon


def test_the_standard_is_kept(tmp_path, recwarn):
    from pynwb import validate

    path = write_nwb_2(tmp_path / "new/session.nwb", two_photon())
    assert not [warning for warning in recwarn if "DynamicTableRegion" in str(warning.message)]
    assert not validate(path=str(path))


def test_without_events(tmp_path):
    path = write_nwb_2(tmp_path / "a.nwb", dataclasses.replace(two_photon(), events=None))
    with pytest.raises(ValueError, match=r"a\.nwb: holds no events; give events="):
        read_two_photon(path, signal="events")


def test_files_are_whole_or_absent(tmp_path):
    for write in (write_nwb_1, write_nwb_2):
        path = write(tmp_path / f"{write.__name__}.nwb", two_photon())
        with pytest.raises(ValueError, match=r"\.nwb: exists already; name a new file"):
            write(path, two_photon())
        with pytest.raises(KeyError):
            write(tmp_path / "b.nwb", dataclasses.replace(two_photon(), presentations={"natural_scenes": {}}))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["write_nwb_1.nwb", "write_nwb_2.nwb"]
    with h5py.File(tmp_path / "write_nwb_1.nwb") as file:
        assert file["general/optophysiology/imaging_plane_1/imaging depth"][()] == b"175 microns"
