"""Neuropixels sessions: exactly the counts of known spikes; what is left out is counted; mistakes are one line."""

import itertools
import shutil

import h5py
import numpy as np
import pytest
from PIL import Image

from neural_data.allen_neuropixels import UnitQuality, read_neuropixels
from neural_data.neuropixels_file import write_neuropixels_session
from tests.neural_data.nwb_files import FRAMES, IMAGES, REPEATS, SHOWINGS, UNITS, neuropixels

KEPT = [0, 1, 2]  # units that pass the default filters


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    parts = neuropixels()
    path = tmp_path_factory.mktemp("neuropixels") / "session_715093703.nwb"
    return parts, write_neuropixels_session(parts, path)


@pytest.fixture
def changed(session, tmp_path):
    """Makes a copy of the session's file after `change(file)`."""

    def make(change, name="changed.nwb"):
        path = shutil.copy(session[1], tmp_path / name)
        with h5py.File(path, "a") as file:
            change(file)
        return path

    return make


def delete(*names):
    def change(file):
        for name in names:
            del file[name]

    return change


def by_hand(trains, edges):
    """Spikes one by one, (windows, units, bins)."""
    return np.array(
        [[[((t >= a) & (t < b)).sum() for a, b in itertools.pairwise(row)] for t in trains] for row in edges], float
    )


def shown(parts):
    scenes = parts.presentations["natural_scenes"]
    return scenes[scenes["frame"] >= 0]


def test_images(session):
    parts, path = session
    recording = read_neuropixels(path, rate=False)
    rows = shown(parts)
    assert recording.animals == ["699733581"]
    np.testing.assert_array_equal(recording.stimuli, parts.templates["natural_scenes"])
    assert recording.trials["stimulus"].tolist() == rows["frame"].astype(int).tolist()
    assert (np.sort(recording.trials["repeat"]) == np.repeat(np.arange(REPEATS), IMAGES)).all()
    np.testing.assert_array_equal(recording.trials["start_s"], rows["start_time"])
    assert recording.trials["trial_id"].tolist() == rows.index.astype(str).tolist()
    onset = rows["start_time"].to_numpy()
    edges = np.stack([onset, onset + 0.25], axis=1)
    counts = by_hand([parts.trains[unit] for unit in KEPT], edges)[..., 0]
    assert counts.sum() > 500
    np.testing.assert_array_equal(recording.responses, counts)
    rates = read_neuropixels(path)
    np.testing.assert_allclose(rates.responses, counts / 0.25, rtol=1e-6)
    assert rates.source.endswith("session 715093703, natural_scenes, spikes/s")
    assert not recording.dynamic


def test_bins(session):
    parts, path = session
    recording = read_neuropixels(path, window_ms=(20, 120), bin_ms=10, rate=False)
    edges = shown(parts)["start_time"].to_numpy()[:, None] + np.linspace(0.02, 0.12, 11)
    np.testing.assert_array_equal(recording.responses, by_hand([parts.trains[unit] for unit in KEPT], edges))
    assert recording.sampling_rate_hz == 100
    assert recording.response_start_ms == 20
    assert recording.behavior.shape == (IMAGES * REPEATS, 2, 10)


def test_movies(session):
    parts, path = session
    recording = read_neuropixels(path, "natural_movie_one", rate=False)
    assert recording.video
    assert recording.stimuli.shape == (1, FRAMES, 5, 7)
    movie = parts.presentations["natural_movie_one"]
    start, stop = (movie[name].to_numpy().reshape(SHOWINGS, FRAMES) for name in ("start_time", "stop_time"))
    edges = np.concatenate([start, stop[:, -1:]], axis=1)
    np.testing.assert_array_equal(recording.responses, by_hand([parts.trains[unit] for unit in KEPT], edges))
    assert recording.sampling_rate_hz == pytest.approx(30, rel=0.01)
    np.testing.assert_array_equal(recording.trial(1)["video"], parts.templates["natural_movie_one"])
    np.testing.assert_array_equal(recording.trial(1, 3, 6)["video"], parts.templates["natural_movie_one"][3:6])
    assert recording.repeats("699733581").responses.shape == (SHOWINGS, 1, 3, FRAMES)


