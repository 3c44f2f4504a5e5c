"""Screen: frames at times, all kinds of trials, files by name, the cache that is not trusted, malformed files."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_data.experanto_folder import open_device

SIZE = [4, 6]
START = 1.7e9
RNG = np.random.default_rng(0)
VIDEO = RNG.integers(0, 256, (5, *SIZE), np.uint8)
IMAGE = RNG.integers(0, 256, SIZE, np.uint8)


def write_screen(folder: Path, trials: list[tuple[dict, np.ndarray | None]], times: list[float], **fields) -> Path:
    """Trials as fields of their files and arrays, written without our writer."""
    for name in ("meta", "data"):
        (folder / name).mkdir(parents=True)
    (folder / "meta.yml").write_text(yaml.safe_dump({"modality": "screen"} | fields))
    np.save(folder / "timestamps.npy", times)
    first = 0
    for number, (own, data) in enumerate(trials):
        frames = own.get("num_frames", 1) if own["modality"].lower() == "video" else 1
        own = {"first_frame_idx": first, "num_frames": 1, "image_size": SIZE} | own
        (folder / "meta" / f"{number:05d}.yml").write_text(yaml.safe_dump(own))
        if data is not None:
            np.save(folder / "data" / f"{number:05d}.npy", data)
        first += frames or 0
    return folder


BLANK = ({"modality": "Blank", "interleave_value": 128.0, "num_frames": 15.5}, None)
INVALID = ({"modality": "INVALID", "interleave_value": 7}, None)
MIXED = [
    BLANK,
    ({"modality": "Image", "num_frames": 30}, IMAGE),
    ({"modality": "video", "num_frames": 5, "tier": "train"}, VIDEO),
    INVALID,
    ({"modality": "image"}, IMAGE[None]),
]
# blank, image, five frames at 10 Hz, invalid, image
TIMES = [0.0, 0.5, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 2.0]


@pytest.fixture(scope="module")
def screen(tmp_path_factory):
    return open_device(write_screen(tmp_path_factory.mktemp("mixed") / "screen", MIXED, START + np.array(TIMES)))


@settings(deadline=None)
@given(queries=st.lists(st.floats(-0.5, 2.5), max_size=20))
def test_shows_the_last_frame_before_each_time(screen, queries):
    frames = [np.full(SIZE, 128.0), IMAGE, *VIDEO, np.full(SIZE, 7.0), IMAGE]
    times = START + np.array(queries, float)
    shown, valid = screen.at(times)
    assert shown.dtype == np.float32
    for t, frame, on in zip(times, shown, valid, strict=True):
        assert on == (screen.timestamps_s[0] <= t <= screen.timestamps_s[-1])
        expected = frames[(screen.timestamps_s < t + 1e-4).sum() - 1] if on else np.full(SIZE, np.nan)
        np.testing.assert_array_equal(frame, expected)


def test_trials(screen):
    assert [trial.modality for trial in screen.trials] == ["blank", "image", "video", "invalid", "image"]
    assert [trial.frames for trial in screen.trials] == [1, 1, 5, 1, 1]
    assert screen.trials[2].meta.text("tier") == "train"
    np.testing.assert_array_equal(screen.times_s(screen.trials[2]), START + np.array(TIMES[2:7]))
    assert isinstance(screen.trials[2].read(), np.memmap)


def test_colour_and_a_closing_time(tmp_path):
    video = RNG.integers(0, 256, (2, *SIZE, 3), np.uint8)
    trials = [
        ({"modality": "video", "num_frames": 2, "image_size": [*SIZE, 3]}, video),
        ({"modality": "blank", "interleave_value": 9, "image_size": [*SIZE, 3]}, None),
        ({"modality": "image", "image_size": [*SIZE, 3]}, video[0].astype(np.float64)),
    ]
    screen = open_device(write_screen(tmp_path / "screen", trials, [0, 1, 2, 3, 4]))
    shown, valid = screen.at(np.array([0.5, 1.0, 2.5, 3.0, 4.0]))
    assert valid.tolist() == [True, True, True, True, False]  # at 4 s the last trial is over
    np.testing.assert_array_equal(shown[:2], video)
    assert (shown[2] == 9).all()
    np.testing.assert_array_equal(shown[3], video[0])


def test_stimuli_by_name(tmp_path):
    trials = [({"modality": "image", "stimulus_name": name}, None) for name in ("tiger", "leaf", "tiger")]
    folder = write_screen(tmp_path / "screen", trials, [0, 1, 2], use_stimuli_names=True)
    for value, name in enumerate(("tiger", "leaf")):
        np.save(folder / "data" / f"{name}.npy", np.full(SIZE, value))
    assert open_device(folder).at(np.array([0.0, 1.0, 2.0]))[0][:, 0, 0].tolist() == [0, 1, 0]
    meta = folder / "meta" / "00001.yml"
    meta.write_text(meta.read_text().replace("leaf", "../../elsewhere"))
    with pytest.raises(ValueError, match=r"00001\.yml: \.\./\.\./elsewhere\.npy: lies outside of"):
        open_device(folder)
    meta.write_text(meta.read_text().replace("stimulus_name", "name"))
    with pytest.raises(ValueError, match=r"00001\.yml: stimulus_name: not there, expected text"):
        open_device(folder)


def test_the_cache_is_read_only_where_there_is_nothing_else(tmp_path):
    folder = write_screen(tmp_path / "screen", MIXED, START + np.array(TIMES))
    cache = folder / "combined_meta.json"
    cache.write_text(json.dumps({"00000": {"modality": "blank", "first_frame_idx": 0}}))
    before = cache.stat().st_mtime_ns
    assert len(open_device(folder).trials) == 5
    files = sorted((folder / "meta").glob("*.yml"))
    cache.write_text(json.dumps({file.stem: yaml.safe_load(file.read_text()) for file in files}))
    for file in files:
        file.unlink()
    written = cache.stat().st_mtime_ns
    assert written != before
    assert len(open_device(folder).trials) == 5
    assert cache.stat().st_mtime_ns == written
    cache.write_text('{"first": {}}')
    with pytest.raises(ValueError, match=r"combined_meta\.json: found no table of numbered trials"):
        open_device(folder)


def test_sizes_may_differ_until_they_are_stacked(tmp_path):
    other = ({"modality": "image", "image_size": [2, 3]}, np.ones((2, 3)))
    screen = open_device(write_screen(tmp_path / "screen", [*MIXED, other], [*TIMES, 3.0]))
    assert screen.trials[-1].read().shape == (1, 2, 3)
    with pytest.raises(ValueError, match=r"00005\.yml: image_size: found \[2, 3\], expected \[4, 6\] as in 00000\.yml"):
        screen.at(np.array([3.0]))


TRIAL_MISTAKES = {
    "unknown modality": ({"modality": "gabor"}, "modality: found 'gabor', expected image, video, blank or invalid"),
    "no size": ({"image_size": None}, r"image_size: not there, expected \[height, width\] or"),
    "one side": ({"image_size": [3]}, r"image_size: found \[3\], expected \[height, width\]"),
    "size in words": ({"image_size": "4 x 6"}, r"image_size: found '4 x 6', expected \[height, width\]"),
    "no frames": ({"num_frames": None}, "num_frames: not there, expected a whole number"),
    "empty": ({"num_frames": 0}, "num_frames: found 0, expected at least 1 frame"),
    "order": (
        {"first_frame_idx": 3},
        "first_frame_idx: found 3, expected 2, which follows the frames of the trials",
    ),
    "no order": ({"first_frame_idx": None}, "first_frame_idx: not there, expected a whole number"),
    "no grey": ({"modality": "blank"}, "interleave_value: not there, expected a number"),
}


def check(folder: Path, message: str, start: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        open_device(folder)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(start))


@pytest.mark.parametrize("mistake", TRIAL_MISTAKES)
def test_each_mistake_in_a_trial_is_one_line(tmp_path, mistake):
    fields, message = TRIAL_MISTAKES[mistake]
    trials = [*MIXED[:2], ({**MIXED[2][0], **fields}, VIDEO)]
    folder = write_screen(tmp_path / "screen", trials, START + np.array(TIMES))
    check(folder, message, folder / "meta" / "00002.yml")


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (TIMES[:8], r"found 8 times, expected 9, one per frame of all trials"),
        ([*TIMES[:3], 1.0, *TIMES[4:]], "found 1.0 and then 1.0 s from frame 2 on, expected times that increase"),
        ([*TIMES[:8], np.nan], "found 1.5 and then nan s from frame 7 on, expected times that increase"),
        ([TIMES], r"found float64 of shape \(1, 9\), expected \(frames,\) times in seconds"),
        ([], r"found float64 of shape \(0,\), expected \(frames,\) times"),
    ],
)
def test_each_mistake_in_the_times_is_one_line(tmp_path, times, message):
    folder = write_screen(tmp_path / "screen", MIXED, times)
    check(folder, message, folder / "timestamps.npy")


def test_missing_files(tmp_path):
    folder = write_screen(tmp_path / "screen", MIXED, TIMES)
    (folder / "timestamps.npy").unlink()
    check(folder, "no such file", folder / "timestamps.npy")
    folder = write_screen(tmp_path / "empty", [], [0.0])
    check(folder, "no trials, expected files 00000", folder / "meta")


def test_a_file_of_another_shape_is_named_when_it_is_read(tmp_path):
    trials = [({"modality": "video", "num_frames": 4}, VIDEO), ({"modality": "image"}, IMAGE.T)]
    screen = open_device(write_screen(tmp_path / "screen", trials, [0, 1, 2, 3, 4]))
    with pytest.raises(ValueError, match=r"00000\.npy: found uint8 of shape \(5, 4, 6\), expected .* \(4, 4, 6\) as"):
        screen.trials[0].read()
    with pytest.raises(ValueError, match=r"00001\.npy: found uint8 of shape \(6, 4\), expected .* \(4, 6\) as"):
        screen.at(np.array([4.0]))
