"""Dynamic mice: what the published loaders return for the reference folder, and every quirk of the real ones."""

import pickle

import numpy as np
import pytest

from neural_data.sensorium import read_sensorium
from neural_data.sensorium_writer import write_sensorium_video
from neural_data.trial_files import TrialFiles
from tests.neural_data.mice import NEURONS, VIDEO, change, copied, stored_zip, video_mouse


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_sensorium_video(video_mouse(), tmp_path_factory.mktemp("video") / VIDEO, padded_frames=72)


@pytest.fixture
def mouse(written, tmp_path):
    return copied(written, tmp_path / "data")


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def reference(shared):
    return shared / "reference" / "values" / "video" / "data_fixture"


@pytest.fixture(scope="module")
def fixture_mouse(reference, tmp_path_factory):
    return read_sensorium(next(reference.glob("dynamic*")), tmp_path_factory.mktemp("cache"))


def standardised(recording, row: int) -> dict[str, np.ndarray]:
    """A trial as ecker-lab, Dynamic-VFM and ViV1T's mode 1 with given statistics have it (fact sheet, section 1.4)."""
    trial, statistics = recording.trial(row), recording.statistics
    frames = trial["responses"].shape[1]

    def of(name: str) -> np.ndarray:
        return np.asarray(statistics[name])[..., :frames]

    std = statistics["responses/all/std"]
    least = 0.01 * np.nanmean(std)
    precision = np.where(std > least, 1 / std, 1 / least)[:, :frames]
    mean, spread = (np.moveaxis(of(f"videos/all/{name}"), -1, 0) for name in ("mean", "std"))
    return {
        "video": (trial["video"] - mean) / spread,
        "response": trial["responses"] * precision,
        "behavior": trial["behavior"] / of("behavior/all/std"),
        "pupil_center": (trial["pupil_center"] - of("pupil_center/all/mean")) / of("pupil_center/all/std"),
    }


@pytest.mark.parametrize(("row", "suffix"), [(0, ""), (8, "_trial8")])
def test_the_tensors_of_vivit(reference, fixture_mouse, row, suffix):
    expected = np.load(reference / "viv1t_stat0_transform1.npz")
    found = standardised(fixture_mouse, row)
    for name, values in found.items():
        wanted = expected[f"{name}{suffix}"]
        values = values[None] if name == "video" else values
        np.testing.assert_allclose(values, wanted, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("case", "row"),
    [("item0", 0), ("item4", 4), ("oracle_0", 3), ("oracle_1", 4), ("live_test_main_0", 5), ("final_test_bonus_0", 6)],
)
def test_the_tensors_of_the_organisers_loader(reference, fixture_mouse, case, row):
    expected = {name: values.squeeze() for name, values in np.load(reference / f"ecker_{case}.npz").items()}
    found = standardised(fixture_mouse, row)
    assert expected["responses"].shape == found["response"].shape
    np.testing.assert_allclose(found["video"], expected["videos"][0], rtol=1e-5, atol=1e-5)
    for name in ("behavior", "pupil_center"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-5)
    if fixture_mouse.withheld[row]:
        assert (expected["responses"] == 0).all()
        assert np.isnan(found["response"]).all()
    else:
        np.testing.assert_allclose(found["response"], expected["responses"], rtol=1e-5, atol=1e-5)


def test_the_tensors_of_dwiseneuro(reference, fixture_mouse):
    """Raw values of frames 0, 2, ..., 28 in the middle of zeros; behavior and pupil fill planes."""
    expected = np.load(reference / "dwise_item0_frames0_30_step2_pad20.npz")
    trial = fixture_mouse.trial(0, 0, 30)
    np.testing.assert_allclose(expected["x"][0, :, 4:16, 2:18], trial["video"][::2], rtol=1e-6)
    scalars = np.concatenate([trial["behavior"], trial["pupil_center"]])[:, ::2]
    np.testing.assert_allclose(expected["x"][1:, :, 0, 0], scalars, rtol=1e-6)
    np.testing.assert_allclose(expected["y"], trial["responses"][:, ::2], rtol=1e-6)


def test_what_the_reference_folder_holds(fixture_mouse):
    recording = fixture_mouse
    assert recording.frames.tolist() == [60, 60, 60, 60, 57, 60, 60, 60, 48]
    assert recording.withheld.tolist() == [False] * 5 + [True] * 3 + [False]
    assert recording.animals == ["29515-10-12"]
    assert recording.neurons["neuron_id"].tolist() == ["1", "3", "4", "6", "7", "8"]
    assert recording.neurons["z_um"].tolist() == [-87, -395, -742, 353, 165, 35]
    assert recording.behavior_names == ("pupil_dilation", "running_speed")
    assert '1 trials are of tier "none": the source calls them unusable' in recording.notes


