"""Attention readouts: each neuron looks at the whole map, weighted by a softmax over positions.

What comes in: features (batch, channels[, frames], height, width). What goes out: responses (batch, neurons[, frames])
before the output activation. Attention moves with what is seen, so a gaze shift is accepted and not used, as published.

`AttentionReadout` is neuralpredictors' (https://github.com/sinzlab/neuralpredictors): the scores are a convolution with
one output per neuron. `QueryAttentionReadout` is that of Pierzchlewicz et al. 2023 (NeurIPS,
https://openreview.net/forum?id=7NAFJiCUNT) as in ViV1T's closed-loop version: all animals share keys and values, and
each neuron has a query. Both are one call of `scaled_dot_product_attention`, in which no array of frames x neurons x
positions exists: a convolution's weights are queries, and the patches under its kernel are keys.
"""

import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfer.readout import Readout


class AttentionReadout(Readout):
    """A softmax per neuron over the output of convolutions, a mean of the features by it, and weights per channel.

    The bias of the last convolution is the same at all positions, so it does nothing; published weights have it.

    Args:
        in_shape, neurons, bias, mean_responses, feature_reg_weight: see `Readout`.
        init_noise: standard deviation from which the weights start.
        attention_kernel: odd side of the kernels.
        attention_layers: convolutions, with batch norm and ELU between them.
    """

    has_positions: ClassVar = False
    neuron_axis: ClassVar = {"features": 0, "bias": -1}

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        neurons: int,
        mean_responses: Tensor | np.ndarray | None = None,
        bias: bool = True,
        init_noise: float = 1e-3,
        attention_kernel: int = 1,
        attention_layers: int = 1,
        feature_reg_weight: float = 1.0,
    ) -> None:
        super().__init__(in_shape, neurons, bias, mean_responses, feature_reg_weight)
        if attention_kernel % 2 == 0:
            raise ValueError(f"attention_kernel is {attention_kernel}, expected an odd number")
        channels = self.in_shape[0]
        self.attention = nn.Sequential()
        padding = attention_kernel // 2
        for number in range(attention_layers - 1):
            convolution = nn.Conv2d(channels, channels, attention_kernel, padding=padding)
            self.attention.add_module(f"conv{number}", convolution)
            self.attention.add_module(f"norm{number}", nn.BatchNorm2d(channels))
            self.attention.add_module(f"nonlin{number}", nn.ELU())
        scores = nn.Conv2d(channels, neurons, attention_kernel, padding=padding)
        self.attention.add_module(f"conv{attention_layers}", scores)
        for convolution in self.attention:
            if isinstance(convolution, nn.Conv2d):
                nn.init.xavier_normal_(convolution.weight)
                nn.init.zeros_(convolution.bias)
        self.features = nn.Parameter(init_noise * torch.randn(neurons, channels))

    def forward(
        self,
        features: Tensor,
        shift: Tensor | None = None,
        behavior: Tensor | None = None,
        pupil_center: Tensor | None = None,
    ) -> Tensor:
        """Responses (batch, neurons[, frames])."""
        frames = self.frames_of(features, any_size=True).flatten(0, -4)
        scores = self.attention[-1]
        keys = F.unfold(self.attention[:-1](frames), scores.kernel_size, padding=scores.padding).mT
        queries = scores.weight.flatten(1).expand(len(frames), -1, -1)
        attended = F.scaled_dot_product_attention(queries, keys, frames.flatten(2).mT, scale=1.0)
        return self.finish(torch.linalg.vecdot(attended, self.features), features)

    def keep_neurons(self, chosen: Tensor | np.ndarray) -> None:
        """Drop all neurons but these, by indices or a boolean mask."""
        super().keep_neurons(chosen)
        scores = self.attention[-1]
        chosen = torch.as_tensor(chosen)
        scores.weight = nn.Parameter(scores.weight.detach()[chosen])
        scores.bias = nn.Parameter(scores.bias.detach()[chosen])
        scores.out_channels = self.neurons


