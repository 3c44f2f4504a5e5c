"""Positions of tokens: tables and convolutions that are added to them, and rotations of queries and keys.

What comes in: tokens, or how many there are. What goes out: tokens with positions, or tables (tokens, width), made when
they are asked for, on the device asked for. Sources: Vaswani 2017, https://arxiv.org/abs/1706.03762 (sinusoidal);
He 2022, https://arxiv.org/abs/2111.06377 (grid); Su 2021, https://arxiv.org/abs/2104.09864 (rotary); Sun 2022,
https://arxiv.org/abs/2212.10554 (the scale of rotated vectors).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WAVELENGTHS = 10_000
SCALE_BASE_TOKENS = 512
# What is added to tokens for their place and for their frame, and where queries and keys are rotated.
POSITIONS: dict[str, tuple[str, str, bool, bool]] = {
    "none": ("", "", False, False),
    "joint": ("joint", "", False, False),
    "convolved": ("", "", False, False),
    "learned": ("learned", "learned", False, False),
    "learned_sinusoidal": ("learned", "sinusoidal", False, False),
    "sinusoidal": ("sinusoidal", "sinusoidal", False, False),
    "rotary": ("", "", True, True),
    "learned_rotary": ("learned", "", False, True),
    "grid_rotary": ("grid", "", False, True),
}


def sinusoidal_positions(tokens: int, width: int, device: torch.device | None = None) -> Tensor:
    """(tokens, width): sines in even columns and cosines in odd ones, of the same frequencies."""
    angles = token_angles(tokens, width, device)
    return torch.stack((angles.sin(), angles.cos()), 2).flatten(1)[:, :width]


def grid_positions(rows: int, columns: int, width: int, device: torch.device | None = None) -> Tensor:
    """(rows x columns, width): sines then cosines of the column, then of the row; `width` is a multiple of four."""
    if width % 4:
        raise ValueError(f"grid positions need a width that is a multiple of 4, found {width}")
    horizontal, vertical = (
        torch.cat((angles.sin(), angles.cos()), 1)
        for angles in (token_angles(columns, width // 2, device), token_angles(rows, width // 2, device))
    )
    return torch.cat((horizontal.repeat(rows, 1), vertical.repeat_interleave(columns, 0)), 1)


def token_angles(tokens: int, width: int, device: torch.device | None = None) -> Tensor:
    """(tokens, half of `width`, rounded up): position over wavelength, in radians."""
    frequency = WAVELENGTHS ** -(torch.arange(0, width, 2, device=device) / width)
    return torch.arange(tokens, device=device)[:, None] * frequency


class RotaryPositions(nn.Module):
    """Cosines and sines that rotate the queries and keys of a sequence, each scaled as in xPos.

    The scale of token t is ((2k + 0.4 d) / 1.4 d) ** ((t - centre) / 512), for queries and keys alike (xPos divides one
    of the two). The centre is half of `tokens`, whatever the clip, so a causal model stays causal. The published code
    moves it for good when it meets a longer clip, after which shorter clips come out differently: `recentre=True`.
    The two agree as long as no clip is longer than `tokens`. Register tokens are not rotated.

    Args:
        head_dim: of the vectors that are rotated; even.
        tokens: of the longest clip that is expected.
        registers: tokens that are not rotated, behind the others, or before them with `registers_first`.
    """

    def __init__(
        self, head_dim: int, tokens: int, registers: int = 0, registers_first: bool = False, recentre: bool = False
    ) -> None:
        super().__init__()
        if head_dim % 2:
            raise ValueError(f"rotary positions need an even head_dim, found {head_dim}")
        self.head_dim, self.tokens, self.registers = head_dim, tokens, registers
        self.registers_first, self.recentre = registers_first, recentre

    def forward(self, tokens: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Cosines and sines (tokens + registers, head_dim / 2), both times the scale."""
        if self.recentre:
            self.tokens = max(self.tokens, tokens)
        even = torch.arange(0, self.head_dim, 2, device=device)
        power = (torch.arange(tokens, device=device)[:, None] - self.tokens // 2) / SCALE_BASE_TOKENS
        scale = ((even + 0.4 * self.head_dim) / (1.4 * self.head_dim)) ** power
        angles = token_angles(tokens, self.head_dim, device)
        return self.with_registers(angles.cos() * scale, 1.0), self.with_registers(angles.sin() * scale, 0.0)

    def with_registers(self, table: Tensor, value: float) -> Tensor:
        unmoved = table.new_full((self.registers, table.shape[1]), value)
        return torch.cat((unmoved, table) if self.registers_first else (table, unmoved))


def rotated(vectors: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Vectors (batch, tokens, heads, head_dim), turned: their halves are the two parts of complex numbers."""
    cosines, sines = (table[:, None].to(vectors.dtype) for table in rotation)
    first, second = vectors.chunk(2, -1)
    return torch.cat((first * cosines - second * sines, second * cosines + first * sines), -1)


class AddedPositions(nn.Module):
    """Adds learned or fixed positions to tokens (batch, frames, places, width).

    Args:
        spatial, temporal: as in `POSITIONS`.
        frames: the most that learned positions are for.
        dropout: after each sinusoidal table, as published.
    """

    def __init__(
        self, spatial: str, temporal: str, frames: int, grid: tuple[int, int], width: int, dropout: float
    ) -> None:
        super().__init__()
        self.kinds, self.grid, self.dropout = (spatial, temporal), grid, dropout
        places = grid[0] * grid[1]
        if spatial == "joint":
            self.joint = nn.Parameter(torch.randn(1, frames, places, width))
        if spatial == "learned":
            self.spatial = nn.Parameter(torch.randn(1, 1, places, width))
        if temporal == "learned":
            self.temporal = nn.Parameter(torch.randn(1, frames, 1, width))

    def forward(self, tokens: Tensor) -> Tensor:
        _, frames, places, width = tokens.shape
        spatial, temporal = self.kinds
        if spatial == "joint":
            return tokens + self.longest(self.joint, frames)
        if spatial == "learned":
            tokens = tokens + self.spatial
        elif spatial == "grid":
            tokens = tokens + grid_positions(*self.grid, width, tokens.device).to(tokens.dtype)
        elif spatial == "sinusoidal":
            tokens = tokens + sinusoidal_positions(places, width, tokens.device).to(tokens.dtype)
            tokens = F.dropout(tokens, self.dropout, self.training)
        if temporal == "learned":
            tokens = tokens + self.longest(self.temporal, frames)
        elif temporal == "sinusoidal":
            tokens = tokens + sinusoidal_positions(frames, width, tokens.device)[:, None].to(tokens.dtype)
            tokens = F.dropout(tokens, self.dropout, self.training)
        return tokens

    def longest(self, table: Tensor, frames: int) -> Tensor:
        if frames > table.shape[1]:
            raise ValueError(
                f"there are learned positions for {table.shape[1]} frames of tokens, the clip gives {frames}; cut the "
                "clip, or build the core with a larger max_frames"
            )
        return table[:, :frames]


class ConvolvedPositions(nn.Module):
    """Adds a depthwise convolution over the places or frames of a row. Source: Chu 2021, https://arxiv.org/abs/2102.10882.

    Args:
        grid: rows and columns of places, or None for frames.
    """

    def __init__(self, width: int, grid: tuple[int, int] | None) -> None:
        super().__init__()
        self.grid = grid
        convolution = nn.Conv1d if grid is None else nn.Conv2d
        self.convolution = convolution(width, width, 3, padding=1, groups=width)

    def forward(self, tokens: Tensor) -> Tensor:
        maps = tokens.transpose(1, 2)
        if self.grid is not None:
            maps = maps.unflatten(2, self.grid)
        return tokens + self.convolution(maps).flatten(2).transpose(1, 2)
