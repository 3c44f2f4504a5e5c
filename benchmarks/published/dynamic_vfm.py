"""Dynamic-VFM as published, operation by operation, for the benchmark.

What comes in: video (batch, 1, 30, 36, 64), behavior and pupil_center (batch, 2, 30). What goes out: responses of one
animal, (batch, 15, neurons). All levels of the hierarchical readout are computed, whichever are used, and brought to
the number of neurons before they are refined. Source: Zhu 2023, https://github.com/zhuyu-cs/Dynamic-VFM.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .encoder import PlainGaussian, PlainShifter

LEVELS = {2: 32, 4: 64, 8: 128, 16: 256}
WINDOW = (8, 7, 7)


class PlainDynamicVFM(nn.Module):
    """Core, and a readout and a shifter per animal."""

    def __init__(
        self,
        neurons: Mapping[str, int],
        levels: Sequence[int] = tuple(LEVELS),
        fusion: str = "mean",
        channels: int = 224,
        blocks: int = 4,
        heads: int = 4,
        hidden: int = 488,
        window: tuple[int, int, int] = WINDOW,
        predictor: int = 32,
        shifter: int = 16,
    ) -> None:
        super().__init__()
        self.proj = nn.Conv3d(1, channels, 2, 2)
        self.norm = nn.LayerNorm(channels)
        self.blocks = nn.ModuleList(Block(channels, heads, hidden, window) for _ in range(blocks))
        self.readouts = nn.ModuleDict(
            {name: Readout(channels, count, levels, fusion, predictor) for name, count in neurons.items()}
        )
        self.shifters = nn.ModuleDict({name: PlainShifter(shifter) for name in neurons})

    def encode(self, video: Tensor, behavior: Tensor, pupil_center: Tensor) -> Tensor:
        states = torch.cat((behavior, pupil_center), 1).transpose(1, 2)
        video = F.pad(video, (0, video.shape[4] % 2, 0, video.shape[3] % 2))
        tokens = self.norm(self.proj(video).permute(0, 2, 3, 4, 1))
        for block in self.blocks:
            tokens = block(tokens, states)
        return tokens.permute(0, 4, 1, 2, 3)

    def forward(self, video: Tensor, behavior: Tensor, pupil_center: Tensor, animal: str) -> Tensor:
        features = self.encode(video, behavior, pupil_center)
        frames = features.shape[2]
        shift = self.shifters[animal](pupil_center[:, :, -frames:].transpose(1, 2).flatten(0, 1))
        return F.elu(self.readouts[animal](features, shift)) + 1


class Block(nn.Module):
    """Behaviour, shifted-window attention and a gated MLP with a depthwise convolution, each added."""

    def __init__(self, channels: int, heads: int, hidden: int, window: tuple[int, int, int]) -> None:
        super().__init__()
        self.behavior = nn.Sequential(
            nn.Linear(4, channels // 2), nn.Tanh(), nn.Linear(channels // 2, channels // 2), nn.Tanh()
        )
        self.attention = Attention(channels, heads, window)
        self.linear1 = nn.Linear(channels, 2 * hidden)
        self.conv = nn.Conv3d(hidden, hidden, 3, padding=1, groups=hidden)
        self.linear2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor, states: Tensor) -> Tensor:
        x = x + self.behavior(states).unflatten(1, (-1, 2)).flatten(2)[:, :, None, None]
        x = x + self.attention(x)
        first, second = self.linear1(x).chunk(2, -1)
        hidden = (first * F.silu(second)).permute(0, 4, 1, 2, 3)
        return x + self.linear2(F.gelu(self.conv(hidden)).permute(0, 2, 3, 4, 1))


class Attention(nn.Module):
    """Attention within shifted windows, with relative positions."""

    def __init__(self, channels: int, heads: int, window: tuple[int, int, int]) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        offsets = math.prod(2 * side - 1 for side in window)
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(torch.empty(offsets, heads), std=0.02))
        self.register_buffer("relative_position_index", relative_positions(window))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[1:4]
        window = tuple(min(side, length) for side, length in zip(self.window, size, strict=True))
        shift = tuple(0 if length <= side else side // 2 for side, length in zip(self.window, size, strict=True))
        border = [-length % side for length, side in zip(size, window, strict=True)]
        x = F.pad(x, (0, 0, 0, border[2], 0, border[1], 0, border[0]))
        padded = x.shape[1:4]
        x = torch.roll(x, [-step for step in shift], (1, 2, 3))
        x = self.attend(windows(x, window), wrapped_mask(tuple(padded), window, shift))
        x = from_windows(x, window, padded)
        x = torch.roll(x, shift, (1, 2, 3))
        return x[:, : size[0], : size[1], : size[2]]

    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        count, tokens, channels = x.shape
        q, k, v = self.qkv(x).view(count, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        index = self.relative_position_index[:tokens, :tokens]
        bias = self.relative_position_bias_table[index.reshape(-1)].view(tokens, tokens, -1).permute(2, 0, 1)
        scores = scores + bias[None]
        scores = scores.view(-1, len(mask), self.heads, tokens, tokens) + mask[None, :, None]
        probabilities = scores.view(-1, self.heads, tokens, tokens).softmax(-1)
        return self.proj((probabilities @ v).transpose(1, 2).reshape(count, tokens, channels))


class Readout(PlainGaussian):
    """Hierarchical Gaussian readout, all levels computed whichever are used."""

    def __init__(self, channels: int, neurons: int, levels: Sequence[int], fusion: str, predictor: int) -> None:
        super().__init__(channels, neurons, predictor, init_sigma=0.2)
        self.levels, self.fusion = tuple(levels), fusion
        self.features = nn.ParameterList(torch.full((1, channels, 1, neurons // step), 1 / channels) for step in LEVELS)
        self.refine = nn.ModuleList(
            nn.Sequential(nn.Conv1d(1, hidden, 1), nn.ELU(), nn.Conv1d(hidden, 1, 1, bias=False))
            for hidden in LEVELS.values()
        )
        self.fuse = nn.ModuleList(
            nn.Sequential(nn.Linear(maps, maps), nn.ReLU(), nn.Linear(maps, maps), nn.Sigmoid())
            for maps in range(2, 2 + len(LEVELS))
        )

    def forward(self, features: Tensor, shift: Tensor) -> Tensor:
        batch, _, frames = features.shape[:3]
        maps = features.transpose(1, 2).flatten(0, 1)
        grid = self.positions(len(maps)) + shift[:, None, None]
        found = {1: self.read(maps, grid, self._features)}
        for step, weights, refine in zip(LEVELS, self.features, self.refine, strict=True):
            coarse = F.interpolate(grid.squeeze(2).transpose(1, 2), self.neurons // step).transpose(1, 2)[:, :, None]
            response = F.interpolate(self.read(maps, coarse, weights)[:, None], self.neurons)
            found[step] = refine(response)[:, 0]
        used = torch.stack([found[step].view(batch, frames, -1) for step in (1, *self.levels)], 1)
        if not self.levels:
            fused = used[:, 0]
        elif self.fusion == "mean":
            fused = used.mean(1)
        else:
            weights = self.fuse[len(self.levels) - 1](used.mean((2, 3)))
            fused = (weights[:, :, None, None] * used).sum(1)
        return fused + self.bias

    def read(self, maps: Tensor, grid: Tensor, weights: Tensor) -> Tensor:
        sampled = F.grid_sample(maps, grid, align_corners=True)
        return (sampled.squeeze(-1) * weights.squeeze(2)).sum(1)


def windows(x: Tensor, window: Sequence[int]) -> Tensor:
    """(batch, time, height, width, channels) -> (batch x windows, tokens, channels)."""
    batch, t, h, w, channels = x.shape
    x = x.view(batch, t // window[0], window[0], h // window[1], window[1], w // window[2], window[2], channels)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).contiguous().view(-1, math.prod(window), channels)


def from_windows(x: Tensor, window: Sequence[int], size: Sequence[int]) -> Tensor:
    counts = [length // side for length, side in zip(size, window, strict=True)]
    x = x.view(-1, *counts, *window, x.shape[-1]).permute(0, 1, 4, 2, 5, 3, 6, 7).contiguous()
    return x.view(len(x), *size, x.shape[-1])


def relative_positions(window: Sequence[int]) -> Tensor:
    """Row of the table of biases for each pair of tokens of a window."""
    axes = torch.meshgrid(*(torch.arange(side) for side in window), indexing="ij")
    places = torch.stack(axes).flatten(1)
    offsets = (places[:, :, None] - places[:, None]).permute(1, 2, 0)
    index = 0
    for axis, side in enumerate(window):
        index = index * (2 * side - 1) + offsets[..., axis] + side - 1
    return index


@cache
def wrapped_mask(size: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...]) -> Tensor:
    """-100 between tokens that only the roll brought together, (windows, tokens, tokens)."""
    regions = torch.zeros(1, *size, 1)
    number = 0
    cuts = [(slice(-w), slice(-w, -s), slice(-s, None)) for w, s in zip(window, shift, strict=True)]
    for t in cuts[0]:
        for h in cuts[1]:
            for w in cuts[2]:
                regions[:, t, h, w] = number
                number += 1
    regions = windows(regions, window).squeeze(-1)
    return torch.where(regions[:, :, None] == regions[:, None], 0.0, -100.0)
