"""Readouts that give several numbers per neuron: the parameters of the distribution of its responses.

What comes in: as for `GaussianReadout` and `PointPooledReadout`. What goes out: (parameters, batch, neurons[, frames]),
before any output activation: each neuron has one point, and for each parameter weights and a bias of its own. Source:
`GeneralizedFullGaussianReadout2d` and `GeneralizedPointPooled2d` of neuralpredictors, whose state-dict keys these are.
Mended: no axis is lost where its length is 1.
"""

from typing import Any

import torch
from torch import Tensor, nn

from transfer.gaussian_readout import GaussianReadout
from transfer.pooled_readout import PointPooledReadout


def repeated_bias(bias: nn.Parameter | None, parameters: int) -> nn.Parameter | None:
    """A bias (neurons,) for each parameter (parameters, neurons)."""
    return None if bias is None else nn.Parameter(bias.detach().repeat(parameters, 1))


class DistributionGaussianReadout(GaussianReadout):
    """`GaussianReadout`, with its arguments, for `parameters` numbers per neuron."""

    def __init__(
        self, in_shape: tuple[int, int, int], neurons: int, *args: Any, parameters: int = 2, **kwargs: Any
    ) -> None:
        self.parameters_per_neuron = parameters
        super().__init__(in_shape, neurons, *args, **kwargs)
        self.bias = repeated_bias(self.bias, parameters)

    def features_shape(self, count: int) -> tuple[int, ...]:
        """Shape of the weights of `count` neurons, which are the last axis."""
        return (self.parameters_per_neuron, *super().features_shape(count))

    def weighted(self, frames: Tensor, points: Tensor, weights: Tensor) -> Tensor:
        """Sums (parameters, frames, neurons)."""
        return torch.stack([super(DistributionGaussianReadout, self).weighted(frames, points, w) for w in weights])


class DistributionPooledReadout(PointPooledReadout):
    """`PointPooledReadout`, with its arguments, for `parameters` numbers per neuron."""

    def __init__(
        self, in_shape: tuple[int, int, int], neurons: int, *args: Any, parameters: int = 2, **kwargs: Any
    ) -> None:
        super().__init__(in_shape, neurons, *args, **kwargs)
        self.features = nn.Parameter(self.features.detach().repeat(parameters, 1, 1, 1, 1))
        self.bias = repeated_bias(self.bias, parameters)

    def weighted(self, maps: list[Tensor], points: Tensor, weights: Tensor) -> Tensor:
        """Sums (parameters, frames, neurons)."""
        return torch.stack([super(DistributionPooledReadout, self).weighted(maps, points, w) for w in weights])
