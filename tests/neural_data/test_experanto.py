"""read_experanto: trials, responses, repeats and notes of folders, which are written here without our writer."""

import dataclasses
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from neural_data.experanto import read_experanto
from neural_data.experanto_devices import Sequence
from neural_data.experanto_folder import open_experanto

SIZE = (4, 6)
RNG = np.random.default_rng(0)
CLIPS = RNG.integers(0, 256, (3, 12, *SIZE), np.uint8)
PICTURES = RNG.integers(0, 256, (3, *SIZE), np.uint8)


class Folder:
    """A recording that is put together on the disk, piece by piece, as others' exporters do."""

    def __init__(self, path: Path, start_s: float = 0.0) -> None:
        self.path, self.clock_s = path, start_s
        self.times: list[float] = []
        self.trials = 0
        for name in ("meta", "data"):
            (path / "screen" / name).mkdir(parents=True)
        self.screen_meta()

    def screen_meta(self, **fields) -> "Folder":
        (self.path / "screen" / "meta.yml").write_text(yaml.safe_dump({"modality": "screen"} | fields))
        return self

    def show(self, modality: str, data: np.ndarray | None, lasts_s: float, **fields) -> float:
        """Adds a trial that lasts so long, returns its onset."""
        frames = len(data) if modality == "video" else 1
        size = list(data.shape[1:] if modality == "video" else data.shape) if data is not None else list(SIZE)
        known = {"modality": modality, "first_frame_idx": len(self.times), "num_frames": frames, "image_size": size}
        name = f"{self.trials:05d}"
        (self.path / "screen" / "meta" / f"{name}.yml").write_text(yaml.safe_dump(known | fields))
        if data is not None:
            np.save(self.path / "screen" / "data" / f"{name}.npy", data)
        onset = self.clock_s
        self.times += [onset + lasts_s * frame / frames for frame in range(frames)]
        self.trials += 1
        self.clock_s += lasts_s
        np.save(self.path / "screen" / "timestamps.npy", self.times)
        return onset

    def blank(self, lasts_s: float = 0.5) -> float:
        return self.show("blank", None, lasts_s, interleave_value=128)

    def sequence(self, name: str, rate: float, signals: int, start_s: float, end_s: float, **fields) -> np.ndarray:
        """Adds a device of random values, returned."""
        (self.path / name / "meta").mkdir(parents=True)
        data = np.random.default_rng(len(name)).standard_normal((int((end_s - start_s) * rate + 1e-6) + 1, signals))
        meta = {"modality": "sequence", "sampling_rate": rate, "start_time": start_s, "n_signals": signals}
        meta["end_time"] = start_s + (len(data) - 1) / rate
        (self.path / name / "meta.yml").write_text(yaml.safe_dump(meta | fields))
        np.save(self.path / name / "data.npy", data.astype(np.float32))
        return data.astype(np.float32)


def videos(path: Path, order=(0, 1, 0, 2, 1, 0), start_s: float = 0.0) -> tuple[Folder, list[float]]:
    folder, onsets = Folder(path, start_s), []
    for number, clip in enumerate(order):
        folder.blank()
        tier = "test" if clip == 0 else "train"
        lasts = len(CLIPS[clip]) / 30
        onsets.append(folder.show("video", CLIPS[clip], lasts, tier=tier, condition_hash=f"h{number}"))
    folder.blank()
    return folder, onsets


def images(path: Path, order=(0, 1, 0, 2), start_s: float = 0.0) -> tuple[Folder, list[float]]:
    folder, onsets = Folder(path, start_s), []
    for picture in order:
        folder.blank()
        onsets.append(folder.show("image", PICTURES[picture], 0.5, tier="train"))
    folder.blank()
    return folder, onsets


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*"))}


