"""Repeated clips are found once; a cache that is damaged, or of other data, is never believed."""

import json

import numpy as np
import pytest

import neural_data.clip_cache
from neural_data.sensorium import read_sensorium
from neural_data.sensorium_writer import write_sensorium_video
from tests.neural_data.mice import VIDEO, change, copied, video_mouse


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_sensorium_video(video_mouse(), tmp_path_factory.mktemp("video") / VIDEO, padded_frames=72)


@pytest.fixture
def comparisons(monkeypatch):
    """How often clips were compared."""
    made = []
    real = neural_data.clip_cache.repeated_clips
    monkeypatch.setattr(neural_data.clip_cache, "repeated_clips", lambda *args: made.append(1) or real(*args))
    return made


def test_found_once_wherever_the_data_lie(written, tmp_path, comparisons):
    first = read_sensorium(written, tmp_path / "cache")
    again = read_sensorium(copied(written, tmp_path), tmp_path / "cache")
    assert len(comparisons) == 1
    assert again.trials.equals(first.trials)
    assert again.notes == first.notes
    assert "4 of 12 clips are shown 3 times, by comparing videos" in first.notes
    files = list((tmp_path / "cache").rglob("*"))
    assert [file.suffix for file in files if file.is_file()] == [".json"]


def test_other_data_are_compared_again(written, tmp_path, comparisons):
    mouse = copied(written, tmp_path)
    read_sensorium(mouse, tmp_path / "cache")
    change(mouse / "data/videos/0.npy", lambda video: video[:, ::-1])
    read_sensorium(mouse, tmp_path / "cache")
    change(mouse / "meta/trials/tiers.npy", lambda tiers: np.where(tiers == "oracle", "validation", tiers))
    read_sensorium(mouse, tmp_path / "cache")
    assert len(comparisons) == 3


def flip_a_number(text):
    entries = json.loads(text)
    entries["clip"][3] += 1
    return json.dumps(entries)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:-20],
        lambda text: "[1, 2]",
        lambda text: "null",
        lambda text: "{}",
        lambda text: "\x00\xff",
        flip_a_number,
    ],
)
def test_a_damaged_cache_is_made_again_and_said(written, tmp_path, comparisons, damage):
    whole = read_sensorium(written, tmp_path)
    (file,) = tmp_path.rglob("*.json")
    file.write_text(damage(file.read_text()))
    recording = read_sensorium(written, tmp_path)
    assert len(comparisons) == 2
    assert recording.trials.equals(whole.trials)
    assert f"{file} was damaged: clips were compared again" in recording.notes
    assert read_sensorium(written, tmp_path).notes == whole.notes
    assert len(comparisons) == 2


def test_a_folder_that_cannot_be_written(written, tmp_path, comparisons):
    (tmp_path / "a file").write_text("")
    recording = read_sensorium(written, tmp_path / "a file")
    assert any("repeated clips are not kept for next time" in note for note in recording.notes)
    assert len(comparisons) == 1


def test_the_users_cache_folder_is_the_default(written, tmp_path, monkeypatch):
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / project)
    read_sensorium(written)
    assert list((tmp_path / "murine" / "repeated_clips").glob(f"{VIDEO}-*.json"))
