"""All that happens to the values of a view on a CPU, one view at a time, while it lies in the cache.

What comes in: cropped uint8 views (views, 3, size, size), and what happens to each. What goes out: normalised float
views. They equal those of `pretrain/colour_together.py`, to rounding: the operations are torchvision's ColorJitter,
Grayscale and Solarize, and a blur by the exact mass of a Gaussian over each pixel.
"""

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pretrain.colour import BRIGHTNESS, CONTRAST, LUMA, SATURATION, SMALLEST_CHROMA, SOLARIZE_FROM
from pretrain.cpu_kernel import fast_kernel, share

if TYPE_CHECKING:
    from pretrain.augment import ViewParameters

# Beyond so many standard deviations lie less than 1e-5 of a Gaussian.
BLUR_REACH = 4.5
# Kernels compute in single precision; a constant of Python's is of double.
RED, GREEN, BLUE = (np.float32(weight) for weight in LUMA)
ZERO, ONE, FOUR, SIX = (np.float32(number) for number in (0, 1, 4, 6))
GREY_LEVEL, SIXTH = np.float32(1 / 255), np.float32(1 / 6)
LEAST_CHROMA, BRIGHT = np.float32(SMALLEST_CHROMA), np.float32(SOLARIZE_FROM)


def colour_on_cpu(pixels: Tensor, parameters: "ViewParameters", mean: Tensor, std: Tensor) -> Tensor:
    """Normalised views (views, 3, size, size) of uint8 `pixels` (views, 3, size, size)."""
    made = torch.empty(pixels.shape)
    source, views, scale = pixels.flatten(2).numpy(), made.flatten(2).numpy(), (1 / std).numpy()
    names = ("gray", "jitter", "order", "factors", "blur", "solarize")
    gray, jitter, order, factors, blur, solarize = (getattr(parameters, name).numpy() for name in names)
    # By whether grey comes first: grey before the jitter, and after it.
    before, after = gray & parameters.grayscale_first, gray & (not parameters.grayscale_first)

    def paint(part: slice) -> None:
        paint_views(
            source[part],
            before[part],
            np.where(jitter[part, None], order[part], -1),
            factors[part],
            after[part],
            blur[part],
            solarize[part],
            mean.numpy(),
            scale,
            views[part],
        )

    share(len(pixels), paint)
    return made


@fast_kernel
def paint_views(pixels, gray_before, orders, factors, gray_after, sigmas, solarized, mean, scale, views):
    """Fill views (views, 3, size * size); an operation of an order that has no number does nothing."""
    side = int(math.sqrt(pixels.shape[2]))
    across = np.empty((side, side), np.float32)
    for number in range(len(pixels)):
        view = views[number]
        scale_levels(pixels[number], view)
        if gray_before[number]:
            turn_gray(view)
        for operation in orders[number]:
            if operation >= 0:
                jitter(view, operation, factors[number, operation])
        if gray_after[number]:
            turn_gray(view)
        if sigmas[number] > 0:
            blur(view, blur_taps(sigmas[number]), across)
        if solarized[number]:
            solarize(view)
        normalize(view, mean, scale)


@fast_kernel
def scale_levels(pixels, view):
    """Grey levels as floats from 0 to 1."""
    for plane in range(3):
        for i in range(view.shape[1]):
            view[plane, i] = np.float32(pixels[plane, i]) * GREY_LEVEL


@fast_kernel
def jitter(view, operation, factor):
    """One operation of colour jitter."""
    if operation == BRIGHTNESS:
        scale_brightness(view, factor)
    elif operation == CONTRAST:
        scale_contrast(view, factor)
    elif operation == SATURATION:
        scale_saturation(view, factor)
    else:
        shift_hue(view, factor)


@fast_kernel
def luma(view, i):
    """The grey of a pixel."""
    return view[0, i] * RED + view[1, i] * GREEN + view[2, i] * BLUE


@fast_kernel
def blend(grey, value, factor):
    """grey + factor * (value - grey), within black and white."""
    return min(max(grey + factor * (value - grey), ZERO), ONE)


@fast_kernel
def turn_gray(view):
    """Replace the colour of each pixel by its grey."""
    for i in range(view.shape[1]):
        grey = luma(view, i)
        view[0, i], view[1, i], view[2, i] = grey, grey, grey


