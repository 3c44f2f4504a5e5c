"""Dynamic-VFM: a video core of shifted-window attention in space and time, with behaviour added in each block.

What comes in: `video` (batch, 1, 30, 36, 64), `behavior` (batch, 2, 30), pupil dilation and running speed, and
`pupil_center` (batch, 2, 30), x and y, standardised as published per frame. What goes out: (batch, 224, 15, 18, 32).
Published weights were trained so that frame i of the output, which is made of frames 2i and 2i + 1, predicts the
response to frame 15 + i: responses and the shifter's pupil centre are those of the *last* 15 frames, not of every
second one. Each frame of the output sees frames before and after it. Source: Zhu 2023, second of Sensorium 2023,
https://github.com/zhuyu-cs/Dynamic-VFM, of Video Swin (https://arxiv.org/abs/2106.13230) with V1T's behaviour
(https://arxiv.org/abs/2302.03023).

Kept as published, because the weights depend on it: every block is shifted, there is no norm within blocks, and the
zeros that fill the last windows are attended to. Mended: where a window is lower or narrower than usual because the
video is, relative positions stay the positions they are; at the published size no window is. Computed differently, with
the same numbers: queries, keys and values are made before the video is filled up, one gather shifts, fills and cuts
them into windows, and windows with the same mask are attended to together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.ops import stochastic_depth

WINDOW = (8, 7, 7)
PATCH = (2, 2, 2)
STATES = 4
# What the logits of tokens that only the shift brought together are lowered by.
WRAPPED = -100.0
INIT_STD = 0.02


class DynamicVFM(nn.Module):
    """The core.

    Args:
        in_channels: of the video.
        channels, blocks, heads: of the transformer.
        hidden: channels within the blocks' MLPs.
        window: of attention, in patches of time, height and width.
        patch: frames, rows and columns of a patch.
        drop_path: rate at which a sample skips an attention or an MLP; published 0.
        recompute: attention, and what lies between the MLP's convolution and its linear layers, is computed again for
            the gradient, and not kept.
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: int = 224,
        blocks: int = 4,
        heads: int = 4,
        hidden: int = 488,
        window: tuple[int, int, int] = WINDOW,
        patch: tuple[int, int, int] = PATCH,
        drop_path: float = 0.0,
        recompute: bool = True,
    ) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"channels must be a multiple of heads, found {channels} and {heads}")
        self.patch, self.out_channels = tuple(patch), channels
        self.embed = nn.Conv3d(in_channels, channels, self.patch, self.patch)
        self.embed_norm = nn.LayerNorm(channels)
        self.blocks = nn.ModuleList(
            Block(channels, heads, hidden, window, self.patch[0], drop_path, recompute) for _ in range(blocks)
        )
        self.blocks.apply(initialise)

    def output_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Channels, frames, height and width that come of a clip; height and width are filled up with zeros."""
        sides = (math.ceil(length / side) for length, side in zip((height, width), self.patch[1:], strict=True))
        return self.out_channels, frames // self.patch[0], *sides

    def forward(
        self,
        video: Tensor,
        behavior: Tensor | None = None,
        pupil_center: Tensor | None = None,
        animal: str | None = None,
    ) -> Tensor:
        if behavior is None or pupil_center is None:
            raise ValueError("Dynamic-VFM adds behavior and pupil_center in each block; give both")
        frames, height, width = video.shape[2:]
        if frames % self.patch[0]:
            raise ValueError(f"Dynamic-VFM takes a multiple of {self.patch[0]} frames, found {frames}")
        states = torch.cat((behavior, pupil_center), 1).transpose(1, 2)
        video = F.pad(video, (0, -width % self.patch[2], 0, -height % self.patch[1]))
        tokens = self.embed_norm(self.embed(video).movedim(1, -1))
        for block in self.blocks:
            tokens = block(tokens, states)
        return tokens.movedim(-1, 1)


class Block(nn.Module):
    """Behaviour, attention and an MLP, each added: tokens (batch, time, height, width, channels) in and out.

    `states` are (batch, frames, 4): dilation, speed, x and y of the pupil in each frame of the video.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        hidden: int,
        window: tuple[int, int, int],
        patch_frames: int,
        drop_path: float,
        recompute: bool,
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.behavior = BehaviorMLP(channels, patch_frames)
        self.attention = ShiftedWindowAttention(channels, heads, window, recompute)
        self.mlp = ConvolutionalMLP(channels, hidden, recompute)

    def forward(self, tokens: Tensor, states: Tensor) -> Tensor:
        tokens = tokens + self.behavior(states)[:, :, None, None]
        tokens = tokens + stochastic_depth(self.attention(tokens), self.drop_path, "row", self.training)
        return tokens + stochastic_depth(self.mlp(tokens), self.drop_path, "row", self.training)


