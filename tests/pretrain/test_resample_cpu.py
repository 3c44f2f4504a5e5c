"""Resampling on a CPU: several views of a batch, and the same ones by any number of threads.

That each view equals torchvision's is tested in test_resample.py.
"""

import pytest
import torch

from pretrain.resample_cpu import resample_on_cpu


def drawn(views: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    corner = torch.randint(-5, 10, (views, 2), generator=generator)
    length = torch.randint(1, 40, (views, 2), generator=generator)
    return torch.cat([corner, length], 1), torch.rand(views, generator=generator) < 0.5


def images(count: int, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, channels, 30, 40), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_view_i_is_of_image_i_modulo_the_batch(interpolation):
    crop, flip = drawn(6)
    batch = images(3)
    found = resample_on_cpu(batch, crop, 12, flip, interpolation)
    for i in range(6):
        alone = resample_on_cpu(batch[i % 3 : i % 3 + 1], crop[i : i + 1], 12, flip[i : i + 1], interpolation)
        assert torch.equal(found[i : i + 1], alone)


def test_the_number_of_threads_changes_nothing(monkeypatch):
    crop, flip = drawn(20)
    alone = resample_on_cpu(images(10), crop, 16, flip)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(resample_on_cpu(images(10), crop, 16, flip), alone)


@pytest.mark.parametrize("corner", [(-50, 0), (0, 60), (30, 40), (-20, -20)])
def test_a_crop_beside_the_image_is_black(corner):
    crop = torch.tensor([[*corner, 20, 20]])
    assert not resample_on_cpu(images(1), crop, 8, torch.tensor([False])).any()


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_any_number_of_channels(channels):
    crop, flip = drawn(2)
    batch = images(2, channels)
    together = resample_on_cpu(batch, crop, 9, flip)
    for channel in range(channels):
        alone = resample_on_cpu(batch[:, channel : channel + 1], crop, 9, flip)
        assert torch.equal(together[:, channel : channel + 1], alone)