def test_videos_that_repeat_are_found_by_their_pixels(tmp_path):
    folder, onsets = videos(tmp_path / "dynamic1-2-3-Video-abc_30hz")
    data = folder.sequence("responses", 30.0, 5, 0.0, folder.clock_s)
    before = listing(folder.path)
    recording = read_experanto(folder.path)
    assert recording.trials["stimulus"].tolist() == [0, 1, 0, 2, 1, 0]
    assert recording.trials["repeat"].tolist() == [0, 0, 1, 0, 1, 2]
    assert recording.trials["tier"].tolist() == ["test", "train", "test", "train", "train", "test"]
    assert recording.trials["trial_id"].tolist() == [f"{n:05d}" for n in (1, 3, 5, 7, 9, 11)]
    assert recording.trials["condition_hash"].tolist() == [f"h{n}" for n in range(6)]
    np.testing.assert_allclose(recording.trials["start_s"], onsets)
    assert recording.sampling_rate_hz == 30.0
    assert (recording.name, recording.animals) == ("dynamic1-2-3-Video-abc_30hz", ["1-2-3"])
    assert recording.stimuli.dtype == np.uint8
    np.testing.assert_array_equal(recording.stimuli[:], CLIPS)
    for row, onset in enumerate(onsets):
        first = round(onset * 30)
        np.testing.assert_array_equal(recording.responses[row], data[first : first + 12].T)
    oracle = recording.repeats("1-2-3", tier="test")
    assert oracle.responses.shape == (3, 1, 5, 12)
    assert recording.notes == ("left out 7 blank trials",)
    assert listing(folder.path) == before


def test_the_reference_recording(shared, tmp_path):
    """Videos of 15 and 30 frames per second, images, blanks, phase shifts, NaN of the eye tracker."""
    archive = next((shared / "reference" / "values" / "static" / "experanto").glob("*.zip"))
    with zipfile.ZipFile(archive) as members:
        members.extractall(tmp_path)
    path = next(tmp_path.iterdir())
    before = listing(path)
    with pytest.raises(ValueError, match="found 14 videos, 14 images, expected one kind; say kind='videos'"):
        read_experanto(path)
    devices = open_experanto(path).devices
    recording = read_experanto(path, kind="videos")
    assert recording.animals == ["99999-1-2"]
    assert recording.behavior_names == ("pupil_dilation", "pupil_dilation_derivative", "running_speed")
    assert recording.trials["frames"].tolist() == [24, 12] * 7
    assert recording.notes == (
        "left out 28 blank, 14 image trials",
        "7 videos shown at 15 Hz are sampled at 30 Hz",
        "devices not read: spikes, tiers",
    )
    for row in range(len(recording.trials)):
        trial = recording.trial(row)
        times = 1000.0 + recording.trials["start_s"][row] + np.arange(len(trial["video"])) / 30
        shown, valid = devices["screen"].at(times)
        assert valid[:-1].all()  # the recording ends with the onset of a frame
        np.testing.assert_array_equal(trial["video"][valid], shown[valid])
        np.testing.assert_allclose(trial["responses"].T, devices["responses"].at(times)[0])
        eye, running = devices["eye_tracker"].at(times)[0], devices["treadmill"].at(times)[0]
        np.testing.assert_allclose(trial["behavior"].T, np.hstack([eye[:, :2], running]), rtol=1e-6)
        np.testing.assert_allclose(trial["pupil_center"].T, eye[:, 2:], rtol=1e-6)
    statistics = recording.statistics["responses"]
    np.testing.assert_array_equal(statistics["mean"], np.load(path / "responses" / "meta" / "means.npy")[0])
    still = read_experanto(path, kind="images")
    assert still.trials["tier"].value_counts().to_dict() == {"train": 6, "validation": 3, "test": 3, "oracle": 2}
    assert still.responses.shape == (14, 7)
    begin = 1000.0 + still.trials["start_s"].to_numpy() + 0.05
    averages = devices["responses"].windows(begin, begin + 0.5)
    np.testing.assert_allclose(still.responses[:], averages, rtol=1e-6)
    assert listing(path) == before


