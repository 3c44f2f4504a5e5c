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
photographs then differ by less than one of 255 grey levels on average, for s from 0.1 to 2. Beyond an edge all is like
the pixel at it, as in Pillow; torchvision's blur mirrors the view there, which near an edge differs by up to some fifty
levels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pretrain.colour import normalize
from pretrain.colour_cpu import colour_on_cpu
from pretrain.colour_together import colour_together
from pretrain.config import ViewsConfig
from pretrain.resample import float_planes, resample, resample_together
from pretrain.resample_cpu import resample_on_cpu

CROP_TRIES = 10
CROP_ASPECT = (3 / 4, 4 / 3)
# Random numbers that one view of one image needs at most: two for each try of a crop, and two for its place; flip,
# grey, jitter and solarising; the order of jitter and its factors; two for the blur.
NUMBERS = 2 * CROP_TRIES + 2 + 4 + 4 + 4 + 2
BLUR_VIEW_SIDE = 224


# Gives the next random numbers from 0 to 1, one for each image, or as many columns as asked for.
Draw = Callable[..., Tensor]


@dataclass(frozen=True)
class ViewParameters:
    """What happens to each image of a batch: tensors of length batch, on the CPU.

    `crop` (batch, 4): top, left, height, width in whole pixels; what lies outside of the image is black. `order`
    (batch, 4) is the order of jitter operations 0 brightness, 1 contrast, 2 saturation, 3 hue; `factors` (batch, 4) are
    their strengths. `blur` is the standard deviation in pixels of the view, 0 for none.
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

    def rows(self, rows: Tensor | slice) -> "ViewParameters":
        """The parameters of some of the samples."""
        return replace(self, **{name: getattr(self, name)[rows] for name in PER_SAMPLE})


PER_SAMPLE = ("crop", "flip", "gray", "jitter", "order", "factors", "blur", "solarize")


@dataclass
class Uniform:
    """Random numbers from 0 to 1 for one process's rows of a batch, or of several batches one after the other.

    They are drawn for all rows of each batch over `world` processes, of which this one has rows rank, rank + world, ...
    So what happens to an image depends neither on the number of processes nor on how many batches are made at once.
    """

    generator: torch.Generator | Sequence[torch.Generator]
    rows: int
    rank: int = 0
    world: int = 1

    def __call__(self, *shape: int) -> Tensor:
        """Numbers (rows, *shape) of double precision."""
        generators = [self.generator] if isinstance(self.generator, torch.Generator) else self.generator
        each = self.rows // len(generators) * self.world
        drawn = [torch.rand(each, *shape, generator=one, dtype=torch.double) for one in generators]
        return torch.cat([numbers[self.rank :: self.world] for numbers in drawn])


def draw_parameters(
    sizes: Tensor,
    config: ViewsConfig,
    generator: torch.Generator | Sequence[torch.Generator],
    view: int = 0,
    local: bool = False,
    rank: int = 0,
    world: int = 1,
) -> ViewParameters:
    """Draw one view of each image; `sizes` (batch, 2) are heights and widths on the CPU.

    Args:
        sizes: of this process's images, rows rank, rank + world, ... of the whole batch.
        config: ranges and probabilities.
        generator: gives all randomness, the same in every process; several give that of as many equal batches.
        view: number of the view, on which the probabilities of blur and solarising depend.
        local: crops of a local view.
        rank, world: which of how many processes.
    """
    # One call for all numbers: with small batches the calls cost more than the numbers.
    numbers = Columns(Uniform(generator, len(sizes), rank, world)(NUMBERS))
    return ViewParameters(
        crop=draw_view_crops(sizes, config, local, numbers),
        flip=numbers() < config.flip_probability,
        gray=numbers() < config.grayscale_probability,
        jitter=numbers() < config.jitter_probability,
        order=numbers(4).argsort(1),
        factors=draw_factors(config, numbers),
        blur=draw_blur(config, view, numbers),
        solarize=numbers() < of_view(config.solarize_probability, view),
        interpolation=config.interpolation,
        grayscale_first=config.grayscale_first,
    )


@dataclass
class Columns:
    """Hands out columns of a table (rows, columns) from left to right."""

    table: Tensor
    used: int = 0

    def __call__(self, *count: int) -> Tensor:
        """The next column (rows,), or the next `count` columns (rows, count)."""
        first = self.used
        self.used += count[0] if count else 1
        return self.table[:, first : self.used] if count else self.table[:, first]


def of_view(probabilities: list[float], view: int) -> float:
    """The probability for a view; the last one is for all further views."""
    return probabilities[min(view, len(probabilities) - 1)]


def draw_factors(config: ViewsConfig, uniform: Draw) -> Tensor:
    """Strengths (batch, 4) of brightness, contrast, saturation (1 ± each) and hue (± turns)."""
    strengths = torch.tensor([config.brightness, config.contrast, config.saturation, config.hue])
    middle = torch.tensor([1.0, 1.0, 1.0, 0.0])
    lowest = torch.cat([(1 - strengths[:3]).clamp(min=0), -strengths[3:]])
    return (lowest + uniform(4) * (middle + strengths - lowest)).float()


def draw_blur(config: ViewsConfig, view: int, uniform: Draw) -> Tensor:
    """Standard deviations (batch,) in pixels of the view, 0 where there is no blur.

    The unit of a local view's blur is that of the whole views, as published.
    """
    low, high = config.blur_sigma_min, config.blur_sigma_max
    blurred = uniform() < of_view(config.blur_probability, view)
    sigma = low + uniform() * (high - low)
    return torch.where(blurred, sigma * config.size / BLUR_VIEW_SIDE, 0).float()


def draw_view_crops(sizes: Tensor, config: ViewsConfig, local: bool, uniform: Draw) -> Tensor:
    """Crops (batch, 4) of random area, or of fixed size where the config says so; local ones have random area."""
    if local:
        return draw_crops(sizes, config.local_crop_area_min, config.local_crop_area_max, uniform)
    if config.crop_side:
        return draw_fixed_crops(sizes, config.crop_side, config.crop_pad, uniform)
    return draw_crops(sizes, config.crop_area_min, config.crop_area_max, uniform)


def draw_fixed_crops(sizes: Tensor, side: float, pad: float, uniform: Draw) -> Tensor:
    """Square crops (batch, 4) at random whole places in the image and a border around it, as shares of its short side.

    A crop that reaches into the border starts above 0 or ends below the image.
    """
    short = sizes.amin(1, keepdim=True).double()
    length, border = (short * side).round().clamp(min=1), (short * pad).round()
    corner = (uniform(2) * (sizes + 2 * border - length + 1)).floor() - border
    return torch.cat([corner, length, length], 1)


def draw_crops(sizes: Tensor, area_min: float, area_max: float, uniform: Draw) -> Tensor:
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
    return make_views(images, [parameters], size, mean, std)[0]


def make_views(images: Tensor, drawn: Sequence[ViewParameters], size: int, mean: Tensor, std: Tensor) -> Tensor:
    """Several views of uint8 images (batch, 3, H, W): normalised floats (views, batch, 3, size, size)."""
    if images.device.type == "cpu":
        made = views_on_cpu(images, joined_parameters(drawn), size, mean, std)
    else:
        made = views_together(images, drawn, size, mean, std)
    return made.unflatten(0, (len(drawn), len(images)))


def views_on_cpu(images: Tensor, parameters: ViewParameters, size: int, mean: Tensor, std: Tensor) -> Tensor:
    """Normalised views (views, 3, size, size); view i is of image i modulo batch."""
    pixels = resample_on_cpu(images, parameters.crop, size, parameters.flip, parameters.interpolation)
    return colour_on_cpu(pixels, parameters, mean, std)


def views_together(images: Tensor, drawn: Sequence[ViewParameters], size: int, mean: Tensor, std: Tensor) -> Tensor:
    """As `views_on_cpu`, of `drawn` views one after the other, all images at once."""
    planes = float_planes(images)
    views = planes.new_empty(len(drawn), *images.shape[:2], size, size)
    for view, one in zip(views, drawn, strict=True):
        resample_together(planes, one.crop, size, one.flip, one.interpolation, out=view)
    return colour_together(views.flatten(0, 1), joined_parameters(drawn), mean, std)


def joined_parameters(drawn: Sequence[ViewParameters]) -> ViewParameters:
    """The parameters of several views as those of one batch."""
    return replace(drawn[0], **{name: torch.cat([getattr(one, name) for one in drawn]) for name in PER_SAMPLE})


def evaluation_view(
    images: Tensor, sizes: Tensor, size: int, mean: Tensor, std: Tensor, centre: float = 224 / 256
) -> Tensor:
    """The central square of each image, `centre` of its short side, resized and normalised, without randomness."""
    sizes = sizes.double()
    side = (sizes.amin(1) * centre).round()
    corner = ((sizes - side[:, None]) / 2).round()
    crop = torch.cat([corner, side[:, None], side[:, None]], 1)
    return normalize(resample(images, crop, size, torch.zeros(len(images), dtype=torch.bool)).div_(255), mean, std)
