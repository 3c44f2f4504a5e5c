"""The full 3-D core of the Sensorium 2023 starter kit: convolutions over space and time at once.

What comes in: video (batch, channels, time, height, width), per-frame normalised, and behaviour (batch, 2, time), which
fills two more channels. What goes out: (batch, channels, time - 16, height, width) at the published size; the last
output belongs to the last frame and depends on no later one. A layer is a convolution, batch norm, ELU. Source:
`Basic3dCore` of neuralpredictors in `models_demo.ipynb` of ecker-lab/sensorium_2023
(https://github.com/ecker-lab/sensorium_2023; Turishcheva et al. 2024, https://arxiv.org/abs/2407.09100).
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pretrain.models.behavior_channels import SignalChannels
from pretrain.models.elu import ShiftedElu
from pretrain.models.factorized3d import require_long_enough, require_per_layer
from pretrain.models.regularizers import input_penalty, temporal_laplace

CHANNELS = (64, 64)
SPATIAL_KERNELS, TEMPORAL_KERNELS = (9, 7), (9, 9)


class Full3d(nn.Module):
    """Layers of a spatio-temporal convolution.

    Args:
        video_channels: of the video itself.
        behavior_channels, pupil_channels: signals that are appended as channels; 0 ignores them.
        channels: of each layer.
        spatial_kernels, temporal_kernels: of each layer, in pixels and frames.
        pad: fill the border with zeros so that maps keep their size; time is never padded.
        stride: of each layer, in pixels.
        momentum: of batch norm; 0.7 as published makes the running statistics nearly those of the last batch.
        final_nonlinearity: end in ELU. False leaves it out of the last layer, which the published code announces and,
            with more than one layer, does not do.
        gamma_spatial, gamma_temporal: weights of the two terms of `regularizer`.
        spatial_regularizer: name of the penalty on the first kernels at each time; summed, with half-filter padding.
    """

    def __init__(
        self,
        video_channels: int = 1,
        behavior_channels: int = 2,
        pupil_channels: int = 0,
        channels: Sequence[int] = CHANNELS,
        spatial_kernels: Sequence[int] = SPATIAL_KERNELS,
        temporal_kernels: Sequence[int] = TEMPORAL_KERNELS,
        pad: bool = True,
        stride: int = 1,
        momentum: float = 0.7,
        final_nonlinearity: bool = True,
        gamma_spatial: float = 0.0,
        gamma_temporal: float = 0.0,
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
            side = over_space // 2 if pad else 0
            kernel, steps = (over_time, over_space, over_space), (1, stride, stride)
            parts = OrderedDict(
                conv=nn.Conv3d(inputs, outputs, kernel, steps, (0, side, side)),
                norm=nn.BatchNorm3d(outputs, momentum=momentum),
            )
            if final_nonlinearity or len(self.features) < len(channels) - 1:
                parts["nonlin"] = ShiftedElu()
            self.features.append(nn.Sequential(parts))
            inputs = outputs
        self.initialise()

    def initialise(self) -> None:
        """Convolutions as published: Glorot's normal distribution, no bias."""
        for layer in self.features:
            nn.init.xavier_normal_(layer.conv.weight)
            nn.init.zeros_(layer.conv.bias)

    def output_shape(self, time: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(channels, time, height, width) of the output for a video of this size."""
        sides = (time, height, width)
        for layer in self.features:
            geometry = zip(sides, layer.conv.kernel_size, layer.conv.stride, layer.conv.padding, strict=True)
            sides = tuple((side + 2 * padding - kernel) // stride + 1 for side, kernel, stride, padding in geometry)
        return self.out_channels, *sides

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
        maps = video
        if signals is not None:
            maps = torch.cat([video, signals[..., None, None].expand(-1, -1, -1, *video.shape[3:])], 1)
        for layer in self.features:
            maps = layer(maps)
        return maps

    def regularizer_terms(self) -> dict[str, Tensor]:
        """Roughness of the first layer's kernels over space, summed over times, and over time, summed over pixels."""
        weight = self.features[0].conv.weight
        spatial = sum(self.spatial_penalty(weight[:, :, time], average=False) for time in range(weight.shape[2]))
        of_pixels = weight.flatten(3).unbind(-1)
        temporal = sum(temporal_laplace(kernels) for kernels in of_pixels)
        return {"spatial": self.gamma_spatial * spatial, "temporal": self.gamma_temporal * temporal}

    def regularizer(self) -> Tensor:
        """What training adds to the loss."""
        return sum(self.regularizer_terms().values())
