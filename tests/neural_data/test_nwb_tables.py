"""Tables and series of NWB files, as pynwb writes them and as they are damaged."""

from datetime import UTC, datetime

import h5py
import numpy as np
import pytest

from neural_data import nwb_tables


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    from pynwb import NWBHDF5IO, NWBFile, TimeSeries

    file = NWBFile(session_description="a", identifier="session 7", session_start_time=datetime(2019, 1, 1, tzinfo=UTC))
    file.add_unit_column("quality", "a text")
    file.add_unit_column("valid", "a truth")
    for unit, spikes in ((11, [0.5, 1.0]), (12, []), (13, [2.0, 2.5, 3.0])):
        file.add_unit(id=unit, spike_times=np.array(spikes), quality="good µ", valid=unit != 12)
    file.add_acquisition(TimeSeries(name="stamped", data=[1.0, 2.0], timestamps=[0.1, 0.3], unit="s"))
    file.add_acquisition(TimeSeries(name="even", data=[1.0, 2.0, 4.0], starting_time=2.0, rate=4.0, unit="s"))
    path = tmp_path_factory.mktemp("tables") / "a.nwb"
    with NWBHDF5IO(str(path), "w") as output:
        output.write(file)
    return path


@pytest.fixture
def file(path):
    with nwb_tables.open_nwb(path) as file:
        yield file


def test_tables(file):
    table = nwb_tables.table(file, "units", ("quality",), ("valid", "absent"))
    assert table.index.tolist() == [11, 12, 13]
    assert table["quality"].tolist() == ["good µ"] * 3
    assert table["valid"].tolist() == [True, False, True]
    assert "absent" not in table
    with pytest.raises(ValueError, match=r"a\.nwb: units/absent: is not there; units holds id, quality, spike_times"):
        nwb_tables.table(file, "units", ("absent",))
    with pytest.raises(ValueError, match=r"a\.nwb: gone/id: is not there; the file holds acquisition, "):
        nwb_tables.table(file, "gone", ())
    with pytest.raises(ValueError, match=r"units/spike_times: found shape \(5,\), expected \(3,\) as in id"):
        nwb_tables.table(file, "units", ("spike_times",))


def test_lists(file):
    flat, starts, ends = nwb_tables.lists(file, "units", "spike_times")
    assert [flat[start:end].tolist() for start, end in zip(starts, ends, strict=True)] == [
        [0.5, 1.0],
        [],
        [2.0, 2.5, 3.0],
    ]


def test_series(file):
    times, data = nwb_tables.series(file, "acquisition/stamped")
    assert (times.tolist(), data.tolist()) == ([0.1, 0.3], [1.0, 2.0])
    times, data = nwb_tables.series(file, "acquisition/even")
    assert (times.tolist(), data.tolist()) == ([2.0, 2.25, 2.5], [1.0, 2.0, 4.0])
    assert nwb_tables.series(file, "acquisition/absent") is None
    with pytest.raises(ValueError, match="stamped/timestamps: found 2 of them, expected 3 as in data"):
        nwb_tables.timestamps(file, "acquisition/stamped", 3)


def test_texts_and_numbers(file):
    assert nwb_tables.text(file, "identifier") == "session 7"
    assert nwb_tables.text(file, "general/subject/subject_id") == ""
    assert nwb_tables.first_there(file, ("x", "units/id")) == "units/id"
    assert nwb_tables.first_there(file, ("x",)) is None
    with pytest.raises(ValueError, match=r"units/quality: found object of shape \(3,\), expected numbers with 1 axes"):
        nwb_tables.numbers(file, "units/quality")
    with pytest.raises(ValueError, match="units/id/below: is not there; units holds"):
        nwb_tables.dataset(file, "units/id/below")


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.nwb: no such file; expected a session's"):
        nwb_tables.open_nwb(tmp_path / "no.nwb")
    (tmp_path / "text.nwb").write_text("not at all")
    with pytest.raises(ValueError, match=r"text\.nwb: is no HDF5 file, or a damaged one"):
        nwb_tables.open_nwb(tmp_path / "text.nwb")


def test_ends_that_fall(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["t/x"], file["t/x_index"] = np.arange(5.0), np.array([3, 2, 5])
        with pytest.raises(ValueError, match="t/x_index: found ends up to 5, expected rising ones to 5"):
            nwb_tables.lists(file, "t", "x")
