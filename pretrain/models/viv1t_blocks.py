"""Transformer blocks of ViV1T: attention beside a feed-forward layer, or one after the other.

What comes in and goes out: tokens (rows, tokens, width), where a row is what attends to itself: all places of one
frame, or all frames of one place. Dropout is on what attention gives, not on its weights. Source:
https://github.com/bryanlimy/ViV1T and https://github.com/bryanlimy/ViV1T-closed-loop; the parallel form is that of
Dehghani 2023, https://arxiv.org/abs/2302.05442.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from pretrain.models.dropping import add_branch, dropped_linear
from pretrain.models.positions import ConvolvedPositions, RotaryPositions, rotated
from pretrain.models.token_norms import make_norm

Rotation = tuple[Tensor, Tensor]
INITIAL_STD = 0.02


def swiglu(hidden: Tensor) -> Tensor:
    """Value times silu(gate), of the first and second half. Source: Shazeer 2020, https://arxiv.org/abs/2002.05202."""
    value, gate = hidden.chunk(2, -1)
    return F.silu(gate) * value


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "none": None,
    "tanh": torch.tanh,
    "elu": F.elu,
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "swiglu": swiglu,
}


@dataclass(frozen=True)
class BlockSizes:
    """What all blocks of a core share; see `pretrain.models.viv1t.ViV1T`."""

    width: int
    heads: int
    head_dim: int
    ff_dim: int
    ff_activation: str
    norm: str
    norm_qk: bool
    attention_dropout: float
    ff_dropout: float
    drop_path: float
    scale_by_width: bool
    recomputed: int

    def __post_init__(self) -> None:
        if self.ff_activation not in ACTIVATIONS:
            raise ValueError(f"ff_activation must be one of {', '.join(ACTIVATIONS)}, found {self.ff_activation!r}")
        for name in ("attention_dropout", "ff_dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, found {getattr(self, name)}")

    @property
    def inner(self) -> int:
        """Values of all heads together."""
        return self.heads * self.head_dim

    @property
    def hidden(self) -> int:
        """Outputs of the first feed-forward layer: with SwiGLU, values and gates."""
        return self.ff_dim * (2 if self.ff_activation == "swiglu" else 1)


class Attention(nn.Module):
    """Attention of normalised tokens: queries, keys and values are `weight` (3 x heads x head_dim, width) times them.

    They are projected one after the other, since the gradients of three slices of one tensor would have to be copied
    together. Queries and keys are normalised over all heads at once, where they are. The backward pass projects the
    first `recomputed` of queries, keys and values again instead of keeping them, without attending again.
    """

    def __init__(self, sizes: BlockSizes, causal: bool) -> None:
        super().__init__()
        self.inner, self.heads, self.causal = sizes.inner, sizes.heads, causal
        self.recomputed = sizes.recomputed
        self.scale = sizes.width**-0.5 if sizes.scale_by_width else None
        self.norm_q = make_norm(sizes.norm, sizes.inner) if sizes.norm_qk else nn.Identity()
        self.norm_k = make_norm(sizes.norm, sizes.inner) if sizes.norm_qk else nn.Identity()

    def forward(self, normed: Tensor, weight: Tensor, rotation: Rotation | None) -> Tensor:
        """(rows, tokens, heads x head_dim)."""
        weights = weight.split(self.inner)
        recomputed = self.recomputed if torch.is_grad_enabled() else 0
        kept = [self.projected(number, normed, weights[number], rotation) for number in range(recomputed, 3)]

        def seen(normed: Tensor, *parts: Tensor) -> Tensor:
            again, kept = parts[:recomputed], parts[recomputed:]
            made = [self.projected(number, normed, part, rotation) for number, part in enumerate(again)]
            return F.scaled_dot_product_attention(*made, *kept, is_causal=self.causal, scale=self.scale)

        parts = (*weights[:recomputed], *kept)
        if recomputed:
            heads = checkpoint(
                seen, normed, *parts, use_reentrant=False, context_fn=keep_attention, preserve_rng_state=False
            )
        else:
            heads = seen(normed, *parts)
        return heads.transpose(1, 2).flatten(2)

    def projected(self, number: int, normed: Tensor, weight: Tensor, rotation: Rotation | None) -> Tensor:
        """Queries, keys or values (number 0, 1, 2) as (rows, heads, tokens, head_dim)."""
        norm = (self.norm_q, self.norm_k, nn.Identity())[number]
        part = norm(F.linear(normed, weight)).unflatten(-1, (self.heads, -1))
        if rotation is not None and number < 2:
            part = rotated(part, rotation)
        return part.transpose(1, 2)


def keep_attention():
    """Contexts in which all is computed again but attention."""

    def policy(context, operation, *args, **kwargs) -> CheckpointPolicy:
        attends = "scaled_dot_product" in str(operation)
        return CheckpointPolicy.MUST_SAVE if attends else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