def test_one_response_per_image_is_the_average_after_onset(tmp_path):
    folder, onsets = images(tmp_path / "m")
    data = folder.sequence("responses", 30.0, 4, 0.0, folder.clock_s + 1)
    recording = read_experanto(folder.path)
    assert not recording.dynamic
    assert (recording.trials["stimulus"].tolist(), recording.trials["repeat"].tolist()) == ([0, 1, 0, 2], [0, 0, 1, 0])
    np.testing.assert_array_equal(recording.stimuli[:], PICTURES)
    assert recording.response_start_ms == 50
    # From 50 to 550 ms after onset: half of sample 1, samples 2 to 15, half of sample 16.
    weight = np.array([0.5, *[1] * 14, 0.5]) / 15
    for row, onset in enumerate(onsets):
        first = round(onset * 30) + 1
        np.testing.assert_allclose(recording.responses[row], weight @ data[first : first + 16], rtol=1e-4, atol=1e-6)
    short = read_experanto(folder.path, image_window_ms=(0, 100))
    first = round(onsets[2] * 30)
    np.testing.assert_allclose(short.responses[2], data[first : first + 3].mean(axis=0), rtol=1e-4, atol=1e-6)


def test_slow_responses_are_held_or_blended(tmp_path):
    folder, onsets = videos(tmp_path / "m", start_s=1.6e9)
    data = folder.sequence("responses", 8.0, 3, 1.6e9 - 1, folder.clock_s)
    held, blended = (read_experanto(folder.path, interpolation=how) for how in ("nearest", "linear"))
    for row, onset in enumerate(onsets):
        place = (onset - 1.6e9 + 1 + np.arange(12) / 30) * 8
        np.testing.assert_array_equal(held.responses[row].T, data[np.floor(place + 1e-4).astype(int)])
        expected = np.stack([np.interp(place, np.arange(len(data)), column) for column in data.T])
        np.testing.assert_allclose(blended.responses[row], expected, atol=1e-4)
    later = read_experanto(folder.path, response_start_ms=250.0)
    assert later.response_start_ms == 250.0
    np.testing.assert_array_equal(later.responses[0].T, data[np.floor(place_of(onsets[0], 0.25) + 1e-4).astype(int)])


def place_of(onset: float, later_s: float) -> np.ndarray:
    return (onset - 1.6e9 + 1 + later_s + np.arange(12) / 30) * 8


def test_a_rate_of_ones_own(tmp_path):
    folder, onsets = videos(tmp_path / "m", order=(0, 1))
    data = folder.sequence("responses", 30.0, 2, 0.0, folder.clock_s)
    half = read_experanto(folder.path, rate_hz=15)
    assert (half.sampling_rate_hz, half.stimuli.shape) == (15, (2, 6, *SIZE))
    np.testing.assert_array_equal(half.stimuli[:], CLIPS[:2, ::2])
    first = round(onsets[1] * 30)
    np.testing.assert_array_equal(half.responses[1], data[first : first + 12 : 2].T)
    assert "2 videos shown at 30 Hz are sampled at 15 Hz" in half.notes
    # What differs by less than a screen's jitter is the same: every frame is one sample.
    assert read_experanto(folder.path, rate_hz=29.97).stimuli.shape == (2, 12, *SIZE)


def test_screens_that_jitter_show_every_frame_once(tmp_path):
    folder, _ = videos(tmp_path / "m", order=(0, 1, 0))
    folder.sequence("responses", 30.0, 2, 0.0, folder.clock_s)
    times = np.load(folder.path / "screen" / "timestamps.npy")
    times += np.random.default_rng(1).uniform(-0.0005, 0.0005, len(times))
    times[0] = 0.0
    times[-1] += 1 / 30  # a dropped frame
    np.save(folder.path / "screen" / "timestamps.npy", times)
    for said, rate in ((None, 30), (30.0, 30.0), (60.0, 30)):
        folder.screen_meta(**({} if said is None else {"frame_rate": said}))
        recording = read_experanto(folder.path)
        assert recording.sampling_rate_hz == pytest.approx(rate, rel=0.03)
        np.testing.assert_array_equal(recording.stimuli[:], CLIPS[:2])
        assert recording.trials["stimulus"].tolist() == [0, 1, 0]


