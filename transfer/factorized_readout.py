"""The factorised readout: each neuron has a mask over the map and a weight per channel.

What comes in: features (batch, channels[, frames], height, width). What goes out: responses (batch, neurons[, frames])
before the output activation, y_i = bias_i + sum_c f_ic sum_hw S_ihw F_chw. Source: Klindt et al. 2017
(https://arxiv.org/abs/1711.02653), as `FullFactorized2d` of neuralpredictors, there also `SpatialXFeatureLinear` and
`FullSXF`, whose state-dict keys these are; ViV1T has it with a dropout. Masks do not move: a shift is not used.

Mended: the penalty is the sum over neurons of |S_i| |f_i|; neuralpredictors multiplies the sums over all neurons, which
`published_penalty` brings back.
"""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from transfer.gaussian_readout import Shared, borrowed
from transfer.readout import Readout, reduced


class FactorizedReadout(Readout):
    """A mask and a feature vector per neuron.

    Args:
        in_shape, neurons, bias, mean_responses: see `Readout`.
        normalize: divide each mask by its L2 norm plus 1e-6.
        init_noise: standard deviation from which masks and features start.
        positivity: "none"; "spatial", the absolute values of the masks (`positive_spatial`); "all", masks and features
            are cut at 0 (`constrain_pos`): in place, but for normalised masks, which are cut on each use, and shared
            features, which are not cut, as published.
        shared_features: neurons with equal ids share features, times a scale each.
        dropout: of mask-weighted features, as in ViV1T.
        spatial_and_feature_reg_weight: of the penalty.
        published_penalty: the product of sums of neuralpredictors.
    """

    has_positions: ClassVar = False

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        neurons: int,
        mean_responses: Tensor | np.ndarray | None = None,
        bias: bool = True,
        normalize: bool = True,
        init_noise: float = 1e-3,
        positivity: str = "none",
        shared_features: Shared | None = None,
        dropout: float = 0.0,
        spatial_and_feature_reg_weight: float = 1.0,
        published_penalty: bool = False,
    ) -> None:
        super().__init__(in_shape, neurons, bias, mean_responses, spatial_and_feature_reg_weight)
        if positivity not in ("none", "spatial", "all"):
            raise ValueError(f'positivity is {positivity!r}, expected "none", "spatial" or "all"')
        self.normalize, self.positivity, self.published_penalty = normalize, positivity, published_penalty
        channels, height, width = self.in_shape
        self.spatial = nn.Parameter(init_noise * torch.randn(neurons, height, width))
        count = neurons
        if shared_features is not None:
            self.register_buffer("feature_sharing_index", shared_features.index(neurons))
            count = len(np.unique(shared_features.match_ids))
            self.scales = nn.Parameter(torch.ones(neurons, 1))
        self.borrows_features = shared_features is not None and shared_features.owner is not None
        self._features = (
            borrowed(shared_features.owner, "_features", (count, channels))
            if self.borrows_features
            else nn.Parameter(init_noise * torch.randn(count, channels))
        )
        self.dropout = nn.Dropout(dropout)

    @property
    def neuron_axis(self) -> dict[str, int]:
        """Shared features do not lie along the neurons; what points at them does."""
        shared = hasattr(self, "feature_sharing_index")
        return {"bias": -1, "spatial": 0} | ({"feature_sharing_index": 0, "scales": 0} if shared else {"_features": 0})

    def masks(self) -> Tensor:
        """Masks (neurons, height, width) as they are used."""
        masks = self.spatial.abs() if self.positivity == "spatial" else self.spatial
        if self.normalize:
            masks = masks / (masks.square().sum((1, 2), keepdim=True).sqrt() + 1e-6)
        return CutAtZero.apply(masks) if self.positivity == "all" else masks

    def cut(self) -> None:
        """What `positivity` "all" changes in place."""
        if not hasattr(self, "feature_sharing_index"):
            self._features.data.clamp_(min=0)
        if not self.normalize:
            self.spatial.data.clamp_(min=0)

    def effective_features(self) -> Tensor:
        """Features (neurons, channels), scales of shared ones included."""
        shared = hasattr(self, "feature_sharing_index")
        return self.scales * self._features[self.feature_sharing_index] if shared else self._features

    def regularizer(self, reduction: str = "sum") -> Tensor:
        """The penalty, its "sum", or that divided by the number of weights that the product would have."""
        of_masks, of_features = self.masks().abs().sum((1, 2)), self.effective_features().abs().sum(1)
        penalty = of_masks.sum() * of_features.sum() if self.published_penalty else (of_masks * of_features).sum()
        if reduction == "mean":
            penalty = penalty / (self.neurons * np.prod(self.in_shape))
        return self.feature_reg_weight * reduced(penalty, reduction)

    def forward(
        self,
        features: Tensor,
        shift: Tensor | None = None,
        behavior: Tensor | None = None,
        pupil_center: Tensor | None = None,
    ) -> Tensor:
        """Responses (batch, neurons[, frames]); shift, behaviour and pupil centre are not used."""
        if self.positivity == "all":
            self.cut()
        frames = self.frames_of(features).flatten(0, -4).flatten(2)
        under_masks = self.dropout(frames @ self.masks().flatten(1).mT)
        return self.finish(torch.linalg.vecdot(under_masks, self.effective_features().mT, dim=-2), features)


class CutAtZero(torch.autograd.Function):
    """max(x, 0) whose gradient is 1 everywhere, as cutting `.data` in place has it."""

    @staticmethod
    def forward(ctx: object, masks: Tensor) -> Tensor:
        """What is below 0 becomes 0."""
        return masks.clamp(min=0)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        """The gradient as it comes."""
        return gradient
