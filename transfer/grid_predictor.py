"""Where a neuron's point lies in the map, predicted from where the neuron lies in cortex.

What comes in: cortical coordinates (neurons, 2 or 3), in µm or any unit. What goes out: positions (neurons, 2) in the
map, from a network that all neurons share, so that retinotopy is learned once. Source: Lurz et al. 2021
(https://openreview.net/forum?id=Tp7kI90Htd); layers and state-dict keys are those of neuralpredictors.
"""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn


def grid_predictor(dimensions: int, hidden_layers: int = 1, hidden_features: int = 30, tanh: bool = True) -> nn.Module:
    """Linear layers with ELU between them, from coordinates to x and y.

    The defaults are the Sensorium baselines', V1T's and ViV1T's; Dynamic-VFM has 32 hidden features, neuralpredictors
    by default no hidden layer and no tanh. Layers are at even places of the sequence.
    """
    sizes = [dimensions, *[hidden_features] * hidden_layers, 2]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ELU()]
    layers.pop()
    return nn.Sequential(*layers, nn.Tanh()) if tanh else nn.Sequential(*layers)


def source_grid(coordinates: Tensor | np.ndarray, neurons: int) -> Tensor:
    """Coordinates float32 (neurons, d), each column minus its mean, then all divided by the largest absolute value.

    Raises:
        ValueError: another shape, or all neurons at one place.
    """
    coordinates = torch.as_tensor(coordinates)
    if coordinates.ndim != 2 or len(coordinates) != neurons:
        raise ValueError(
            f"coordinates have shape {tuple(coordinates.shape)}, expected ({neurons}, 2 or 3), one row per neuron"
        )
    centred = coordinates.detach().to(torch.float64)
    centred = centred - centred.mean(0, keepdim=True)
    largest = centred.abs().max()
    if not largest.is_meta and not largest > 0:
        raise ValueError("coordinates are the same for all neurons, or not a number: positions cannot follow from them")
    return (centred / largest).to(torch.float32)