def test_videos_of_several_lengths_end_in_nan(tmp_path):
    folder = Folder(tmp_path / "m")
    for clip, frames in ((0, 12), (1, 7), (2, 12), (2, 12)):
        folder.show("video", CLIPS[clip][:frames], frames / 30)
    folder.blank()
    folder.sequence("responses", 30.0, 2, 0.0, folder.clock_s)
    folder.sequence("eye_tracker", 20.0, 4, 0.0, folder.clock_s)
    recording = read_experanto(folder.path)
    assert recording.trials["frames"].tolist() == [12, 7, 12, 12]
    assert recording.trials["stimulus"].tolist() == [0, 1, 2, 2]
    assert recording.stimuli.dtype == np.float32
    assert np.isnan(recording.stimuli[1, 7:]).all()
    for part in (recording.responses, recording.behavior, recording.pupil_center):
        assert np.isnan(part[1, :, 7:]).all()
        assert np.isfinite(part[1, :, :7]).all()
    assert recording.trial(1)["video"].shape == (7, *SIZE)


def test_a_clip_that_lost_frames_is_still_that_clip(tmp_path):
    folder = Folder(tmp_path / "m")
    for clip, frames in ((0, 11), (1, 12), (0, 12), (1, 7), (0, 12)):
        folder.show("video", CLIPS[clip][:frames], frames / 30)
    folder.blank()
    data = folder.sequence("responses", 30.0, 2, 0.0, folder.clock_s)
    recording = read_experanto(folder.path)
    assert recording.trials["stimulus"].tolist() == [0, 1, 0, 1, 0]
    assert recording.trials["repeat"].tolist() == [0, 0, 1, 1, 2]
    assert recording.trials["frames"].tolist() == [11, 12, 12, 7, 12]
    assert recording.stimuli.dtype == np.uint8
    np.testing.assert_array_equal(recording.stimuli[:], CLIPS[:2])
    np.testing.assert_array_equal(recording.trial(3)["video"], CLIPS[1][:7])
    np.testing.assert_array_equal(recording.trial(0)["responses"], data[:11].T)
    assert np.isnan(recording.responses[0, :, 11]).all()


def test_colour(tmp_path):
    folder = Folder(tmp_path / "m")
    clip = RNG.integers(0, 256, (12, *SIZE, 3), np.uint8)
    folder.show("video", clip, 0.4)
    folder.show("image", clip[0], 0.5)
    folder.show("blank", None, 1.0, interleave_value=1.0, image_size=[*SIZE, 3])
    folder.sequence("responses", 30.0, 2, 0.0, folder.clock_s)
    moving, still = (read_experanto(folder.path, kind=kind) for kind in ("videos", "images"))
    assert moving.video
    np.testing.assert_array_equal(moving.trial(0)["video"], clip)
    assert not still.video
    np.testing.assert_array_equal(still.trial(0)["images"], clip[0])


def test_trials_outside_of_the_responses_are_counted(tmp_path):
    folder, onsets = videos(tmp_path / "m")
    folder.sequence("responses", 30.0, 2, onsets[1] + 0.1, onsets[4] + 0.8)
    folder.sequence("treadmill", 100.0, 1, onsets[3], folder.clock_s)
    recording = read_experanto(folder.path)
    np.testing.assert_allclose(recording.trials["start_s"], onsets[2:5])
    assert "left out 3 videos shown while responses were not recorded" in recording.notes
    assert np.isfinite(recording.responses[:]).all()
    assert np.isnan(recording.behavior[0]).all()  # the treadmill was not on yet: its values are missing, no trial is
    assert np.isfinite(recording.behavior[1:]).all()
    folder, onsets = images(tmp_path / "n")
    folder.sequence("responses", 30.0, 2, 0.0, onsets[-1] + 0.5)
    still = read_experanto(folder.path)
    assert len(still.trials) == 3
    assert "left out 1 images shown while responses were not recorded" in still.notes