@fast_kernel
def scale_brightness(view, factor):
    """Blend with black."""
    for plane in range(3):
        for i in range(view.shape[1]):
            view[plane, i] = blend(ZERO, view[plane, i], factor)


@fast_kernel
def scale_contrast(view, factor):
    """Blend with the mean grey of the view."""
    total = ZERO
    for i in range(view.shape[1]):
        total += luma(view, i)
    grey = total / np.float32(view.shape[1])
    for plane in range(3):
        for i in range(view.shape[1]):
            view[plane, i] = blend(grey, view[plane, i], factor)


@fast_kernel
def scale_saturation(view, factor):
    """Blend with each pixel's grey."""
    for i in range(view.shape[1]):
        grey = luma(view, i)
        for plane in range(3):
            view[plane, i] = blend(grey, view[plane, i], factor)


@fast_kernel
def shift_hue(view, turns):
    """Turn the hue; value and chroma stay, by the closed form of HSV (`pretrain.colour.shift_hue`)."""
    shift = turns * SIX
    for i in range(view.shape[1]):
        red, green, blue = view[0, i], view[1, i], view[2, i]
        value = max(max(red, green), blue)
        chroma = value - min(min(red, green), blue)
        share_of_chroma = ONE / max(chroma, LEAST_CHROMA)
        of_red = (green - blue) * share_of_chroma
        of_green = (blue - red) * share_of_chroma + np.float32(2)
        of_blue = (red - green) * share_of_chroma + FOUR
        hue = shift + (of_red if red == value else (of_green if green == value else of_blue))
        view[0, i] = value - chroma * below_value(hue + np.float32(5))
        view[1, i] = value - chroma * below_value(hue + np.float32(3))
        view[2, i] = value - chroma * below_value(hue + ONE)


@fast_kernel
def below_value(sixths):
    """How far, in chromas, a plane lies below the value at a place on the hexagon of hues."""
    place = sixths - SIX * np.floor(sixths * SIXTH)
    return min(max(min(place, FOUR - place), ZERO), ONE)


@fast_kernel
def blur_taps(sigma):
    """The mass of a Gaussian over a pixel at distance 0, 1, ..."""
    scale = 1 / (math.sqrt(2.0) * sigma)
    taps = np.empty(math.ceil(BLUR_REACH * sigma + 0.5) + 1, np.float32)
    for distance in range(len(taps)):
        farther, nearer = (distance + 0.5) * scale, (distance - 0.5) * scale
        taps[distance] = (math.erf(farther) - math.erf(nearer)) / 2
    return taps


@fast_kernel
def blur(view, taps, across):
    """Weigh each pixel's neighbours along both axes; beyond an edge all is like the pixel at it.

    `across` (side, side) is room to work in.
    """
    side, reach = len(across), len(taps) - 1
    line = np.empty(side + 2 * reach, np.float32)
    for plane in range(3):
        lines = view[plane].reshape(side, side)
        for row in range(side):
            values, sums = lines[row], across[row]
            line[:reach] = values[0]
            line[reach : reach + side] = values
            line[reach + side :] = values[side - 1]
            first_tap(sums, values, taps[0])
            for k in range(1, reach + 1):
                add_pair(sums, line[reach - k : reach - k + side], line[reach + k : reach + k + side], taps[k])
        for row in range(side):
            sums = lines[row]
            first_tap(sums, across[row], taps[0])
            for k in range(1, reach + 1):
                add_pair(sums, across[max(row - k, 0)], across[min(row + k, side - 1)], taps[k])


@fast_kernel
def first_tap(sums, values, weight):
    """Begin a weighted sum of lines."""
    for i in range(len(sums)):
        sums[i] = weight * values[i]


@fast_kernel
def add_pair(sums, left, right, weight):
    """Add two lines of one weight to a sum."""
    for i in range(len(sums)):
        sums[i] += weight * (left[i] + right[i])


@fast_kernel
def solarize(view):
    """Invert the bright half of the values."""
    for plane in range(3):
        for i in range(view.shape[1]):
            value = view[plane, i]
            view[plane, i] = ONE - value if value >= BRIGHT else value


@fast_kernel
def normalize(view, mean, scale):
    """Subtract each channel's mean and divide by its standard deviation, whose inverse is `scale`."""
    for plane in range(3):
        for i in range(view.shape[1]):
            view[plane, i] = (view[plane, i] - mean[plane]) * scale[plane]
