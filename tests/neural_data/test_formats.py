"""Formats are told by looking; what is none is one line."""

import shutil
import zipfile

import numpy as np
import pytest

from neural_data.formats import format_of, read_recordings


def test_arrays_alone_and_several_in_one_folder(tiny_recording, tmp_path):
    alone = read_recordings(tiny_recording)
    assert len(alone) == 1
    for name in ("b", "a"):
        shutil.copytree(tiny_recording, tmp_path / name)
    (tmp_path / "notes.txt").write_text("no recording")
    assert [recording.name for recording in read_recordings(tmp_path)] == ["a", "b"]


def test_each_format_is_told_by_what_is_in_it(tmp_path):
    for folder in ("video/data/videos", "images/data/images", "experanto/screen", "none"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "experanto" / "screen" / "meta.yml").write_text("modality: screen")
    (tmp_path / "session.nwb").touch()
    with zipfile.ZipFile(tmp_path / "mouse.zip", "w") as archive:
        archive.writestr("static1-2-3/data/images/0.npy", b"")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("photo.jpg", b"")
    np.savez(tmp_path / "own.npz", images=np.zeros(3))
    found = {path.name: format_of(path) for path in sorted(tmp_path.iterdir())}
    assert found == {
        "experanto": "experanto",
        "images": "sensorium",
        "mouse.zip": "sensorium",
        "none": None,
        "other.zip": None,
        "own.npz": "arrays",
        "session.nwb": "nwb",
        "video": "sensorium",
    }


@pytest.mark.parametrize(
    ("make", "error", "line"),
    [
        (lambda path: None, FileNotFoundError, "no such file or folder"),
        (lambda path: path.mkdir(), ValueError, "is empty; expected your own arrays"),
        (lambda path: path.write_text("x"), ValueError, "is no recording of a known format; expected your own"),
    ],
)
def test_what_is_no_recording_is_one_line(tmp_path, make, error, line):
    path = tmp_path / "thing"
    make(path)
    with pytest.raises(error, match=line) as caught:
        read_recordings(path)
    assert "\n" not in str(caught.value)


def test_pickles_are_pointed_to_the_converter(tmp_path):
    (tmp_path / "mouse.pkl").touch()
    with pytest.raises(ValueError, match=r"is a pickle, which could run code; convert it once: murine data convert"):
        read_recordings(tmp_path / "mouse.pkl")


def test_a_broken_zip_is_one_line(tmp_path):
    (tmp_path / "mouse.zip").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(ValueError, match=r"mouse\.zip: is no zip file that can be read"):
        read_recordings(tmp_path / "mouse.zip")
