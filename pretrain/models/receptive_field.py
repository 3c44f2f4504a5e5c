"""How far a network looks: the pixels and frames on which one place of its output depends, found by trying.

What comes in: a network, and its inputs, of which the first are stimuli (1, channels[, frames], height, width). What
goes out: rows, columns and frames between the first and the last that have a gradient, and whether frames of the output
stay what they are when later frames of the input change. Weights are fresh, in float64 and in evaluation, where batch
norm looks at no other place. A gradient below 1e-30 of the largest counts as none: attention lowers the logits of pairs
that it excludes by a finite number.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

NEGLIGIBLE = 1e-30
# Inputs of which the gradients are put together, since a rectified unit that is off has none.
TRIES = 4


@dataclass(frozen=True)
class ReceptiveField:
    """Rows and columns, and for video frames, on which the middle of the output depends; first to last, from 0."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    frames: tuple[int, int] | None = None


def receptive_field(
    model: nn.Module, shapes: Sequence[tuple[int, ...]], features: Callable[..., Tensor] | None = None
) -> ReceptiveField:
    """On what the middle place (and frame) of the output depends.

    Args:
        model: the network.
        shapes: of its inputs for a batch of one.
        features: gives maps (1, channels[, frames], height, width) for a network and its inputs; by default its output.
    """
    measured = as_measured(model)
    largest = torch.zeros(shapes[0][2:], dtype=torch.float64)
    for seed in range(TRIES):
        stimuli, *signals = random_inputs(shapes, seed)
        stimuli.requires_grad_()
        maps = features(measured, stimuli, *signals) if features else measured(stimuli, *signals)
        middle = maps[(0, slice(None), *(length // 2 for length in maps.shape[2:]))]
        (gradient,) = torch.autograd.grad((middle * torch.randn_like(middle)).sum(), stimuli)
        largest = torch.maximum(largest, gradient[0].abs().amax(0))
    seen = (largest > NEGLIGIBLE * largest.max()).nonzero()
    extents = [(int(axis.min()), int(axis.max())) for axis in seen.T]
    return ReceptiveField(*extents[-2:], *extents[:-2])


def is_causal(model: nn.Module, shapes: Sequence[tuple[int, ...]], stride: int = 1) -> bool:
    """Whether other later frames, of all inputs, leave the first half of the output's frames what it is.

    The last frame of the output belongs to the last of the input, and each before it to one `stride` earlier.
    """
    measured, inputs = as_measured(model), random_inputs(shapes, 0)
    with torch.no_grad():
        before = measured(*inputs)
        half = before.shape[2] // 2
        later = inputs[0].shape[2] - (before.shape[2] - half) * stride
        others = random_inputs(shapes, 1)
        # Frames are the third axis of video and of signals alike.
        changed = [
            torch.cat((one[:, :, :later], other[:, :, later:]), 2) for one, other in zip(inputs, others, strict=True)
        ]
        after = measured(*changed)
    scale = float(before.abs().max())
    return bool((before - after)[:, :, :half].abs().max() <= 1e-12 * scale)


def as_measured(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).double().eval().requires_grad_(False)


def random_inputs(shapes: Sequence[tuple[int, ...]], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