@pytest.mark.parametrize("form", ["folder", "deflated", "stored"])
def test_what_was_written_is_read(tmp_path, cache, form):
    original = video_mouse()
    path = write_sensorium_video(original, tmp_path / "data" / original.name, as_zip=form == "deflated")
    recording = read_sensorium(stored_zip(path) if form == "stored" else path, cache)
    assert recording.name == original.name
    columns = ["stimulus", "repeat", "tier", "frames", "withheld"]
    assert recording.trials[columns].equals(original.trials[columns])
    for row in range(len(original.trials)):
        wanted, found = original.trial(row), recording.trial(row)
        for name, values in wanted.items():
            np.testing.assert_array_equal(found[name], np.asarray(values, np.float32), err_msg=name)
    for name in ("stimuli", "responses", "behavior", "pupil_center"):
        np.testing.assert_array_equal(getattr(recording, name)[:], np.asarray(getattr(original, name), np.float32))
    assert recording.neurons[original.neurons.columns].equals(original.neurons)
    assert recording.sampling_rate_hz == 30
    wanted, found = (one.repeats(one.animals[0], min_repeats=3) for one in (original, recording))
    np.testing.assert_array_equal(found.responses, wanted.responses)
    assert any("compressed" in note for note in recording.notes) == (form == "deflated")


def test_numerical_noise_below_zero_is_kept(written, cache):
    responses = read_sensorium(written, cache).responses
    assert np.nanmin(responses[:]) == pytest.approx(-3e-7, rel=0.1)


def test_nothing_is_read_before_it_is_asked_for(mouse, cache):
    recording = read_sensorium(mouse, cache)
    for part in (recording.stimuli, recording.responses, recording.behavior, recording.pupil_center):
        assert isinstance(part, TrialFiles)
    again = pickle.loads(pickle.dumps(recording))
    np.testing.assert_array_equal(again.responses[5], recording.responses[5])
    np.testing.assert_array_equal(recording.responses[0, :, 10:20], recording.responses[0][:, 10:20])
    assert again.summary() == recording.summary()


def test_files_in_fortrans_order(written, mouse, cache):
    plain = read_sensorium(written, cache)
    for file in mouse.glob("data/*/*.npy"):
        change(file, np.asfortranarray)
    recording = read_sensorium(mouse, cache)
    assert recording.trials.equals(plain.trials)
    np.testing.assert_array_equal(recording.stimuli[:], plain.stimuli[:])
    np.testing.assert_array_equal(recording.responses[:], plain.responses[:])


def test_the_data_folder_is_left_alone(mouse, cache):
    before = {path: path.stat().st_mtime_ns for path in mouse.rglob("*")}
    read_sensorium(mouse, cache).trial(0)
    assert {path: path.stat().st_mtime_ns for path in mouse.rglob("*")} == before


def ends(values: np.ndarray, frames: int) -> np.ndarray:
    values[..., frames:] = np.nan
    return values


def test_which_modality_decides_how_long_a_trial_is(mouse, cache):
    rows = {tier: np.flatnonzero(np.load(mouse / "meta/trials/tiers.npy") == tier) for tier in ("train", "oracle")}
    full = read_sensorium(mouse, cache).frames
    row = next(int(row) for row in rows["train"] if full[row] == 60)
    for part, frames in (("responses", 55), ("behavior", 58), ("pupil_center", 50)):
        change(mouse / "data" / part / f"{row}.npy", lambda values, frames=frames: ends(values, frames))
    for statistic in ("mean", "std"):
        change(mouse / "meta/statistics/videos/all" / f"{statistic}.npy", lambda values: ends(values, 44))

    def lengths(rule, most=None):
        recording = read_sensorium(mouse, cache, trial_length=rule, max_frames=most)
        return recording, recording.frames

    recording, frames = lengths("all")
    assert frames[row] == 50
    assert np.delete(frames, row).tolist() == np.delete(full, row).tolist()
    names = [f"{part}_frames" for part in ("videos", "responses", "behavior", "pupil_center")]
    assert recording.trials[names].iloc[row].tolist() == [60, 55, 58, 50]
    assert recording.trial(row)["pupil_center"].shape == (2, 50)
    assert np.isnan(recording.responses[row][:, 50:]).all()
    recording, frames = lengths("video")
    assert frames[row] == 60
    assert np.isnan(recording.trial(row)["responses"][:, 55:]).all()
    recording, frames = lengths("responses")
    assert frames[row] == 55
    assert recording.trial(row)["video"].shape == (55, 12, 16)
    assert (lengths("statistics")[1] == 44).all()
    recording, frames = lengths("all", 30)
    assert (frames == 30).all()
    assert recording.responses.shape == (len(frames), NEURONS, 30)
    with pytest.raises(ValueError, match="trial_length: found 'longest', expected one of all, statistics, video"):
        lengths("longest")


