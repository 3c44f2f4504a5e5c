"""Mice found by looking: folders, zips, folders of mice."""

import shutil

import numpy as np
import pytest

from neural_data.sensorium import read_sensorium, read_sensorium_all
from neural_data.sensorium_writer import write_sensorium_static, write_sensorium_video
from tests.neural_data.mice import COLOUR, STATIC, VIDEO, static_mouse, stored_zip, video_mouse


@pytest.fixture(scope="module")
def mice(tmp_path_factory):
    """A grey static mouse as a folder and as a zip, a coloured one as a zip, a dynamic one, and what is no mouse."""
    folder = tmp_path_factory.mktemp("mice")
    stored_zip(write_sensorium_static(static_mouse(), folder / STATIC)).rename(folder / f"{STATIC}.zip")
    write_sensorium_static(static_mouse(2), folder / COLOUR, as_zip=True)
    write_sensorium_video(video_mouse(), folder / VIDEO, padded_frames=72)
    (folder / "results").mkdir()
    (folder / "README.md").write_text("x")
    (folder / "broken.zip").write_text("no zip")
    return folder


def test_all_mice_of_a_folder(mice, tmp_path):
    found = read_sensorium_all(mice, cache=tmp_path, max_frames=50)
    assert [recording.name for recording in found] == [VIDEO, STATIC, COLOUR]
    assert [recording.video for recording in found] == [True, False, False]
    assert found[0].frames.max() == 50
    # A mouse that is there twice is read from its folder.
    assert found[1].source == str(mice / STATIC)


def test_one_mouse_however_it_lies(mice, tmp_path):
    for path in (mice / STATIC, mice / f"{STATIC}.zip"):
        assert read_sensorium(path).name == STATIC
        assert [recording.name for recording in read_sensorium_all(path)] == [STATIC]
    # Some programs unpack x.zip into x/x.
    shutil.copytree(mice / STATIC, tmp_path / "x" / STATIC / STATIC)
    assert read_sensorium(tmp_path / "x").name == STATIC
    assert read_sensorium(tmp_path / "x" / STATIC).name == STATIC


def test_a_zip_of_several_mice(mice, tmp_path):
    shutil.copytree(mice / STATIC, tmp_path / "both" / STATIC)
    shutil.copytree(mice / VIDEO, tmp_path / "both" / VIDEO)
    archive = stored_zip(tmp_path / "both")
    assert [recording.name for recording in read_sensorium_all(archive, cache=tmp_path)] == [VIDEO, STATIC]
    with pytest.raises(ValueError, match=rf"found 2 mice \({VIDEO}, {STATIC}\), expected one"):
        read_sensorium(archive)


def test_what_is_no_mouse(mice, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such folder or zip"):
        read_sensorium(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"broken\.zip: found a file that is no zip, expected a folder or a zip"):
        read_sensorium(mice / "broken.zip")
    with pytest.raises(ValueError, match=r"results: found no mouse, expected data/images or data/videos, or folders"):
        read_sensorium_all(mice / "results")
    with pytest.raises(ValueError, match=r"found 3 mice .*, expected one"):
        read_sensorium(mice)


def test_images_and_videos_together(mice, tmp_path):
    mouse = shutil.copytree(mice / STATIC, tmp_path / STATIC)
    (mouse / "data" / "videos").mkdir()
    np.save(mouse / "data" / "videos" / "0.npy", np.zeros((3, 3, 3)))
    with pytest.raises(ValueError, match=r"data: found images and videos, expected data/images/<trial>\.npy or data/v"):
        read_sensorium(mouse)


def test_files_that_are_no_trial(mice, tmp_path):
    mouse = shutil.copytree(mice / STATIC, tmp_path / STATIC)
    for name in ("mean", "007", "-1", "._3"):
        np.save(mouse / "data" / "responses" / f"{name}.npy", np.zeros(3))
    recording = read_sensorium(mouse)
    assert [note for note in recording.notes if "passed over 3 files of data/responses/" in note]
    (mouse / "data" / "responses" / "28.npy").write_bytes((mouse / "data" / "responses" / "0.npy").read_bytes())
    with pytest.raises(
        ValueError, match=r"responses/28.npy: found 29 files in data/responses/, expected 28 files, one"
    ):
        read_sensorium(mouse)
