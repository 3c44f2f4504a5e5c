"""Clips: what each kind shows, the same for the same generator, of pixels that no pretraining has seen."""

import numpy as np
import pytest

from neural_data import natural_images
from neural_data.natural_videos import GREY, make_clip
from neural_data.simulation_config import STIMULUS_CLASSES


def clip(kind, frames=90, height=36, width=64, seed=0):
    return make_clip(kind, frames, height, width, 30.0, np.random.default_rng(seed))


@pytest.mark.parametrize("kind", STIMULUS_CLASSES)
def test_size_and_repeatability(kind):
    one, again, other = clip(kind), clip(kind), clip(kind, seed=1)
    assert one.shape == (90, 36, 64)
    assert one.dtype == np.uint8
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert clip(kind, frames=1).shape == (1, 36, 64)
    assert clip(kind, frames=5, height=40, width=24).shape == (5, 40, 24)
    assert clip(kind, frames=5, height=144, width=256).shape == (5, 144, 256)


def test_movies_move_smoothly_and_jump_now_and_then():
    movie = np.concatenate([clip("movie", 300, seed=seed) for seed in range(4)]).reshape(1200, -1).astype(float)
    unit = (movie - movie.mean(axis=1, keepdims=True)) / (movie.std(axis=1, keepdims=True) * np.sqrt(movie.shape[1]))
    same = (unit[1:] * unit[:-1]).sum(axis=1)
    assert 0.9 < np.median(same) < 0.999
    # One gaze in a second, not all of them far, and a scene in 2 to 5 seconds.
    assert 15 <= (same < 0.5).sum() <= 80


def test_movies_have_the_spectrum_of_natural_images():
    frames = np.concatenate([clip("movie", 30, 64, 64, seed)[::15] for seed in range(60)]).astype(float)
    window = np.hanning(64)
    frames = (frames - frames.mean(axis=(1, 2), keepdims=True)) * window * window[:, None]
    power = (np.abs(np.fft.fft2(frames)) ** 2).mean(axis=0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64))) * 64
    rings = np.arange(3, 16)
    radial = [power[np.abs(frequency - ring) < 0.5].mean() for ring in rings]
    assert -3.2 < np.polyfit(np.log(rings), np.log(radial), 1)[0] < -1.7


@pytest.mark.parametrize("kind", ["movie", "flashes"])
def test_only_the_test_part_of_photographs_is_shown(monkeypatch, kind):
    marked = np.zeros((427, 640, 3), dtype=np.uint8)
    marked[:, 480:] = 200
    monkeypatch.setattr(natural_images, "_photographs", lambda: (marked, marked))
    monkeypatch.setattr("neural_data.natural_videos.dead_leaves", lambda *_: np.full((1, 96, 96, 3), 200, np.uint8))
    assert {*np.unique(clip(kind))} <= {200, GREY}


def test_flashes_stay_and_grey_lies_between():
    flashes = clip("flashes", 120)
    blank = (flashes == GREY).all(axis=(1, 2))
    assert blank.tolist() == ([True] * 9 + [False] * 15) * 5
    assert np.array_equal(flashes[9], flashes[23])
    assert not np.array_equal(flashes[9], flashes[33])


def test_noise_is_white_in_space_and_time():
    noise = clip("noise", 300).astype(float) / 127.5 - 1
    assert noise.mean() == pytest.approx(0, abs=0.01)
    assert noise.std() == pytest.approx(0.33, abs=0.01)
    for axis in range(3):
        pair = np.take(noise, range(noise.shape[axis] - 1), axis), np.take(noise, range(1, noise.shape[axis]), axis)
        assert abs(np.corrcoef(pair[0].ravel(), pair[1].ravel())[0, 1]) < 0.01


def test_gabors_drift_and_change_every_second():
    gabors = clip("drifting_gabor", 90).astype(float)
    change = np.abs(np.diff(gabors, axis=0)).mean(axis=(1, 2))
    assert {29, 59} == {*np.argsort(change)[-2:]}
    spectrum = np.abs(np.fft.fft(gabors[:30] - gabors[:30].mean(axis=0), axis=0)).sum(axis=(1, 2))
    assert 1 <= spectrum[:15].argmax() <= 4  # cycles in a second
