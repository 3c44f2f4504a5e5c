"""All operations on the colours of a whole batch in a few kernels, for devices where starting a kernel is what costs.

What comes in: cropped views (batch, 3, size, size) in grey levels from 0 to 255, and what happens to each. What goes
out: normalised views. They equal those that `pretrain/colour_cpu.py` makes one by one on a CPU, to rounding.

Every sample undergoes every operation, with a strength that changes nothing where it is not chosen. An order of jitter
is three places before and three after the contrast, which is the only operation that sees a whole image; each place
holds brightness, saturation, hue, or nothing. torch.compile fuses all but the contrast's mean and the blur's products,
and so the blur alone is left out where no sample of a batch has it.
"""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pretrain.colour import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    SATURATION,
    Planes,
    blur_weights,
    blurred,
    grayed,
    scale_brightness,
    scale_contrast,
    scale_saturation,
    shift_hue,
    solarized,
)
from pretrain.progress import say

if TYPE_CHECKING:
    from pretrain.augment import ViewParameters

NOTHING = -1
# Brightness, contrast, saturation and hue that change nothing.
NEUTRAL = (1.0, 1.0, 1.0, 0.0)
SLOTS = 6
SMALLEST_SIGMA = 1e-3


def colour_together(view: Tensor, parameters: "ViewParameters", mean: Tensor, std: Tensor) -> Tensor:
    """Views (batch, 3, size, size) from 0 to 255 to normalised ones; `parameters` are on the CPU."""
    table = packed(parameters)
    if view.device.type == "cuda":
        table = table.pin_memory().to(view.device, non_blocking=True)
    else:
        table = table.to(view.device)
    # Known on the CPU; a device would have to be waited for.
    blurs = bool(parameters.blur.any())
    return compiled(view.device.type)(view, table, mean, std, parameters.grayscale_first, blurs)


def packed(parameters: "ViewParameters") -> Tensor:
    """One table (batch, 13) of all that the colours need, which one transfer brings to a device.

    Its columns: grey, the operation in each of six places, the four factors, blur, solarising.
    """
    slots = slots_of(parameters.order)
    slots = torch.where(parameters.jitter[:, None], slots, NOTHING)
    factors = torch.where(parameters.jitter[:, None], parameters.factors, torch.tensor(NEUTRAL))
    columns = [parameters.gray[:, None], slots, factors, parameters.blur[:, None], parameters.solarize[:, None]]
    return torch.cat([column.float() for column in columns], 1)


def slots_of(order: Tensor) -> Tensor:
    """Operations (batch, 6) in the places before and after the contrast of an order (batch, 4)."""
    turn = torch.arange(4)
    contrast = (order == CONTRAST).int().argmax(1, keepdim=True)
    before = torch.where(turn < contrast, order, NOTHING)[:, :3]
    after = torch.where(turn > contrast, order, NOTHING)[:, 1:]
    return torch.cat([before, after], 1)


@cache
def compiled(device: str) -> Callable[..., Tensor]:
    """The colours as one compiled function, or as they are, and said, where nothing compiles."""
    # For any size, or each number of images that is left at the end of something would be compiled for anew.
    fused, failed = torch.compile(paint, dynamic=True), []

    def run(*arguments: object) -> Tensor:
        if not failed:
            try:
                return fused(*arguments)
            except torch.OutOfMemoryError:
                raise  # the batch is too large, compiled or not
            except Exception as error:  # no compiler, or one that this release of torch does not get along with
                failed.append(error)
                reason = str(error).strip().splitlines()[0]
                say(f"WARNING: views are made without torch.compile, which fails on this {device} device: {reason}")
        return paint(*arguments)

    return run


def paint(view: Tensor, table: Tensor, mean: Tensor, std: Tensor, grayscale_first: bool, blurs: bool) -> Tensor:
    """All colours of a batch, from the table that `packed` makes; `blurs` says whether any sample is blurred."""
    planes: Planes = (view / 255).unbind(1)
    gray, slots, factors, sigma, solarize = table.split([1, SLOTS, 4, 1, 1], 1)
    factors = factors[:, :, None, None]
    if grayscale_first:
        planes = grayed(planes, gray[:, :, None])
    for place in range(SLOTS):
        if place == SLOTS // 2:
            planes = scale_contrast(planes, factors[:, CONTRAST])
        planes = slot(planes, slots[:, place, None, None], factors)
    if not grayscale_first:
        planes = grayed(planes, gray[:, :, None])
    view = torch.stack(planes, 1)
    if blurs:
        weights = blur_weights(sigma[:, 0].clamp(min=SMALLEST_SIGMA), view.shape[2])
        view = torch.where(sigma[:, :, None, None] > 0, blurred(view, weights), view)
    view = torch.where(solarize[:, :, None, None] > 0, solarized(view), view)
    return (view - mean[:, None, None]) / std[:, None, None]


def slot(planes: Planes, operation: Tensor, factors: Tensor) -> Planes:
    """The operation (batch, 1, 1) that a place holds for each sample; `factors` (batch, 4, 1, 1)."""
    planes = scale_brightness(planes, torch.where(operation == BRIGHTNESS, factors[:, BRIGHTNESS], 1))
    planes = scale_saturation(planes, torch.where(operation == SATURATION, factors[:, SATURATION], 1))
    turned = shift_hue(planes, factors[:, HUE])
    return tuple(torch.where(operation == HUE, new, old) for new, old in zip(turned, planes, strict=True))