class ParallelBlock(nn.Module):
    """x + attention(norm(x)) + feed_forward(norm(x)); no linear layer has a bias."""

    def __init__(self, sizes: BlockSizes, causal: bool = False) -> None:
        super().__init__()
        self.sizes = sizes
        self.norm = make_norm(sizes.norm, sizes.width)
        self.fused_linear = nn.Linear(sizes.width, 3 * sizes.inner + sizes.hidden, bias=False)
        self.attention = Attention(sizes, causal)
        self.attn_out = nn.Linear(sizes.inner, sizes.width, bias=False)
        self.ff_out = nn.Linear(sizes.ff_dim, sizes.width, bias=False)
        self.apply(initialise)

    def forward(self, tokens: Tensor, rotation: Rotation | None = None) -> Tensor:
        normed, drop_path = self.norm(tokens), self.sizes.drop_path * self.training
        added = add_branch(tokens, normed, partial(self.attended, rotation=rotation), drop_path)
        return add_branch(added, normed, self.fed, drop_path)

    def attended(self, normed: Tensor, rotation: Rotation | None) -> Tensor:
        seen = self.attention(normed, self.fused_linear.weight[: 3 * self.sizes.inner], rotation)
        return dropped_linear(seen, self.attn_out.weight, drop=self.sizes.attention_dropout * self.training)

    def fed(self, normed: Tensor) -> Tensor:
        hidden = F.linear(normed, self.fused_linear.weight[3 * self.sizes.inner :])
        activation = ACTIVATIONS[self.sizes.ff_activation]
        return dropped_linear(hidden, self.ff_out.weight, None, self.sizes.ff_dropout * self.training, activation)


class SequentialBlock(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); all linear layers but those of attention have biases."""

    def __init__(self, sizes: BlockSizes, causal: bool = False) -> None:
        super().__init__()
        self.sizes = sizes
        self.norm = make_norm(sizes.norm, sizes.width)
        self.to_qkv = nn.Linear(sizes.width, 3 * sizes.inner, bias=False)
        self.attention = Attention(sizes, causal)
        self.attn_out = nn.Linear(sizes.inner, sizes.width)
        self.ff_norm = make_norm(sizes.norm, sizes.width)
        self.ff_in = nn.Linear(sizes.width, sizes.hidden)
        self.ff_out = nn.Linear(sizes.ff_dim, sizes.width)
        self.apply(initialise)

    def forward(self, tokens: Tensor, rotation: Rotation | None = None) -> Tensor:
        drop_path = self.sizes.drop_path * self.training
        tokens = add_branch(tokens, tokens, partial(self.attended, rotation=rotation), drop_path)
        return add_branch(tokens, tokens, self.fed, drop_path)

    def attended(self, tokens: Tensor, rotation: Rotation | None) -> Tensor:
        drop = self.sizes.attention_dropout * self.training
        seen = self.attention(self.norm(tokens), self.to_qkv.weight, rotation)
        return F.dropout(dropped_linear(seen, self.attn_out.weight, self.attn_out.bias, drop), drop)

    def fed(self, tokens: Tensor) -> Tensor:
        drop, activation = self.sizes.ff_dropout * self.training, ACTIVATIONS[self.sizes.ff_activation]
        hidden = self.ff_in(self.ff_norm(tokens))
        return F.dropout(dropped_linear(hidden, self.ff_out.weight, self.ff_out.bias, drop, activation), drop)


def initialise(module: nn.Module) -> None:
    """Truncated normal weights and no biases in linear layers, as published."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=INITIAL_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class StateEncoder(nn.Module):
    """What is added to every token, from the signals of the frames that the token is made of; one per animal, or one.

    Args:
        values: signals times frames of a token.
        animals: names; with none, one encoder for all.
    """

    SHARED = "share"

    def __init__(self, values: int, width: int, animals: Sequence[str] = ()) -> None:
        super().__init__()
        self.values, self.width = values, width
        self.models = nn.ModuleDict()
        for name in animals or (self.SHARED,):
            self.add(name)

    def add(self, name: str) -> None:
        """A network with fresh weights for an animal, if there is none of it."""
        if name not in self.models:
            half = self.width // 2
            made = nn.Sequential(nn.Linear(self.values, half), nn.Tanh(), nn.Linear(half, self.width), nn.Tanh())
            self.models[name] = made.apply(initialise)

    def remove(self, name: str) -> None:
        """Take an animal's network away, if there is one."""
        if name in self.models:
            del self.models[name]

    def forward(self, windows: Tensor, animal: str | None) -> Tensor:
        """(batch, frames, values) to (batch, frames, width)."""
        name = self.SHARED if self.SHARED in self.models else animal
        if name not in self.models:
            raise ValueError(f"the core has state encoders of {', '.join(self.models)}, none of animal {animal!r}")
        return self.models[name](windows)


class Transformer(nn.Module):
    """Blocks over rows of tokens (batch, rows, tokens, width), with register tokens beside them.

    Register tokens behind the frames of a causal transformer are seen by no frame: they are parameters without a use,
    kept for the published weights and not computed. With `registers_first` every frame sees them.
    """

    def __init__(
        self,
        sizes: BlockSizes,
        depth: int,
        *,
        parallel: bool,
        causal: bool,
        registers: int,
        registers_first: bool,
        rotary: RotaryPositions | None,
        convolved: ConvolvedPositions | None,
        state_encoder: Callable[[], StateEncoder] | None,
        recompute: bool,
    ) -> None:
        super().__init__()
        block = ParallelBlock if parallel else SequentialBlock
        self.blocks = nn.ModuleList(block(sizes, causal) for _ in range(depth))
        self.registers = nn.Parameter(torch.randn(registers, sizes.width)) if registers else None
        self.registers_first, self.recompute = registers_first, recompute
        self.unseen = causal and not registers_first
        self.rotary, self.convolved = rotary, convolved
        self.states = nn.ModuleList(state_encoder() for _ in range(depth)) if state_encoder else None

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
