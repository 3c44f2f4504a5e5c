"""Which frames the views of clips show: known before a clip is decoded, so that no others need be.

What comes in: how many frames a clip has, and random numbers for each view. What goes out: frame numbers. They follow
from the seed, the step, the view and the clip's place in the batch, whether a reader asks or who makes the views.

A view begins at any frame from which it fits into the clip, with all equally likely, and shows the frame nearest to
each of its times. Where a clip is too short for the stride and the speed that was drawn, the view goes through the
whole clip, more slowly.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pretrain.augment import Uniform
from pretrain.config import ViewsConfig
from pretrain.randomness import derived_seed

# The times of one clip's views (views, clip frames), from its number of frames.
TimesOfClip = Callable[[int], Tensor]


@dataclass(frozen=True)
class ShownTimes:
    """The times that are shown of the clips of each batch.

    `numbers(position, clips)` gives (clips, views, 2) random numbers from 0 to 1 for batch number `position`.
    """

    config: ViewsConfig
    numbers: Callable[[int, int], Tensor]

    def of_batch(self, position: int, clips: int) -> list[TimesOfClip]:
        """For each clip of a batch what gives the times of its views."""
        return [partial(self.of_clip, numbers) for numbers in self.numbers(position, clips)]

    def of_clip(self, numbers: Tensor, frames: int) -> Tensor:
        """Frame numbers (views, clip frames) of a clip, from random `numbers` (views, 2)."""
        return draw_times(torch.full((len(numbers),), frames), self.config, numbers)


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


def middle_numbers(config: ViewsConfig, clips: int) -> Tensor:
    """Numbers (clips, 2) of the times around the middle of clips, at the mean speed."""
    speed = (config.speed_min + config.speed_max) / 2
    middle = [(speed - config.speed_min) / ((config.speed_max - config.speed_min) or 1), 0.5]
    return torch.tensor(middle, dtype=torch.double).expand(clips, 2)


def training_times(config: ViewsConfig, seed: int, step: int, views: int, rank: int = 0, world: int = 1) -> ShownTimes:
    """The times of this process's part of each batch of a training; the first batch is that of `step`."""
    return ShownTimes(config, partial(training_numbers, seed, step, views, rank, world))


def training_numbers(seed: int, step: int, views: int, rank: int, world: int, position: int, clips: int) -> Tensor:
    generators = [view_generator(seed, "views", step + position, view) for view in range(views)]
    return numbers_of_views(generators, clips, rank, world)


def probe_times(config: ViewsConfig, seed: int) -> ShownTimes:
    """The times that probes look at: first those around the middle, then those of the two random views."""
    return ShownTimes(config, partial(probe_numbers, config, seed))


def probe_numbers(config: ViewsConfig, seed: int, position: int, clips: int) -> Tensor:
    pair = numbers_of_views([view_generator(seed, "probe", view) for view in range(2)], clips)
    return torch.cat([middle_numbers(config, clips)[:, None], pair], 1)


def numbers_of_views(generators: Sequence[torch.Generator], clips: int, rank: int = 0, world: int = 1) -> Tensor:
    """Numbers (clips, views, 2); those that `draw_clips` draws first of each generator."""
    return torch.stack([Uniform(one, clips, rank, world)(2) for one in generators], 1)


def view_generator(seed: int, *parts: int | str) -> torch.Generator:
    """Randomness of views that follows from the run's seed and these parts alone."""
    return torch.Generator().manual_seed(derived_seed(seed, *parts))
