"""Folders and archives of videos as clips: labels, signals, cuts, and what cannot be read."""

import tarfile
from pathlib import Path

import numpy as np
import pytest

from pretrain import video
from pretrain.config import ShardsConfig
from pretrain.encode import encode
from pretrain.items import Source
from pretrain.sources import open_source
from pretrain.video import NoDecoder


def opened(place: Path | str, **keys: object) -> Source:
    return open_source(ShardsConfig(source=str(place), **keys))


@pytest.fixture
def videos(write_video, tmp_path: Path) -> Path:
    """Class folders "run" and "walk" with a video of 30 frames each, with signals in `.npz` and in `.npy`."""
    for n, name in enumerate(("walk", "run")):
        write_video(tmp_path / "videos" / name / "1.mp4", frames=30)
        behavior = np.stack([np.arange(30) + n, np.ones(30)])
        np.savez(tmp_path / "videos" / name / "1.npz", behavior=behavior)
        np.save(tmp_path / "videos" / name / "1.pupil_center.npy", np.arange(30.0) - n)
    return tmp_path / "videos"


@pytest.mark.parametrize("clip_frames", [0, 7, 30])
def test_clips_of_class_folders(videos, frame_number, capsys, clip_frames):
    source = opened(videos, clip_frames=clip_frames)
    assert (source.kind, source.classes, source.signals) == ("clips", ("run", "walk"), ("behavior", "pupil_center"))
    starts = (0, 7, 14, 21) if clip_frames == 7 else (0,)
    assert source.count == 2 * len(starts)
    assert source.frames_left_out == (4 if clip_frames == 7 else 0)
    assert ("4 frames at the ends of 2 videos fill no clip of 7" in capsys.readouterr().err) == (clip_frames == 7)
    found = set()
    for item in source.items(0):
        first = item.clip.first
        wanted = list(range(first, first + (clip_frames or 30)))
        assert [frame_number(frame) for frame in item.clip.frames()] == wanted
        assert item.clip.frame_rate_hz == 25
        behavior = item.signals["behavior"].read()
        np.testing.assert_array_equal(behavior[0] - item.label, np.array(wanted) + 1 - 2 * item.label)
        np.testing.assert_array_equal(item.signals["pupil_center"].read(), [np.array(wanted) - 1.0 + item.label])
        assert item.name == f"{('run', 'walk')[item.label]}/1.mp4" + (f" frame {first}" if clip_frames == 7 else "")
        found.add((item.label, first))
    assert found == {(label, first) for label in (0, 1) for first in starts}


def test_a_tar_of_videos_and_one_video_alone(videos, frame_number, tmp_path):
    with tarfile.open(tmp_path / "videos.tar", "w") as tar:
        tar.add(videos, "videos")
    for place, name in ((tmp_path / "videos.tar", "walk/1.mp4"), (videos / "walk" / "1.mp4", "1.mp4")):
        item = next(item for item in opened(place).items(0) if item.name == name)
        assert [frame_number(frame) for frame in item.clip.frames()] == list(range(30))
        assert item.signals["behavior"].read().shape == (2, 30)
        assert item.clip.encoded() == ("mp4", (videos / "walk" / "1.mp4").read_bytes())


def test_videos_shorter_than_a_clip_are_named(videos, write_video, capsys):
    write_video(videos / "run" / "short.mp4", frames=5)
    assert opened(videos, clip_frames=10).count == 6
    said = "5 frames at the ends of 3 videos fill no clip of 10 frames, also all of 1 that are shorter"
    assert f"{said}, the first 'run/short.mp4'" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"no video in .* has clip_frames=99 frames; choose fewer"):
        opened(videos, clip_frames=99)


def test_a_damaged_video_is_one_item_that_says_why(videos):
    (videos / "walk" / "2.mp4").write_bytes((videos / "walk" / "1.mp4").read_bytes()[:200])
    (videos / "walk" / "3.mp4").write_bytes(b"")
    source = opened(videos, clip_frames=10)
    assert source.count == 3 + 3 + 2
    for item in source.items(0):
        if item.name in ("walk/2.mp4", "walk/3.mp4"):
            with pytest.raises(ValueError, match=r"^(InvalidDataError: .*|it is no MP4.*)"):
                list(item.clip.frames())
            assert "ValueError" not in encode(item, ShardsConfig()).problem


def test_without_a_decoder_no_video_is_passed_off_as_damaged(tmp_path, monkeypatch):
    def none_here() -> None:
        raise NoDecoder("install one")

    monkeypatch.setattr(video, "decoder", none_here)
    (tmp_path / "1.mp4").write_bytes(b"\0\0\0\x18ftypisom")
    with pytest.raises(NoDecoder, match="install one"):
        opened(tmp_path)


def test_signals_of_another_length_than_their_video_are_told(videos):
    np.save(videos / "run" / "1.pupil_center.npy", np.zeros((2, 29)))
    np.savez(videos / "walk" / "1.npz", behavior=np.array([[object()] * 30]))
    for item in opened(videos).items(0):
        if item.label == 0:
            with pytest.raises(ValueError, match=r"1.pupil_center.npy has shape \(2, 29\), should be \(channels, 30\)"):
                item.signals["pupil_center"].read()
        else:
            with pytest.raises(ValueError, match="allow_pickle=False"):
                item.signals["behavior"].read()


def test_keys_that_do_not_fit_videos_are_one_line(videos):
    with pytest.raises(ValueError, match=r"frame_rate_hz is for .npy stacks; videos say their own frame rate"):
        opened(videos, frame_rate_hz=30.0)


def test_the_order_and_fingerprint_follow_from_files_and_cuts(videos):
    plain = opened(videos)
    assert opened(videos).fingerprint == plain.fingerprint
    with (videos / "run" / "1.mp4").open("ab") as file:
        file.write(b"\0\0\0\x08free")
    changed = opened(videos).fingerprint
    cut = opened(videos, clip_frames=5)
    assert len({plain.fingerprint, changed, cut.fingerprint, opened(videos, clip_frames=6).fingerprint}) == 4
    names = [item.name for item in cut.items(0)]
    assert names != sorted(names)
    assert [item.name for item in cut.items(4)] == names[4:]
