"""The factorised 3-D core in plain operations, as its authors compute it: the peer in `encoder_step.py`.

What comes in and goes out: as of `pretrain.models.factorized3d`, at the published settings. Behaviour is copied into
planes, and every convolution is a three-dimensional one. State-dict keys are the published ones below `core.`, without
the constants. Written from the description of `Factorized3dCore` of https://github.com/sinzlab/neuralpredictors.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def published_factorized3d(**sizes) -> nn.Module:
    """The core at its published size, or with other `sizes`."""
    return PlainFactorized3d(**sizes)


class PlainFactorized3d(nn.Module):
    """Conv3d (1, k, k), Conv3d (t, 1, 1), BatchNorm3d and ELU in each layer."""

    def __init__(
        self,
        inputs: int = 3,
        channels: Sequence[int] = (32, 64, 128),
        spatial_kernels: Sequence[int] = (11, 5, 5),
        temporal_kernels: Sequence[int] = (11, 5, 5),
        pad: bool = False,
        momentum: float = 0.7,
    ) -> None:
        super().__init__()
        self.features, self.out_channels = nn.Sequential(), channels[-1]
        for number, (outputs, over_space, over_time) in enumerate(
            zip(channels, spatial_kernels, temporal_kernels, strict=True)
        ):
            suffix = f"_{number}" if number else ""
            side = over_space // 2 if pad else 0
            layer = OrderedDict()
            layer[f"conv_spatial{suffix}"] = nn.Conv3d(
                inputs, outputs, (1, over_space, over_space), padding=(0, side, side)
            )
            layer[f"conv_temporal{suffix}"] = nn.Conv3d(outputs, outputs, (over_time, 1, 1))
            layer["norm"] = nn.BatchNorm3d(outputs, momentum=momentum)
            layer["nonlin"] = nn.ELU()
            self.features.add_module(f"layer{number}", nn.Sequential(layer))
            inputs = outputs

    def forward(self, video: Tensor, behavior: Tensor, pupil_center: Tensor | None = None) -> Tensor:
        planes = behavior[..., None, None].expand(-1, -1, -1, *video.shape[3:])
        return self.features(torch.cat([video, planes], 1))
