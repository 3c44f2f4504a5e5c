"""Two-photon sessions of both layouts: the AllenSDK's sweep responses, dF/F, events, movies, and clear mistakes."""

import dataclasses
import shutil

import h5py
import numpy as np
import pytest

from neural_data.allen_two_photon import read_two_photon
from neural_data.two_photon_file import write_nwb_1, write_nwb_2
from tests.neural_data.nwb_files import FRAMES, IMAGES, REPEATS, SHOWINGS, two_photon

SWEEP = 7  # samples, those of the second presentation


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The parts, and the same session in NWB 1 and, with grey kept apart, in NWB 2."""
    folder, parts = tmp_path_factory.mktemp("two_photon"), two_photon()
    one = write_nwb_1(folder / "501794235.nwb", parts)
    return parts, {"NWB 1": one, "NWB 2": write_nwb_2(folder / "sub-495726109.nwb", parts)}


@pytest.fixture(params=["NWB 1", "NWB 2"])
def session(files, request):
    parts, paths = files
    return parts, paths[request.param], request.param


@pytest.fixture
def changed(files, tmp_path):
    """Makes a copy of the NWB 1 file after `change(file)`."""

    def make(change):
        path = shutil.copy(files[1]["NWB 1"], tmp_path / "changed.nwb")
        with h5py.File(path, "a") as file:
            change(file)
        return path

    return make


def images_shown(parts):
    """The presentations of images, without those of grey."""
    shown = parts.presentations["natural_scenes"]
    return shown[shown["frame"] >= 0]


def allen_sweeps(parts, fluorescence):
    """natural_scenes.py of the AllenSDK, word by word: one presentation and one cell after the other, grey left out."""
    means = []
    for start in images_shown(parts)["start"]:
        for trace in fluorescence:
            response = trace[start - 4 * SWEEP : start + 2 * SWEEP]
            response = 100 * ((response / np.mean(response[: 4 * SWEEP])) - 1)
            means.append(np.mean(response[4 * SWEEP :]))
    return np.reshape(means, (-1, len(fluorescence)))


def test_sweep_responses_are_the_allen_ones(session):
    parts, path, _ = session
    recording = read_two_photon(path)
    corrected = parts.demixed.astype(float) - parts.r[:, None] * parts.neuropil
    np.testing.assert_allclose(recording.responses, allen_sweeps(parts, corrected), rtol=1e-5, atol=1e-5)
    frames = images_shown(parts)["frame"]
    assert recording.trials["stimulus"].tolist() == frames.tolist()
    assert recording.animals == ["495726109"]
    assert recording.neurons["neuron_id"].tolist() == [str(cell) for cell in parts.cells]
    assert set(recording.neurons["area"]) == {"VISl"}
    np.testing.assert_array_equal(recording.stimuli, parts.templates["natural_scenes"])
    assert recording.stimuli.dtype == np.uint8
    assert recording.repeats("495726109").responses.shape == (REPEATS, IMAGES, 3)
    assert f"{REPEATS} presentations grey left out" in recording.notes
    assert recording.source.endswith("natural_scenes, % of F0")


def test_pipelines_before_demixing(tmp_path):
    parts = two_photon()
    recording = read_two_photon(write_nwb_1(tmp_path / "early.nwb", parts, demixed=False))
    corrected = parts.raw.astype(float) - parts.r[:, None] * parts.neuropil
    np.testing.assert_allclose(recording.responses, allen_sweeps(parts, corrected), rtol=1e-5, atol=1e-5)
    assert recording.neurons["z_um"].tolist() == [175.0] * 3


@pytest.mark.parametrize("signal", ["dff", "events"])
def test_windows_that_are_named(session, tmp_path, signal):
    parts, path, kind = session
    np.savez(tmp_path / "events.npz", ev=parts.events)
    further = {"events": tmp_path / "events.npz"} if signal == "events" and kind == "NWB 1" else {}
    recording = read_two_photon(path, signal=signal, window_ms=(100, 400), **further)
    traces = getattr(parts, signal)
    starts = images_shown(parts)["start"]
    for trial, onset in enumerate(parts.times[starts]):
        inside = (parts.times >= onset + 0.1) & (parts.times < onset + 0.4)
        np.testing.assert_allclose(recording.responses[trial], traces[:, inside].mean(axis=1), rtol=1e-5, atol=1e-7)
    assert recording.response_start_ms == 100


def test_samples_one_by_one(session):
    parts, path, _ = session
    recording = read_two_photon(path, signal="dff", resolved=True)
    starts = images_shown(parts)["start"].to_numpy()
    expected = parts.dff[:, starts[:, None] + np.arange(2 * SWEEP)].transpose(1, 0, 2)
    np.testing.assert_array_equal(recording.responses, expected)
    assert recording.sampling_rate_hz == pytest.approx(30.1, rel=0.01)
    in_ms = read_two_photon(path, signal="dff", resolved=True, window_ms=(-100, 200))
    assert in_ms.responses.shape[2] in (9, 10)
    first = np.searchsorted(parts.times, parts.times[starts] - 0.1)
    np.testing.assert_array_equal(in_ms.responses[..., 0], parts.dff[:, first].T)
    sweeps = read_two_photon(path, resolved=True)
    np.testing.assert_allclose(sweeps.responses.mean(axis=2), read_two_photon(path).responses, rtol=1e-4, atol=1e-4)


def test_movies(session):
    parts, path, _ = session
    recording = read_two_photon(path, "natural_movie_one")
    starts = parts.presentations["natural_movie_one"]["start"].to_numpy().reshape(SHOWINGS, FRAMES)
    np.testing.assert_array_equal(recording.responses, parts.dff[:, starts].transpose(1, 0, 2))
    assert recording.video
    np.testing.assert_array_equal(recording.trial(2)["video"], parts.templates["natural_movie_one"])
    np.testing.assert_array_equal(recording.trial(2, 3, 5)["video"], parts.templates["natural_movie_one"][3:5])
    assert recording.sampling_rate_hz == pytest.approx(30.1, rel=0.01)
    assert recording.behavior.shape == (SHOWINGS, 2, FRAMES)
    np.testing.assert_allclose(recording.behavior[:, 0], parts.running[starts], rtol=1e-5)


def test_frames_that_last_longer_are_averaged(changed, files):
    parts = files[0]

    def longer(file):
        place = file["stimulus/presentation/natural_movie_one/frame_duration"]
        place[:FRAMES] = np.stack([300 + 3 * np.arange(FRAMES), 303 + 3 * np.arange(FRAMES)], axis=1)

    recording = read_two_photon(changed(longer), "natural_movie_one")
    expected = parts.dff[:, 300 : 300 + 3 * FRAMES].reshape(3, FRAMES, 3).mean(axis=2)
    np.testing.assert_allclose(recording.responses[0], expected, rtol=1e-5, atol=1e-7)


def test_behaviour(session):
    parts, path, _ = session
    recording = read_two_photon(path)
    assert recording.behavior_names == ("running_speed_cm_s", "pupil_size_px")
    starts = images_shown(parts)["start"].to_numpy()
    inside = starts[:, None] + np.arange(2 * SWEEP)
    np.testing.assert_allclose(recording.behavior[:, 0], parts.running[inside].mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(recording.behavior[:, 1], parts.pupil[inside].mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(recording.pupil_center, parts.gaze[inside].mean(axis=1), rtol=1e-4, atol=1e-6)


def test_without_fluorescence(changed):
    path = changed(delete(f"{PIPELINE}/Fluorescence/imaging_plane_1_neuropil_response/data"))
    recording = read_two_photon(path, signal="dff")
    assert "p_run_mod_ns" not in recording.neurons
    assert recording.notes[-1].startswith("p_run_mod_ns is unknown: processing/brain_observatory_pipeline/Fluorescence")
    with pytest.raises(ValueError, match="response/data: is not there"):
        read_two_photon(path)


def test_without_behaviour(tmp_path):
    blind = dataclasses.replace(two_photon(), running=None, pupil=None, gaze=None)
    recording = read_two_photon(write_nwb_1(tmp_path / "blind.nwb", blind))
    assert recording.behavior is None
    assert recording.pupil_center is None
    assert recording.notes[-2:] == ("no running speed in the file", "no eye tracking in the file")


def test_grey_that_the_conversion_made_image_0(tmp_path):
    parts = two_photon()
    recording = read_two_photon(write_nwb_2(tmp_path / "converted.nwb", parts, grey=0))
    assert 0 not in set(recording.trials["stimulus"])
    assert len(recording.trials) == (IMAGES - 1) * REPEATS
    expected = f"image 0 left out: it has {2 * REPEATS} presentations, others {REPEATS}"
    assert any(note.startswith(expected) for note in recording.notes)


def test_trials_at_the_ends_of_the_session(changed):
    def early(file):
        file["stimulus/presentation/natural_scenes_stimulus/frame_duration"][0] = [20, 27]

    recording = read_two_photon(changed(early))
    first_is_grey = two_photon().presentations["natural_scenes"]["frame"][0] < 0
    assert len(recording.trials) == IMAGES * REPEATS - (not first_is_grey)
    assert first_is_grey or "1 trials left out: too near to an end of the session" in recording.notes


def delete(name):
    def change(file):
        del file[name]

    return change


def transpose(file):
    values = file["processing/brain_observatory_pipeline/Fluorescence/imaging_plane_1_demixed_signal/data"]
    name, data = values.name, values[:, :-1]
    del file[name]
    file[name] = data


def far(file):
    file["stimulus/presentation/natural_scenes_stimulus/frame_duration"][3] = [10**6, 10**6 + 7]


def many(file):
    file["stimulus/presentation/natural_scenes_stimulus/data"][3] = 118


def empty(file):
    del file["stimulus/presentation/natural_scenes_stimulus/data"]
    file["stimulus/presentation/natural_scenes_stimulus/data"] = np.zeros(0, int)


def fewer(file):
    data = file["stimulus/presentation/natural_scenes_stimulus/data"][:-1]
    del file["stimulus/presentation/natural_scenes_stimulus/data"]
    file["stimulus/presentation/natural_scenes_stimulus/data"] = data


def colourful(file):
    del file["stimulus/templates/natural_scenes_image_stack/data"]
    file["stimulus/templates/natural_scenes_image_stack/data"] = np.zeros((4, 5, 6, 3))


PIPELINE = "processing/brain_observatory_pipeline"
MALFORMED = {
    "cells": (
        delete(f"{PIPELINE}/ImageSegmentation/cell_specimen_ids"),
        "ImageSegmentation/cell_specimen_ids: is not there",
    ),
    "traces": (transpose, r"demixed_signal/data: found shape \(3, 1499\), expected 3 cells and 1500 samples"),
    "neuropil": (
        delete(f"{PIPELINE}/Fluorescence/imaging_plane_1_neuropil_response/data"),
        "response/data: is not there",
    ),
    "share": (delete(f"{PIPELINE}/Fluorescence/imaging_plane_1_neuropil_response/r"), "response/r: is not there"),
    "scenes": (
        delete("stimulus/presentation/natural_scenes_stimulus"),
        "natural_scenes_stimulus: is not there; stimuli are natural_movie_one",
    ),
    "far": (far, "natural_scenes: starts at samples 100 to 1000000 of 1500"),
    "many": (many, "natural_scenes: presentation 3 shows image 118, expected -1 to 3"),
    "empty": (empty, "natural_scenes_stimulus/data: is empty"),
    "fewer": (fewer, r"natural_scenes_stimulus/frame_duration: found shape \(25, 2\), expected \(24, 2\)"),
    "images": (delete("stimulus/templates"), "stimulus/templates: holds no natural_scenes; give stimuli="),
    "colour": (colourful, r"stimulus/templates: found float64 of shape \(4, 5, 6, 3\)"),
    "pipeline": (delete(PIPELINE), "holds neither brain_observatory_pipeline"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_are_told_in_one_line(changed, case):
    change, expected = MALFORMED[case]
    path = changed(change)
    with pytest.raises(ValueError, match=expected) as caught:
        read_two_photon(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_events_beside_the_file(files, tmp_path):
    path = files[1]["NWB 1"]
    with pytest.raises(ValueError, match=r"501794235\.nwb: holds no events; give events="):
        read_two_photon(path, signal="events")
    with pytest.raises(FileNotFoundError, match=r"none\.npz: no such file"):
        read_two_photon(path, signal="events", events=tmp_path / "none.npz")
    np.savez(tmp_path / "few.npz", ev=np.zeros((2, 1500)))
    with pytest.raises(
        ValueError, match=r"few\.npz: ev: found float64 of shape \(2, 1500\), expected numbers \(3, 1500\)"
    ):
        read_two_photon(path, signal="events", events=tmp_path / "few.npz")
    np.savez(tmp_path / "objects.npz", ev=np.array([{}], object))
    with pytest.raises(ValueError, match=r"objects\.npz: ev: cannot be read"):
        read_two_photon(path, signal="events", events=tmp_path / "objects.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match=r"text\.npz: ev: cannot be read"):
        read_two_photon(path, signal="events", events=tmp_path / "text.npz")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"signal": "spikes"}, "signal: found 'spikes', expected sweep, dff, events"),
        ({"stimulus": "static_gratings"}, "stimulus: found 'static_gratings', expected natural_scenes"),
        ({"window_ms": (200, 100)}, "window_ms: found 200 to 100"),
        ({"stimulus": "natural_movie_one", "signal": "sweep"}, "is a movie; expected signal dff or events"),
        ({"stimulus": "natural_movie_one", "resolved": True}, "is a movie; expected signal dff or events"),
    ],
)
def test_requests_that_make_no_sense(files, options, expected):
    with pytest.raises(ValueError, match=expected):
        read_two_photon(files[1]["NWB 1"], **options)
