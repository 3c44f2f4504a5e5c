"""Folds by what clips look like: the winner's own hashes, imagehash's, and no clip in two folds."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from neural_data import video_folds as folds_module
from neural_data.recording import Recording
from neural_data.sensorium import read_sensorium
from neural_data.video_folds import hashed_frames, picture_hash, stimulus_frames, video_folds, video_hashes
from tests.neural_data.mice import static_mouse, video_mouse


@pytest.fixture(scope="module")
def values(shared: Path) -> Path:
    return shared / "reference/values/video"


def test_frames_and_their_hashes_are_the_winners(values: Path):
    expected = json.loads((values / "dwiseneuro/phash_reference.json").read_text())
    videos = np.load(values / "dwiseneuro/phash_videos.npz")
    for video, known in zip((videos["v0"], videos["v1"]), expected, strict=True):
        frames = hashed_frames(known["valid_length"])
        assert frames.tolist() == known["frames_hashed"]
        hashes = [picture_hash(video[..., frame].astype(np.uint8)) for frame in frames]
        assert hashes == known["frame_hashes"]
        assert int(np.bitwise_xor.reduce(np.array(hashes, np.uint64))) == known["video_hash"]


def test_a_mouse_has_the_winners_folds(values: Path, tmp_path: Path):
    expected = json.loads((values / "data_fixture/reference.json").read_text())
    mouse = read_sensorium(next((values / "data_fixture").glob("dynamic*")), share_stimuli=False)
    hashes = video_hashes(mouse, tmp_path)
    folds = video_folds(mouse, 7, tmp_path)
    for trial, tier in enumerate(expected["dwise_folds_tiers"]):
        if tier != "none":
            assert int(hashes[trial]) == expected["dwise_phashes"][trial]
        if tier.startswith("fold_"):
            assert folds[trial] == int(tier[5:])


def test_pictures_have_the_hash_that_imagehash_gives():
    imagehash = pytest.importorskip("imagehash")
    from PIL import Image

    for picture in np.random.default_rng(0).integers(0, 256, (20, 36, 64), np.uint8):
        assert f"{picture_hash(picture):016x}" == str(imagehash.phash(Image.fromarray(picture)))


@pytest.mark.parametrize("mouse", [video_mouse(), static_mouse(), static_mouse(2)])
def test_no_clip_is_in_two_folds(mouse: Recording):
    folds = video_folds(mouse, 5)
    assert folds.shape == (len(mouse.trials),)
    assert set(folds) <= set(range(5))
    assert len(set(folds)) > 1
    assert (mouse.trials.assign(fold=folds).groupby("stimulus")["fold"].nunique() == 1).all()


def test_a_video_is_as_long_as_its_longest_trial():
    mouse = video_mouse()
    frames = stimulus_frames(mouse)
    np.testing.assert_array_equal(frames, np.isfinite(mouse.stimuli[:, :, 0, 0]).sum(1))
    longer = replace(mouse, trials=mouse.trials.assign(videos_frames=60))
    assert (stimulus_frames(longer) == 60).all()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often hashes were computed."""
    calls = []
    computed = folds_module._computed
    monkeypatch.setattr(folds_module, "_computed", lambda *args: calls.append(1) or computed(*args))
    return calls


def test_hashes_are_kept_and_made_again_for_other_videos(counted: list[int], tmp_path: Path):
    mouse = replace(video_mouse(), source="somewhere")
    first = video_hashes(mouse, tmp_path)
    np.testing.assert_array_equal(video_hashes(mouse, tmp_path), first)
    assert len(counted) == 1
    video_hashes(replace(mouse, stimuli=mouse.stimuli * 0.9), tmp_path)
    assert len(counted) == 2
    (kept, _) = sorted((tmp_path / "video_hashes").iterdir())
    for file in (tmp_path / "video_hashes").iterdir():
        file.write_bytes(kept.read_bytes()[:50])
    np.testing.assert_array_equal(video_hashes(mouse, tmp_path), first)
    assert len(counted) == 3
    video_hashes(replace(mouse, source=""), tmp_path)
    assert len(counted) == 4


def test_a_cache_that_cannot_be_written_is_done_without(counted: list[int], tmp_path: Path):
    (tmp_path / "file").write_text("")
    mouse = replace(video_mouse(), source="somewhere")
    np.testing.assert_array_equal(video_hashes(mouse, tmp_path / "file"), video_hashes(mouse, tmp_path / "file"))
    assert len(counted) == 2


def test_one_fold_is_none():
    with pytest.raises(ValueError, match="folds: found 1, expected 2 or more"):
        video_folds(video_mouse(), 1)
