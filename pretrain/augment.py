"""Views of images, made for a whole batch at once on the training device.

What comes in: uint8 images (batch, 3, height, width), padded with black at the right and bottom, with their true
`sizes` (batch, 2) in pixels. What goes out: float views (batch, 3, size, size), normalised; depth maps (batch, size,
size) under the same crops; 3 x 3 grids of patches (9, batch, 3, size, size).

Every sample has its own parameters, drawn from one generator like those of torchvision's RandomResizedCrop or
RandomCrop, RandomHorizontalFlip, ColorJitter, RandomGrayscale and RandomSolarize. Order of operations: crop, flip, grey
before or after the jitter, blur, solarise, normalise, as in the chains of mouse-vision (Nayebi, Kong et al. 2023).

Crop, flip and resize are one antialiased resampling, written as two small matrix products. Two things differ from the
published chains, which work at 224 pixels and shrink to 64 at the end. Values stay float, where Pillow rounds to uint8
between operations. And the only resize comes first, before colours and blur, so that a blur of s pixels of a 224-pixel
view is one of s * size / 224 here. Against Pillow's blur at 224 and resize to 64, photographs then differ by less than
one of 255 grey levels on average, for s from 0.1 to 2.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.config import ViewsConfig

CROP_TRIES = 10
CROP_ASPECT = (3 / 4, 4 / 3)
LUMA = (0.2989, 0.587, 0.114)
BLUR_VIEW_SIDE = 224
# Halfway between 127 and 128 of 255: Pillow inverts values from 128 on, after rounding.
SOLARIZE_FROM = 0.5
# How far a filter reaches, in pixels of the smaller of both images.
FILTER_REACH = {"bilinear": 1, "bicubic": 2}
# Images that a CPU resamples at a time: their floats then stay in its cache.
CPU_BLOCK = 8


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
class PatchParameters:
    """Where the patches of each image lie: tensors on the CPU.

    `crop` (9, batch, 4): top, left, height, width in pixels of the image, not whole numbers; `sizes` (batch, 2) of the
    images; `gray` (batch,) images that lose their colours.
    """

    crop: Tensor
    sizes: Tensor
    gray: Tensor
    interpolation: str = "bilinear"


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


def draw_patches(
    sizes: Tensor, config: ViewsConfig, generator: torch.Generator, rank: int = 0, world: int = 1
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


def make_view(images: Tensor, parameters: ViewParameters, size: int, mean: Tensor, std: Tensor) -> Tensor:
    """Apply the parameters to uint8 images (batch, 3, H, W); returns normalised floats (batch, 3, size, size)."""
    view = resample(images, parameters.crop, size, parameters.flip, parameters.interpolation).div_(255)
    if parameters.interpolation == "bicubic":
        view.clamp_(0, 1)
    if parameters.grayscale_first:
        turn_gray(view, parameters.gray)
    jitter(view, parameters)
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


def resample(images: Tensor, crop: Tensor, size: int, flip: Tensor, interpolation: str = "bilinear") -> Tensor:
    """Crop, mirror and resize (batch, C, H, W) to floats (batch, C, size, size), antialiased.

    `crop` (batch, 4) may reach out of the images, where all is black; `flip` (batch,). Both are best on the CPU.
    """
    border = reach_outside(crop, *images.shape[2:])
    crop = crop.float().to(images.device)
    rows = crop_weights(crop[:, 0], crop[:, 2], images.shape[2], border, size, interpolation)
    columns = crop_weights(crop[:, 1], crop[:, 3], images.shape[3], border, size, interpolation)
    columns = torch.where(flip.to(images.device)[:, None, None], columns.flip(1), columns).mT
    view = torch.empty(len(images), images.shape[1], size, size, device=images.device)
    block = CPU_BLOCK if images.device.type == "cpu" else len(images)
    for some, across, down, out in zip(*(part.split(block) for part in (images, columns, rows, view)), strict=True):
        narrowed = torch.bmm(some.flatten(1, 2).float(), across).unflatten(1, some.shape[1:3])
        out.copy_(torch.matmul(down[:, None], narrowed))
    return view


def reach_outside(crop: Tensor, height: int, width: int) -> int:
    """How many pixels the crops (batch, 4) reach out of an image of this size, at most."""
    top, left, tall, wide = crop.unbind(1)
    outside = torch.stack([-top, -left, top + tall - height, left + wide - width])
    return max(0, math.ceil(outside.max()))


def crop_weights(start: Tensor, length: Tensor, inputs: int, border: int, outputs: int, interpolation: str) -> Tensor:
    """Weights (batch, outputs, inputs) that resize the pixels of crops, and only those, to `outputs` pixels.

    Up to `border` pixels of a crop may lie outside of the image. They are black, but take their share of the weights.
    """
    pixel = torch.arange(-border, inputs + border, device=start.device, dtype=torch.float32)[None]
    seen = (pixel >= start[:, None]) & (pixel < (start + length)[:, None])
    weights = resize_weights(pixel, start, length, seen, outputs, interpolation)
    return weights[:, :, border : border + inputs]


def resize_weights(
    pixel: Tensor, start: Tensor, length: Tensor, seen: Tensor, outputs: int, interpolation: str
) -> Tensor:
    """Weights (batch, outputs, pixels) that resize what lies from start to start + length to `outputs` pixels.

    `pixel` (batch or 1, pixels) are the pixels' numbers, `seen` (batch, pixels) those that take part; `start` and
    `length` (batch,) need not be whole. The filters are those of torchvision's antialiased resize (the cubic one has
    a = -0.5, as Pillow's): they widen with the scale when shrinking.
    """
    scale = (length / outputs)[:, None, None]
    centre = (torch.arange(outputs, device=pixel.device)[None, :, None] + 0.5) * scale
    distance = ((pixel - start[:, None] + 0.5)[:, None] - centre).abs_().div_(scale.clamp(min=1))
    weights = cubic(distance) if interpolation == "bicubic" else distance.neg_().add_(1).clamp_(min=0)
    weights.mul_(seen[:, None])
    return weights.div_(weights.sum(2, keepdim=True))


def cubic(distance: Tensor) -> Tensor:
    """The cubic convolution kernel with a = -0.5 (Keys 1981) at distances from 0."""
    near = (1.5 * distance - 2.5) * distance.square() + 1
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0))


def resample_nearest(depth: Tensor, crop: Tensor, size: int, flip: Tensor) -> Tensor:
    """Crop, mirror and resize maps (batch, 1, H, W) to floats (batch, size, size), each pixel from its nearest one.

    Pixels lie at their centres, as with torch's "nearest-exact" and Pillow: output i reads floor((i + 1/2) * scale) of
    the crop. What lies outside of the map is 0.
    """
    output = 2 * torch.arange(size) + 1
    # Whole numbers, so that no rounding moves a pixel.
    top, left, height, width = crop.long()[:, :, None].unbind(1)
    row, column = top + output * height // (2 * size), left + output * width // (2 * size)
    column = torch.where(flip[:, None], column.flip(1), column)
    inside = ((row >= 0) & (row < depth.shape[2]))[:, :, None] & ((column >= 0) & (column < depth.shape[3]))[:, None]
    row, column = row.clamp(0, depth.shape[2] - 1), column.clamp(0, depth.shape[3] - 1)
    row, column, inside = (index.to(depth.device) for index in (row, column, inside))
    sample = torch.arange(len(depth), device=depth.device)[:, None, None]
    return depth[sample, 0, row[:, :, None], column[:, None]].float() * inside


def normalize(view: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Subtract the mean and divide by the standard deviation of each channel, in place."""
    return view.sub_(mean[:, None, None]).div_(std[:, None, None])


