"""Crop, flip and resize: each pixel of a view as a weighted sum of its image's pixels.

What comes in: uint8 images (batch, channels, height, width) and a crop and a flip for each. What goes out: floats
(batch, channels, size, size) in whole grey levels; depth maps (batch, size, size) under the same crops, each pixel from
its nearest one; and the weights (batch, size, pixels) of one axis, for what is cut otherwise.

Crop, flip and resize are one antialiased resampling, whose filters are those of torchvision and Pillow: the triangle,
and the cubic kernel of Keys 1981. As there, values are rounded to whole grey levels. A CPU does it as they do
(`pretrain/resample_cpu.py`), rounding between the two axes, too; other devices do all at once by two small matrix
products. Their results differ by one grey level, now and then.
"""

import math

import torch
from torch import Tensor

from pretrain.resample_cpu import resample_on_cpu

# How far a filter reaches, in pixels of the smaller of both images.
FILTER_REACH = {"bilinear": 1, "bicubic": 2}


def resample(images: Tensor, crop: Tensor, size: int, flip: Tensor, interpolation: str = "bilinear") -> Tensor:
    """Crop, mirror and resize uint8 (batch, C, H, W) to floats (batch, C, size, size) from 0 to 255, antialiased.

    `crop` (batch, 4) is in whole pixels and may reach out of the images, where all is black; `flip` (batch,). Both are
    best on the CPU.
    """
    if images.device.type == "cpu":
        return resample_on_cpu(images, crop, size, flip, interpolation).float()
    return resample_together(images, crop, size, flip, interpolation)


def float_planes(images: Tensor) -> Tensor:
    """Images (batch, C, H, W), which may lie channels-last in memory, as floats with plane after plane.

    `resample_together` works on these, and several views of a batch can share them; what is like that stays as it is.
    """
    return images.to(torch.float32, memory_format=torch.contiguous_format)


def resample_together(
    images: Tensor, crop: Tensor, size: int, flip: Tensor, interpolation: str, out: Tensor | None = None
) -> Tensor:
    """As `resample`, all images at once, which may be `float_planes` already; the result is put into `out`."""
    border = reach_outside(crop, *images.shape[2:])
    crop = crop.float().to(images.device, non_blocking=True)
    rows = crop_weights(crop[:, 0], crop[:, 2], images.shape[2], border, size, interpolation)
    columns = crop_weights(crop[:, 1], crop[:, 3], images.shape[3], border, size, interpolation)
    flip = flip.to(images.device, non_blocking=True)
    columns = torch.where(flip[:, None, None], columns.flip(1), columns).mT
    narrowed = torch.bmm(float_planes(images).flatten(1, 2), columns).unflatten(1, images.shape[1:3])
    if interpolation != "bicubic":
        return torch.round(torch.matmul(rows[:, None], narrowed), out=out)
    # The cubic kernel overshoots; Pillow cuts that off after each axis.
    resized = torch.matmul(rows[:, None], narrowed.clamp_(0, 255))
    return torch.round(resized, out=out).clamp_(0, 255)


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
