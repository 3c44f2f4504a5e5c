"""Views of images, made for a whole batch at once on the training device.

What comes in: uint8 images (batch, 3, height, width), padded with black at the right and bottom, with their true
`sizes` (batch, 2) in pixels. What goes out: the parameters of a view, and float views (batch, 3, size, size),
normalised.

Every sample has its own parameters, drawn from one generator like those of torchvision's RandomResizedCrop or
RandomCrop, RandomHorizontalFlip, ColorJitter, RandomGrayscale and RandomSolarize. Order of operations: crop, flip, grey
before or after the jitter, blur, solarise, normalise, as in the chains of mouse-vision (Nayebi, Kong et al. 2023).

Two things differ from the published chains, which work at 224 pixels and shrink to 64 at the end. Values stay float,
where Pillow rounds to uint8 between operations. And the only resize comes first, before colours and blur, so that a
blur of s pixels of a 224-pixel view is one of s * size / 224 here. Against Pillow's blur at 224 and resize to 64,
photographs then differ by less than one of 255 grey levels on average, for s from 0.1 to 2.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.colour import blur, jitter, normalize, solarize, turn_gray
from pretrain.config import ViewsConfig
from pretrain.resample import resample

CROP_TRIES = 10
CROP_ASPECT = (3 / 4, 4 / 3)
BLUR_VIEW_SIDE = 224


@dataclass(frozen=True)
class ViewParameters:
    """What happens to each image of a batch: tensors of length batch, on the CPU.

    `crop` (batch, 4): top, left, height, width in pixels; what lies outside of the image is black. `order` (batch, 4)
    is the order of jitter operations 0 brightness, 1 contrast, 2 saturation, 3 hue; `factors` (batch, 4) are their
    strengths. `blur` is the standard deviation in pixels of the view, 0 for none.
    """

    crop: Tensor
    flip: Tensor
    gray: Tensor
    jitter: Tensor
    order: Tensor
    factors: Tensor
    blur: Tensor
    solarize: Tensor
    interpolation: str = "bilinear"
    grayscale_first: bool = True


@dataclass(frozen=True)
class Uniform:
    """Random numbers from 0 to 1 for one process's rows of a batch.

    They are drawn for all rows of the batch over `world` processes, of which this one has rows rank, rank + world, ...
    So what happens to an image does not depend on the number of processes.
    """

    generator: torch.Generator
    rows: int
    rank: int = 0
    world: int = 1

    def __call__(self, *shape: int) -> Tensor:
        """Numbers (rows, *shape) of double precision."""
        drawn = torch.rand(self.rows * self.world, *shape, generator=self.generator, dtype=torch.double)
        return drawn[self.rank :: self.world]


def draw_parameters(
    sizes: Tensor,
    config: ViewsConfig,
    generator: torch.Generator,
    view: int = 0,
    local: bool = False,
    rank: int = 0,
    world: int = 1,
) -> ViewParameters:
    """Draw one view of each image; `sizes` (batch, 2) are heights and widths on the CPU.

    Args:
        sizes: of this process's images, rows rank, rank + world, ... of the whole batch.
        config: ranges and probabilities.
        generator: gives all randomness, the same in every process.
        view: number of the view, on which the probabilities of blur and solarising depend.
        local: crops of a local view.
        rank, world: which of how many processes.
    """
    uniform = Uniform(generator, len(sizes), rank, world)
    return ViewParameters(
        crop=draw_view_crops(sizes, config, local, uniform),
        flip=uniform() < config.flip_probability,
        gray=uniform() < config.grayscale_probability,
        jitter=uniform() < config.jitter_probability,
        order=uniform(4).argsort(1),
        factors=draw_factors(config, uniform),
        blur=draw_blur(config, view, uniform),
        solarize=uniform() < of_view(config.solarize_probability, view),
        interpolation=config.interpolation,
        grayscale_first=config.grayscale_first,
    )


def of_view(probabilities: list[float], view: int) -> float:
    """The probability for a view; the last one is for all further views."""
    return probabilities[min(view, len(probabilities) - 1)]


def draw_factors(config: ViewsConfig, uniform: Uniform) -> Tensor:
    """Strengths (batch, 4) of brightness, contrast, saturation (1 ± each) and hue (± turns)."""
    strengths = torch.tensor([config.brightness, config.contrast, config.saturation, config.hue])
    middle = torch.tensor([1.0, 1.0, 1.0, 0.0])
    lowest = torch.cat([(1 - strengths[:3]).clamp(min=0), -strengths[3:]])
    return (lowest + uniform(4) * (middle + strengths - lowest)).float()


def draw_blur(config: ViewsConfig, view: int, uniform: Uniform) -> Tensor:
    """Standard deviations (batch,) in pixels of the view, 0 where there is no blur.

    The unit of a local view's blur is that of the whole views, as published.
    """
    low, high = config.blur_sigma_min, config.blur_sigma_max
    blurred = uniform() < of_view(config.blur_probability, view)
    sigma = low + uniform() * (high - low)
    return torch.where(blurred, sigma * config.size / BLUR_VIEW_SIDE, 0).float()


def draw_view_crops(sizes: Tensor, config: ViewsConfig, local: bool, uniform: Uniform) -> Tensor:
    """Crops (batch, 4) of random area, or of fixed size where the config says so; local ones have random area."""
    if local:
        return draw_crops(sizes, config.local_crop_area_min, config.local_crop_area_max, uniform)
    if config.crop_side:
        return draw_fixed_crops(sizes, config.crop_side, config.crop_pad, uniform)
    return draw_crops(sizes, config.crop_area_min, config.crop_area_max, uniform)


def draw_fixed_crops(sizes: Tensor, side: float, pad: float, uniform: Uniform) -> Tensor:
    """Square crops (batch, 4) at random whole places in the image and a border around it, as shares of its short side.

    A crop that reaches into the border starts above 0 or ends below the image.
    """
    short = sizes.amin(1, keepdim=True).double()
    length, border = (short * side).round().clamp(min=1), (short * pad).round()
    corner = (uniform(2) * (sizes + 2 * border - length + 1)).floor() - border
    return torch.cat([corner, length, length], 1)


def draw_crops(sizes: Tensor, area_min: float, area_max: float, uniform: Uniform) -> Tensor:
    """Crops (batch, 4) of random area and aspect: the first of ten tries that fits, else the largest central crop."""
    height, width = sizes.double().unbind(1)
    area = (height * width)[:, None] * (area_min + (area_max - area_min) * uniform(CROP_TRIES))
    low, high = (math.log(aspect) for aspect in CROP_ASPECT)
    aspect = (low + (high - low) * uniform(CROP_TRIES)).exp()
    widths, heights = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (widths > 0) & (widths <= width[:, None]) & (heights > 0) & (heights <= height[:, None])
    first = fits.int().argmax(1, keepdim=True)
    found = fits.any(1)
    fallback_height, fallback_width = largest_crop(height, width)
    crop_height = torch.where(found, heights.gather(1, first)[:, 0], fallback_height)
    crop_width = torch.where(found, widths.gather(1, first)[:, 0], fallback_width)
    place = uniform(2)
    top = torch.where(found, place[:, 0] * (height - crop_height + 1), (height - crop_height) / 2).floor()
    left = torch.where(found, place[:, 1] * (width - crop_width + 1), (width - crop_width) / 2).floor()
    return torch.stack([top, left, crop_height, crop_width], 1)


def largest_crop(height: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Height and width of the largest crop within the range of aspects."""
    aspect = (width / height).clamp(*CROP_ASPECT)
    wide = width / height > CROP_ASPECT[1]
    tall = width / height < CROP_ASPECT[0]
    return torch.where(tall, (width / aspect).round(), height), torch.where(wide, (height * aspect).round(), width)


