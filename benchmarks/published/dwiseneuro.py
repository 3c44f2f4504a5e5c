"""DwiseNeuro as published, operation by operation, for the benchmark.

What comes in: planes (batch, 5, frames, 64, 64): video in zeros, pupil dilation, speed, pupil x and y. What goes out:
a list with one (batch, neurons, frames) per animal; all readouts are computed, and the positional encoding is made anew
in each block. Source: Baikulov 2023, https://github.com/lRomul/sensorium (experiment true_batch_001).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .encoder import NEURONS

FEATURES = (64, 64, 64, 64, 128, 128, 128, 256, 256)
STRIDES = (2, 1, 1, 1, 2, 1, 1, 2, 1)
CORTEX_FEATURES = (1024, 2048, 4096)


class PlainDwiseNeuro(nn.Module):
    """Core, cortex and a readout per animal; arguments as the published configuration has them."""

    def __init__(
        self,
        neurons: Sequence[int] = NEURONS,
        features: Sequence[int] = FEATURES,
        strides: Sequence[int] = STRIDES,
        cortex_features: Sequence[int] = CORTEX_FEATURES,
        expansion: int = 7,
        squeeze: int = 32,
        in_channels: int = 5,
        drop_path: float = 0.1,
        dropout: float = 0.4,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(in_channels, features[0], 1, bias=False), nn.BatchNorm3d(features[0]))
        widths = (*features, features[-1])
        self.blocks = nn.ModuleList(
            Block(widths[i], widths[i + 1], stride, expansion, squeeze, drop_path * i / len(features))
            for i, stride in enumerate(strides)
        )
        widths = (features[-1], *cortex_features)
        self.cortex = nn.ModuleList(
            CortexLayer(widths[i], widths[i + 1], drop_path) for i in range(len(cortex_features))
        )
        self.readouts = nn.ModuleList(Readout(widths[-1], count, dropout) for count in neurons)

    def encode(self, planes: Tensor) -> Tensor:
        activation = self.stem(planes)
        for block in self.blocks:
            activation = block(with_positions(activation))
        activation = activation.mean((3, 4))
        for layer in self.cortex:
            activation = layer(activation)
        return activation

    def forward(self, planes: Tensor) -> list[Tensor]:
        encoded = self.encode(planes)
        return [readout(encoded) for readout in self.readouts]


class Block(nn.Module):
    """Inverted residual block with a spatial and a temporal depthwise convolution and squeeze-and-excitation."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, squeeze: int, drop_path: float) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.outputs, self.stride, self.drop_path = outputs, stride, drop_path
        self.conv_pw = conv_norm_silu(inputs, hidden, (1, 1, 1), 1)
        self.spat_conv_dw = conv_norm_silu(hidden, hidden, (1, 3, 3), stride, hidden)
        self.temp_conv_dw = conv_norm_silu(hidden, hidden, (5, 1, 1), 1, hidden)
        self.conv_reduce = nn.Conv3d(hidden, hidden // squeeze, 1)
        self.conv_expand = nn.Conv3d(hidden // squeeze, hidden, 1)
        self.conv_pwl = nn.Sequential(nn.Conv3d(hidden, outputs, 1, bias=False), nn.BatchNorm3d(outputs))
        self.bn_sc = nn.BatchNorm3d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.stride > 1:
            size = [x.shape[2], math.ceil(x.shape[3] / self.stride), math.ceil(x.shape[4] / self.stride)]
            shortcut = F.interpolate(shortcut, size, mode="nearest")
        shortcut = self.bn_sc(tiled(shortcut, self.outputs))
        x = self.temp_conv_dw(self.spat_conv_dw(self.conv_pw(x)))
        gate = self.conv_expand(F.silu(self.conv_reduce(x.mean((2, 3, 4), keepdim=True))))
        x = self.conv_pwl(x * gate.sigmoid())
        return drop_paths(x, self.drop_path, self.training) + shortcut


class CortexLayer(nn.Module):
    """Grouped linear layer over channels, whose groups are shuffled."""

    def __init__(self, inputs: int, outputs: int, drop_path: float, groups: int = 2) -> None:
        super().__init__()
        self.outputs, self.groups, self.drop_path = outputs, groups, drop_path
        self.conv = nn.Conv1d(inputs, outputs, 1, groups=groups, bias=False)
        self.bn = nn.BatchNorm1d(outputs)
        self.bn_sc = nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.bn_sc(tiled(x, self.outputs))
        x = F.silu(self.bn(self.conv(x)))
        x = x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)
        return drop_paths(x, self.drop_path, self.training) + shortcut


class Readout(nn.Module):
    """Grouped linear layer to an even number of outputs, of which an odd animal's last is left out; softplus."""

    def __init__(self, inputs: int, neurons: int, dropout: float, groups: int = 2) -> None:
        super().__init__()
        self.neurons = neurons
        self.dropout = nn.Dropout1d(dropout)
        self.conv = nn.Conv1d(inputs, math.ceil(neurons / groups) * groups, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(self.conv(self.dropout(x))[:, : self.neurons], beta=0.07, threshold=20)


def conv_norm_silu(inputs: int, outputs: int, kernel: tuple[int, ...], stride: int, groups: int = 1) -> nn.Sequential:
    padding = tuple(side // 2 for side in kernel)
    conv = nn.Conv3d(inputs, outputs, kernel, (1, stride, stride), padding, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm3d(outputs), nn.SiLU())


def with_positions(x: Tensor) -> Tensor:
    """Sines and cosines of frame, row and column, made anew."""
    channels = math.ceil(x.shape[1] / 6) * 2
    frequencies = 10000 ** -(torch.arange(0, channels, 2, device=x.device).float() / channels)
    table = torch.zeros(*x.shape[2:], 3 * channels, device=x.device, dtype=x.dtype)
    for axis, length in enumerate(x.shape[2:]):
        angles = torch.arange(length, device=x.device).float()[:, None] * frequencies
        waves = torch.cat((angles.sin(), angles.cos()), -1)
        shape = [1, 1, 1, channels]
        shape[axis] = length
        table[..., axis * channels : (axis + 1) * channels] = waves.view(shape)
    encoding = table[None, ..., : x.shape[1]].repeat(len(x), 1, 1, 1, 1)
    return x + encoding.permute(0, 4, 1, 2, 3)


def tiled(x: Tensor, channels: int) -> Tensor:
    repeats = [1, math.ceil(channels / x.shape[1]), *[1] * (x.ndim - 2)]
    return x.repeat(repeats)[:, :channels]


def drop_paths(x: Tensor, rate: float, training: bool) -> Tensor:
    if not training or not rate:
        return x
    keep = x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(1 - rate) / (1 - rate)
    return x * keep
