"""ViV1T: a video transformer core that attends over places, then over frames.

What comes in: a video (batch, channels, time, height, width), behaviour (batch, 2, time) and pupil centre
(batch, 2, time), standardised. What goes out: features (batch, width, time', height', width'). Overlapping tubelets
of the video become tokens; behaviour and pupil are further channels, or are added to the tokens of every block. Two
versions: third in the Sensorium 2023 competition (`viv1t`), and a larger causal one (`viv1t_closed_loop`). Sources:
https://github.com/bryanlimy/ViV1T and https://github.com/bryanlimy/ViV1T-closed-loop (Li et al.), after ViViT,
https://arxiv.org/abs/2103.15691; register tokens are those of Darcet 2023, https://arxiv.org/abs/2309.16588.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pretrain.models.positions import RotaryPositions, grid_positions, sinusoidal_positions
from pretrain.models.tubelets import TubeletTokens
from pretrain.models.viv1t_blocks import (
    ACTIVATIONS,
    BlockSizes,
    ConvolvedPositions,
    ParallelBlock,
    SequentialBlock,
    StateEncoder,
)

# In the order of the published `--core_behavior_mode`, 0 to 5.
BEHAVIORS = ("none", "behavior_channels", "all_channels", "behavior_mlp", "all_mlp", "animal_mlp")
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
# How many of queries, keys and values are projected again in the backward pass.
RECOMPUTED = {"none": 0, "queries": 1, "projections": 3, "blocks": 0}
PUBLISHED_CLOSED_LOOP = {
    "frames": 13,
    "pad": True,
    "positions": "rotary",
    "registers": 24,
    "causal": True,
    "spatial_depth": 14,
    "temporal_depth": 14,
    "heads": 2,
    "head_dim": 80,
    "ff_dim": 224,
    "ff_activation": "relu",
    "token_dropout": 0.17,
    "drop_whole_tokens": True,
    "attention_dropout": 0.04,
    "ff_dropout": 0.21,
    "drop_path": 0.43,
}


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
                f"ViV1T has learned positions for {table.shape[1]} frames of tokens, the clip gives {frames}; cut the "
                "clip, or build the core with a larger max_frames"
            )
        return table[:, :frames]


class Transformer(nn.Module):
    """Blocks over rows of tokens (batch, rows, tokens, width), with register tokens beside them.

    Register tokens behind the frames of a causal transformer are seen by no frame: they are parameters without a use,
    kept for the published weights and not computed. With `registers_first` every frame sees them.
    """

    def __init__(
        self,
        sizes: BlockSizes,
        depth: int,
        parallel: bool,
        causal: bool,
        registers: int,
        registers_first: bool,
        rotary: RotaryPositions | None,
        convolved: ConvolvedPositions | None,
        encoder: partial[StateEncoder] | None,
        recompute: bool,
    ) -> None:
        super().__init__()
        block = ParallelBlock if parallel else SequentialBlock
        self.blocks = nn.ModuleList(block(sizes, causal) for _ in range(depth))
        self.registers = nn.Parameter(torch.randn(registers, sizes.width)) if registers else None
        self.registers_first, self.recompute = registers_first, recompute
        self.unseen = causal and not registers_first
        self.rotary, self.convolved = rotary, convolved
        self.states = nn.ModuleList(encoder() for _ in range(depth)) if encoder else None

    def forward(self, tokens: Tensor, windows: Tensor | None, animal: str | None) -> Tensor:
        """Tokens (batch, rows, tokens, width); `windows` (batch, rows, 1, values) or (batch, 1, tokens, values)."""
        batch, _, count, _ = tokens.shape
        rotation = self.rotary(count, tokens.device) if self.rotary else None
        with_registers = self.with_registers(tokens)
        rows = with_registers.flatten(0, 1)
        for number, block in enumerate(self.blocks):
            if self.states is not None:
                states = self.states[number](windows, animal)
                rows = (rows.unflatten(0, (batch, -1)) + states).flatten(0, 1)
            if self.recompute and torch.is_grad_enabled():
                rows = checkpoint(block, rows, rotation, use_reentrant=False)
            else:
                rows = block(rows, rotation)
            if number == 0 and self.convolved is not None:
                rows = self.convolved(rows)
        first = rows.shape[1] - count if self.registers_first else 0
        return rows.unflatten(0, (batch, -1))[:, :, first : first + count]

    def with_registers(self, tokens: Tensor) -> Tensor:
        if self.registers is None or self.unseen:
            return tokens
        registers = self.registers.expand(*tokens.shape[:2], -1, -1)
        return torch.cat((registers, tokens) if self.registers_first else (tokens, registers), 2)


class ViV1T(nn.Module):
    """The core; the defaults are those of the competition version.

    Patch mode 0 of the authors is `normalized=True`, mode 2 `False`; the competition's mode 1 (tubelets cut out by a
    convolution with ones) does not run as published, and would give what mode 0 gives. The map of tokens has the
    rows and columns that the tubelets have; the authors guess them from their product, which is right at 36 x 64.

    Args:
        input_size: rows and columns of the video.
        channels, behavior_channels, pupil_channels: of the inputs.
        max_frames: of the longest clip, for positions; the published ones take 300.
        behavior: how behaviour and pupil come in, one of `BEHAVIORS`: as channels, or by an MLP in every block.
        animals: names, for `behavior="animal_mlp"`.
        frames, patch: of a tubelet; `frame_stride`, `patch_stride` between tubelets.
        normalized: whether tubelets are normalised before they are projected.
        pad: zeros around the video, all before it in time, so that there are as many tokens as strides fit in; without
            them a clip loses `frames - 1` frames at its start.
        positions: one of `POSITIONS`; "convolved" needs `parallel=False`.
        registers: further tokens of every row; `registers_first` puts those in time where a causal core sees them.
        spatial_depth, temporal_depth: blocks.
        heads, head_dim, width, ff_dim, ff_activation, norm, norm_qk: of a block; norm is layernorm, rmsnorm or dyt.
        causal: whether frames see earlier frames only; with `pad`, features then follow from the past alone.
        parallel: attention beside the feed-forward layer, not before it.
        scale_by_width: divides attention by the root of `width` instead of `head_dim`, as the authors' sequential
            blocks do with `--core_flash_attention=0`.
        token_dropout, drop_whole_tokens, attention_dropout, ff_dropout, drop_path: in training.
        activation: of the features.
        recentre_rotation: as the published code, see `RotaryPositions`.
        recompute: what the backward pass computes again instead of keeping it, one of `RECOMPUTED`: nothing, queries,
            queries with keys and values, or whole blocks, as the authors' gradient checkpointing does.
    """

    def __init__(
        self,
        *,
        input_size: tuple[int, int] = (36, 64),
        channels: int = 1,
        behavior_channels: int = 2,
        pupil_channels: int = 2,
        max_frames: int = 300,
        behavior: str = "all_channels",
        animals: Sequence[str] = (),
        frames: int = 25,
        frame_stride: int = 1,
        patch: int = 7,
        patch_stride: int = 2,
        normalized: bool = True,
        pad: bool = False,
        positions: str = "learned",
        registers: int = 0,
        registers_first: bool = False,
        spatial_depth: int = 3,
        temporal_depth: int = 5,
        heads: int = 11,
        head_dim: int = 48,
        width: int = 112,
        ff_dim: int = 136,
        ff_activation: str = "gelu",
        norm: str = "layernorm",
        norm_qk: bool = False,
        causal: bool = False,
        parallel: bool = True,
        scale_by_width: bool = False,
        token_dropout: float = 0.1338,
        drop_whole_tokens: bool = False,
        attention_dropout: float = 0.358,
        ff_dropout: float = 0.0592,
        drop_path: float = 0.0505,
        activation: str = "none",
        recentre_rotation: bool = False,
        recompute: str = "queries",
    ) -> None:
        super().__init__()
        require_choice("recompute", recompute, RECOMPUTED)
        require_choice("behavior", behavior, BEHAVIORS)
        require_choice("positions", positions, POSITIONS)
        require_choice("activation", activation, [name for name in ACTIVATIONS if name != "swiglu"])
        if (behavior == "animal_mlp") != bool(animals):
            raise ValueError(f"animals are named for behavior='animal_mlp', and only then; found {animals!r}")
        if positions == "convolved" and (parallel or causal):
            raise ValueError("positions='convolved' are of sequential blocks that are not causal; give parallel=False")
        in_blocks = behavior.endswith("_mlp")
        if in_blocks and registers:
            raise ValueError(f"behavior={behavior!r} has no states for register tokens; give registers=0")
        self.input_size, self.channels, self.out_channels = tuple(input_size), channels, width
        self.max_frames, self.behavior, self.frames, self.frame_stride = max_frames, behavior, frames, frame_stride
        self.token_dropout, self.drop_whole_tokens, self.activation = token_dropout, drop_whole_tokens, activation
        self.signals = signal_count(behavior, behavior_channels, pupil_channels)
        size, stride = (frames, patch, patch), (frame_stride, patch_stride, patch_stride)
        padding = covering((max_frames, *input_size), size, stride) if pad else ((0, 0),) * 3
        self.tokenizer = TubeletTokens(
            channels, 0 if in_blocks else self.signals, width, size, stride, padding, norm, normalized
        )
        tokens, *grid = self.tokenizer.output_shape(max_frames, *input_size)
        self.grid = (grid[0], grid[1])
        spatial, temporal, rotate_places, rotate_frames = POSITIONS[positions]
        self.positions = AddedPositions(spatial, temporal, tokens, self.grid, width, token_dropout)
        sizes = BlockSizes(
            width, heads, head_dim, ff_dim, ff_activation, norm, norm_qk, attention_dropout, ff_dropout, drop_path,
            scale_by_width, RECOMPUTED[recompute],
        )  # fmt: skip
        encoder = partial(StateEncoder, self.signals * frames, width, animals) if in_blocks else None
        first = registers_first and causal

        def rotary(wanted: bool, count: int, registers: int, first: bool) -> RotaryPositions | None:
            return RotaryPositions(head_dim, count, registers, first, recentre_rotation) if wanted else None

        def convolved(grid: tuple[int, int] | None) -> ConvolvedPositions | None:
            return ConvolvedPositions(width, grid) if positions == "convolved" else None

        seen = 0 if causal and not first else registers
        self.spatial = Transformer(
            sizes, spatial_depth, parallel, False, registers, False,
            rotary(rotate_places, grid[0] * grid[1], registers, False), convolved(self.grid), encoder, recompute == "blocks",
        )  # fmt: skip
        self.temporal = Transformer(
            sizes, temporal_depth, parallel, causal, registers, first,
            rotary(rotate_frames, tokens, seen, first), convolved(None), encoder, recompute == "blocks",
        )  # fmt: skip

    @property
    def unused_parameters(self) -> tuple[str, ...]:
        """Parameters that the features do not depend on."""
        unseen = self.temporal.unseen and self.temporal.registers is not None
        return ("temporal.registers",) if unseen else ()

    def output_shape(self, time: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(features, time', height', width') for a video of that size."""
        return (self.out_channels, *self.tokenizer.output_shape(time, height, width))

    def forward(
        self,
        video: Tensor,
        behavior: Tensor | None = None,
        pupil_center: Tensor | None = None,
        animal: str | None = None,
    ) -> Tensor:
        self.require_video(video)
        signals = self.chosen_signals(video, behavior, pupil_center)
        in_blocks = self.behavior.endswith("_mlp")
        tokens = self.tokenizer(video, None if in_blocks else signals).flatten(2, 3)
        tokens = self.positions(self.dropped(tokens))
        windows = self.state_windows(behavior, pupil_center) if in_blocks else None
        tokens = self.spatial(tokens, None if windows is None else windows[:, :, None], animal)
        tokens = self.temporal(tokens.transpose(1, 2), None if windows is None else windows[:, None], animal)
        # From (batch, places, frames, width).
        features = tokens.permute(0, 3, 2, 1).unflatten(3, self.grid)
        activation = ACTIVATIONS[self.activation]
        features = activation(features) if activation else features
        # Under autocast features leave in single precision, as published.
        return features.to(self.tokenizer.out_norm.weight.dtype)

    def dropped(self, tokens: Tensor) -> Tensor:
        if self.drop_whole_tokens:
            return F.dropout1d(tokens.flatten(1, 2), self.token_dropout, self.training).view_as(tokens)
        return F.dropout(tokens, self.token_dropout, self.training)

    def chosen_signals(self, video: Tensor, behavior: Tensor | None, pupil_center: Tensor | None) -> Tensor | None:
        """Those signals that the core takes (batch, signals, time), behaviour first."""
        if self.behavior == "none":
            return None
        named = {"behavior": behavior}
        if not self.behavior.startswith("behavior_"):
            named["pupil_center"] = pupil_center
        for name, signal in named.items():
            if signal is None:
                raise ValueError(
                    f"ViV1T with behavior={self.behavior!r} needs {name} (batch, channels, time), got None"
                )
            if signal.ndim != 3 or signal.shape[2] != video.shape[2]:
                raise ValueError(
                    f"{name} must be (batch, channels, time) with the video's {video.shape[2]} frames, found "
                    f"{tuple(signal.shape)}"
                )
        signals = torch.cat(list(named.values()), 1)
        if signals.shape[1] != self.signals:
            raise ValueError(f"ViV1T takes {self.signals} channels of behaviour and pupil, found {signals.shape[1]}")
        return signals

    def state_windows(self, behavior: Tensor, pupil_center: Tensor | None) -> Tensor:
        """(batch, frames of tokens, values): behaviour of all frames of a token, then the pupil's; frame by frame."""
        parts = [behavior] if self.behavior.startswith("behavior_") else [behavior, pupil_center]
        front = self.tokenizer.padding[0]
        windows = (F.pad(part, front).unfold(2, self.frames, self.frame_stride) for part in parts)
        return torch.cat([window.permute(0, 2, 3, 1).flatten(2) for window in windows], 2)

    def require_video(self, video: Tensor) -> None:
        expected = (self.channels, *self.input_size)
        if video.ndim != 5 or (video.shape[1], *video.shape[3:]) != expected:
            raise ValueError(
                f"ViV1T takes a video (batch, {self.channels}, time, {self.input_size[0]}, {self.input_size[1]}), found "
                f"{tuple(video.shape)}"
            )
        shortest = self.frames - sum(self.tokenizer.padding[0])
        if video.shape[2] < shortest:
            raise ValueError(f"ViV1T needs clips of at least {shortest} frames, found {video.shape[2]}")


def viv1t(**kwargs) -> ViV1T:
    """The competition version as published, with other arguments of `ViV1T` where given."""
    return ViV1T(**kwargs)


def viv1t_closed_loop(**kwargs) -> ViV1T:
    """The closed-loop version as published, with other arguments of `ViV1T` where given."""
    return ViV1T(**{**PUBLISHED_CLOSED_LOOP, **kwargs})


def signal_count(behavior: str, behavior_channels: int, pupil_channels: int) -> int:
    """Channels of behaviour and pupil together that a core takes."""
    if behavior == "none":
        return 0
    return behavior_channels if behavior.startswith("behavior_") else behavior_channels + pupil_channels


def covering(lengths: tuple[int, ...], sizes: tuple[int, ...], strides: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Zeros (before, after) in time, rows and columns with which tubelets start at every stride; in time before only."""
    time, *space = (
        (math.ceil(length / stride) - 1) * stride + size - length
        for length, size, stride in zip(lengths, sizes, strides, strict=True)
    )
    return ((time, 0), *((zeros // 2, zeros - zeros // 2) for zeros in space))


def require_choice(name: str, given: str, choices: Sequence[str] | dict[str, object]) -> None:
    if given not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, found {given!r}")