def make_view(images: Tensor, parameters: ViewParameters, size: int, mean: Tensor, std: Tensor) -> Tensor:
    """Apply the parameters to uint8 images (batch, 3, H, W); returns normalised floats (batch, 3, size, size)."""
    view = resample(images, parameters.crop, size, parameters.flip, parameters.interpolation).div_(255)
    if parameters.interpolation == "bicubic":
        view.clamp_(0, 1)
    if parameters.grayscale_first:
        turn_gray(view, parameters.gray)
    jitter(view, parameters.jitter, parameters.order, parameters.factors)
    if not parameters.grayscale_first:
        turn_gray(view, parameters.gray)
    blur(view, parameters.blur)
    solarize(view, parameters.solarize)
    return normalize(view, mean, std)


def evaluation_view(
    images: Tensor, sizes: Tensor, size: int, mean: Tensor, std: Tensor, centre: float = 224 / 256
) -> Tensor:
    """The central square of each image, `centre` of its short side, resized and normalised, without randomness."""
    sizes = sizes.double()
    side = (sizes.amin(1) * centre).round()
    corner = ((sizes - side[:, None]) / 2).round()
    crop = torch.cat([corner, side[:, None], side[:, None]], 1)
    return normalize(resample(images, crop, size, torch.zeros(len(images), dtype=torch.bool)).div_(255), mean, std)
