"""Dropout and drop path that neither compute nor keep what they drop.

What comes in: activations in training. What goes out: the same distribution as `torch.nn.functional.dropout` and
stochastic depth (Huang 2016, https://arxiv.org/abs/1603.09382) give. Dropout keeps one byte per value for the backward
pass, and the layer behind it keeps no copy of its input; rows of a batch that drop path drops are not computed.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# Draws of 16 bits, four to a random word: on a CPU this takes a tenth of the time of `bernoulli_`.
LEVELS = 1 << 16
# Tokens that a branch is computed for at once on a CPU: its activations then stay in the cache, and are small enough
# that the memory of the last ones is used again instead of being asked of the system.
CPU_TOKENS = 8192


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
            values = values * mask
            weight = weight / kept
        return F.linear(values, weight, bias)

    # The activation and the product are made again in the backward pass; torch stops before the linear layer.
    if torch.is_grad_enabled() and (mask is not None or activation):
        return checkpoint(project, inputs, weight, bias, use_reentrant=False, preserve_rng_state=False)
    return project(inputs, weight, bias)


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