def test_units_and_why_others_are_left_out(session):
    path = session[1]
    recording = read_neuropixels(path)
    assert recording.neurons["neuron_id"].tolist() == [str(UNITS[unit][0]) for unit in KEPT]
    assert recording.neurons["area"].tolist() == ["VISp", "VISl", "LP"]
    assert recording.neurons["probe"].tolist() == ["probeA", "probeA", "probeB"]
    assert recording.neurons["x_um"].tolist() == [8000, 8001, 8002]
    assert recording.neurons["z_um"].tolist() == pytest.approx([7000, 7000, np.nan], nan_ok=True)
    assert recording.notes == (
        "1 units left out: quality is not good",
        "1 units left out: the electrode's data is not valid",
        "1 units left out: no area",
        "1 units left out: amplitude_cutoff is above 0.1 or unknown",
        "1 units left out: presence_ratio is below 0.95 or unknown",
        "1 units left out: isi_violations is above 0.5 or unknown",
        f"{REPEATS} presentations grey left out",
        "run_pval_ns is unknown for 3 of 3 units: fewer than 2 running or 2 stationary presentations of the image "
        "they prefer, or none varies",
    )
    everyone = read_neuropixels(path, quality=UnitQuality(None, None, None, None))
    assert len(everyone.neurons) == len(UNITS) - 1  # but the one without an area
    visp = read_neuropixels(path, areas=("VISp",))
    assert visp.neurons["area"].tolist() == ["VISp"]
    assert "2 units left out: other areas" in visp.notes
    with pytest.raises(ValueError, match=r"units: none of 9 is left \(.*3 units left out: other areas\)"):
        read_neuropixels(path, areas=("VISam",))


def test_behaviour(session):
    parts, path = session
    recording = read_neuropixels(path)
    assert recording.behavior_names == ("running_speed_cm_s", "pupil_area_px2")
    onset = shown(parts)["start_time"].to_numpy()
    times, eye = parts.running[0], parts.eye
    for trial, low in enumerate(onset):
        inside = (times >= low) & (times < low + 0.25)
        assert recording.behavior[trial, 0] == pytest.approx(parts.running[1][inside].mean(), rel=1e-5)
        seen = (eye["timestamps"] >= low) & (eye["timestamps"] < low + 0.25)
        assert recording.behavior[trial, 1] == pytest.approx(np.nanmean(eye["pupil_area"][seen]), rel=1e-5)
        center = [eye[f"center_{axis}"][seen].mean() for axis in "xy"]
        np.testing.assert_allclose(recording.pupil_center[trial], center, rtol=1e-5)


def test_fits_with_times_of_their_own(session, changed):
    def change(file):
        delete("processing/raw_gaze_mapping", "processing/filtered_gaze_mapping")(file)
        file["processing/eye_tracking/pupil_ellipse_fits/timestamps"] = session[0].eye["timestamps"]

    recording = read_neuropixels(changed(change))
    np.testing.assert_array_equal(recording.pupil_center, read_neuropixels(session[1]).pupil_center)
    assert recording.behavior_names == ("running_speed_cm_s",)
    assert "no area of the pupil in the file" in recording.notes


