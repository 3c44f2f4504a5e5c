"""Colours on a CPU: each operation equals torchvision's, the blur that of scipy, by any number of threads."""

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import correlate1d
from scipy.stats import norm
from torchvision.transforms.v2 import functional as F

from pretrain.augment import ViewParameters
from pretrain.colour_cpu import colour_on_cpu

MEAN, STD = torch.zeros(3), torch.ones(3)


def pixels(count: int, side: int, seed: int, palette: str = "any") -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    if palette == "grey":
        return drawn[:, :1].expand(-1, 3, -1, -1).contiguous()
    return (drawn > 127).byte() * 255 if palette == "pure" else drawn


def parameters(count: int, **changes: torch.Tensor) -> ViewParameters:
    """Parameters that do nothing but what `changes` says."""
    no = torch.zeros(count, dtype=torch.bool)
    nothing = {
        "crop": torch.zeros(count, 4),
        "flip": no,
        "gray": no,
        "jitter": no,
        "order": torch.arange(4).expand(count, -1),
        "factors": torch.tensor([1.0, 1.0, 1.0, 0.0]).expand(count, -1),
        "blur": torch.zeros(count),
        "solarize": no,
    }
    return ViewParameters(**(nothing | changes))


@settings(deadline=None, max_examples=60)
@given(
    operation=st.sampled_from([0, 1, 2, 3]),
    strength=st.floats(0, 1),
    seed=st.integers(0, 1000),
    palette=st.sampled_from(["any", "grey", "pure"]),
)
def test_each_operation_of_jitter_equals_torchvisions(operation, strength, seed, palette):
    images = pixels(1, 13, seed, palette)
    factor = strength - 0.5 if operation == 3 else 2 * strength
    factors = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    factors[0, operation] = factor
    found = colour_on_cpu(images, parameters(1, jitter=torch.tensor([True]), factors=factors), MEAN, STD)
    adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)[operation]
    torch.testing.assert_close(found, adjust(images / 255, factor), rtol=0, atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(sigma=st.floats(0.01, 12), side=st.integers(2, 40), seed=st.integers(0, 1000))
def test_blur_weighs_with_the_gaussians_mass_over_each_pixel_however_wide(sigma, side, seed):
    images = pixels(1, side, seed)
    reach = int(6 * sigma) + 1
    kernel = np.diff(norm.cdf(np.arange(-reach, reach + 2) - 0.5, scale=sigma))
    expected = images.double().numpy() / 255
    for axis in (2, 3):
        expected = correlate1d(expected, kernel, axis=axis, mode="nearest")
    found = colour_on_cpu(images, parameters(1, blur=torch.tensor([sigma])), MEAN, STD)
    torch.testing.assert_close(found, torch.from_numpy(expected).float(), rtol=0, atol=3e-5)


def test_grey_comes_before_the_jitter_or_after_it():
    images, yes = pixels(1, 9, 0), torch.tensor([True])
    drawn = parameters(1, gray=yes, jitter=yes, factors=torch.tensor([[1.0, 1.0, 2.0, 0.0]]))
    levels = images / 255
    after = colour_on_cpu(images, replace(drawn, grayscale_first=False), MEAN, STD)
    expected = F.rgb_to_grayscale(F.adjust_saturation(levels, 2.0), 3)
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-5)
    before = colour_on_cpu(images, replace(drawn, grayscale_first=True), MEAN, STD)
    expected = F.adjust_saturation(F.rgb_to_grayscale(levels, 3), 2.0)
    torch.testing.assert_close(before, expected, rtol=0, atol=1e-5)
    assert (before - after).abs().max() > 0.1


def test_solarising_and_normalising_are_torchvisions():
    images, mean, std = pixels(2, 9, 0), torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    found = colour_on_cpu(images, parameters(2, solarize=torch.tensor([True, False])), mean, std)
    expected = torch.stack([F.solarize(images[0] / 255, 0.5), images[1] / 255])
    torch.testing.assert_close(found, F.normalize(expected, mean.tolist(), std.tolist()))


def test_the_number_of_threads_changes_nothing(monkeypatch):
    images = pixels(11, 16, 0)
    generator = torch.Generator().manual_seed(0)
    changes = {
        "jitter": torch.rand(11, generator=generator) < 0.8,
        "order": torch.rand(11, 4, generator=generator).argsort(1),
        "factors": torch.rand(11, 4, generator=generator),
        "blur": torch.rand(11, generator=generator).round() * 1.3,
    }
    alone = colour_on_cpu(images, parameters(11, **changes), MEAN, STD)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert torch.equal(colour_on_cpu(images, parameters(11, **changes), MEAN, STD), alone)
