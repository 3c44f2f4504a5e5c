"""The factorised 3-D core of the Sensorium 2023 baselines: space first, then time, in every layer.

What comes in: video (batch, channels, time, height, width), per-frame normalised, and behaviour (batch, 2, time), which
fills two more channels. What goes out: (batch, channels, time - 18, height - 18, width - 18) at the published size; the
last output belongs to the last frame and depends on no later one. A layer is a convolution over space, one over time,
batch norm, ELU. Source: `Factorized3dCore` of neuralpredictors in the configuration of ecker-lab/sensorium_2023
(https://github.com/ecker-lab/sensorium_2023; Turishcheva et al. 2024, https://arxiv.org/abs/2407.09100).

Both convolutions are two-dimensional ones on memory that has the channels last: (frames, height, width, channels) seen
as pictures, and the same memory as (time, height x width, channels), where a (kernel, 1) convolution is one over time.
What batch norm and ELU give between layers is not kept for the gradient, but computed again.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from pretrain.models.behavior_channels import SignalChannels, convolve_with_planes
from pretrain.models.elu import elu_
from pretrain.models.recompute import in_turn, without_keeping
from pretrain.models.regularizers import input_penalty, temporal_laplace

CHANNELS = (32, 64, 128)
SPATIAL_KERNELS = TEMPORAL_KERNELS = (11, 5, 5)


class Factorized3d(nn.Module):
    """Layers of a spatial and a temporal convolution.

    Args:
        video_channels: of the video itself.
        behavior_channels, pupil_channels: signals that are appended as channels; 0 ignores them.
        channels: of each layer.
        spatial_kernels, temporal_kernels: of each layer, in pixels and frames.
        pad: fill the border with zeros so that maps keep their size; time is never padded.
        stride: of each layer's spatial convolution, in pixels.
        momentum: of batch norm; 0.7 as published makes the running statistics nearly those of the last batch.
        final_nonlinearity: end in ELU. False leaves it out of the last layer, which the published code announces and,
            with more than one layer, does not do.
        gamma_spatial, gamma_temporal: weights of the two terms of `regularizer`.
        spatial_regularizer: name of the penalty on the first spatial kernels; summed, with half-filter padding.
    """

    def __init__(
        self,
        video_channels: int = 1,
        behavior_channels: int = 2,
        pupil_channels: int = 0,
        channels: Sequence[int] = CHANNELS,
        spatial_kernels: Sequence[int] = SPATIAL_KERNELS,
        temporal_kernels: Sequence[int] = TEMPORAL_KERNELS,
        pad: bool = False,
        stride: int = 1,
        momentum: float = 0.7,
        final_nonlinearity: bool = True,
        gamma_spatial: float = 10.0,
        gamma_temporal: float = 0.01,
        spatial_regularizer: str = "LaplaceL2norm",
    ) -> None:
        super().__init__()
        require_per_layer(channels, spatial_kernels=spatial_kernels, temporal_kernels=temporal_kernels)
        self.signals = SignalChannels(video_channels, behavior_channels, pupil_channels)
        self.gamma_spatial, self.gamma_temporal = gamma_spatial, gamma_temporal
        self.spatial_penalty = input_penalty(spatial_regularizer)
        self.out_channels = channels[-1]
        self.features = nn.ModuleList()
        inputs = self.signals.total
        for outputs, over_space, over_time in zip(channels, spatial_kernels, temporal_kernels, strict=True):
            last = len(self.features) == len(channels) - 1
            padding = over_space // 2 if pad else 0
            layer = FactorizedLayer(
                inputs, outputs, over_space, over_time, stride, padding, momentum, final_nonlinearity or not last
            )
            self.features.append(layer)
            inputs = outputs
        self.initialise()

    def initialise(self) -> None:
        """Convolutions as published: Glorot's normal distribution, no bias."""
        for layer in self.features:
            for conv in (layer.conv_spatial, layer.conv_temporal):
                nn.init.xavier_normal_(conv.weight)
                nn.init.zeros_(conv.bias)

    def output_shape(self, time: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(channels, time, height, width) of the output for a video of this size."""
        for layer in self.features:
            time, height, width = layer.output_shape(time, height, width)
        return self.out_channels, time, height, width

    def forward(
        self,
        video: Tensor,
        behavior: Tensor | None = None,
        pupil_center: Tensor | None = None,
        animal: str | None = None,
    ) -> Tensor:
        """(batch, channels, time', height', width'); behaviour and pupil centre are used as built, the animal never."""
        require_long_enough(self.output_shape(*video.shape[2:]), video)
        signals = self.signals.signals(video, behavior, pupil_center)
        # (batch, time, height, width, channels) in memory, from here on to the end.
        clips = video.permute(0, 2, 3, 4, 1).contiguous()
        first = self.features[0]
        clips = first.over_time(first.over_space(clips, signals))
        for before, layer in pairwise(self.features):
            clips = without_keeping(in_turn(before.activated, layer.over_space), before.norm, clips)
            clips = layer.over_time(clips)
        clips = self.features[-1].activated(clips)
        if clips.requires_grad:
            # Convolution and batch norm are slow where a gradient has another order in memory than what it belongs to.
            clips.register_hook(Tensor.contiguous)
        return clips.permute(0, 4, 1, 2, 3)

    def regularizer_terms(self) -> dict[str, Tensor]:
        """Roughness of the first layer's kernels over space and over time, weighted."""
        first = self.features[0]
        return {
            "spatial": self.gamma_spatial * self.spatial_penalty(first.conv_spatial.weight, average=False),
            "temporal": self.gamma_temporal * temporal_laplace(first.conv_temporal.weight[..., 0]),
        }

    def regularizer(self) -> Tensor:
        """What training adds to the loss."""
        return sum(self.regularizer_terms().values())


class FactorizedLayer(nn.Module):
    """Convolution over space, over time, batch norm and ELU, of clips (batch, time, height, width, channels)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        spatial_kernel: int,
        temporal_kernel: int,
        stride: int,
        padding: int,
        momentum: float,
        nonlinear: bool,
    ) -> None:
        super().__init__()
        self.conv_spatial = nn.Conv2d(inputs, outputs, spatial_kernel, stride, padding)
        self.conv_temporal = nn.Conv2d(outputs, outputs, (temporal_kernel, 1))
        self.norm = nn.BatchNorm2d(outputs, momentum=momentum)
        self.nonlinear = nonlinear

    def output_shape(self, time: int, height: int, width: int) -> tuple[int, int, int]:
        """(time, height, width) after this layer."""
        space = self.conv_spatial
        reach = space.kernel_size[0] - 2 * space.padding[0]
        height, width = ((side - reach) // space.stride[0] + 1 for side in (height, width))
        return time - self.conv_temporal.kernel_size[0] + 1, height, width

    def over_space(self, clips: Tensor, signals: Tensor | None = None) -> Tensor:
        """Convolved clips, with signals (batch, signals, time) as further channels where there are any."""
        values = None if signals is None else signals.transpose(1, 2).flatten(0, 1)
        maps = convolve_with_planes(self.conv_spatial, channels_second(clips.flatten(0, 1)), values)
        return channels_last(maps).unflatten(0, clips.shape[:2])

    def over_time(self, clips: Tensor) -> Tensor:
        """Convolved clips, not normalised."""
        moving = self.conv_temporal(channels_second(clips.flatten(2, 3)))
        return channels_last(moving).unflatten(2, clips.shape[2:4])

    def activated(self, clips: Tensor) -> Tensor:
        """Normalised, and where the layer is nonlinear, through ELU."""
        normed = self.norm(channels_second(clips.flatten(2, 3)))
        if self.nonlinear:
            normed = elu_(normed)
        return channels_last(normed).unflatten(2, clips.shape[2:4])


def channels_last(maps: Tensor) -> Tensor:
    """(batch, channels, rows, columns) as (batch, rows, columns, channels), of which memory has the order."""
    return maps.permute(0, 2, 3, 1).contiguous()


def channels_second(maps: Tensor) -> Tensor:
    """(batch, rows, columns, channels) as (batch, channels, rows, columns) on the same memory."""
    return maps.permute(0, 3, 1, 2)


def require_per_layer(channels: Sequence[int], **kernels: Sequence) -> None:
    for name, values in kernels.items():
        if len(values) != len(channels):
            raise ValueError(f"{name} must have one entry for each of {len(channels)} layers, found {len(values)}")


def require_long_enough(shape: tuple[int, ...], video: Tensor) -> None:
    if min(shape) < 1:
        size = " x ".join(map(str, video.shape[2:]))
        raise ValueError(f"a video of {size} (time, height, width) is too small for the core's kernels")
