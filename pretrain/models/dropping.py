"""Dropout and drop path that neither compute nor keep what they drop.

What comes in: activations in training. What goes out: the same distribution as `torch.nn.functional.dropout` and
stochastic depth (Huang 2016, https://arxiv.org/abs/1603.09382) give. Dropout keeps one byte per value for the backward
pass, and the layer behind it keeps no copy of its input; rows of a batch that drop path drops are not computed. Of
attention whose weights are dropped, only these bytes are kept.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# Draws of 16 bits, four to a random word: on a CPU this takes a tenth of the time of `bernoulli_`.
LEVELS = 1 << 16
# Tokens that a branch is computed for at once on a CPU: its activations then stay in the cache, and are small enough
# that the memory of the last ones is used again instead of being asked of the system.
CPU_TOKENS = 8192
# Attention weights that are computed at once on a CPU, for the same reason.
CPU_WEIGHTS = 1 << 20
# Attention weights up to which they are kept for the gradient, not made again: 64 MiB of a layer.
KEPT_WEIGHTS = 1 << 24


def keep_mask(shape: torch.Size, keep: float, device: torch.device) -> tuple[Tensor, float]:
    """True where a value is kept, and the share of values that is kept on average.

    On a CPU the share is `keep` rounded to 1/65536. Draws are of torch's global generator of the device.
    """
    if device.type != "cpu":
        return torch.empty(shape, dtype=torch.bool, device=device).bernoulli_(keep), keep
    threshold = max(1, round(keep * LEVELS))
    words = torch.empty(-(-shape.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    draws = words.view(torch.int16)[: shape.numel()].view(shape)
    return draws <= threshold - LEVELS // 2 - 1, threshold / LEVELS


def as_factors(mask: Tensor, values: Tensor) -> Tensor:
    """A mask as ones and zeros to multiply values by: on a CPU, torch is ten times slower where it converts them."""
    return mask.view(torch.uint8).to(values.dtype)


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`, with masks that a CPU draws faster."""

    def forward(self, values: Tensor) -> Tensor:
        if not self.p or not self.training or values.device.type != "cpu":
            return super().forward(values)
        mask, kept = keep_mask(values.shape, 1 - self.p, values.device)
        return values * as_factors(mask, values).div_(kept)


def dropped_linear(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    drop: float = 0.0,
    activation: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """`linear(dropout(activation(inputs)))`, of which the backward pass keeps `inputs` and a mask.

    Args:
        inputs: (..., features before the activation).
        drop: the probability that a value is dropped; 0 in evaluation.
    """
    activated_shape = inputs.shape[:-1] + weight.shape[1:]
    mask, kept = keep_mask(activated_shape, 1 - drop, inputs.device) if drop else (None, 1.0)

    def project(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        values = activation(inputs) if activation else inputs
        if mask is not None:
            values = values * as_factors(mask, values)
            weight = weight / kept
        return F.linear(values, weight, bias)

    # The activation and the product are made again in the backward pass; torch stops before the linear layer.
    if torch.is_grad_enabled() and (mask is not None or activation):
        return made_again(project, inputs, weight, bias)
    return project(inputs, weight, bias)


def dropped_attention(queries: Tensor, shared: Tensor, seen: Tensor | None, drop: float, scale: float) -> Tensor:
    """Attention of heads whose keys and values are the same, with dropout of its weights.

    `scaled_dot_product_attention` does it, but on a CPU, where it has no way to drop but one that keeps five values for
    each pair of tokens: there, weights of some queries after the others are made and, unless they are few, made again
    for the gradient.

    Args:
        queries: (batch, heads, tokens, width).
        shared: (batch, tokens, width), keys and values of all heads.
        seen: (tokens, tokens), True where a query sees a key; None for everywhere.
        drop: the probability that a weight is dropped; 0 in evaluation.
        scale: what scores are multiplied by.
    """
    if drop and queries.device.type == "cpu":
        return dropped_attention_in_pieces(queries, shared, seen, drop, scale)
    expanded = shared[:, None].expand(-1, queries.shape[1], -1, -1)
    return F.scaled_dot_product_attention(queries, expanded, expanded, seen, drop, scale=scale)


def dropped_attention_in_pieces(
    queries: Tensor, shared: Tensor, seen: Tensor | None, drop: float, scale: float
) -> Tensor:
    """`dropped_attention` a few tokens after the others, of which masks and, where they are few, weights are kept."""
    batch, heads, tokens, _ = queries.shape

    def weighed(rows: Tensor, shared: Tensor, seen: Tensor | None) -> Tensor:
        scores = rows @ shared.mT
        if seen is not None:
            scores = scores.masked_fill(~seen.repeat_interleave(heads, 0), -torch.inf)
        return scores.softmax(-1)

    def summed(weights: Tensor, shared: Tensor, mask: Tensor) -> Tensor:
        return (weights * as_factors(mask, weights)) @ shared

    def attended(rows: Tensor, shared: Tensor, seen: Tensor | None, mask: Tensor) -> Tensor:
        return summed(weighed(rows, shared, seen), shared, mask)

    at_once = max(1, CPU_WEIGHTS // (batch * heads * tokens))
    # All heads of a token are rows of one product, since they meet the same keys.
    pieces = [piece.flatten(1, 2) for piece in (queries * scale).transpose(1, 2).split(at_once, 1)]
    seen_by = [None] * len(pieces) if seen is None else seen.split(at_once)
    few = batch * heads * tokens**2 <= KEPT_WEIGHTS
    found = []
    for rows, of_piece in zip(pieces, seen_by, strict=True):
        mask, kept = keep_mask(torch.Size((batch, rows.shape[1], tokens)), 1 - drop, rows.device)
        if not torch.is_grad_enabled():
            found.append(attended(rows, shared, of_piece, mask))
        elif few:
            found.append(made_again(summed, weighed(rows, shared, of_piece), shared, mask))
        else:
            found.append(made_again(attended, rows, shared, of_piece, mask))
    return torch.cat(found, 1).unflatten(1, (tokens, heads)).transpose(1, 2) / kept


def made_again(step: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """What a step gives, of which inputs alone are kept; torch stops before a last product, which is computed once."""
    return checkpoint(step, *inputs, use_reentrant=False, preserve_rng_state=False)


def add_branch(tokens: Tensor, inputs: Tensor, branch: Callable[[Tensor], Tensor], drop: float = 0.0) -> Tensor:
    """`tokens + drop_path(branch(inputs))`, the branch computed only for the rows that are kept.

    Args:
        tokens, inputs: (rows, tokens, width).
        drop: the probability that a row is dropped; 0 in evaluation.
    """
    if not drop:
        return tokens + in_pieces(branch, inputs)
    # Drawn on the CPU, so that no GPU is waited for to know how many rows are left.
    rows = (torch.rand(len(tokens), device="cpu") >= drop).nonzero().flatten().to(tokens.device, non_blocking=True)
    if not len(rows):
        return tokens
    kept = in_pieces(branch, inputs.index_select(0, rows))
    return tokens.index_add(0, rows, kept.to(tokens.dtype), alpha=1 / (1 - drop))


def in_pieces(branch: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """`branch(rows)`, on a CPU a few rows after the others."""
    at_once = max(1, CPU_TOKENS // rows.shape[1]) if rows.device.type == "cpu" else len(rows)
    if len(rows) <= at_once:
        return branch(rows)
    return torch.cat([branch(piece) for piece in rows.split(at_once)])