def test_responses_that_are_withheld_take_the_behaviors_length(mouse, cache):
    row = int(np.flatnonzero(np.load(mouse / "meta/trials/tiers.npy") == "live_test_main")[0])
    change(mouse / "data" / "behavior" / f"{row}.npy", lambda values: ends(values, 41))
    change(mouse / "data" / "responses" / f"{row}.npy", np.zeros_like)  # zeros through the padding, too
    recording = read_sensorium(mouse, cache, trial_length="responses")
    assert recording.withheld[row]
    assert recording.frames[row] == 41
    assert np.isnan(recording.trial(row)["responses"]).all()


def test_a_gap_ends_the_trial_and_is_said(mouse, cache):
    def gap(values):
        values[:, 20:23] = np.nan
        return values

    change(mouse / "data" / "pupil_center" / "0.npy", gap)
    recording = read_sensorium(mouse, cache)
    assert recording.frames[0] == 20
    assert "pupil_center go on after a gap of NaN in 1 trials, such as 0: they end at the gap" in recording.notes


def test_files_of_different_lengths(written, mouse, cache):
    """Some exports do not pad."""
    plain = read_sensorium(written, cache)
    for file in mouse.glob("data/*/*.npy"):
        change(file, lambda values, row=int(file.stem): values[..., : plain.frames[row]])
    recording = read_sensorium(mouse, cache)
    assert recording.trials.equals(plain.trials)
    np.testing.assert_array_equal(recording.stimuli[:], plain.stimuli[:])
    np.testing.assert_array_equal(recording.behavior[:], plain.behavior[:])


def test_a_clip_has_the_video_of_its_longest_trial(written, mouse, cache):
    plain = read_sensorium(written, cache)
    clip = plain.trials.loc[(plain.trials["tier"] == "oracle") & (plain.frames == 60), "stimulus"].iat[0]
    first, *others = np.flatnonzero(plain.trials["stimulus"] == clip)
    for part in ("videos", "responses", "behavior", "pupil_center"):
        change(mouse / "data" / part / f"{first}.npy", lambda values: ends(values, 57))
    change(mouse / "data" / "videos" / f"{others[0]}.npy", lambda values: values - 1)
    recording = read_sensorium(mouse, cache)
    assert recording.trials["stimulus"].equals(plain.trials["stimulus"])
    assert recording.frames[[first, *others]].tolist() == [57, 60, 60]
    np.testing.assert_array_equal(recording.trial(others[1])["video"], plain.trial(others[1])["video"] - 1)
    own = read_sensorium(mouse, cache, share_stimuli=False)
    assert own.trials["stimulus"].tolist() == list(range(len(own.trials)))
    np.testing.assert_array_equal(own.trial(others[1])["video"], plain.trial(others[1])["video"])


@pytest.mark.parametrize("name", ["condition_hash", "video_ids"])
def test_clips_that_the_source_names(mouse, cache, name):
    plain = read_sensorium(mouse, cache)
    ids = 40 + plain.trials["stimulus"].to_numpy()
    ids[(plain.trials["tier"] == "none").to_numpy()] = -1
    np.save(mouse / "meta/trials" / f"{name}.npy", ids.astype(str) if name == "condition_hash" else ids)
    np.save(mouse / "meta/trials/stimulus_ids.npy", np.where(ids < 0, -1, ids % 6))
    for file in cache.rglob("*.json"):
        file.unlink()
    recording = read_sensorium(mouse, cache)
    assert recording.trials["stimulus"].equals(plain.trials["stimulus"])
    classes = {"movie", "directional pink noise", "gaussian dots", "random-dot kinematogram", "drifting gabor"}
    assert set(recording.trials["stimulus_class"]) == {"", *classes, "flashed images"}
    assert not list(cache.rglob("*.json"))
    np.save(mouse / "meta/trials" / f"{name}.npy", np.zeros_like(ids))
    with pytest.raises(
        ValueError, match=r"found another clip than in data/videos/0\.npy, though meta/trials says both"
    ):
        read_sensorium(mouse, cache)


