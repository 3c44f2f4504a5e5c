"""Operations on a view's values: equal to torchvision's and Pillow's."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter, ImageOps
from scipy.ndimage import correlate1d
from scipy.stats import norm
from torchvision.transforms.v2 import functional as F

from pretrain.colour import (
    blur_weights,
    blurred,
    luma,
    scale_brightness,
    scale_contrast,
    scale_saturation,
    shift_hue,
    solarized,
)


def random_images(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def blotches(count: int, side: int) -> list[Image.Image]:
    """Pictures of random blotches, each about five pixels wide."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, side // 5, side // 5, 3), np.uint8)
    return [Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC) for one in coarse]


def on_planes(operation: Callable, image: torch.Tensor, factor: float) -> torch.Tensor:
    """An operation on planes, for images (batch, 3, H, W)."""
    return torch.stack(operation(image.unbind(1), torch.tensor([factor]).reshape(1, 1, 1)), 1)


def to_tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


@settings(deadline=None, max_examples=40)
@given(factor=st.floats(0, 2), seed=st.integers(0, 1000))
def test_brightness_contrast_and_saturation_equal_torchvisions(factor, seed):
    image = random_images(1, 12, 13, seed).float() / 255
    for ours, theirs in (
        (scale_brightness, F.adjust_brightness),
        (scale_contrast, F.adjust_contrast),
        (scale_saturation, F.adjust_saturation),
    ):
        torch.testing.assert_close(on_planes(ours, image, factor), theirs(image, factor), rtol=0, atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(shift=st.floats(-0.5, 0.5), seed=st.integers(0, 1000), palette=st.sampled_from(["any", "grey", "pure"]))
def test_hue_equals_torchvisions(shift, seed, palette):
    image = random_images(1, 12, 13, seed).float() / 255
    if palette == "grey":
        image = image[:, :1].expand(-1, 3, -1, -1).contiguous()
    if palette == "pure":
        image = image.round()
    found = on_planes(shift_hue, image, shift)
    torch.testing.assert_close(found, F.adjust_hue(image, shift), rtol=0, atol=1e-5)


def test_grey_is_torchvisions():
    image = random_images(4, 12, 13).float() / 255
    torch.testing.assert_close(luma(image.unbind(1))[:, None], F.rgb_to_grayscale(image), rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(sigma=st.floats(0.01, 3), side=st.integers(2, 40))
def test_blur_weighs_each_pixel_with_the_gaussians_mass_over_it(sigma, side):
    reach = int(6 * sigma) + 1
    boundaries = np.arange(-reach, reach + 2) - 0.5
    kernel = np.diff(norm.cdf(boundaries, scale=sigma))
    expected = correlate1d(np.eye(side), kernel, axis=0, mode="nearest")
    found = blur_weights(torch.tensor([sigma, 1.0]), side)
    torch.testing.assert_close(found[0], torch.from_numpy(expected).float(), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.sum(2), torch.ones(2, side))


def test_blur_spreads_a_point_evenly_along_both_axes():
    view = torch.zeros(1, 3, 9, 9)
    view[:, :, 4, 4] = 1
    found = blurred(view, blur_weights(torch.tensor([1.0]), 9))
    torch.testing.assert_close(found, found.mT)
    assert 0 < found[0, 0, 0, 4] < found[0, 0, 3, 4] < found[0, 0, 4, 4] < 0.2
    torch.testing.assert_close(found.sum((2, 3)), torch.ones(1, 3), rtol=0, atol=1e-3)


def distances_to_published_blur(pictures: list[Image.Image], sigma: float, size: int) -> tuple[float, float]:
    """Mean distances of `size`-pixel views to Pillow's blur of the 224-pixel pictures and resize, in 255 grey levels.

    The first is that of our blurred views, the second that of views without blur.
    """

    def shrunk(pictures):
        return torch.stack([to_tensor(p.resize((size, size), Image.Resampling.BILINEAR)) for p in pictures]).float()

    published = shrunk([picture.filter(ImageFilter.GaussianBlur(sigma)) for picture in pictures])
    plain = shrunk(pictures)
    ours = blurred(plain, blur_weights(torch.full((len(pictures),), sigma * size / 224), size))
    return float((ours - published).abs().mean()), float((plain - published).abs().mean())


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("size", [64, 224])
def test_blur_of_the_small_view_is_near_pillows_blur_of_the_224_pixel_view(sigma, size):
    ours, without = distances_to_published_blur(blotches(4, 224), sigma, size)
    assert ours < 2
    if sigma > 1:
        assert ours < without / 4


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 1.5, 2.0])
def test_blur_of_photographs_is_near_pillows_blur_of_the_224_pixel_view(shared: Path, sigma):
    files = sorted((shared / "data" / "imagenet_sample").glob("*.JPEG"))[::20]
    pictures = [ImageOps.fit(Image.open(file).convert("RGB"), (224, 224)) for file in files]
    ours, without = distances_to_published_blur(pictures, sigma, 64)
    assert ours < 0.8
    if sigma > 1:
        assert ours < without / 3


def test_solarising_is_pillows_at_128():
    picture = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16).repeat(3).reshape(16, 16, 3))
    found = solarized(to_tensor(picture)[None] / 255)[0]
    torch.testing.assert_close(found, to_tensor(ImageOps.solarize(picture, 128)) / 255)
