"""Crop, flip and resize: equal to torchvision's for images, to the nearest pixel for depth."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from pretrain.resample import float_planes, resample, resample_nearest, resample_together


def random_images(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@settings(deadline=None, max_examples=100)
@given(data=st.data(), height=st.integers(1, 90), width=st.integers(1, 90), size=st.integers(8, 80), flip=st.booleans())
def test_resample_equals_torchvisions_resized_crop(interpolation, data, height, width, size, flip):
    crop_height, crop_width = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    top, left = data.draw(st.integers(0, height - crop_height)), data.draw(st.integers(0, width - crop_width))
    image = random_images(1, height, width, seed=height * 100 + width)

    def theirs(image: torch.Tensor) -> torch.Tensor:
        box = (top, left, crop_height, crop_width)
        view = F.resized_crop(image, *box, [size, size], v2.InterpolationMode(interpolation), antialias=True)
        return F.hflip(view) if flip else view

    arguments = (image, torch.tensor([[top, left, crop_height, crop_width]]), size, torch.tensor([flip]), interpolation)
    for laid_out in (image, image.contiguous(memory_format=torch.channels_last)):
        assert torch.equal(resample(laid_out, *arguments[1:]), theirs(image).float())
    # Other devices round once, and not after each axis.
    together = resample_together(*arguments)
    assert torch.equal(together, together.round())
    torch.testing.assert_close(together, theirs(image).float(), rtol=0, atol=1 if interpolation == "bilinear" else 2)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_views_can_share_float_planes_and_lie_one_after_the_other(interpolation):
    images = random_images(3, 20, 30).contiguous(memory_format=torch.channels_last)
    planes = float_planes(images)
    assert planes.is_contiguous()
    assert torch.equal(planes, images.float())
    assert float_planes(planes) is planes
    views = torch.full((2, 3, 3, 16, 16), -1.0)
    for view, crop in zip(views, ([0, 0, 20, 30], [-2, 3, 12, 9]), strict=True):
        arguments = (torch.tensor([crop]).expand(3, -1), 16, torch.tensor([True, False, True]), interpolation)
        resample_together(planes, *arguments, out=view)
        assert torch.equal(view, resample_together(images, *arguments))
        assert view.min() >= 0
        assert view.max() <= 255
    assert torch.equal(planes, images.float()), "the next view is made of them too"


@pytest.mark.parametrize("corner", [(-4, -4), (-4, 4), (0, 0), (3, -1), (4, 4)])
def test_a_crop_that_reaches_outside_is_torchvisions_crop_of_the_image_with_a_black_border(corner):
    image = random_images(1, 32, 32)
    top, left = corner
    expected = F.crop(F.pad(image, [4], fill=0), top + 4, left + 4, 32, 32)
    crop, flip = torch.tensor([[top, left, 32, 32]]), torch.tensor([False])
    for way in (resample, partial(resample_together, interpolation="bilinear")):
        assert torch.equal(way(image, crop, 32, flip), expected.float())
    for size, interpolation in ((64, "bilinear"), (20, "bilinear"), (64, "bicubic")):
        resized = F.resize(expected, [size, size], v2.InterpolationMode(interpolation), antialias=True).float()
        assert torch.equal(resample(image, crop, size, flip, interpolation), resized)
        together = resample_together(image, crop, size, flip, interpolation)
        torch.testing.assert_close(together, resized, rtol=0, atol=1 if interpolation == "bilinear" else 2)


def test_each_image_of_a_batch_has_its_own_crop_and_flip():
    images = random_images(6, 40, 50)
    crop = torch.tensor([[0, 0, 40, 50], [3, 4, 20, 30], [10, 10, 7, 9], [0, 1, 39, 2], [39, 49, 1, 1], [5, 0, 8, 50]])
    flip = torch.tensor([True, False, True, False, True, True])
    together = resample(images, crop, 24, flip)
    for i in range(6):
        torch.testing.assert_close(
            together[i : i + 1], resample(images[i : i + 1], crop[i : i + 1], 24, flip[i : i + 1])
        )


def test_padding_is_never_seen():
    images = random_images(1, 30, 20)
    padded = torch.full((1, 3, 64, 64), 255, dtype=torch.uint8)
    padded[:, :, :30, :20] = images
    for crop in ([0, 0, 30, 20], [10, 5, 20, 15]):
        crop, flip = torch.tensor([crop]), torch.tensor([False])
        torch.testing.assert_close(resample(padded, crop, 16, flip), resample(images, crop, 16, flip))


@settings(deadline=None, max_examples=60)
@given(data=st.data(), height=st.integers(1, 60), width=st.integers(1, 60), size=st.integers(1, 50))
def test_depth_is_cropped_like_the_image_and_resized_to_the_nearest_pixel(data, height, width, size):
    crop_height, crop_width = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    top, left = data.draw(st.integers(0, height - crop_height)), data.draw(st.integers(0, width - crop_width))
    depth = torch.arange(height * width).reshape(1, 1, height, width)
    cut = depth[:, :, top : top + crop_height, left : left + crop_width]
    expected = torch.nn.functional.interpolate(cut.float(), (size, size), mode="nearest-exact")[:, 0]
    crop, flip = torch.tensor([[top, left, crop_height, crop_width]]).double(), torch.tensor([False])
    found = resample_nearest(depth, crop, size, flip)
    assert torch.equal(resample_nearest(depth, crop, size, ~flip), found.flip(2))
    # Exactly between two pixels torch's rounding decides; ours is exact, which the next test has an example of.
    rows, columns = ((2 * torch.arange(size) + 1) * length % (2 * size) != 0 for length in (crop_height, crop_width))
    assert torch.equal(found[:, rows][:, :, columns], expected[:, rows][:, :, columns])


def test_depth_exactly_between_two_pixels_is_that_of_the_latter():
    depth = torch.arange(20).reshape(1, 1, 2, 10)
    found = resample_nearest(depth, torch.tensor([[0, 0, 2, 10]]), 1, torch.tensor([False]))
    assert found.tolist() == [[[15]]]


def test_depth_of_each_image_has_its_own_crop_and_is_0_outside():
    depth = torch.arange(32.0).reshape(2, 1, 4, 4) + 1
    crop = torch.tensor([[0, 0, 2, 2], [-1, 3, 2, 2]])
    found = resample_nearest(depth, crop, 2, torch.tensor([False, True]))
    assert found.tolist() == [[[1, 2], [5, 6]], [[0, 0], [0, 20]]]
