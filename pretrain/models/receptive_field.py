"""How far a network looks: the pixels and frames on which one place of its output depends, found by trying.

What comes in: a network, and the shapes of its inputs, of which the first are stimuli (1, channels[, frames], height,
width). What goes out: the first and last row, column and frame with a gradient, and whether the output stays what it is
when later frames of the input change. Networks are in evaluation, where batch norm looks at no other place. A gradient
below 1e-30 of the largest counts as none: attention lowers the logits of pairs that it excludes by a finite number.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

NEGLIGIBLE = 1e-30
# Of the output's scale, what rounding may change; what is seen changes it by far more.
ROUNDING = 1e-5


@dataclass(frozen=True)
class ReceptiveField:
    """Rows, columns, and for video frames, on which the middle of the output depends: first and last, from 0."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    frames: tuple[int, int] | None = None


def receptive_field(
    model: nn.Module,
    shapes: Sequence[tuple[int, ...]],
    features: Callable[..., Tensor] | None = None,
    tries: int = 1,
    dtype: torch.dtype = torch.float32,
) -> ReceptiveField:
    """On what the middle place (and frame) of the output depends.

    Args:
        model: the network.
        shapes: of its inputs for a batch of one.
        features: gives maps (1, channels[, frames], height, width) of a network and its inputs; by default its output.
        tries: inputs whose gradients are put together; more for rectified units, which have none where they are off.
        dtype: the precision. In float64 no convolution goes through the Fourier transform, which blurs the border.
    """
    measured = as_measured(model, dtype)
    largest = torch.zeros(shapes[0][2:], dtype=dtype)
    for seed in range(tries):
        stimuli, *signals = random_inputs(shapes, seed, dtype)
        stimuli.requires_grad_()
        maps = features(measured, stimuli, *signals) if features else measured(stimuli, *signals)
        middle = maps[(0, slice(None), *(length // 2 for length in maps.shape[2:]))]
        (gradient,) = torch.autograd.grad(middle @ torch.linspace(1, 2, len(middle), dtype=dtype), stimuli)
        largest = torch.maximum(largest, gradient[0].abs().amax(0))
    seen = (largest > NEGLIGIBLE * largest.max()).nonzero()
    *frames, rows, columns = ((int(axis.min()), int(axis.max())) for axis in seen.T)
    return ReceptiveField(rows, columns, *frames)


def is_causal(model: nn.Module, shapes: Sequence[tuple[int, ...]], stride: int = 1) -> bool:
    """Whether the first half of the output's frames stays what it is when all inputs have other later frames.

    The last frame of the output belongs to the last of the input, and each before it to one `stride` earlier.
    """
    measured, inputs, others = as_measured(model, torch.float32), random_inputs(shapes, 0), random_inputs(shapes, 1)
    with torch.no_grad():
        before = measured(*inputs)
        half = before.shape[2] // 2
        later = inputs[0].shape[2] - (before.shape[2] - half) * stride
        # Frames are the third axis of video and of signals alike.
        pairs = zip(inputs, others, strict=True)
        changed = [torch.cat((one[:, :, :later], other[:, :, later:]), 2) for one, other in pairs]
        moved = (measured(*changed) - before)[:, :, :half]
    return bool(moved.abs().max() <= ROUNDING * before.abs().max())


def as_measured(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return copy.deepcopy(model).to(dtype).eval().requires_grad_(False)


def random_inputs(shapes: Sequence[tuple[int, ...]], seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
