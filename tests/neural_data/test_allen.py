"""Allen recordings by what the path is; several sessions as one, from which a model's score could be computed."""

import dataclasses

import h5py
import numpy as np
import pytest

from neural_data.allen import read_allen, read_nwb, read_sessions
from neural_data.allen_packaged import convert_packaged
from neural_data.allen_writer import write_neuropixels_nwb
from neural_data.neuropixels_file import write_neuropixels_session
from neural_data.simulate import SimulationConfig, simulate
from neural_data.stimulus_templates import movie_name
from neural_data.two_photon_file import write_nwb_1, write_nwb_2
from neural_data.unit_selection import SelectionRule, select_units
from tests.neural_data.nwb_files import neuropixels, two_photon
from tests.neural_data.old_pickles import packaged, write_packaged


@pytest.fixture(scope="module")
def sessions(tmp_path_factory):
    """Two animals that saw the same images, the second one fewer times, each in a file of its own."""
    folder = tmp_path_factory.mktemp("sessions")
    together, _ = simulate(
        SimulationConfig(animals=2, stimuli=12, repeats=8, neurons_per_area=5, size=24, missing_repeats=2)
    )
    paths = []
    for animal in together.animals:
        seen = together.repeats(animal)
        repeats, stimuli = seen.responses.shape[:2]
        own = type(together)(
            name=animal,
            stimuli=together.stimuli,
            trials=together.trials.iloc[: repeats * stimuli].reset_index(drop=True),
            responses=seen.responses.reshape(repeats * stimuli, -1),
            neurons=together.neurons.iloc[seen.neurons].reset_index(drop=True),
        )
        paths.append(write_neuropixels_nwb(own, folder / f"{animal}.nwb"))
    return together, paths


def test_sessions_of_several_animals(sessions):
    together, paths = sessions
    merged = read_sessions(paths, "both", rate=False)
    assert merged.animals == together.animals
    for animal in together.animals:
        np.testing.assert_array_equal(merged.repeats(animal).responses, together.repeats(animal).responses)
    fine = read_sessions(paths, "both", bin_ms=50)
    found, excluded = select_units(fine, SelectionRule(min_reliability=0.3, min_median=0.0, min_units=1))
    assert set(found.animals) == set(together.animals)
    assert len(found.neurons) + len(excluded) == 20
    assert found.neurons["window_stop_ms"].between(50, 250).all()


def test_what_a_path_is(sessions, tmp_path):
    path = write_packaged(tmp_path / "a.pkl", packaged())
    assert read_allen(convert_packaged(path, tmp_path / "a")).sampling_rate_hz == 100
    with pytest.raises(
        ValueError, match=r"a\.pkl: is a pickle; convert it once: murine data convert .*a\.pkl out=<folder>"
    ):
        read_allen(path)
    with pytest.raises(ValueError, match="a: is a converted folder, which takes no rate"):
        read_allen(tmp_path / "a", rate=False)
    ophys = write_nwb_1(tmp_path / "ophys.nwb", two_photon())
    assert read_allen(ophys, signal="dff").source.endswith("dF/F")
    assert read_allen(sessions[1][0]).source.endswith("spikes/s")
    with pytest.raises(
        ValueError, match=r"ophys\.nwb: read_two_photon has no option 'bin_ms'; options are signal, window_ms"
    ):
        read_allen(ophys, bin_ms=10)
    assert read_nwb(ophys).source.endswith("natural_scenes, % of F0")
    with pytest.raises(FileNotFoundError, match=r"none\.nwb: no such file"):
        read_nwb(tmp_path / "none.nwb")
    with h5py.File(tmp_path / "empty.nwb", "w"):
        pass
    with pytest.raises(ValueError, match=r"empty\.nwb: holds neither units/spike_times \(Neuropixels\) nor"):
        read_nwb(tmp_path / "empty.nwb")


def test_a_session_without_scenes_gives_its_first_movie(tmp_path):
    parts = two_photon()
    movie, shown = parts.templates["natural_movie_one"], parts.presentations["natural_movie_one"]
    names = [movie_name(number) for number in (11, 4, 2, 12, 3)]
    parts = dataclasses.replace(parts, templates=dict.fromkeys(names, movie), presentations=dict.fromkeys(names, shown))
    for write in (write_nwb_1, write_nwb_2):
        recording = read_nwb(write(tmp_path / f"{write.__name__}.nwb", parts))
        assert recording.source.endswith("natural_movie_two, dF/F")
        assert recording.notes[-1] == (
            "natural_movie_two was read; the session shows 4 more movies: natural_movie_three, natural_movie_4, "
            "natural_movie_11, ..."
        )
    session = neuropixels()
    only = {name: table for name, table in session.presentations.items() if name != "natural_scenes"}
    path = write_neuropixels_session(dataclasses.replace(session, presentations=only), tmp_path / "a.nwb")
    recording = read_nwb(path, rate=False)
    assert recording.source.endswith("natural_movie_one, spikes")
    assert not any("was read" in note for note in recording.notes)