def test_exports_with_three_behaviors(mouse, cache):
    for file in mouse.glob("data/behavior/*.npy"):
        change(file, lambda values: np.concatenate([values[:1], values[:1] * 0, values[1:]]).astype(np.float32))
    recording = read_sensorium(mouse, cache)
    assert recording.behavior_names == ("pupil_dilation", "pupil_dilation_derivative", "running_speed")
    assert recording.behavior.shape[1] == 3


def test_without_behavior_and_pupil(mouse, cache):
    for file in mouse.glob("data/behavior/*.npy"):
        file.unlink()
    for file in mouse.glob("data/pupil_center/*.npy"):
        change(file, np.zeros_like)
    recording = read_sensorium(mouse, cache)
    assert recording.behavior is None
    assert recording.pupil_center is None
    assert {"no behavior", "pupil_center holds nothing but zeros in all trials: taken as absent"} <= set(
        recording.notes
    )


def test_without_responses(mouse, cache):
    plain = read_sensorium(mouse, cache)
    for file in mouse.glob("data/responses/*.npy"):
        file.unlink()
    recording = read_sensorium(mouse, cache)
    assert recording.withheld.all()
    assert recording.responses.shape == plain.responses.shape
    assert np.isnan(recording.responses[0]).all()
    (mouse / "meta/neurons/unit_ids.npy").unlink()
    (mouse / "meta/neurons/cell_motor_coordinates.npy").unlink()
    with pytest.raises(
        ValueError, match=r"data/responses: found no files, expected responses, or meta/neurons/unit_ids"
    ):
        read_sensorium(mouse, cache)


BROKEN = {
    "NaN from the first frame": (
        lambda m: change(m / "data/behavior/4.npy", lambda values: values * np.nan),
        r"data/behavior/4.npy: found NaN in the first frame, expected numbers, and NaN only after the end",
    ),
    "another size": (
        lambda m: change(m / "data/videos/4.npy", lambda values: values[1:]),
        r"data/videos/4.npy: found shape \(11, 16, 72\), expected \(height, width, frames\) = \(12, 16, 72\)",
    ),
    "time first": (
        lambda m: [change(file, lambda v: v.transpose(2, 0, 1)[None]) for file in m.glob("data/videos/*.npy")],
        r"data/videos/0.npy: found shape \(1, 72, 12, 16\), expected \(height, width, frames\)",
    ),
    "a neuron less": (
        lambda m: change(m / "data/responses/4.npy", lambda values: values[1:]),
        r"data/responses/4.npy: found shape \(6, 72\), expected \(neurons, frames\) = \(7, 72\)",
    ),
    "no frames": (
        lambda m: change(m / "data/pupil_center/4.npy", lambda values: values[:, :0]),
        r"data/pupil_center/4.npy: found float64 of shape \(2, 0\), expected numbers",
    ),
    "objects": (
        lambda m: np.save(m / "data/responses/4.npy", np.array([[None]]), allow_pickle=True),
        r"data/responses/4.npy: found Python objects, expected numbers or text; objects could run code",
    ),
    "cut off": (
        lambda m: (m / "data/responses/4.npy").write_bytes((m / "data/responses/4.npy").read_bytes()[:900]),
        r"data/responses/4.npy: found 900 bytes, expected 4160 \(it was cut off\)",
    ),
    "two rates": (
        lambda m: change(m / "meta/trials/target_fps.npy", lambda rates: np.where(np.arange(len(rates)), rates, 15)),
        r"meta/trials/target_fps.npy: found 15.0, 30.0, expected one rate in Hz for all trials",
    ),
    "neither images nor videos": (
        lambda m: [file.unlink() for file in m.glob("data/videos/*.npy")],
        r"data: found neither images nor videos, expected data/images/<trial>.npy or data/videos/<trial>.npy",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_one_line_for_what_is_broken(mouse, cache, how):
    damage, message = BROKEN[how]
    damage(mouse)
    with pytest.raises(ValueError, match=message) as error:
        read_sensorium(mouse, cache)
    assert str(error.value).startswith(f"{mouse}: ")
    assert "\n" not in str(error.value)
