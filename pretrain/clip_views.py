"""Views of clips: a random span of time at a random speed, and the same crop, flip and colours for all its frames.

What comes in: uint8 clips (batch, 3, frames, height, width), padded at the end of each dimension, with their true
`frames` (batch,) and `sizes` (batch, 2), and where only some frames were decoded the `times` that are shown. What goes
out: float views (batch, 3, clip frames, size, size), normalised, and the frames that they show.

Times are drawn by `pretrain/clip_times.py`. What happens to the frames is drawn once, as torchvision's transforms do
for a video, by the code for images (`pretrain/augment.py`); the grey that contrast is relative to is that of each
frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.augment import Uniform, ViewParameters, draw_parameters, evaluation_view, make_view
from pretrain.clip_times import draw_times, middle_numbers
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
    times: Tensor | None = None,
) -> ClipParameters:
    """Draw one view of each clip; the arguments are those of `draw_parameters`, and `frames` (batch,) on the CPU.

    `times` (batch, clip frames) are those that a reader has drawn already, with the same generator's first numbers.
    """
    numbers = Uniform(generator, len(frames), rank, world)(2)
    times = draw_times(frames, config, numbers) if times is None else times
    return ClipParameters(times, draw_parameters(sizes, config, generator, view, rank=rank, world=world))


def make_clip_view(video: Tensor, parameters: ClipParameters, size: int, mean: Tensor, std: Tensor) -> Tensor:
    """Apply the parameters to uint8 clips; returns normalised floats (batch, 3, clip frames, size, size)."""
    clips, shown = parameters.times.shape
    frames, every = shown_frames(video, parameters.times), torch.arange(clips).repeat_interleave(shown)
    view = make_view(frames, parameters.frame.rows(every), size, mean, std)
    return view.unflatten(0, (clips, shown)).transpose(1, 2)


def evaluation_clip(batch: dict[str, Tensor], config: ViewsConfig, size: int, mean: Tensor, std: Tensor) -> Tensor:
    """The central squares (batch, 3, clip frames, size, size) of the frames around the middle of clips."""
    times = given_times(batch, 0)
    if times is None:
        times = draw_times(batch["frames"], config, middle_numbers(config, len(batch["frames"])))
    frames = shown_frames(batch["video"].to(mean.device), times)
    sizes = batch["sizes"].repeat_interleave(config.clip_frames, 0)
    return evaluation_view(frames, sizes, size, mean, std).unflatten(0, times.shape).transpose(1, 2)


def given_times(batch: dict[str, Tensor], view: int) -> Tensor | None:
    """The times (batch, clip frames) of a view, where the reader has drawn them to decode no other frames."""
    return batch["times"][:, view] if "times" in batch else None


def shown_frames(video: Tensor, times: Tensor) -> Tensor:
    """The frames of clips (batch, 3, frames, height, width) at `times` (batch, T): (batch * T, 3, height, width)."""
    times = times.to(video.device)
    return video[torch.arange(len(video), device=video.device)[:, None], :, times].flatten(0, 1)