class KeysValues(nn.Module):
    """Keys and values of all positions, for the readouts of all animals: sine positions added, then a linear map.

    Args:
        in_shape: channels (a multiple of 4), height and width.
        embedding: length of a key and of a value.
        dropout: of features with positions.
    """

    def __init__(self, in_shape: tuple[int, int, int], embedding: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.position_embedding = SinePositions(in_shape, dropout)
        self.to_kv = nn.Linear(in_shape[0], 2 * embedding, bias=False)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (frames, positions, embedding) of features (frames, channels, height, width)."""
        return self.to_kv(self.position_embedding(frames.flatten(2)).mT).chunk(2, -1)


class SinePositions(nn.Module):
    """Adds sines and cosines, in turn, of the row in the first half of the channels and of the column in the second."""

    def __init__(self, in_shape: tuple[int, int, int], dropout: float) -> None:
        super().__init__()
        channels, height, width = in_shape
        if channels % 4:
            raise ValueError(f"sines and cosines of two positions need a multiple of 4 channels, found {channels}")
        half = channels // 2
        rates = torch.exp(torch.arange(0, half, 2) * (-math.log(10000.0) / half))
        angles = torch.arange(max(height, width))[:, None] * rates
        waves = torch.stack((angles.sin(), angles.cos()), -1).flatten(1)
        rows, columns = waves[:height, None].expand(-1, width, -1), waves[None, :width].expand(height, -1, -1)
        self.register_buffer("twod_pe", torch.cat((rows, columns), -1).flatten(0, 1).mT.contiguous())
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Features (frames, channels, positions) with their positions."""
        return self.dropout(features + self.twod_pe)


class QueryAttentionReadout(Readout):
    """A query per neuron, compared with the keys of all positions; the values are averaged, and weighted.

    Args:
        in_shape, neurons, bias, mean_responses, feature_reg_weight: see `Readout`.
        embedding: length of queries and values.
        heads: into which queries, keys and values are cut.
        temperature_per_neuron: a learned divisor `T` of each neuron's scores, 1 to start from.
        keys_values: another readout's, where animals share them; its own without.
    """

    has_positions: ClassVar = False
    neuron_axis: ClassVar = {"features": -1, "neuron_query": -1, "bias": -1, "T": -1}

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        neurons: int,
        mean_responses: Tensor | np.ndarray | None = None,
        bias: bool = True,
        embedding: int = 64,
        heads: int = 1,
        temperature_per_neuron: bool = False,
        keys_values: KeysValues | None = None,
        feature_reg_weight: float = 1.0,
    ) -> None:
        super().__init__(in_shape, neurons, bias, mean_responses, feature_reg_weight)
        self.heads = heads
        self.scale = (in_shape[0] // heads) ** -0.5
        start = torch.full((1, embedding, neurons), 1 / in_shape[0])
        self.features, self.neuron_query = nn.Parameter(start), nn.Parameter(start.clone())
        self.register_parameter("T", nn.Parameter(torch.ones(neurons)) if temperature_per_neuron else None)
        self.keys_values = keys_values or KeysValues(self.in_shape, embedding)

    def forward(
        self,
        features: Tensor,
        shift: Tensor | None = None,
        behavior: Tensor | None = None,
        pupil_center: Tensor | None = None,
    ) -> Tensor:
        """Responses (batch, neurons[, frames])."""
        frames = self.frames_of(features).flatten(0, -4)
        queries = self.neuron_query[0] if self.T is None else self.neuron_query[0] / self.T
        keys, values = self.keys_values(frames)
        queries, keys, values = (
            each.unflatten(-1, (self.heads, -1)).transpose(-3, -2)
            for each in (queries.mT.expand(len(frames), -1, -1), keys, values)
        )
        attended = F.scaled_dot_product_attention(queries, keys, values, scale=self.scale)
        by_neuron = attended.transpose(-3, -2).flatten(-2)
        return self.finish(torch.linalg.vecdot(by_neuron, self.features[0].mT), features)