def test_nan_of_the_file_stays(tmp_path):
    folder, onsets = videos(tmp_path / "m")
    data = folder.sequence("responses", 30.0, 2, 0.0, folder.clock_s)
    first = round(onsets[1] * 30)
    data[first : first + 12, 0] = np.nan
    np.save(folder.path / "responses" / "data.npy", data)
    recording = read_experanto(folder.path, interpolation="linear")
    assert np.isnan(recording.responses[1, 0]).all()
    assert np.isfinite(recording.responses[1, 1]).all()
    assert np.isfinite(recording.responses[[0, 2, 3, 4, 5]]).all()


def test_marks_and_names_of_trials(tmp_path):
    folder = Folder(tmp_path / "m")
    folder.show("image", PICTURES[0], 0.5, valid_trial=True, stimulus_name="tiger", stim_type="stimulus.Frame")
    folder.show("image", PICTURES[1], 0.5, valid_trial=False, stimulus_name=17)
    folder.show("Invalid", None, 0.5, interleave_value=0)
    folder.show("image", PICTURES[2], 0.5, tier="")
    folder.blank(1.0)
    folder.sequence("responses", 30.0, 2, 0.0, folder.clock_s)
    recording = read_experanto(folder.path)
    assert recording.trials["valid_trial"].tolist() == [True, False, True]
    assert recording.trials["stimulus_name"].tolist() == ["tiger", "17", ""]
    assert recording.trials["stimulus_class"].tolist() == ["stimulus.Frame", "", ""]
    assert recording.notes == (
        "left out 1 invalid, 1 blank trials",
        "1 trials are marked as not valid, see valid_trial",
    )


