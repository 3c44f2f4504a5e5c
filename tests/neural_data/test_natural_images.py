"""Natural images: the statistics of natural scenes, the same images for the same seed, splits that share no pixel."""

import numpy as np
import pytest

from neural_data import natural_images
from neural_data.natural_images import (
    dead_leaves,
    dead_leaves_with_depth,
    depth_samples,
    image_samples,
    photograph_patches,
)


def spectral_slope(images):
    """Slope of log power against log spatial frequency, from 3 cycles per image to half of Nyquist."""
    grey = images.astype(float).mean(axis=-1)
    size = grey.shape[1]
    window = np.hanning(size)
    grey = (grey - grey.mean(axis=(1, 2), keepdims=True)) * window * window[:, None]
    power = (np.abs(np.fft.fft2(grey)) ** 2).mean(axis=0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size))) * size
    rings = np.arange(3, size // 4)
    radial = [power[np.abs(frequency - ring) < 0.5].mean() for ring in rings]
    return np.polyfit(np.log(rings), np.log(radial), 1)[0]


def test_power_falls_with_about_the_square_of_frequency():
    rng = np.random.default_rng(0)
    assert -3 < spectral_slope(photograph_patches(150, 64, rng, "train")[0]) < -1.7
    assert -3 < spectral_slope(photograph_patches(150, 64, rng, "test")[0]) < -1.7
    assert -2.5 < spectral_slope(dead_leaves(150, 64, rng)) < -1.7
    # The measure itself: white noise has no slope.
    assert abs(spectral_slope(rng.uniform(size=(150, 64, 64, 3)))) < 0.2


@pytest.mark.parametrize("size", [40, 200])
def test_train_and_test_share_no_pixel(monkeypatch, size):
    marked = np.zeros((427, 640, 3), dtype=np.uint8)
    marked[:, 480:] = 200
    monkeypatch.setattr(natural_images, "_photographs", lambda: (marked, marked + 50))
    train, train_labels = photograph_patches(60, size, np.random.default_rng(0), "train")
    test, test_labels = photograph_patches(60, size, np.random.default_rng(0), "test")
    assert set(np.unique(train[train_labels == 0])) == {0}
    assert set(np.unique(train[train_labels == 1])) == {50}
    assert set(np.unique(test[test_labels == 0])) == {200}
    assert set(np.unique(test[test_labels == 1])) == {250}


def test_patches_cover_their_part_at_several_scales(monkeypatch):
    y, x = np.mgrid[:427, :640]
    place = np.stack([x / 640 * 255, y / 427 * 255, 0 * x], axis=-1).astype(np.uint8)
    monkeypatch.setattr(natural_images, "_photographs", lambda: (place, place))
    patches, _ = photograph_patches(300, 32, np.random.default_rng(0), "train")
    width = np.ptp(patches[:, 16, :, 0].astype(int), axis=1) / 255 * 640
    assert width.min() < 36
    assert width.max() > 140
    assert patches[..., 0].min() < 8
    assert patches[..., 0].max() > 0.75 * 255 - 8
    rightward = patches[:, 16, -1, 0] > patches[:, 16, 0, 0]
    assert 0.3 < rightward.mean() < 0.7


def test_leaves_have_colours_of_the_photographs_and_differ():
    leaves = dead_leaves(40, 48, np.random.default_rng(0))
    palette = np.concatenate([photograph.reshape(-1, 3) for photograph in natural_images._photographs()])
    known = set(map(tuple, np.unique(palette, axis=0).tolist()))
    assert set(map(tuple, np.unique(leaves.reshape(-1, 3), axis=0).tolist())) <= known
    assert len({leaf.tobytes() for leaf in leaves}) == 40


def one_colour_per_leaf(monkeypatch):
    """Colours that count the leaves, so that a colour tells which leaf a pixel shows."""
    original = natural_images._draw_leaves

    def draw(*arguments):
        radius, centre, colours = original(*arguments)
        number = np.arange(len(colours))
        return radius, centre, np.stack([number >> 16, number >> 8 & 255, number & 255], axis=-1).astype(np.uint8)

    monkeypatch.setattr(natural_images, "_draw_leaves", draw)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_depth_is_the_place_in_the_order_of_the_leaf_that_hides_all_others(monkeypatch, seed):
    one_colour_per_leaf(monkeypatch)
    side, largest = 48, 24.0
    picture, depth = natural_images._dead_leaves_picture(side, largest, np.random.default_rng(seed))
    radius, centre, colours = natural_images._draw_leaves(side, largest, np.random.default_rng(seed))
    leaves = len(radius)
    y, x = np.mgrid[:side, :side] + 0.5
    # Discs are drawn on whole pixels, so a pixel counts where no edge of a leaf in front of it is near.
    checked = 0
    for row, column in np.argwhere(np.ones((side, side))):
        distance = np.hypot(centre[:, 0] - x[row, column], centre[:, 1] - y[row, column]) - radius
        covering = np.flatnonzero(distance < 0)
        front = covering.max() if len(covering) else -1
        if np.any(np.abs(distance[max(front, 0) :]) < 1.5):
            continue
        checked += 1
        assert tuple(picture[row, column]) == tuple(colours[front])
        in_front = leaves - 1 - front
        assert depth[row, column] == round(255 * in_front / leaves)
    assert checked > 150


def test_each_leaf_has_one_depth_and_images_do_not_change_with_it(monkeypatch):
    np.testing.assert_array_equal(
        dead_leaves(30, 40, np.random.default_rng(7)), dead_leaves_with_depth(30, 40, np.random.default_rng(7))[0]
    )
    one_colour_per_leaf(monkeypatch)
    images, depths = dead_leaves_with_depth(20, 40, np.random.default_rng(0))
    assert (depths.shape, depths.dtype) == ((20, 40, 40), np.uint8)
    for image, depth in zip(images, depths, strict=True):
        leaf = image.astype(int) @ [65536, 256, 1]
        for code in np.unique(leaf):
            assert len(np.unique(depth[leaf == code])) == 1
        # An image shows leaves of many depths.
        assert len(np.unique(depth)) > 10


def test_depth_samples_are_leaves_with_their_depth_and_follow_the_seed():
    samples = list(depth_samples(300, 16, seed=5))
    keys, images, depths = zip(*samples, strict=True)
    assert len(set(keys)) == 300
    assert not any("." in key for key in keys)
    assert {(image.shape, depth.shape) for image, depth in zip(images, depths, strict=True)} == {
        ((16, 16, 3), (16, 16))
    }

    def pixels(*arguments):
        return [(key, image.tobytes(), depth.tobytes()) for key, image, depth in depth_samples(*arguments)]

    assert pixels(300, 16, 5) == [(key, image.tobytes(), depth.tobytes()) for key, image, depth in samples]
    assert pixels(20, 16, 5) != pixels(20, 16, 6)
    assert pixels(20, 16, 5, "train") != pixels(20, 16, 5, "test")


def test_mixture_is_half_and_half_and_as_promised():
    samples = list(image_samples(301, 24, seed=5))
    keys, images, labels = zip(*samples, strict=True)
    assert len(set(keys)) == 301
    assert not any("." in key for key in keys)
    assert all(image.shape == (24, 24, 3) and image.dtype == np.uint8 for image in images)
    assert set(labels) == {0, 1, 2}
    assert abs(labels.count(2) - 150) <= 1
    assert labels[:20] != tuple(sorted(labels[:20]))


def test_the_same_arguments_give_the_same_images():
    def pixels(*arguments):
        return [(key, image.tobytes(), label) for key, image, label in image_samples(*arguments)]

    assert pixels(270, 16, 1, "train") == pixels(270, 16, 1, "train")
    assert pixels(20, 16, 1, "train") != pixels(20, 16, 2, "train")
    assert pixels(20, 16, 1, "train") != pixels(20, 16, 1, "test")


def test_few_and_no_images():
    assert list(image_samples(0, 16, 0)) == []
    assert [label in (0, 1) for _, _, label in image_samples(1, 16, 0)] == [True]
    assert dead_leaves(1, 200, np.random.default_rng(0)).shape == (1, 200, 200, 3)


def test_wrong_arguments_are_told():
    with pytest.raises(ValueError, match="split must be one of train, test, found 'val'"):
        next(image_samples(3, 16, 0, "val"))
    with pytest.raises(ValueError, match="size at least 1 pixel, found 3 and 0"):
        dead_leaves(3, 0, np.random.default_rng(0))
