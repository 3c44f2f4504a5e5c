"""Normalisations of tokens by name: layer norm, RMS norm and dynamic tanh."""

import torch
from torch import Tensor, nn


class DynamicTanh(nn.Module):
    """tanh(alpha x) * weight + bias. Source: Zhu 2025, https://arxiv.org/abs/2503.10622."""

    def __init__(self, width: int, alpha: float = 0.5) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), alpha))
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.tanh(self.alpha * tokens) * self.weight + self.bias


NORMS = {"layernorm": nn.LayerNorm, "rmsnorm": nn.RMSNorm, "dyt": DynamicTanh}


def make_norm(name: str, width: int) -> nn.Module:
    """The named norm over the last axis of `width` values."""
    if name not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, found {name!r}")
    return NORMS[name](width)
