"""A 3 x 3 grid of patches of each image, as relative location wants it, cut on the training device.

What comes in: uint8 images (batch, 3, height, width), padded with black at the right and bottom, with their true
`sizes` (batch, 2) in pixels. What goes out: where the patches lie, and float patches (9, batch, 3, size, size),
normalised, row by row of the grid.

Source: Doersch, Gupta and Efros 2015 (https://arxiv.org/abs/1505.05192), with the grid of mouse-vision (Nayebi, Kong et
al. 2023): a square of 255 pixels of an image of 292, in cells of 85, with a patch of 64 in each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.augment import Uniform
from pretrain.colour import normalize, turn_gray
from pretrain.config import ViewsConfig
from pretrain.resample import FILTER_REACH, resize_weights


@dataclass(frozen=True)
class PatchParameters:
    """Where the patches of each image lie: tensors on the CPU.

    `crop` (9, batch, 4): top, left, height, width in pixels of the image, not whole numbers; `sizes` (batch, 2) of the
    images; `gray` (batch,) images that lose their colours.
    """

    crop: Tensor
    sizes: Tensor
    gray: Tensor
    interpolation: str = "bilinear"


def draw_patches(
    sizes: Tensor,
    config: ViewsConfig,
    generator: torch.Generator | Sequence[torch.Generator],
    rank: int = 0,
    world: int = 1,
) -> PatchParameters:
    """Draw a 3 x 3 grid of patches of `config.size` pixels in each image of `sizes` (batch, 2).

    The image is thought of as resized to `patch_image` pixels on its short side. A random square of `patch_field`
    pixels of it has 3 x 3 cells, and a patch lies at a random whole place in each. Of the other keys only
    `interpolation` and the probability of grey apply, grey once for an image.

    Raises:
        ValueError: a patch does not fit in a cell, or the square in the image.
    """
    require_patches_fit(config)
    uniform = Uniform(generator, len(sizes), rank, world)
    short = sizes.amin(1, keepdim=True).double()
    resized = (config.patch_image * sizes / short).floor()
    cell = config.patch_field // 3
    field = (uniform(2) * (resized - config.patch_field + 1)).floor()
    grid = torch.cartesian_prod(torch.arange(3), torch.arange(3)) * cell
    corner = field[:, None] + grid + (uniform(9, 2) * (cell - config.size + 1)).floor()
    # Image pixels in a pixel of the resized image; its long side was rounded down.
    scale = (sizes / resized)[:, None]
    crop = torch.cat([corner * scale, (config.size * scale).expand_as(corner)], 2)
    return PatchParameters(
        crop=crop.transpose(0, 1),
        sizes=sizes,
        gray=uniform() < config.grayscale_probability,
        interpolation=config.interpolation,
    )


def require_patches_fit(config: ViewsConfig) -> None:
    """One line for patches that do not fit in their cells, or a grid that does not fit in the image."""
    cell = config.patch_field // 3
    if config.size > cell:
        raise ValueError(
            f"views.size={config.size} is larger than a cell of the grid of patches, views.patch_field="
            f"{config.patch_field} / 3 = {cell} pixels; lower views.size or raise views.patch_field and patch_image"
        )
    if config.patch_field > config.patch_image:
        raise ValueError(
            f"views.patch_field={config.patch_field} is larger than views.patch_image={config.patch_image}, the short "
            "side of the image it lies in"
        )


def make_patches(images: Tensor, parameters: PatchParameters, size: int, mean: Tensor, std: Tensor) -> Tensor:
    """Cut uint8 images (batch, 3, H, W) into normalised patches (9, batch, 3, size, size), row by row.

    Each patch is one resampling of the image: the published chain resizes the whole image, then cuts without resizing,
    which is the same.
    """
    windows, rows, columns = cut_windows(images, parameters, size)
    patches = torch.matmul(rows[:, None], torch.matmul(windows.float(), columns.mT[:, None])).div_(255)
    if parameters.interpolation == "bicubic":
        patches.clamp_(0, 1)
    turn_gray(patches, parameters.gray.repeat(9))
    return normalize(patches, mean, std).unflatten(0, (9, len(images)))


def cut_windows(images: Tensor, parameters: PatchParameters, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Windows of equal size around the patches, and the weights that resize each window to its patch.

    A patch needs few of its image's pixels. Unlike a view, it sees the pixels beside its crop too, because a resize of
    the whole image would. Returns windows (9 * batch, 3, h, w), weights of their rows (9 * batch, size, h) and of their
    columns (9 * batch, size, w).
    """
    crop, number = parameters.crop.flatten(0, 1), torch.arange(len(images)).repeat(9)
    reach = FILTER_REACH[parameters.interpolation] * (crop[:, 2:] / size).clamp(min=1)
    # Rounding the start down and the end up takes up to two pixels more than the crop and the filter's reach.
    needed = (crop[:, 2:] + 2 * reach).amax(0).ceil() + 2
    height, width = (min(int(need), have) for need, have in zip(needed, images.shape[2:], strict=True))
    last = torch.tensor([images.shape[2] - height, images.shape[3] - width])
    corner = (crop[:, :2] - reach).floor().long().clamp(min=0).minimum(last)
    weights = []
    for axis, length in enumerate((height, width)):
        pixel = corner[:, axis, None] + torch.arange(length)
        seen = pixel < parameters.sizes[number, axis, None]
        places = (place.float().to(images.device) for place in (pixel, crop[:, axis], crop[:, axis + 2]))
        weights.append(resize_weights(*places, seen.to(images.device), size, parameters.interpolation))
    number, top, left = (index.to(images.device) for index in (number, *corner.unbind(1)))
    return images.unfold(2, height, 1).unfold(3, width, 1)[number, :, top, left], *weights
