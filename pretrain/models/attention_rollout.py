"""Attention rollout: how much each place of the image reaches the class token through all blocks of a transformer.

What comes in: attention maps (batch, block, head, token, token), rows summing to 1, the class token first, the first
block first. What goes out: (batch, height, width) in 0..1. Source: Abnar & Zuidema 2020 (https://arxiv.org/abs/2005.00928)
with the maximum over heads, as V1T does it (Li et al. 2023, https://openreview.net/forum?id=qHZs2p4ZD4).
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def attention_rollout(maps: Tensor, grid: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
    """Rollout of attention as an image, 0 at the place that matters least and 1 where most, before it is resized.

    Where all places matter alike it is 0, and not undefined as in the published code. A block passes on the maximum of
    its heads plus the identity (its residual connection), rows normed to sum 1.

    Args:
        maps: attention (batch, block, head, 1 + patches, 1 + patches).
        grid: rows and columns of the patches.
        image_size: (height, width) in pixels that the grid is resized to, bilinearly.

    Raises:
        ValueError: the maps are not of 1 + rows x columns tokens.
    """
    tokens = 1 + grid[0] * grid[1]
    if maps.ndim != 5 or maps.shape[-2:] != (tokens, tokens):
        raise ValueError(
            f"maps must be (batch, block, head, {tokens}, {tokens}) for a grid of {grid[0]} x {grid[1]} patches, "
            f"found {tuple(maps.shape)}"
        )
    # Of the product of all blocks only the class token's row is wanted: a row times a matrix, not matrix times matrix.
    row = maps.new_zeros(len(maps), 1, tokens)
    row[..., 0] = 1
    for block in reversed(range(maps.shape[1])):
        attention = maps[:, block].amax(1)
        share = row / (attention.sum(-1) + 1)[:, None]
        row = torch.baddbmm(share, share, attention)
    reached = row[:, 0, 1:]
    low, high = reached.amin(1, keepdim=True), reached.amax(1, keepdim=True)
    scaled = ((reached - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny)).unflatten(1, grid)
    return F.interpolate(scaled[:, None], image_size, mode="bilinear", align_corners=False)[:, 0]
