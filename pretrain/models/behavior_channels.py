"""Behaviour and gaze as further input channels of a convolution, without the planes that they would fill.

What comes in: pictures (batch, channels, height, width) or a video (batch, channels, time, height, width), behaviour
(batch, values[, time]) and pupil centre (batch, 2[, time]). What goes out: what a convolution gives for the pictures
with each value as one more channel, the same at every pixel, as the loaders of Sensorium 2022 and 2023 append them. A
plane that is constant needs no convolution: without padding it adds its value times the sum of the kernel, with padding
its value times the kernel's map of a plane of ones.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SignalChannels:
    """Which of an animal's signals a core takes as channels, after those of the picture.

    Args:
        picture: channels of the image or video.
        behavior: values of behaviour that are appended; 0 ignores behaviour.
        pupil: 2 appends the pupil centre, 0 does not.
    """

    def __init__(self, picture: int, behavior: int = 0, pupil: int = 0) -> None:
        if pupil not in (0, 2):
            raise ValueError(f"pupil_channels must be 0 or 2 (horizontal and vertical), found {pupil}")
        self.picture, self.behavior, self.pupil = picture, behavior, pupil

    @property
    def total(self) -> int:
        """Input channels of the first convolution."""
        return self.picture + self.behavior + self.pupil

    def signals(self, stimulus: Tensor, behavior: Tensor | None, pupil_center: Tensor | None) -> Tensor | None:
        """The signals of a batch in the order of the channels, (batch, signals[, time]); None where there are none.

        Raises:
            ValueError: channels of the stimulus, or a signal, that are not as the core was built for.
        """
        if stimulus.shape[1] != self.picture:
            raise ValueError(f"the core takes {self.picture} channels of picture, found {stimulus.shape[1]}")
        wanted = (("behavior", behavior, self.behavior), ("pupil_center", pupil_center, self.pupil))
        found = [checked(name, signal, stimulus, count) for name, signal, count in wanted if count]
        return torch.cat(found, 1).to(stimulus.dtype) if found else None


def checked(name: str, signal: Tensor | None, stimulus: Tensor, count: int) -> Tensor:
    expected = (stimulus.shape[0], count, *stimulus.shape[2:-2])
    if signal is None or tuple(signal.shape) != expected:
        found = "none" if signal is None else f"shape {tuple(signal.shape)}"
        raise ValueError(f"the core takes {name} of shape {expected} as channels, found {found}")
    return signal


def convolve_with_planes(
    conv: nn.Conv2d, pictures: Tensor, values: Tensor | None, weight: Tensor | None = None
) -> Tensor:
    """`conv` of pictures (batch, channels, height, width), each with planes filled with `values` (batch, signals).

    `weight` stands for the convolution's own where that is made of something else.
    """
    weight = conv.weight if weight is None else weight
    if values is None:
        return convolve(conv, pictures, weight, conv.bias)
    inputs = pictures.shape[1]
    maps = convolve(conv, pictures, weight[:, :inputs], conv.bias)
    of_planes = weight[:, inputs:]
    if not any(conv.padding):
        return maps.add_((values @ of_planes.sum((2, 3)).T)[..., None, None])
    ones = pictures.new_ones(1, 1, *pictures.shape[2:])
    responses = convolve(conv, ones, of_planes.reshape(-1, 1, *of_planes.shape[2:]), None)
    responses = responses.reshape(*of_planes.shape[:2], *maps.shape[2:])
    return maps.add_(torch.einsum("bk,okhw->bohw", values, responses))


def convolve(conv: nn.Conv2d, pictures: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(pictures, weight, bias, conv.stride, conv.padding, conv.dilation)
