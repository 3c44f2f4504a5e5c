"""Crop, mirror and resize uint8 images on a CPU, each by a crop of its own.

What comes in: uint8 images (batch, channels, height, width), and crops and flips of one or several views of each. What
goes out: uint8 views (views, channels, size, size), equal bit for bit to those of torchvision and torch's antialiased
`interpolate` for uint8: weights are whole numbers, and values are rounded after the columns and again after the rows.

Columns come first, with the crop turned on its side, so that both passes add whole lines of memory.
"""

import math

import numpy as np
import torch
from torch import Tensor

from pretrain.cpu_kernel import kernel, share

# Weights have as many binary places, at most, as keep them within 16 bits.
WEIGHT_LIMIT, MOST_PLACES = 1 << 15, 22


def resample_on_cpu(images: Tensor, crop: Tensor, size: int, flip: Tensor, interpolation: str = "bilinear") -> Tensor:
    """Views uint8 (views, C, size, size) of uint8 images (batch, C, H, W); view i is of image i modulo batch.

    `crop` (views, 4) is in whole pixels and may reach out of the images, where all is black; `flip` (views,).
    """
    views = torch.empty(len(crop), images.shape[1], size, size, dtype=torch.uint8)
    # Decoded images have their colours behind each other, so that nothing is copied here.
    source = images.permute(0, 2, 3, 1).contiguous().numpy()
    crops, flips, made = crop.long().numpy(), flip.numpy(), views.numpy()
    share(len(views), lambda part: resample_part(source, crops, flips, interpolation == "bicubic", made, part))
    return views


def resample_part(
    images: np.ndarray, crops: np.ndarray, flips: np.ndarray, cubic: bool, views: np.ndarray, part: slice
) -> None:
    """Make some of the views."""
    resample_views(images, crops, flips, cubic, views, part.start, part.stop)


@kernel
def resample_views(images, crops, flips, cubic, views, start, stop):
    """Fill views (views, C, size, size) from `start` to `stop`, of images (batch, H, W, C)."""
    height, width, channels = images.shape[1:]
    size = views.shape[2]
    # Of the crop on its side, and of the crop with its final columns: rows and channels, and columns.
    on_side = np.empty((width, height * channels), np.uint8)
    narrowed = np.empty((height * channels, size), np.uint8)
    sums = np.empty(max(height, size) * channels, np.int32)
    for view in range(start, stop):
        top, left, tall, wide = crops[view]
        upper, lower = within(top, tall, height)
        first_column, last_column = within(left, wide, width)
        lines = (lower - upper) * channels
        turn(images[view % len(images), upper:lower, first_column:last_column], on_side)
        first, count, weights, places = taps(left, wide, width, size, cubic)
        for column in range(size):
            weigh(on_side[:, :lines], first[column] - first_column, weights[column, : count[column]], sums[:lines])
            to_bytes(sums[:lines], places, narrowed[:lines, size - 1 - column if flips[view] else column])
        rows = narrowed[:lines].reshape(lower - upper, channels * size)
        first, count, weights, places = taps(top, tall, height, size, cubic)
        for row in range(size):
            weigh(rows, first[row] - upper, weights[row, : count[row]], sums[: channels * size])
            for channel in range(channels):
                to_bytes(sums[channel * size : (channel + 1) * size], places, views[view, channel, row])


@kernel
def within(start, length, inputs):
    """Where a stretch of pixels begins and ends within the image."""
    first = min(max(start, 0), inputs)
    return first, max(min(start + length, inputs), first)


@kernel
def turn(piece, on_side):
    """Write a piece (rows, columns, C) as (columns, rows * C)."""
    rows, columns, channels = piece.shape
    for row in range(rows):
        for column in range(columns):
            for channel in range(channels):
                on_side[column, row * channels + channel] = piece[row, column, channel]


@kernel
def weigh(lines, first, weights, sums):
    """The weighted sum of consecutive lines, the first of which is `first`."""
    sums[:] = 0
    for k in range(len(weights)):
        line, weight = lines[first + k], weights[k]
        for place in range(len(sums)):
            sums[place] += weight * np.int32(line[place])


@kernel
def to_bytes(sums, places, values):
    """Round sums with so many binary places to whole grey levels."""
    half = np.int32(1 << (places - 1))
    for place in range(len(sums)):
        values[place] = min(max((sums[place] + half) >> np.int32(places), 0), 255)


@kernel
def taps(start, length, inputs, outputs, cubic):
    """What each output pixel sees of an axis: first pixel, number of pixels, weights (outputs, most), binary places.

    The filter spans `length` pixels from `start`; those outside of the image are black, and left out.
    """
    scale = length / outputs
    shrink = max(scale, 1.0)
    reach = (2.0 if cubic else 1.0) * shrink
    first, count = np.empty(outputs, np.int64), np.empty(outputs, np.int64)
    exact = np.zeros((outputs, 2 * math.ceil(reach) + 1))
    for output in range(outputs):
        centre = scale * (output + 0.5)
        first[output] = max(int(centre - reach + 0.5), 0)
        count[output] = min(int(centre + reach + 0.5), length) - first[output]
        for k in range(count[output]):
            exact[output, k] = filter_at((first[output] + k - centre + 0.5) / shrink, cubic)
        exact[output] /= exact[output].sum()
    places = binary_places(exact.max())
    weights = np.empty(exact.shape, np.int32)
    for output in range(outputs):
        pixel = start + first[output]
        outside = max(-pixel, 0)
        first[output] = pixel + outside
        count[output] = max(min(pixel + count[output], inputs) - first[output], 0)
        for k in range(count[output]):
            weight = exact[output, outside + k] * (1 << places)
            weights[output, k] = int(weight + 0.5) if weight >= 0 else int(weight - 0.5)
    return first, count, weights, places


@kernel
def binary_places(largest):
    """How many binary places weights have, the largest of which is this."""
    places = 0
    while places < MOST_PLACES and int(0.5 + largest * (1 << (places + 1))) < WEIGHT_LIMIT:
        places += 1
    return places


@kernel
def filter_at(distance, cubic):
    """The triangle, or the cubic kernel with a = -0.5 (Keys 1981)."""
    distance = abs(distance)
    if not cubic:
        return max(1 - distance, 0.0)
    if distance < 1:
        return (1.5 * distance - 2.5) * distance * distance + 1
    return ((2.5 - 0.5 * distance) * distance - 4) * distance + 2 if distance < 2 else 0.0