class BehaviorMLP(nn.Module):
    """Behaviour as a token of each patch's time: (batch, frames, 4) -> (batch, frames / patch_frames, channels)."""

    def __init__(self, channels: int, patch_frames: int) -> None:
        super().__init__()
        self.patch_frames = patch_frames
        of_frame = channels // patch_frames
        self.layers = nn.Sequential(nn.Linear(STATES, of_frame), nn.Tanh(), nn.Linear(of_frame, of_frame), nn.Tanh())

    def forward(self, states: Tensor) -> Tensor:
        return self.layers(states).unflatten(1, (-1, self.patch_frames)).flatten(2)


class ConvolutionalMLP(nn.Module):
    """Linear, SwiGLU, depthwise convolution over 3 x 3 x 3 tokens, GELU, linear (https://arxiv.org/abs/2002.05202)."""

    def __init__(self, channels: int, hidden: int, recompute: bool) -> None:
        super().__init__()
        self.recompute = recompute
        self.expand = nn.Linear(channels, 2 * hidden)
        self.conv = nn.Conv3d(hidden, hidden, 3, padding=1, groups=hidden)
        self.project = nn.Linear(hidden, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        keep = not (self.recompute and torch.is_grad_enabled())
        hidden = self.expand(tokens)
        if keep:
            return self.activated_projection(self.gated_convolution(hidden))
        hidden = checkpoint(self.gated_convolution, hidden, use_reentrant=False, preserve_rng_state=False)
        return checkpoint(self.activated_projection, hidden, use_reentrant=False, preserve_rng_state=False)

    def gated_convolution(self, hidden: Tensor) -> Tensor:
        """The convolution of three frames as three of one frame, with channels last: twice as fast on a CPU."""
        value, gate = hidden.chunk(2, -1)
        batch, frames = hidden.shape[:2]
        padded = F.pad(value * F.silu(gate), (0, 0, 0, 0, 0, 0, 1, 1)).movedim(-1, 2)
        total = None
        for offset in range(3):
            images = padded[:, offset : offset + frames].flatten(0, 1)
            bias = self.conv.bias if offset == 0 else None
            part = F.conv2d(images, self.conv.weight[:, :, offset], bias, padding=1, groups=self.conv.groups)
            total = part if total is None else total + part
        return total.movedim(1, -1).unflatten(0, (batch, frames))

    def activated_projection(self, hidden: Tensor) -> Tensor:
        return self.project(F.gelu(hidden))


@dataclass(frozen=True)
class Windows:
    """How a clip is cut into windows.

    `places` (slots) are the tokens in the order of the windows, where the number after the last stands for filling;
    `slots` (tokens) is the way back. `positions` (tokens of a window, squared) are rows of the table of relative
    positions. `masks` has for each group of windows that follow each other their number and their mask, or None.
    """

    places: Tensor
    slots: Tensor
    positions: Tensor
    masks: tuple[tuple[int, Tensor | None], ...]

    def to(self, device: torch.device) -> "Windows":
        masks = tuple((count, None if mask is None else mask.to(device)) for count, mask in self.masks)
        return Windows(self.places.to(device), self.slots.to(device), self.positions.to(device), masks)


class ShiftedWindowAttention(nn.Module):
    """Attention within windows that are shifted by half their size, with a bias per head and relative position.

    (batch, time, height, width, channels) in and out. Along an axis no longer than the window there is no shift.
    """

    def __init__(self, channels: int, heads: int, window: tuple[int, int, int], recompute: bool) -> None:
        super().__init__()
        self.heads, self.window, self.recompute = heads, tuple(window), recompute
        self.relative_position_bias_table = nn.Parameter(torch.empty(math.prod(2 * side - 1 for side in window), heads))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.held: tuple[tuple, Windows] | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        batch, *size, channels = tokens.shape
        cut = self.windows(tuple(size), tokens.device)
        # A token of zeros after the last one, which fills windows.
        rows = self.qkv(F.pad(tokens.flatten(1, 3), (0, 0, 0, 1))).index_select(1, cut.places)
        length = len(cut.positions)
        rows = rows.view(batch, -1, length, 3, self.heads, channels // self.heads).permute(3, 1, 0, 4, 2, 5)
        attended = self.attend(*rows, cut).permute(1, 0, 3, 2, 4).reshape(batch, -1, channels)
        return self.proj(attended.index_select(1, cut.slots)).unflatten(1, size)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, cut: Windows) -> Tensor:
        """Attention within each window, all (windows, batch, heads, tokens, channels of a head)."""
        bias = self.relative_position_bias_table[cut.positions].movedim(-1, 0).to(queries.dtype)
        counts = [count for count, _ in cut.masks]
        groups = zip(*(each.split(counts) for each in (queries, keys, values)), strict=True)
        found = []
        for group, (count, mask) in zip(groups, cut.masks, strict=True):
            logits = (bias if mask is None else bias + mask.to(bias.dtype))[None]
            inputs = *(each.flatten(0, 1) for each in group), logits
            if self.recompute and torch.is_grad_enabled():
                out = checkpoint(attention, *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                out = attention(*inputs)
            found.append(out.unflatten(0, (count, -1)))
        return torch.cat(found)

    def windows(self, size: tuple[int, int, int], device: torch.device) -> Windows:
        """How a clip of this size is cut; made once per size."""
        if self.held is None or self.held[0] != (size, device):
            self.held = (size, device), cut_windows(size, self.window).to(device)
        return self.held[1]


def attention(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)


def cut_windows(size: Sequence[int], window: Sequence[int]) -> Windows:
    """Windows of a clip of `size` tokens, sorted so that those with the same mask follow each other; on the CPU."""
    inner = [min(side, length) for side, length in zip(window, size, strict=True)]
    shift = [side // 2 if length > side else 0 for side, length in zip(window, size, strict=True)]
    padded = [math.ceil(length / side) * side for length, side in zip(size, inner, strict=True)]
    tokens = math.prod(size)
    numbers = torch.full(padded, tokens, device="cpu")
    numbers[: size[0], : size[1], : size[2]] = torch.arange(tokens, device="cpu").view(*size)
    places = windowed(numbers.roll([-step for step in shift], (0, 1, 2)), inner)
    regions = windowed(wrapped_regions(padded, inner, shift), inner)
    kinds, of_window = torch.unique(regions, dim=0, return_inverse=True)
    places = places[of_window.argsort(stable=True)].flatten()
    slots = torch.empty(tokens + 1, dtype=torch.long, device="cpu")
    slots[places] = torch.arange(len(places), device="cpu")
    counts = of_window.bincount(minlength=len(kinds)).tolist()
    masks = tuple((count, wrapped_mask(kind)) for count, kind in zip(counts, kinds, strict=True))
    return Windows(places, slots[:tokens], relative_positions(inner, window), masks)


def wrapped_regions(padded: Sequence[int], inner: Sequence[int], shift: Sequence[int]) -> Tensor:
    """A number per token of the shifted clip, equal for tokens that are side by side in the video, too."""
    region = torch.zeros(*padded, dtype=torch.long, device="cpu")
    for axis, (length, step) in enumerate(zip(padded, shift, strict=True)):
        wrapped = torch.arange(length, device="cpu") >= length - step
        region = 2 * region + wrapped.view([-1 if other == axis else 1 for other in range(3)])
    return region


def wrapped_mask(regions: Tensor) -> Tensor | None:
    """What is added to the logits of a window (tokens, tokens), None for nothing."""
    apart = regions[:, None] != regions[None]
    return torch.where(apart, WRAPPED, 0.0) if apart.any() else None


def windowed(clip: Tensor, window: Sequence[int]) -> Tensor:
    """(time, height, width), multiples of the window's -> (windows, tokens of a window)."""
    counts = [length // side for length, side in zip(clip.shape, window, strict=True)]
    split = clip.view(counts[0], window[0], counts[1], window[1], counts[2], window[2])
    return split.permute(0, 2, 4, 1, 3, 5).reshape(-1, math.prod(window))


def relative_positions(inner: Sequence[int], window: Sequence[int]) -> Tensor:
    """For each pair of tokens of an inner window, the row that their offset has in the table of the whole window."""
    axes = torch.meshgrid(*(torch.arange(side, device="cpu") for side in inner), indexing="ij")
    places = torch.stack(axes).flatten(1)
    offsets = places[:, :, None] - places[:, None]
    rows = torch.zeros_like(offsets[0])
    for offset, side in zip(offsets, window, strict=True):
        rows = rows * (2 * side - 1) + offset + side - 1
    return rows


def initialise(module: nn.Module) -> None:
    """Weights of linear layers, and biases of relative positions, truncated normal 0.02; biases 0, as published."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=INIT_STD)
        nn.init.zeros_(module.bias)
    elif isinstance(module, ShiftedWindowAttention):
        nn.init.trunc_normal_(module.relative_position_bias_table, std=INIT_STD)
