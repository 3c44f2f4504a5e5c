"""Views of images, made for a whole batch at once on the training device.

What comes in: uint8 images (batch, 3, height, width), padded, with their true `sizes` (batch, 2) in pixels. What goes
out: float views (batch, 3, size, size), normalised. Every sample has its own parameters, drawn like torchvision's
RandomResizedCrop, RandomGrayscale, ColorJitter and RandomHorizontalFlip from one generator. Crop, flip and resize are
one antialiased bilinear resampling, written as two small matrix products. Values stay float where torchvision rounds
to uint8 between operations. Order of operations: mouse-vision's (Nayebi, Kong et al. 2023).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.config import ViewsConfig

CROP_TRIES = 10
CROP_ASPECT = (3 / 4, 4 / 3)
LUMA = (0.2989, 0.587, 0.114)


@dataclass(frozen=True)
class ViewParameters:
    """What happens to each image of a batch, all tensors of length batch.

    `crop` (batch, 4): top, left, height, width in pixels. `order` (batch, 4) is the order of jitter operations
    0 brightness, 1 contrast, 2 saturation, 3 hue; `factors` (batch, 4) are their strengths.
    """

    crop: Tensor
    flip: Tensor
    gray: Tensor
    jitter: Tensor
    order: Tensor
    factors: Tensor

    def to(self, device: torch.device) -> "ViewParameters":
        """The same parameters on another device."""
        return ViewParameters(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def draw_parameters(sizes: Tensor, config: ViewsConfig, generator: torch.Generator) -> ViewParameters:
    """Draw one view of each image; `sizes` (batch, 2) are heights and widths on the CPU."""
    count = len(sizes)
    strengths = torch.tensor([config.brightness, config.contrast, config.saturation])
    hue = (2 * torch.rand(count, 1, generator=generator) - 1) * config.hue
    lowest = (1 - strengths).clamp(min=0)
    factors = lowest + torch.rand(count, 3, generator=generator) * (1 + strengths - lowest)
    return ViewParameters(
        crop=draw_crops(sizes, config.crop_area_min, config.crop_area_max, generator),
        flip=torch.rand(count, generator=generator) < config.flip_probability,
        gray=torch.rand(count, generator=generator) < config.grayscale_probability,
        jitter=torch.rand(count, generator=generator) < config.jitter_probability,
        order=torch.rand(count, 4, generator=generator).argsort(1),
        factors=torch.cat([factors, hue], 1),
    )


def draw_crops(sizes: Tensor, area_min: float, area_max: float, generator: torch.Generator) -> Tensor:
    """Crops (batch, 4) of random area and aspect: the first of ten tries that fits, else the largest central crop."""
    height, width = sizes.double().unbind(1)
    tries = (len(sizes), CROP_TRIES)
    area = (height * width)[:, None] * (
        area_min + (area_max - area_min) * torch.rand(tries, generator=generator, dtype=torch.double)
    )
    low, high = (math.log(aspect) for aspect in CROP_ASPECT)
    aspect = (low + (high - low) * torch.rand(tries, generator=generator, dtype=torch.double)).exp()
    widths, heights = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (widths > 0) & (widths <= width[:, None]) & (heights > 0) & (heights <= height[:, None])
    first = fits.int().argmax(1, keepdim=True)
    found = fits.any(1)
    fallback_height, fallback_width = largest_crop(height, width)
    crop_height = torch.where(found, heights.gather(1, first)[:, 0], fallback_height)
    crop_width = torch.where(found, widths.gather(1, first)[:, 0], fallback_width)
    place = torch.rand(2, len(sizes), generator=generator, dtype=torch.double)
    top = torch.where(found, place[0] * (height - crop_height + 1), (height - crop_height) / 2).floor()
    left = torch.where(found, place[1] * (width - crop_width + 1), (width - crop_width) / 2).floor()
    return torch.stack([top, left, crop_height, crop_width], 1)


def largest_crop(height: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Height and width of the largest crop within the range of aspects."""
    aspect = (width / height).clamp(*CROP_ASPECT)
    wide = width / height > CROP_ASPECT[1]
    tall = width / height < CROP_ASPECT[0]
    return torch.where(tall, (width / aspect).round(), height), torch.where(wide, (height * aspect).round(), width)


