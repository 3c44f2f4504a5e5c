"""DwiseNeuro: a video core of convolutions that are depthwise over space and over time, and a cortex of grouped layers.

What comes in: `video` (batch, 1, frames, 36, 64), grey levels 0 to 255 as recorded; `behavior` (batch, 2, frames),
pupil dilation and running speed; `pupil_center` (batch, 2, frames), x and y; none of them normalised. Published clips
are 16 frames, every second one of 30 Hz. What goes out: (batch, 4096, frames, 1, 1), for a grouped linear readout of
every frame. Each frame of it sees all frames, later ones too. Source: Baikulov 2023, winner of Sensorium 2023,
https://github.com/lRomul/sensorium (`true_batch_001`; `distillation_001` has `expansion=6`); the blocks are those of
MobileNetV2 and EfficientNet (https://arxiv.org/abs/1801.04381, https://arxiv.org/abs/1905.11946) with time.

Kept as published, because the weights depend on it: scalars of behaviour fill the padding around the video too, and a
block's shortcut branches off after the positional encoding was added. Computed differently, with the same numbers:
convolutions are two-dimensional with channels last, where frames are part of the batch, or rows of an image; the gate
of squeeze-and-excitation scales the weights of the projection, not what it projects; the encoding is made once;
normalised and activated maps, and the widest ones, are not kept for the gradient (`recompute`).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import stochastic_depth

from pretrain.models.recompute import without_keeping

FEATURES = (64, 64, 64, 64, 128, 128, 128, 256, 256)
STRIDES = (2, 1, 1, 1, 2, 1, 1, 2, 1)
CORTEX_FEATURES = (1024, 2048, 4096)
CANVAS = (64, 64)
LONGEST_PERIOD = 10000


class DwiseNeuro(nn.Module):
    """Core and cortex in one.

    Args:
        in_channels: of the video, behaviour and pupil centre together.
        features, strides: width, and spatial stride, of each inverted residual block.
        cortex_features: width of each layer of the cortex.
        spatial_kernel, temporal_kernel: of the depthwise convolutions, pixels and frames, odd.
        expansion: how many times wider a block is within.
        squeeze: how many times narrower squeeze-and-excitation is than that.
        groups: of the cortex's layers.
        drop_path: rate of the cortex's layers; block i of n has i / n of it.
        canvas: height and width in pixels that the video is centred in, in zeros.
        recompute: keep only the inputs of each block's convolutions over space, over time and of its projection before
            they are normalised and activated, and compute the rest again for the gradient.
    """

    def __init__(
        self,
        in_channels: int = 5,
        features: Sequence[int] = FEATURES,
        strides: Sequence[int] = STRIDES,
        cortex_features: Sequence[int] = CORTEX_FEATURES,
        spatial_kernel: int = 3,
        temporal_kernel: int = 5,
        expansion: int = 7,
        squeeze: int = 32,
        groups: int = 2,
        drop_path: float = 0.1,
        canvas: tuple[int, int] = CANVAS,
        recompute: bool = True,
    ) -> None:
        super().__init__()
        if len(features) != len(strides):
            raise ValueError(f"DwiseNeuro needs a stride per block: {len(features)} features, {len(strides)} strides")
        self.in_channels, self.canvas, self.out_channels = in_channels, tuple(canvas), cortex_features[-1]
        kernels = spatial_kernel, temporal_kernel
        self.stem = ConvNorm(in_channels, features[0])
        outputs = (*features[1:], features[-1])
        self.blocks = nn.ModuleList(
            InvertedResidual(
                inputs, outputs[i], strides[i], kernels, expansion, squeeze, drop_path * i / len(features), recompute
            )
            for i, inputs in enumerate(features)
        )
        widths = (features[-1], *cortex_features)
        self.cortex = nn.ModuleList(
            CortexLayer(inputs, widths[i + 1], groups, drop_path) for i, inputs in enumerate(widths[:-1])
        )
        self.apply(initialise)

    def output_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Channels, frames, height and width that come of a clip: one vector per frame."""
        return self.out_channels, frames, 1, 1

    def forward(
        self,
        video: Tensor,
        behavior: Tensor | None = None,
        pupil_center: Tensor | None = None,
        animal: str | None = None,
    ) -> Tensor:
        return self.encode(self.planes(video, behavior, pupil_center))

    def planes(self, video: Tensor, behavior: Tensor | None = None, pupil_center: Tensor | None = None) -> Tensor:
        """The video centred in zeros, and a whole plane, padding too, for each scalar of a frame.

        Returns:
            (batch, channels, frames, height, width) of the canvas: video, dilation, speed, pupil x, pupil y.
        """
        height, width = video.shape[3:]
        below, right = self.canvas[0] - height, self.canvas[1] - width
        if min(below, right) < 0:
            raise ValueError(
                f"DwiseNeuro's canvas is {self.canvas[0]} x {self.canvas[1]} pixels, the video {height} x {width}; "
                "give a larger canvas or smaller frames"
            )
        centred = F.pad(video, (right // 2, right - right // 2, below // 2, below - below // 2))
        scalars = [state for state in (behavior, pupil_center) if state is not None]
        filled = [state.to(video.dtype)[..., None, None].expand(*state.shape, *self.canvas) for state in scalars]
        planes = torch.cat((centred, *filled), 1)
        if planes.shape[1] != self.in_channels:
            found = " + ".join(str(each.shape[1]) for each in (video, *scalars))
            raise ValueError(
                f"DwiseNeuro takes {self.in_channels} channels of video, behavior and pupil_center, found {found}; "
                "give them, or in_channels"
            )
        return planes

    def encode(self, planes: Tensor) -> Tensor:
        """(batch, in_channels, frames, height, width) -> (batch, out_channels, frames, 1, 1)."""
        activation = self.stem(planes.contiguous(memory_format=torch.channels_last_3d))
        for block in self.blocks:
            activation = block(activation)
        if activation.requires_grad:
            # The mean's gradient has no order in memory of its own.
            activation.register_hook(partial(torch.clone, memory_format=torch.channels_last_3d))
        activation = activation.mean((3, 4))
        for layer in self.cortex:
            activation = layer(activation)
        return activation[..., None, None]


class InvertedResidual(nn.Module):
    """Widen, convolve each channel over space and then over time, gate, narrow; the input is added.

    (batch, inputs, frames, height, width) -> (batch, outputs, frames, ceil(height / stride), ceil(width / stride)).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        kernels: tuple[int, int],
        expansion: int,
        squeeze: int,
        drop_path: float,
        recompute: bool,
    ) -> None:
        super().__init__()
        hidden = inputs * expansion
        spatial, temporal = kernels
        self.stride, self.drop_path, self.recompute = stride, drop_path, recompute
        self.positions = PositionalEncoding()
        self.expand = ConvNorm(inputs, hidden)
        self.spatial = ConvNorm(hidden, hidden, (1, spatial, spatial), stride, groups=hidden)
        self.temporal = ConvNorm(hidden, hidden, (temporal, 1, 1), groups=hidden)
        self.gate = SqueezeExcitation(hidden, hidden // squeeze)
        self.project = ConvNorm(hidden, outputs)
        self.shortcut_norm = nn.BatchNorm3d(outputs)

    def forward(self, activation: Tensor) -> Tensor:
        activation = self.positions(activation)
        hidden = self.without_keeping(self.expanded, self.expand.norm, activation)
        hidden = self.without_keeping(self.over_time, self.spatial.norm, hidden)
        hidden = self.without_keeping(self.gated, self.temporal.norm, hidden)
        hidden = stochastic_depth(self.project.norm(hidden), self.drop_path, "row", self.training)
        return hidden + self.shortcut(activation)

    def without_keeping(self, step: Callable[[Tensor], Tensor], norm: _BatchNorm, activation: Tensor) -> Tensor:
        return without_keeping(step, norm, activation) if self.recompute else step(activation)

    def expanded(self, activation: Tensor) -> Tensor:
        """Widened and convolved over space; the wide map before the stride is the largest, so it is not kept either."""
        return self.spatial.convolve(F.silu(self.expand(activation)))

    def over_time(self, hidden: Tensor) -> Tensor:
        return self.temporal.convolve(F.silu(self.spatial.norm(hidden)))

    def gated(self, hidden: Tensor) -> Tensor:
        """Narrowed with weights that the gate scales, per sample: the same as scaling the channels, and less work."""
        hidden = F.silu(self.temporal.norm(hidden))
        weight = self.project.weight.flatten(1) * self.gate(hidden)[:, None]
        pixels = hidden.movedim(1, -1)
        projected = pixels.flatten(1, 3) @ weight.transpose(1, 2).to(hidden.dtype)
        return projected.unflatten(1, pixels.shape[1:4]).movedim(-1, 1)

    def shortcut(self, activation: Tensor) -> Tensor:
        """Nearest pixels, channels repeated, with channels last: so their gradient has the order of the convolutions',
        without which batch norm is several times slower."""
        pixels = activation.movedim(1, -1)
        if self.stride > 1:
            for axis in (2, 3):
                pixels = pixels.index_select(axis, nearest(pixels.shape[axis], self.stride, pixels.device))
        return self.shortcut_norm(tiled(pixels, self.shortcut_norm.num_features, -1).movedim(-1, 1))


class ConvNorm(nn.Module):
    """A convolution of space or of time alone, without a bias, and its batch norm.

    The weight is three-dimensional, as published. Pixels are convolved as images whose batch is all frames, time as
    images whose rows are frames and whose columns are all pixels: depthwise, that is several times faster on a CPU.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int, int] = (1, 1, 1), stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.groups = kernel, stride, groups
        self.weight = nn.Parameter(torch.empty(outputs, inputs // groups, *kernel))
        self.norm = nn.BatchNorm3d(outputs)

    def forward(self, activation: Tensor) -> Tensor:
        return self.norm(self.convolve(activation))

    def convolve(self, activation: Tensor) -> Tensor:
        """(batch, inputs, frames, height, width) -> (batch, outputs, frames, height, width), not normalised."""
        before, above, left = (side // 2 for side in self.kernel)
        # Channels are last before axes are put together: where the batch is 1, torch otherwise loses the layout.
        pixels = activation.movedim(1, -1)
        if before:
            rows = pixels.flatten(2, 3).movedim(-1, 1)
            rows = F.conv2d(rows, self.weight.flatten(3), None, 1, (before, 0), groups=self.groups)
            return rows.movedim(1, -1).unflatten(2, pixels.shape[2:4]).movedim(-1, 1)
        images = pixels.flatten(0, 1).movedim(-1, 1)
        images = F.conv2d(images, self.weight[:, :, 0], None, self.stride, (above, left), groups=self.groups)
        return images.movedim(1, -1).unflatten(0, pixels.shape[:2]).movedim(-1, 1)


class SqueezeExcitation(nn.Module):
    """A gate per channel from the mean over frames and pixels (https://arxiv.org/abs/1709.01507).

    (batch, channels, frames, height, width) -> (batch, channels), from 0 to 1.
    """

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv3d(channels, squeezed, 1)
        self.expand = nn.Conv3d(squeezed, channels, 1)

    def forward(self, activation: Tensor) -> Tensor:
        mean = activation.mean((2, 3, 4))
        hidden = F.silu(F.linear(mean, self.reduce.weight.flatten(1), self.reduce.bias))
        return F.linear(hidden, self.expand.weight.flatten(1), self.expand.bias).sigmoid()


class PositionalEncoding(nn.Module):
    """Adds fixed sines and cosines of frame, row and column to (batch, channels, frames, height, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", None, persistent=False)

    def forward(self, activation: Tensor) -> Tensor:
        held, shape = self.table, activation.shape[1:]
        if held is None or (held.shape, held.dtype, held.device) != (shape, activation.dtype, activation.device):
            self.table = position_table(*shape, device=activation.device).to(activation.dtype)
        return activation + self.table


class CortexLayer(nn.Module):
    """A grouped linear layer of each frame, whose groups are then shuffled; the input, repeated, is added.

    (batch, inputs, frames) -> (batch, outputs, frames). Shuffling is ShuffleNet's, https://arxiv.org/abs/1707.01083.
    """

    def __init__(self, inputs: int, outputs: int, groups: int, drop_path: float) -> None:
        super().__init__()
        self.groups, self.drop_path = groups, drop_path
        self.conv = nn.Conv1d(inputs, outputs, 1, groups=groups, bias=False)
        self.norm = nn.BatchNorm1d(outputs)
        self.shortcut_norm = nn.BatchNorm1d(outputs)

    def forward(self, activation: Tensor) -> Tensor:
        hidden = F.silu(self.norm(self.conv(activation)))
        hidden = hidden.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)
        hidden = stochastic_depth(hidden, self.drop_path, "row", self.training)
        return hidden + self.shortcut_norm(tiled(activation, self.shortcut_norm.num_features))


def position_table(channels: int, frames: int, height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Sines, then cosines, of frame, row and column, counted from 0, cut to (channels, frames, height, width).

    Each axis has 2 ceil(channels / 6) channels, whose periods grow to 10000 x 2 pi (https://arxiv.org/abs/1706.03762).
    """
    of_axis = 2 * math.ceil(channels / 6)
    frequencies = LONGEST_PERIOD ** -(torch.arange(0, of_axis, 2, dtype=torch.float32, device=device) / of_axis)
    waves = []
    for axis, length in enumerate((frames, height, width)):
        angles = frequencies[:, None] * torch.arange(length, dtype=torch.float32, device=device)
        shape = [of_axis, *(length if other == axis else 1 for other in range(3))]
        waves.append(torch.cat((angles.sin(), angles.cos())).view(shape).expand(-1, frames, height, width))
    table = torch.cat(waves)[:channels]
    return table.movedim(0, -1).contiguous().movedim(-1, 0)


def nearest(length: int, stride: int, device: torch.device | None = None) -> Tensor:
    """The pixels that nearest interpolation to ceil(length / stride) pixels takes."""
    left = math.ceil(length / stride)
    return torch.arange(left, device=device) * length // left


def tiled(activation: Tensor, channels: int, axis: int = 1) -> Tensor:
    """Channels repeated from the first on until there are so many, or cut."""
    if activation.shape[axis] == channels:
        return activation
    repeats = (activation,) * math.ceil(channels / activation.shape[axis])
    return torch.cat(repeats, axis).narrow(axis, 0, channels)


def initialise(module: nn.Module) -> None:
    """Weights of convolutions N(0, 2 / fan-out), with fan-out per group as published; biases 0."""
    if isinstance(module, ConvNorm | nn.Conv1d | nn.Conv3d):
        outputs, _, *kernel = module.weight.shape
        nn.init.normal_(module.weight, std=math.sqrt(2 * module.groups / (outputs * math.prod(kernel))))
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
