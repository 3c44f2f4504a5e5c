"""What happens to the values of a view once it is cropped: grey, colour jitter, blur, solarising, normalising.

What comes in: the three colour planes of some views, each float (batch, height, width) from 0 to 1, and for each sample
how strongly an operation applies, (batch, 1, 1). What goes out: new planes, or the same ones changed in place where it
says so.

The operations are torchvision's ColorJitter, Grayscale and Solarize. They are written on planes because torch.compile
then fuses any sequence of them into one kernel; a CPU has kernels of its own (`pretrain/colour_cpu.py`). The blur's
matrix holds the exact mass of a Gaussian over each pixel.
"""

import math

import torch
from torch import Tensor

Planes = tuple[Tensor, Tensor, Tensor]

LUMA = (0.2989, 0.587, 0.114)
# Halfway between 127 and 128 of 255: Pillow inverts values from 128 on, after rounding.
SOLARIZE_FROM = 0.5
# Where red, green and blue lie on the hexagon of hues, in sixths of a turn (the closed form of HSV).
HUE_OF_PLANE = (5, 3, 1)
SMALLEST_CHROMA = 1e-9


def luma(planes: Planes) -> Tensor:
    """Grey values (batch, H, W), with the ITU-R 601 weights as torchvision has them."""
    red, green, blue = LUMA
    return (planes[0] * red).add_(planes[1], alpha=green).add_(planes[2], alpha=blue)


def scale_brightness(planes: Planes, factor: Tensor) -> Planes:
    """Blend with black."""
    return tuple((plane * factor).clamp_(0, 1) for plane in planes)


def scale_contrast(planes: Planes, factor: Tensor) -> Planes:
    """Blend with the mean grey of each image."""
    grey = luma(tuple(plane.mean((1, 2), keepdim=True) for plane in planes))
    return blend(grey, planes, factor)


def scale_saturation(planes: Planes, factor: Tensor) -> Planes:
    """Blend with each pixel's grey."""
    return blend(luma(planes), planes, factor)


def blend(grey: Tensor, planes: Planes, factor: Tensor) -> Planes:
    """grey + factor * (plane - grey), within black and white."""
    return tuple(torch.lerp(grey, plane, factor).clamp_(0, 1) for plane in planes)


def shift_hue(planes: Planes, factor: Tensor) -> Planes:
    """Turn the hue by `factor` turns, from -1/2 to 1/2; value and chroma stay.

    With hue H in sixths of a turn, plane n of the turned colour is V - C max(0, min(k, 4 - k, 1)) with
    k = (n + H) mod 6 and n = 5, 3, 1 for red, green, blue. Here in turns, k / 6; and min(k, 4 - k) is 2 - |k - 2|.
    """
    red, green, blue = planes
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    # H times C, where red, green or blue is the largest; where there is no chroma all are 0.
    of_red, of_green, of_blue = green - blue, (blue - red).add_(chroma, alpha=2), (red - green).add_(chroma, alpha=4)
    hue = torch.where(red < value, torch.where(green < value, of_blue, of_green), of_red)
    six_chroma = 6 * chroma
    hue.div_(six_chroma.clamp(min=SMALLEST_CHROMA)).add_(factor + 1)
    floor = value.sub_(chroma, alpha=2)
    return tuple(
        torch.addcmul(floor, six_chroma, (hue + n / 6).frac_().sub_(1 / 3).abs_().clamp_(1 / 6, 1 / 3))
        for n in HUE_OF_PLANE
    )


def grayed(planes: Planes, gray: Tensor) -> Planes:
    """Planes without colour where `gray` (batch, 1, 1) is 1, and as they were where it is 0."""
    grey = luma(planes)
    return tuple(torch.lerp(plane, grey, gray) for plane in planes)


# The operations of colour jitter, by the number that orders have for each.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def turn_gray(view: Tensor, gray: Tensor) -> None:
    """Replace the colours of the chosen samples of views (batch, 3, H, W) by their luma, in place.

    `gray` (batch,) is on the CPU: a device would have to be waited for to learn how many there are.
    """
    rows = torch.nonzero(gray)[:, 0].to(view.device)
    if len(rows):
        view.index_copy_(0, rows, luma(view[rows].unbind(1))[:, None].expand(-1, 3, -1, -1))


def blurred(view: Tensor, weights: Tensor) -> Tensor:
    """Gaussian blur of views (batch, 3, side, side): both axes weighed by `blur_weights` (batch, side, side)."""
    across = torch.bmm(view.flatten(1, 2), weights.mT).view_as(view)
    return torch.bmm(across.mT.flatten(1, 2), weights.mT).view_as(view).mT


def blur_weights(sigma: Tensor, side: int) -> Tensor:
    """Weights (batch, side, side) of a Gaussian's mass over each pixel; pixels beyond an edge are like those at it.

    Samples of the Gaussian at the pixels' centres would do nothing for a sigma below 0.3 pixels, which is common here.
    """
    boundary = torch.arange(-side, side, device=sigma.device) + 0.5
    below = torch.erf(boundary / (math.sqrt(2) * sigma[:, None])) / 2
    # Row i: the mass below each boundary, less a half, seen from pixel i.
    below = below.unfold(1, side + 1, 1).flip(1)
    # What lies beyond an edge belongs to the pixel at it.
    first, last = below.new_full((len(sigma), side, 1), -0.5), below.new_full((len(sigma), side, 1), 0.5)
    return torch.cat([first, below[:, :, 1:-1], last], 2).diff(dim=2)


def solarized(view: Tensor) -> Tensor:
    """Views whose bright half of values is inverted."""
    return torch.where(view >= SOLARIZE_FROM, 1 - view, view)


def normalize(view: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Subtract the mean and divide by the standard deviation of each channel, in place."""
    return view.mul_((1 / std)[:, None, None]).sub_((mean / std)[:, None, None])
