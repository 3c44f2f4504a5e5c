"""ViV1T's core in plain operations, as its authors compute it: the peer in `encoder_step.py`.

What comes in and goes out: as of `pretrain.models.viv1t`, at the published settings. Every overlapping tubelet is
copied out of the video, signals included, before it is normalised and projected; rotation and dropout are done step by
step. The state dict is that of our core. Written from the description of
https://github.com/bryanlimy/ViV1T (competition) and https://github.com/bryanlimy/ViV1T-closed-loop.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import stochastic_depth


def published_viv1t(**sizes) -> nn.Module:
    """The competition version at its published size, or with other `sizes`."""
    return PlainViV1T(**sizes)


def published_viv1t_closed_loop(**sizes) -> nn.Module:
    """The closed-loop version at its published size, or with other `sizes`."""
    closed_loop = {
        "spatial_depth": 14, "temporal_depth": 14, "heads": 2, "head_dim": 80, "ff_dim": 224, "ff": F.relu,
        "frames": 13, "registers": 24, "padding": (2, 3, 2, 3, 12, 0), "grid": (18, 32), "rotary": True, "causal": True,
        "attention_dropout": 0.04, "ff_dropout": 0.21, "drop_path": 0.43, "token_dropout": 0.17,
    }  # fmt: skip
    return PlainViV1T(**{**closed_loop, **sizes})


class PlainViV1T(nn.Module):
    """Both versions. `padding` is that of `F.pad`; `grid` the rows and columns of tokens."""

    def __init__(
        self,
        spatial_depth: int = 3,
        temporal_depth: int = 5,
        heads: int = 11,
        head_dim: int = 48,
        width: int = 112,
        ff_dim: int = 136,
        ff=F.gelu,
        frames: int = 25,
        patch: int = 7,
        stride: int = 2,
        channels: int = 5,
        max_frames: int = 300,
        grid: tuple[int, int] = (15, 29),
        registers: int = 0,
        padding: tuple[int, ...] | None = None,
        rotary: bool = False,
        causal: bool = False,
        attention_dropout: float = 0.358,
        ff_dropout: float = 0.0592,
        drop_path: float = 0.0505,
        token_dropout: float = 0.1338,
    ) -> None:
        super().__init__()
        self.frames, self.patch, self.stride, self.padding, self.grid = frames, patch, stride, padding, grid
        self.closed_loop, self.token_dropout = registers > 0, token_dropout
        self.out_channels = width
        size, places = channels * frames * patch**2, grid[0] * grid[1]
        self.tokenizer, self.positions, self.spatial, self.temporal = (nn.Module() for _ in range(4))
        self.tokenizer.norm, self.tokenizer.linear = nn.LayerNorm(size), nn.Linear(size, width)
        self.tokenizer.out_norm = nn.LayerNorm(width)
        if not rotary:
            self.positions.spatial = nn.Parameter(torch.randn(1, 1, places, width))
            self.positions.temporal = nn.Parameter(torch.randn(1, max_frames - frames + 1, 1, width))
        if registers:
            self.spatial.registers = nn.Parameter(torch.randn(registers, width))
            self.temporal.registers = nn.Parameter(torch.randn(registers, width))
        self.rotary, self.registers = rotary, registers

        def blocks(depth: int, tokens: int, causal: bool) -> nn.ModuleList:
            sizes = (width, heads, head_dim, ff_dim, ff, attention_dropout, ff_dropout, drop_path)
            return nn.ModuleList(PlainBlock(*sizes, tokens if rotary else 0, registers, causal) for _ in range(depth))

        self.spatial.blocks = blocks(spatial_depth, places, False)
        self.temporal.blocks = blocks(temporal_depth, max_frames, causal)

    def forward(self, video: Tensor, behavior: Tensor, pupil_center: Tensor) -> Tensor:
        tokens = self.tokens(video, behavior, pupil_center)
        batch, frames, places, width = tokens.shape
        if self.registers:
            tokens = torch.cat((tokens, self.spatial.registers.expand(batch, frames, -1, -1)), 2)
        tokens = tokens.reshape(batch * frames, -1, width)
        for block in self.spatial.blocks:
            tokens = block(tokens)
        tokens = tokens.reshape(batch, frames, -1, width)[:, :, :places]
        if self.registers:
            added = self.temporal.registers[None, :, None].expand(batch, -1, places, -1)
            tokens = torch.cat((tokens, added), 1)
        tokens = tokens.transpose(1, 2).reshape(batch * places, -1, width)
        for block in self.temporal.blocks:
            tokens = block(tokens)
        tokens = tokens.reshape(batch, places, -1, width)[:, :, :frames]
        return tokens.permute(0, 3, 2, 1).reshape(batch, width, frames, *self.grid)

    def tokens(self, video: Tensor, behavior: Tensor, pupil_center: Tensor) -> Tensor:
        height, width = video.shape[3:]
        signals = torch.cat((behavior, pupil_center), 1)[..., None, None].expand(-1, -1, -1, height, width)
        channels = torch.cat((video, signals), 1)
        if self.padding:
            channels = F.pad(channels, self.padding)
        tubelets = channels.unfold(2, self.frames, 1).unfold(3, self.patch, self.stride)
        tubelets = tubelets.unfold(4, self.patch, self.stride).permute(0, 2, 3, 4, 1, 5, 6, 7)
        tubelets = tubelets.reshape(len(video), tubelets.shape[1], self.grid[0] * self.grid[1], -1)
        tokens = self.tokenizer.out_norm(self.tokenizer.linear(self.tokenizer.norm(tubelets)))
        if self.closed_loop:
            flat = F.dropout1d(tokens.flatten(1, 2), self.token_dropout, self.training)
            tokens = flat.view_as(tokens)
        else:
            tokens = F.dropout(tokens, self.token_dropout, self.training)
        if self.rotary:
            return tokens
        return tokens + self.positions.spatial + self.positions.temporal[:, : tokens.shape[1]]


class PlainBlock(nn.Module):
    """Attention and a feed-forward layer beside each other; queries and keys rotated where `rotated` counts tokens."""

    def __init__(
        self,
        width: int,
        heads: int,
        head_dim: int,
        ff_dim: int,
        ff,
        attention_dropout: float,
        ff_dropout: float,
        drop_path: float,
        rotated: int,
        registers: int,
        causal: bool,
    ) -> None:
        super().__init__()
        inner = heads * head_dim
        self.split, self.heads, self.ff = (inner, inner, inner, ff_dim), heads, ff
        self.attention_dropout, self.ff_dropout, self.drop_path = attention_dropout, ff_dropout, drop_path
        self.registers, self.causal = registers, causal
        self.norm = nn.LayerNorm(width)
        self.fused_linear = nn.Linear(width, sum(self.split), bias=False)
        self.attn_out = nn.Linear(inner, width, bias=False)
        self.ff_out = nn.Linear(ff_dim, width, bias=False)
        self.rotated = rotated
        if rotated:
            even = torch.arange(0, head_dim, 2)
            time = torch.arange(rotated).float()
            angle = (time[:, None] / 10000 ** (even / head_dim)).repeat(1, 2)
            scale = ((even + 0.4 * head_dim) / (1.4 * head_dim)) ** ((time[:, None] - rotated // 2) / 512)
            self.register_buffer("sin", angle.sin(), persistent=False)
            self.register_buffer("cos", angle.cos(), persistent=False)
            self.register_buffer("scale", scale.repeat(1, 2), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v, hidden = self.fused_linear(self.norm(tokens)).split(self.split, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        if self.rotated:
            q, k = self.rotate(q), self.rotate(k)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        seen = F.dropout(seen, self.attention_dropout, self.training)
        attended = self.attn_out(seen.transpose(1, 2).flatten(2))
        hidden = self.ff_out(F.dropout(self.ff(hidden), self.ff_dropout, self.training))
        return tokens + self.dropped(attended) + self.dropped(hidden)

    def rotate(self, heads: Tensor) -> Tensor:
        count = heads.shape[2] - self.registers
        rotated, kept = heads[:, :, :count], heads[:, :, count:]
        first, second = rotated.chunk(2, -1)
        sin, cos, scale = self.sin[:count], self.cos[:count], self.scale[:count]
        rotated = rotated * cos * scale + torch.cat((-second, first), -1) * sin * scale
        return torch.cat((rotated, kept), 2) if self.registers else rotated

    def dropped(self, branch: Tensor) -> Tensor:
        return stochastic_depth(branch, self.drop_path, "row", self.training)
