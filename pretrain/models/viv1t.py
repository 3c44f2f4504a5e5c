"""ViV1T: a video transformer core that attends over places, then over frames.

What comes in: a video (batch, channels, time, height, width), behaviour (batch, 2, time) and pupil centre
(batch, 2, time), standardised. What goes out: features (batch, width, time', height', width'). Overlapping tubelets
of the video become tokens; behaviour and pupil are further channels, or are added to the tokens of every block. Two
versions: third in the Sensorium 2023 competition (`viv1t`), and a larger causal one (`viv1t_closed_loop`). Sources:
https://github.com/bryanlimy/ViV1T and https://github.com/bryanlimy/ViV1T-closed-loop (Li et al.), after ViViT,
https://arxiv.org/abs/2103.15691; register tokens are those of Darcet 2023, https://arxiv.org/abs/2309.16588.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models.positions import POSITIONS, AddedPositions, ConvolvedPositions, RotaryPositions
from pretrain.models.tubelets import TubeletTokens
from pretrain.models.viv1t_blocks import ACTIVATIONS, BlockSizes, StateEncoder, Transformer

# In the order of the published `--core_behavior_mode`, 0 to 5.
BEHAVIORS = ("none", "behavior_channels", "all_channels", "behavior_mlp", "all_mlp", "animal_mlp")
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
        states = partial(StateEncoder, self.signals * frames, width, animals) if in_blocks else None
        shared = {"parallel": parallel, "state_encoder": states, "recompute": recompute == "blocks"}
        places = grid[0] * grid[1]
        self.spatial = Transformer(
            sizes,
            spatial_depth,
            causal=False,
            registers=registers,
            registers_first=False,
            rotary=RotaryPositions(head_dim, places, registers) if rotate_places else None,
            convolved=ConvolvedPositions(width, self.grid) if positions == "convolved" else None,
            **shared,
        )
        seen = registers if registers_first or not causal else 0
        rotary = RotaryPositions(head_dim, tokens, seen, registers_first, recentre_rotation) if rotate_frames else None
        self.temporal = Transformer(
            sizes,
            temporal_depth,
            causal=causal,
            registers=registers,
            registers_first=registers_first,
            rotary=rotary,
            convolved=ConvolvedPositions(width, None) if positions == "convolved" else None,
            **shared,
        )

    @property
    def unused_parameters(self) -> tuple[str, ...]:
        """Parameters that the features do not depend on."""
        unseen = self.temporal.unseen and self.temporal.registers is not None
        return ("temporal.registers",) if unseen else ()

    def add_animal(self, animal: str) -> None:
        """Fresh weights for one more animal in each block, where animals have their own and it has none yet."""
        for states in self.state_encoders():
            states.add(animal)

    def remove_animal(self, animal: str) -> None:
        """Take an animal's own weights away, if it has any."""
        for states in self.state_encoders():
            states.remove(animal)

    def state_encoders(self) -> Iterator[StateEncoder]:
        """The state encoders of all blocks, where each animal has its own."""
        if self.behavior == "animal_mlp":
            yield from (*self.spatial.states, *self.temporal.states)

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
                f"ViV1T takes a video (batch, {self.channels}, time, {self.input_size[0]}, {self.input_size[1]}), "
                f"found {tuple(video.shape)}"
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
    """Zeros (before, after) in time, rows, columns with which tubelets start at every stride; in time only before."""
    time, *space = (
        (math.ceil(length / stride) - 1) * stride + size - length
        for length, size, stride in zip(lengths, sizes, strides, strict=True)
    )
    return ((time, 0), *((zeros // 2, zeros - zeros // 2) for zeros in space))


def require_choice(name: str, given: str, choices: Sequence[str] | dict[str, object]) -> None:
    if given not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, found {given!r}")