def test_without_running_and_eye_tracking(changed):
    modules = ("running", "eye_tracking", "raw_gaze_mapping", "filtered_gaze_mapping")
    recording = read_neuropixels(changed(delete(*(f"processing/{name}" for name in modules))))
    assert recording.behavior is None
    assert recording.pupil_center is None
    assert recording.behavior_names == ()
    assert recording.notes[-2:] == ("no running speed in the file", "no area and centre of the pupil in the file")


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A session with an invalid time of each kind, and the presentations of images that they fall on."""
    scenes, movie = neuropixels().presentations["natural_scenes"], neuropixels().presentations["natural_movie_one"]
    places = [str(place) for place in scenes.index[scenes["frame"] >= 0][[2, 5, 9, 12]]]
    onset = scenes["start_time"][[int(place) for place in places]].to_numpy()
    frame = movie["start_time"][FRAMES + 3]
    session, probe = ["EcephysSession", "715093703"], ["EcephysProbe", "729445648"]
    invalid = [
        (onset[0] + 0.1, onset[0] + 0.15, [*session, "stimulus"]),
        (onset[1] + 0.055, onset[1] + 0.075, [*probe, "probeB"]),
        (onset[2] + 0.01, onset[2] + 0.02, [*session, "all_probes"]),
        (onset[3] + 0.01, onset[3] + 0.02, [*session, "optotagging"]),
        (frame + 0.01, frame + 0.011, [*session, "stimulus"]),
    ]
    path = tmp_path_factory.mktemp("invalid") / "interrupted.nwb"
    return places, write_neuropixels_session(neuropixels(invalid=invalid), path)


def test_invalid_times(session, interrupted):
    (no_stimulus, no_probe, no_probes, _), path = interrupted
    whole, recording = (read_neuropixels(file, rate=False) for file in (session[1], path))
    kept = ~whole.trials["trial_id"].isin([no_stimulus, no_probes]).to_numpy()
    assert recording.trials["trial_id"].tolist() == whole.trials["trial_id"][kept].tolist()
    expected = whole.responses[kept]
    expected[(recording.trials["trial_id"] == no_probe).to_numpy(), 2] = np.nan
    np.testing.assert_array_equal(recording.responses, expected)
    assert np.isnan(expected).sum() == 1
    assert "1 presentations left out: the stimulus was invalid" in recording.notes
    assert "1 trials left out: no unit has a response" in recording.notes
    # Three units at one, one unit at another time.
    assert "4 responses missing: invalid times of the probe" in recording.notes


def test_only_the_bins_that_touch_an_invalid_time_are_missing(interrupted):
    (_, no_probe, _, _), path = interrupted
    recording = read_neuropixels(path, bin_ms=10)
    (trial,) = recording.responses[(recording.trials["trial_id"] == no_probe).to_numpy()]
    assert np.flatnonzero(np.isnan(trial[2])).tolist() == [5, 6, 7]
    assert not np.isnan(trial[:2]).any()


def test_invalid_times_break_showings_of_movies(interrupted):
    recording = read_neuropixels(interrupted[1], "natural_movie_one")
    start = neuropixels().presentations["natural_movie_one"]["start_time"].to_numpy()
    np.testing.assert_array_equal(recording.trials["start_s"], start[[0, 2 * FRAMES, 3 * FRAMES]])
    assert f"{FRAMES - 1} frames of incomplete showings left out" in recording.notes


def test_spikes_out_of_order(session, changed):
    def shuffle(file):
        ends = file["units/spike_times_index"][:].astype(int)
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            file["units/spike_times"][start:end] = file["units/spike_times"][start:end][::-1]

    np.testing.assert_array_equal(read_neuropixels(changed(shuffle)).responses, read_neuropixels(session[1]).responses)


def test_stimuli_beside_the_file(session, changed, tmp_path):
    path = changed(delete("stimulus/templates/natural_scenes", "stimulus/templates/natural_movie_one"), "real.nwb")
    with pytest.raises(ValueError, match=r"real\.nwb: stimulus/templates: holds no natural_scenes; give stimuli="):
        read_neuropixels(path)
    images, movie = (session[0].templates[name] for name in ("natural_scenes", "natural_movie_one"))
    np.save(tmp_path / "scenes.npy", images.astype(np.float64))
    np.testing.assert_array_equal(read_neuropixels(path, stimuli=tmp_path / "scenes.npy").stimuli, images)
    folder = tmp_path / "natural_scene_templates"
    folder.mkdir()
    for at, image in enumerate(images):
        Image.fromarray(image).save(folder / f"natural_scene_{at}.tiff")
    np.testing.assert_array_equal(read_neuropixels(path, stimuli=folder).stimuli, images)
    np.save(tmp_path / "movie.npy", movie)
    recording = read_neuropixels(path, "natural_movie_one", stimuli=tmp_path / "movie.npy")
    assert isinstance(recording.stimuli, np.memmap)
    np.testing.assert_array_equal(recording.stimuli[0], movie)
    np.save(tmp_path / "few.npy", images[:2])
    expected = r"natural_scenes_presentations: presentation \d+ shows image [23], expected -1 to 1"
    with pytest.raises(ValueError, match=expected):
        read_neuropixels(path, stimuli=tmp_path / "few.npy")


def shorten(file):
    values = file["units/quality"][:-1]
    del file["units/quality"]
    file["units/quality"] = values


def overrun(file):
    ends = file["units/spike_times_index"][:].astype(np.int64)
    del file["units/spike_times_index"]
    file["units/spike_times_index"] = [*ends[:-1], 10**9]


def unplug(file):
    file["units/peak_channel_id"][0] = 7


def strange_frames(file):
    del file["intervals/natural_scenes_presentations/frame"]
    file["intervals/natural_scenes_presentations/frame"] = ["null"] * 25


MALFORMED = {
    "no units": (delete("units/quality"), "units/quality: is not there; units holds "),
    "no metrics": (delete("units/isi_violations"), "units/isi_violations: is not there"),
    "no spikes": (delete("units/spike_times_index"), "units/spike_times_index: is not there"),
    "rows": (shorten, r"units/quality: found shape \(8,\), expected \(9,\) as in id"),
    "ends": (overrun, "units/spike_times_index: found ends up to 1000000000, expected rising ones to"),
    "channel": (unplug, "units/peak_channel_id: found 7, which is not the id of one electrode in general"),
    "area": (delete("general/extracellular_ephys/electrodes/location"), "electrodes/location: is not there"),
    "scenes": (
        delete("intervals/natural_scenes_presentations"),
        "natural_scenes_presentations: is not there; stimuli are drifting_gratings, natural_movie_one",
    ),
    "frames": (
        delete("intervals/natural_scenes_presentations/frame"),
        "natural_scenes_presentations/frame: is not there",
    ),
    "text": (strange_frames, "natural_scenes_presentations: could not convert string to float"),
    "times": (delete("processing/running/running_speed/timestamps"), "running_speed/timestamps: is not there"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_are_told_in_one_line(changed, case):
    change, expected = MALFORMED[case]
    path = changed(change)
    with pytest.raises(ValueError, match=expected) as caught:
        read_neuropixels(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_other_stimuli_are_refused(session):
    path = session[1]
    with pytest.raises(ValueError, match="expected natural_scenes or a natural movie that is not shuffled"):
        read_neuropixels(path, "natural_movie_one_shuffled")
    with pytest.raises(ValueError, match=r"drifting_gratings_presentations/frame: is not there"):
        read_neuropixels(path, "drifting_gratings")
    with pytest.raises(ValueError, match="gabors_presentations: is not there; stimuli are "):
        read_neuropixels(path, "gabors")
    with pytest.raises(ValueError, match="window_ms: found 100 to 0"):
        read_neuropixels(path, window_ms=(100, 0))
    with pytest.raises(ValueError, match="bin_ms: found 10, but natural_movie_one has one bin per frame"):
        read_neuropixels(path, "natural_movie_one", bin_ms=10)


def test_metrics_that_no_limit_needs_may_be_absent(changed):
    path = changed(delete("units/isi_violations", "general/extracellular_ephys/electrodes/x"))
    recording = read_neuropixels(path, quality=UnitQuality(isi_violations_maximum=None))
    assert len(recording.neurons) == 4
    assert "isi_violations" not in recording.neurons
    assert recording.neurons["x_um"].isna().all()