def test_behavior_is_what_there_is(tmp_path):
    folder, _ = videos(tmp_path / "m", order=(0,))
    folder.sequence("responses", 30.0, 2, 0.0, folder.clock_s)
    assert read_experanto(folder.path).behavior is None
    treadmill = folder.sequence("treadmill", 30.0, 1, 0.0, folder.clock_s)
    recording = read_experanto(folder.path)
    assert (recording.behavior_names, recording.pupil_center) == (("running_speed",), None)
    np.testing.assert_array_equal(recording.behavior[0, 0], treadmill[15:27, 0])
    folder.sequence("eye_tracker", 30.0, 3, 0.0, folder.clock_s)
    unnamed = read_experanto(folder.path)
    assert unnamed.behavior_names == ("eye_tracker_0", "eye_tracker_1", "eye_tracker_2", "running_speed")
    assert unnamed.pupil_center is None
    named = read_experanto(folder.path, signal_names={"eye_tracker": ("pupil_x", "pupil_y", "eye_area")})
    assert named.behavior_names == ("eye_area", "running_speed")
    np.testing.assert_array_equal(named.pupil_center, unnamed.behavior[:, :2])
    for given, message in (
        ({"eye_tracker": ("pupil_x",)}, "signal_names: found 1 names for eye_tracker, expected 3, one per signal"),
        ({"lick": ("port",)}, "signal_names: found lick, expected eye_tracker or treadmill"),
        (
            {"eye_tracker": ("a", "b", "running_speed")},
            "signal_names: found running_speed twice, expected a name per s",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            read_experanto(folder.path, signal_names=given)


def test_spikes_are_responses_too(tmp_path):
    folder, onsets = videos(tmp_path / "m", order=(0, 1))
    trains = [np.sort(np.random.default_rng(i).uniform(0, folder.clock_s, 80)) for i in range(3)]
    (folder.path / "spikes").mkdir()
    np.save(folder.path / "spikes" / "spikes.npy", np.concatenate(trains))
    meta = {"modality": "spikes", "start_time": 0.0, "end_time": folder.clock_s, "spike_indices": [0, 80, 160, 240]}
    (folder.path / "spikes" / "meta.yml").write_text(yaml.safe_dump(meta))
    recording = read_experanto(folder.path)
    for row, onset in enumerate(onsets):
        edges = onset + np.arange(13) / 30
        expected = [np.histogram(train, edges)[0] for train in trains]
        np.testing.assert_array_equal(recording.responses[row], expected)


def test_devices_of_no_use_here_may_be_of_any_kind(tmp_path):
    folder, _ = videos(tmp_path / "m", order=(0,))
    folder.sequence("responses", 30.0, 2, 0.0, folder.clock_s)
    folder.sequence("lfp", 30.0, 2, 0.0, folder.clock_s, modality="lfp")
    assert "devices not read: lfp" in read_experanto(folder.path).notes
    with pytest.raises(ValueError, match=r"lfp/meta\.yml: modality: found 'lfp', expected sequence or screen"):
        open_experanto(folder.path)


def test_neuron_properties(tmp_path):
    folder, _ = videos(tmp_path / "m", order=(0,))
    listed = {"unit_ids": "meta/unit_ids.npy", "fields": "meta/fields.npy"}
    folder.sequence("responses", 30.0, 2, 0.0, folder.clock_s, neuron_properties=listed)
    meta = folder.path / "responses" / "meta"
    for name, values in {
        "unit_ids": [12, 7],
        "fields": [1, 2],
        "cell_motor_coordinates": [[1, 2, 3], [4, 5, 6]],
        "layer": ["L2/3", "L4"],
        "stds": [[1.0, 1.0]],
    }.items():
        np.save(meta / f"{name}.npy", np.array(values))
    recording = read_experanto(folder.path)
    assert recording.neurons["neuron_id"].tolist() == ["12", "7"]
    assert recording.neurons["layer"].tolist() == ["L2/3", "L4"]
    assert recording.neurons[["x_um", "y_um", "z_um"]].to_numpy().tolist() == [[1, 2, 3], [4, 5, 6]]
    assert "neuron properties not read: fields" in recording.notes
    np.save(meta / "cell_motor_coordinates.npy", np.array([[1, 2], [4, 5]]))
    assert read_experanto(folder.path).neurons["z_um"].isna().all()
    np.save(meta / "unit_ids.npy", np.array([1, 2, 3]))
    with pytest.raises(ValueError, match=r"unit_ids\.npy: found int64 of shape \(3,\), expected \(2\), one per neuron"):
        read_experanto(folder.path)


def test_a_recording_can_be_handed_to_another_process(tmp_path):
    folder, _ = videos(tmp_path / "m")
    folder.sequence("responses", 30.0, 50, 0.0, folder.clock_s)
    recording = read_experanto(folder.path)
    handed = pickle.dumps(recording)
    assert len(handed) < 100_000
    np.testing.assert_array_equal(pickle.loads(handed).trial(3)["responses"], recording.trial(3)["responses"])
    assert dataclasses.replace(recording, name="again").name == "again"


def test_a_window_of_a_trial_reads_only_that(tmp_path, monkeypatch):
    at = Sequence.at
    folder, _ = videos(tmp_path / "m")
    folder.sequence("responses", 30.0, 2, 0.0, folder.clock_s)
    recording = read_experanto(folder.path)
    window = recording.trial(3, 4, 9)
    np.testing.assert_array_equal(window["video"], CLIPS[2][4:9])
    np.testing.assert_array_equal(window["responses"], recording.responses[3][:, 4:9])
    asked = []
    monkeypatch.setattr(Sequence, "at", lambda device, times, how: asked.append(len(times)) or at(device, times, how))
    recording.trial(3, 4, 9)
    assert asked == [5]
    whole = recording.responses[3]
    assert asked == [5, 12]
    for key in ((0,), (slice(None), 3), ([1, 0], [2, 5]), (slice(1, None), slice(2, 8, 3)), (Ellipsis, slice(3))):
        np.testing.assert_array_equal(recording.responses[(3, *key)], whole[key])


MISTAKES = {
    "no screen": (lambda f: shutil.rmtree(f.path / "screen"), {}, r"screen: found responses \(Sequence\), expected a"),
    "no responses": (
        lambda f: shutil.rmtree(f.path / "responses"),
        {},
        r"responses: found screen \(Screen\), expected a device of sequence or spikes",
    ),
    "only blanks": (
        lambda f: [trial.unlink() for trial in list((f.path / "screen" / "meta").glob("*.yml"))[::-1]],
        {},
        "meta: no trials, expected files 00000",
    ),
    "other kind": (lambda f: None, {"kind": "images"}, "found 2 videos, 0 images on the screen, expected images"),
    "no kind": (lambda f: None, {"kind": "movies"}, "kind: found 'movies', expected videos or images"),
    "interpolation": (
        lambda f: None,
        {"interpolation": "cubic"},
        "interpolation: found 'cubic', expected nearest or l",
    ),
    "rate": (lambda f: None, {"rate_hz": 0}, "rate_hz: found 0, expected samples per second, more than 0"),
    "window": (
        lambda f: None,
        {"image_window_ms": (550, 50)},
        r"image_window_ms: found \(550, 50\), expected start and",
    ),
    "no pixels": (
        lambda f: (f.path / "screen" / "data" / "00003.npy").unlink(),
        {},
        r"screen/data/00003\.npy: no such file",
    ),
    "fewer frames": (
        lambda f: np.save(f.path / "screen" / "data" / "00003.npy", CLIPS[1][:5]),
        {},
        r"00003\.npy: found uint8 of shape \(5, 4, 6\), expected numbers of shape \(12, 4, 6\) as in 00003\.yml",
    ),
    "another size": (
        lambda f: retell(f, "00003", image_size=[6, 4]),
        {},
        r"00003\.npy: found uint8 of shape \(12, 4, 6\), expected numbers of shape \(12, 6, 4\)",
    ),
    "two sizes": (
        lambda f: (f.show("video", CLIPS[1][:, :3, :4], 0.4), f.blank()),
        {},
        r"00005\.yml: image_size: found \[3, 4\], expected \[4, 6\] as in 00001\.yml",
    ),
    "tier": (lambda f: retell(f, "00001", tier=["train"]), {}, r"00001\.yml: tier: found \['train'\], expected text"),
    "mark": (
        lambda f: retell(f, "00001", valid_trial="maybe"),
        {},
        "valid_trial: found 'maybe', expected true or false",
    ),
}


def retell(folder: Folder, trial: str, **fields) -> None:
    file = folder.path / "screen" / "meta" / f"{trial}.yml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | fields))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_one_line(tmp_path, mistake):
    change, options, message = MISTAKES[mistake]
    folder, _ = videos(tmp_path / "m", order=(0, 1))
    folder.sequence("responses", 30.0, 2, 0.0, folder.clock_s + 5)
    change(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        read_experanto(folder.path, **options)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value) or str(caught.value).startswith(tuple(options))


def test_each_repeat_of_a_clip_has_its_frames(tmp_path):
    folder, _ = videos(tmp_path / "m", order=(0,))
    folder.show("video", CLIPS[0], 0.4, num_frames=13)
    np.save(folder.path / "screen" / "timestamps.npy", [*folder.times, folder.clock_s])
    folder.sequence("responses", 30.0, 2, 0.0, folder.clock_s + 1)
    with pytest.raises(ValueError, match=r"00003\.npy: found uint8 of shape \(12, 4, 6\), expected .* \(13, 4, 6\)"):
        read_experanto(folder.path)


def test_clocks_that_do_not_meet(tmp_path):
    folder, _ = videos(tmp_path / "m")
    folder.sequence("responses", 30.0, 2, 1.7e9, 1.7e9 + 60)
    with pytest.raises(
        ValueError, match=r"found responses from 1700000000\.000 to 1700000060\.000 s, expected them durin"
    ):
        read_experanto(folder.path)


def test_single_frames_need_a_rate(tmp_path):
    folder = Folder(tmp_path / "m")
    folder.show("video", CLIPS[0][:1], 0.1)
    folder.blank()
    folder.sequence("responses", 30.0, 2, 0.0, folder.clock_s)
    with pytest.raises(
        ValueError, match=r"screen/meta\.yml: frame_rate: not there, expected frames per second, since no"
    ):
        read_experanto(folder.path)
    assert read_experanto(folder.path, rate_hz=10).stimuli.shape == (1, 1, *SIZE)
    assert read_experanto(folder.screen_meta(frame_rate=25).path).sampling_rate_hz == 25