def make_view(images: Tensor, parameters: ViewParameters, size: int, mean: Tensor, std: Tensor) -> Tensor:
    """Apply the parameters to uint8 images (batch, 3, H, W); returns normalised floats (batch, 3, size, size)."""
    parameters = parameters.to(images.device)
    view = resample(images, parameters.crop, size, parameters.flip) / 255
    view = torch.where(parameters.gray[:, None, None, None], luma(view).expand_as(view), view)
    return (jitter(view, parameters) - mean[:, None, None]) / std[:, None, None]


def evaluation_view(
    images: Tensor, sizes: Tensor, size: int, mean: Tensor, std: Tensor, centre: float = 224 / 256
) -> Tensor:
    """The central square of each image, `centre` of its short side, resized and normalised, without randomness."""
    sizes = sizes.to(images.device).double()
    side = (sizes.amin(1) * centre).round()
    corner = ((sizes - side[:, None]) / 2).round()
    crop = torch.cat([corner, side[:, None], side[:, None]], 1)
    flip = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    return (resample(images, crop, size, flip) / 255 - mean[:, None, None]) / std[:, None, None]


def resample(images: Tensor, crop: Tensor, size: int, flip: Tensor) -> Tensor:
    """Crop, mirror and resize (batch, C, H, W) to floats (batch, C, size, size), antialiased bilinear."""
    top, left, height, width = crop.to(torch.float32).unbind(1)
    rows = resize_weights(top, height, images.shape[2], size)
    columns = resize_weights(left, width, images.shape[3], size)
    columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    narrowed = torch.einsum("bchw,bxw->bchx", images.to(torch.float32), columns)
    return torch.einsum("bchx,byh->bcyx", narrowed, rows)


def resize_weights(start: Tensor, length: Tensor, inputs: int, outputs: int) -> Tensor:
    """Weights (batch, outputs, inputs) that resize pixels start .. start + length to `outputs` pixels.

    The triangle filter of torchvision's antialiased bilinear resize: it widens with the scale when shrinking.
    """
    scale = (length / outputs)[:, None, None]
    out = torch.arange(outputs, device=start.device)[None, :, None]
    pixel = torch.arange(inputs, device=start.device)[None, None, :] - start[:, None, None]
    centre = (out + 0.5) * scale
    weights = (1 - (pixel + 0.5 - centre).abs() / scale.clamp(min=1)).clamp(min=0)
    weights = weights * ((pixel >= 0) & (pixel < length[:, None, None]))
    return weights / weights.sum(2, keepdim=True)


def luma(view: Tensor) -> Tensor:
    """Grey value (batch, 1, H, W) of colours (batch, 3, H, W), ITU-R 601 weights as torchvision has them."""
    red, green, blue = LUMA
    return (red * view[:, 0] + green * view[:, 1] + blue * view[:, 2])[:, None]


def jitter(view: Tensor, parameters: ViewParameters) -> Tensor:
    """Colour jitter in each sample's own order of operations."""
    operations = (scale_brightness, scale_contrast, scale_saturation, shift_hue)
    view = view.clone()
    for turn in range(4):
        for number, operation in enumerate(operations):
            chosen = torch.nonzero(parameters.jitter & (parameters.order[:, turn] == number))[:, 0]
            if len(chosen):
                factor = parameters.factors[chosen, number][:, None, None, None]
                view[chosen] = operation(view[chosen], factor)
    return view


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
    value, strongest = view.max(1, keepdim=True)
    chroma = value - view.amin(1, keepdim=True)
    red, green, blue = view[:, 0:1], view[:, 1:2], view[:, 2:3]
    safe = torch.where(chroma > 0, chroma, 1)
    hue = torch.where(strongest == 0, (green - blue) / safe, (blue - red) / safe + 2)
    hue = torch.where(strongest == 2, (red - green) / safe + 4, hue) + 6 * factor
    channel = torch.tensor([5.0, 3.0, 1.0], device=view.device)[None, :, None, None]
    k = (channel + hue) % 6
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)
