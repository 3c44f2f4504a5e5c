"""Views of clips: a random span of time at a random speed, and the same crop, flip and colours for all its frames.

What comes in: uint8 clips (batch, 3, frames, height, width), padded at the end of each dimension, with their true
`frames` (batch,) and `sizes` (batch, 2). What goes out: float views (batch, 3, clip frames, size, size), normalised,
and the frames that they show.

A view begins at any frame from which it fits into the clip, with all equally likely, and shows the frame nearest to
each of its times. Where a clip is too short for the stride and the speed that was drawn, the view goes through the
whole clip, more slowly. What happens to the frames is drawn once, as torchvision's transforms do for a video, by the
code for images (`pretrain/augment.py`); the grey that contrast is relative to is that of each frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.augment import Uniform, ViewParameters, draw_parameters, evaluation_view, make_view
from pretrain.config import ViewsConfig


@dataclass(frozen=True)
class ClipParameters:
    """What happens to each clip of a batch: `times` (batch, clip frames) are frame numbers, on the CPU."""

    times: Tensor
    frame: ViewParameters


def draw_clips(
    frames: Tensor,
    sizes: Tensor,
    config: ViewsConfig,
    generator: torch.Generator | Sequence[torch.Generator],
    view: int = 0,
    rank: int = 0,
    world: int = 1,
) -> ClipParameters:
    """Draw one view of each clip; the arguments are those of `draw_parameters`, and `frames` (batch,) on the CPU."""
    times = draw_times(frames, config, Uniform(generator, len(frames), rank, world)(2))
    return ClipParameters(times, draw_parameters(sizes, config, generator, view, rank=rank, world=world))


def draw_times(frames: Tensor, config: ViewsConfig, numbers: Tensor) -> Tensor:
    """Frame numbers (batch, clip frames) of views of clips with `frames` (batch,), from random `numbers` (batch, 2)."""
    steps = config.clip_frames - 1
    speed = config.speed_min + (config.speed_max - config.speed_min) * numbers[:, 0]
    last = (frames - 1).double()
    stride = (config.clip_stride * speed).minimum(last / max(steps, 1))
    # The latest start leaves the last time on the last frame; there is half a frame of room on both sides of each.
    start = (numbers[:, 1] * (last - stride * steps + 1) - 0.5)[:, None]
    times = (start + stride[:, None] * torch.arange(config.clip_frames)).round().long()
    return times.clamp(min=0).minimum((frames - 1)[:, None])


def make_clip_view(video: Tensor, parameters: ClipParameters, size: int, mean: Tensor, std: Tensor) -> Tensor:
    """Apply the parameters to uint8 clips; returns normalised floats (batch, 3, clip frames, size, size)."""
    clips, shown = parameters.times.shape
    frames, every = shown_frames(video, parameters.times), torch.arange(clips).repeat_interleave(shown)
    view = make_view(frames, parameters.frame.rows(every), size, mean, std)
    return view.unflatten(0, (clips, shown)).transpose(1, 2)


def evaluation_clip(batch: dict[str, Tensor], config: ViewsConfig, size: int, mean: Tensor, std: Tensor) -> Tensor:
    """The central squares (batch, 3, clip frames, size, size) of the frames around the middle of clips."""
    video, device = batch["video"], mean.device
    speed = (config.speed_min + config.speed_max) / 2
    middle = torch.tensor([[(speed - config.speed_min) / ((config.speed_max - config.speed_min) or 1), 0.5]])
    times = draw_times(batch["frames"], config, middle.double().expand(len(video), 2))
    frames = shown_frames(video.to(device), times)
    sizes = batch["sizes"].repeat_interleave(config.clip_frames, 0)
    return evaluation_view(frames, sizes, size, mean, std).unflatten(0, times.shape).transpose(1, 2)


def shown_frames(video: Tensor, times: Tensor) -> Tensor:
    """The frames of clips (batch, 3, frames, height, width) at `times` (batch, T): (batch * T, 3, height, width)."""
    times = times.to(video.device)
    return video[torch.arange(len(video), device=video.device)[:, None], :, times].flatten(0, 1)
