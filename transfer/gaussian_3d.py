"""Gaussian readouts whose points lie in the map and among its channels: one weight per point instead of per channel.

What comes in: features (batch, channels[, frames], height, width), optionally the gaze shift. What goes out: responses
(batch, neurons[, frames]) before the output activation: the channels are a third axis of space, sampled trilinearly at
(x, y, channel) with zeros outside. Source: `Gaussian3d` and `UltraSparse` of neuralpredictors, whose state-dict keys
these are.

Kept, because published weights need it: means and deviations are cut to range in place; points of a neuron lie one
filter after the other, all neurons of the first first. Mended: the gaze shift moves x and y (there it fails); the
penalty, the L1 norm of the weights, exists (there it raises); nothing is drawn in evaluation (there `UltraSparse`
draws unless told not to).
"""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfer.gaussian_2d import drawn, first_deviation
from transfer.gaussian_readout import check_start
from transfer.readout import Readout, chosen_neurons, of_frames


class Gaussian3dReadout(Readout):
    """One point per neuron in (x, y, channel), with one weight.

    Args:
        in_shape, neurons, bias, mean_responses, feature_reg_weight: see `Readout`.
        init_mu_range, init_sigma_range, fixed_sigma, batch_sample, align_corners: see `Gaussian2dReadout`.
    """

    neuron_axis: ClassVar = {"mu": 2, "sigma": 2, "features": -1, "bias": -1}
    filters = 1

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        neurons: int,
        mean_responses: Tensor | np.ndarray | None = None,
        bias: bool = True,
        init_mu_range: float = 0.5,
        init_sigma_range: float = 0.5,
        fixed_sigma: bool = False,
        batch_sample: bool = True,
        align_corners: bool = True,
        feature_reg_weight: float = 1.0,
    ) -> None:
        super().__init__(in_shape, neurons, bias, mean_responses, feature_reg_weight)
        check_start(init_mu_range, init_sigma_range)
        self.batch_sample, self.align_corners = batch_sample, align_corners
        self.add_points(init_mu_range, init_sigma_range, fixed_sigma)
        self.features = nn.Parameter(torch.full(self.weights_shape(), 1 / in_shape[0]))

    def weights_shape(self) -> tuple[int, ...]:
        """Shape of the weights."""
        return (1, 1, 1, self.neurons)

    def add_points(self, init_mu_range: float, init_sigma_range: float, fixed_sigma: bool) -> None:
        """Means and deviations (1, 1, neurons x filters, 1, 3): x, y and channel."""
        shape = (1, 1, self.neurons * self.filters, 1, 3)
        self.mu = nn.Parameter(torch.empty(shape).uniform_(-init_mu_range, init_mu_range))
        self.sigma = nn.Parameter(first_deviation(shape, init_sigma_range, fixed_sigma))

    def points(self, count: int, sample: bool, noise: Tensor | None) -> Tensor:
        """Positions (count or 1, filters x neurons, 3)."""
        return drawn(self.mu, self.sigma, count, sample, noise)

    def forward(
        self,
        features: Tensor,
        shift: Tensor | None = None,
        behavior: Tensor | None = None,
        pupil_center: Tensor | None = None,
        sample: bool | None = None,
        noise: Tensor | None = None,
        neurons: Tensor | np.ndarray | None = None,
    ) -> Tensor:
        """Responses (batch, neurons[, frames]); noise is standard normal (frames or 1, filters x neurons, 3)."""
        chosen = chosen_neurons(neurons, self.neurons)
        frames = self.frames_of(features).flatten(0, -4)
        count = len(frames) if self.batch_sample else 1
        points = self.points(count, self.training if sample is None else sample, noise)
        points = points.unflatten(1, (self.filters, self.neurons))
        weights = self.features.view(self.neurons, self.filters).mT
        if chosen is not None:
            points, weights = points[:, :, chosen], weights[:, chosen]
        if shift is not None:
            points = points + F.pad(of_frames(shift, features, "shift"), (0, 1))[:, None, None]
        sampled = F.grid_sample(
            frames[:, None], points[:, None].expand(len(frames), -1, -1, -1, -1), align_corners=self.align_corners
        )
        return self.finish(torch.linalg.vecdot(sampled[:, 0, 0], weights, dim=-2), features, chosen)


class UltraSparseReadout(Gaussian3dReadout):
    """Several points per neuron, with one weight each.

    Args:
        num_filters: points per neuron.
        shared_mean: all points of a neuron lie at the same x and y; channels start from U(-1, 1).
        others: see `Gaussian3dReadout`.
    """

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        neurons: int,
        mean_responses: Tensor | np.ndarray | None = None,
        num_filters: int = 1,
        shared_mean: bool = False,
        **kwargs: object,
    ) -> None:
        self.filters = num_filters
        self.shared_mean = shared_mean
        super().__init__(in_shape, neurons, mean_responses, **kwargs)

    def weights_shape(self) -> tuple[int, ...]:
        """Shape of the weights."""
        return (1, 1, self.neurons, self.filters)

    def add_points(self, init_mu_range: float, init_sigma_range: float, fixed_sigma: bool) -> None:
        """Means and deviations: of points, or of places (1, 1, neurons, 1, 2) and channels apart."""
        if not self.shared_mean:
            super().add_points(init_mu_range, init_sigma_range, fixed_sigma)
            return
        place, channel = (1, 1, self.neurons, 1, 2), (1, 1, self.neurons * self.filters, 1, 1)
        self.mu_xy = nn.Parameter(torch.empty(place).uniform_(-init_mu_range, init_mu_range))
        self.mu_ch = nn.Parameter(torch.empty(channel).uniform_(-1, 1))
        self.sigma_xy = nn.Parameter(first_deviation(place, init_sigma_range, fixed_sigma))
        self.sigma_ch = nn.Parameter(first_deviation(channel, init_sigma_range, fixed_sigma))

    def points(self, count: int, sample: bool, noise: Tensor | None) -> Tensor:
        """Positions (count or 1, filters x neurons, 3); each point has noise of its own in x and y too."""
        if not self.shared_mean:
            return super().points(count, sample, noise)
        self.mu_xy.data.clamp_(-1, 1), self.mu_ch.data.clamp_(-1, 1)
        self.sigma_xy.data.clamp_(min=0), self.sigma_ch.data.clamp_(min=0)
        mean, deviation = (
            torch.cat((place.repeat(1, 1, self.filters, 1, 1), channel), 4)
            for place, channel in ((self.mu_xy, self.mu_ch), (self.sigma_xy, self.sigma_ch))
        )
        return drawn(mean, deviation, count, sample, noise)

    def keep_neurons(self, chosen: Tensor | np.ndarray) -> None:
        """Drop all neurons but these, by indices or a boolean mask, with all of their points."""
        chosen = chosen_neurons(chosen, self.neurons)
        of_points = (torch.arange(self.filters)[:, None] * self.neurons + chosen).flatten()
        axes = {"mu": (2, of_points), "sigma": (2, of_points), "mu_ch": (2, of_points), "sigma_ch": (2, of_points)}
        axes |= {"mu_xy": (2, chosen), "sigma_xy": (2, chosen), "features": (2, chosen), "bias": (0, chosen)}
        for name, (axis, kept) in axes.items():
            if self._parameters.get(name) is not None:
                value = self._parameters[name].detach()
                setattr(self, name, nn.Parameter(value.index_select(axis, kept.to(value.device))))
        self.neurons = len(chosen)
