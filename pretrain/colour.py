"""What happens to the values of a view once it is cropped: grey, colour jitter, blur, solarising, normalising.

What comes in: float views (batch, 3, height, width) from 0 to 1, and for each sample whether and how strongly an
operation applies. What goes out: the same views, changed in place.

The operations are torchvision's ColorJitter, Grayscale and Solarize; each is made for all samples that have it at
once. The blur's matrix holds the exact mass of a Gaussian over each pixel.
"""

import math

import torch
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)
# Halfway between 127 and 128 of 255: Pillow inverts values from 128 on, after rounding.
SOLARIZE_FROM = 0.5


def turn_gray(view: Tensor, gray: Tensor) -> None:
    """Replace the colours of the chosen samples by their luma, in place."""
    rows = chosen(gray, view.device)
    if len(rows):
        view[rows] = luma(view[rows]).expand(-1, 3, -1, -1)


def luma(view: Tensor) -> Tensor:
    """Grey value (batch, 1, H, W) of colours (batch, 3, H, W), ITU-R 601 weights as torchvision has them."""
    red, green, blue = LUMA
    return (red * view[:, 0] + green * view[:, 1] + blue * view[:, 2])[:, None]


def chosen(mask: Tensor, device: torch.device) -> Tensor:
    """The numbers of the samples that a mask (batch,) chooses, on the device.

    The mask is on the CPU: a device would have to be waited for to learn how many there are.
    """
    return torch.nonzero(mask)[:, 0].to(device)


def jitter(view: Tensor, mask: Tensor, order: Tensor, factors: Tensor) -> None:
    """Colour jitter of the samples of a mask (batch,), in each one's own order of operations, in place.

    `order` (batch, 4) is the order of operations 0 brightness, 1 contrast, 2 saturation, 3 hue, on the CPU as the mask
    is; `factors` (batch, 4) are their strengths.
    """
    operations = (scale_brightness, scale_contrast, scale_saturation, shift_hue)
    rows = torch.nonzero(mask)[:, 0]
    order = order[rows]
    # Column t: the samples sorted by their operation at turn t, so that one transfer serves all turns.
    by_operation = rows[order.argsort(0)].to(view.device)
    factors = factors.to(view.device)
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


def normalize(view: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Subtract the mean and divide by the standard deviation of each channel, in place."""
    return view.sub_(mean[:, None, None]).div_(std[:, None, None])
