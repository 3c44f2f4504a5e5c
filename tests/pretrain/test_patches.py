"""Patches: cut from torchvision's resize of the whole image, at places of the published distribution."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from pretrain.config import ViewsConfig
from pretrain.patches import draw_patches, make_patches

DRAWS = 2000
SMALLEST_P = 0.001
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
PATCHES = ViewsConfig(size=20, patch_image=90, patch_field=81, grayscale_probability=0.5)


def random_images(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def same_distribution(ours: torch.Tensor, theirs: list[float]) -> None:
    p = ks_2samp(ours.double().numpy(), np.array(theirs)).pvalue
    assert p > SMALLEST_P, f"two-sample KS test: p = {p:.2g}"


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(90, 90), (131, 157), (61, 40), (90, 400)])
def test_patches_are_torchvisions_resize_of_the_whole_image_and_crops_of_it(interpolation, size):
    height, width = size
    images = torch.zeros(5, 3, 160, 410, dtype=torch.uint8)
    images[:, :, :height, :width] = random_images(5, height, width)
    config = ViewsConfig(**(vars(PATCHES) | {"interpolation": interpolation}))
    drawn = draw_patches(torch.tensor([size]).expand(5, -1), config, torch.Generator().manual_seed(0))
    assert 0 < drawn.gray.sum() < 5
    found = make_patches(images, drawn, 20, MEAN, STD)
    assert found.shape == (9, 5, 3, 20, 20)
    mode = v2.InterpolationMode(interpolation)
    resized = F.resize(images[:, :, :height, :width].float() / 255, [90], mode, antialias=True).clamp(0, 1)
    scale = torch.tensor(size) / torch.tensor(resized.shape[2:])
    for i in range(5):
        image = F.rgb_to_grayscale(resized[i], num_output_channels=3) if drawn.gray[i] else resized[i]
        for patch in range(9):
            corner = drawn.crop[patch, i, :2] / scale
            top, left = (int(v) for v in corner.round())
            assert (corner - corner.round()).abs().max() < 1e-4
            expected = F.normalize(F.crop(image, top, left, 20, 20), MEAN.tolist(), STD.tolist())
            torch.testing.assert_close(found[patch, i], expected, rtol=0, atol=2e-4)


def test_patches_lie_at_random_places_in_the_cells_of_a_random_square():
    sizes = torch.tensor([[292, 380]]).expand(DRAWS, -1)
    drawn = draw_patches(sizes, ViewsConfig(grayscale_probability=0.66), torch.Generator().manual_seed(0))
    assert abs(float(drawn.gray.double().mean()) - 0.66) < 4 * (0.66 * 0.34 / DRAWS) ** 0.5
    assert (drawn.crop[:, :, 2:] == 64).all()
    rng = np.random.default_rng(1)
    field = rng.integers(0, [38, 126], (DRAWS, 2))
    for patch in range(9):
        theirs = field + 85 * np.array(divmod(patch, 3)) + rng.integers(0, 22, (DRAWS, 2))
        for axis in (0, 1):
            same_distribution(drawn.crop[patch, :, axis], theirs[:, axis].tolist())
    # Neighbours in a row share the square's place, not their own place in the cell.
    step = drawn.crop[1, :, 1] - drawn.crop[0, :, 1]
    assert step.min() == 85 - 21
    assert step.max() == 85 + 21


@pytest.mark.parametrize("world", [2, 3])
def test_processes_draw_the_patches_that_one_process_would(world):
    sizes = torch.randint(70, 100, (12, 2), generator=torch.Generator().manual_seed(0))
    config = ViewsConfig(size=20, patch_image=80, patch_field=75)

    def drawn(rank, world):
        return draw_patches(sizes[rank::world], config, torch.Generator().manual_seed(7), rank, world)

    alone = drawn(0, 1)
    tensors = {field.name for field in fields(alone) if isinstance(getattr(alone, field.name), torch.Tensor)}
    assert tensors == {"crop", "sizes", "gray"}
    for rank in range(world):
        part = drawn(rank, world)
        assert torch.equal(part.crop, alone.crop[:, rank::world])
        for name in tensors - {"crop"}:
            assert torch.equal(getattr(part, name), getattr(alone, name)[rank::world])


def test_patches_that_do_not_fit_are_refused():
    sizes, generator = torch.tensor([[300, 300]]), torch.Generator()
    with pytest.raises(ValueError, match=r"views.size=96 is larger than a cell .* / 3 = 85 pixels"):
        draw_patches(sizes, ViewsConfig(size=96), generator)
    with pytest.raises(ValueError, match=r"views.patch_field=255 is larger than views.patch_image=250"):
        draw_patches(sizes, ViewsConfig(patch_image=250), generator)