def chosen(mask: Tensor, device: torch.device) -> Tensor:
    """The numbers of the samples that a mask (batch,) chooses, on the device.

    The mask is on the CPU: a device would have to be waited for to learn how many there are.
    """
    return torch.nonzero(mask)[:, 0].to(device)


def luma(view: Tensor) -> Tensor:
    """Grey value (batch, 1, H, W) of colours (batch, 3, H, W), ITU-R 601 weights as torchvision has them."""
    red, green, blue = LUMA
    return (red * view[:, 0] + green * view[:, 1] + blue * view[:, 2])[:, None]


def turn_gray(view: Tensor, gray: Tensor) -> None:
    """Replace the colours of the chosen samples by their luma, in place."""
    rows = chosen(gray, view.device)
    if len(rows):
        view[rows] = luma(view[rows]).expand(-1, 3, -1, -1)


def jitter(view: Tensor, parameters: ViewParameters) -> None:
    """Colour jitter in each sample's own order of operations, in place."""
    operations = (scale_brightness, scale_contrast, scale_saturation, shift_hue)
    rows = torch.nonzero(parameters.jitter)[:, 0]
    order = parameters.order[rows]
    # Column t: the samples sorted by their operation at turn t, so that one transfer serves all turns.
    by_operation = rows[order.argsort(0)].to(view.device)
    factors = parameters.factors.to(view.device)
    for turn in range(4):
        counts = torch.bincount(order[:, turn], minlength=4).tolist()
        for number, same in enumerate(by_operation[:, turn].split(counts)):
            if len(same):
                view[same] = operations[number](view[same], factors[same, number][:, None, None, None])


def scale_brightness(view: Tensor, factor: Tensor) -> Tensor:
    """Blend with black."""
    return (view * factor).clamp(0, 1)


def scale_contrast(view: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean grey of each image."""
    grey = luma(view).mean((2, 3), keepdim=True)
    return (grey + factor * (view - grey)).clamp(0, 1)


def scale_saturation(view: Tensor, factor: Tensor) -> Tensor:
    """Blend with each pixel's grey."""
    grey = luma(view)
    return (grey + factor * (view - grey)).clamp(0, 1)


def shift_hue(view: Tensor, factor: Tensor) -> Tensor:
    """Turn the hue by `factor` turns; value and chroma stay.

    With hue H in sixths of a turn, channel n of the turned colour is V - C max(0, min(k, 4 - k, 1)) with
    k = (n + H) mod 6 and n = 5, 3, 1 for red, green, blue (the closed form of the HSV hexagon).
    """
    red, green, blue = view.unbind(1)
    value = view.amax(1)
    chroma = value - view.amin(1)
    safe = torch.where(chroma > 0, chroma, 1)
    above_red = torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4)
    hue = torch.where(value == red, (green - blue) / safe, above_red)[:, None] + 6 * factor
    channel = torch.tensor([5.0, 3.0, 1.0], device=view.device)[:, None, None]
    turns = (channel + hue).div_(6)
    k = turns.sub_(turns.floor()).mul_(6)
    # min(k, 4 - k) is 2 - |k - 2|.
    share = k.sub_(2).abs_().neg_().add_(2).clamp_(0, 1)
    return value[:, None] - chroma[:, None] * share


def blur(view: Tensor, sigma: Tensor) -> None:
    """Gaussian blur with a standard deviation `sigma` (batch,) in pixels, 0 for none, in place."""
    rows = chosen(sigma > 0, view.device)
    if len(rows):
        weights = blur_weights(sigma[sigma > 0].to(view.device), view.shape[2])[:, None]
        view[rows] = weights @ view[rows] @ weights.mT


def blur_weights(sigma: Tensor, side: int) -> Tensor:
    """Weights (batch, side, side) of a Gaussian's mass over each pixel; pixels beyond an edge are like those at it.

    Samples of the Gaussian at the pixels' centres would do nothing for a sigma below 0.3 pixels, which is common here.
    """
    boundary = torch.arange(-side, side, device=sigma.device) + 0.5
    below = torch.erf(boundary / (math.sqrt(2) * sigma[:, None])) / 2
    # Row i: the mass below each boundary, less a half, seen from pixel i.
    below = below.unfold(1, side + 1, 1).flip(1)
    below[:, :, 0], below[:, :, -1] = -0.5, 0.5
    return below.diff(dim=2)


def solarize(view: Tensor, mask: Tensor) -> None:
    """Invert the bright half of the values of the chosen samples, in place."""
    rows = chosen(mask, view.device)
    if len(rows):
        plain = view[rows]
        view[rows] = torch.where(plain >= SOLARIZE_FROM, 1 - plain, plain)
