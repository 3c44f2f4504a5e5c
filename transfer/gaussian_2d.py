"""Two older Gaussian readouts of neuralpredictors: axis-aligned points, and a mask that is a Gaussian.

What comes in: features (batch, channels[, frames], height, width), optionally the gaze shift. What goes out: responses
(batch, neurons[, frames]) before the output activation. Source: `Gaussian2d` (deprecated there; the state-dict keys
have no underscores) and `DeterministicGaussian2d` of neuralpredictors.
"""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from transfer.gaussian_readout import check_start
from transfer.point_sampling import weighted_points
from transfer.readout import Readout, chosen_neurons, of_frames, reduced


class Gaussian2dReadout(Readout):
    """One point per neuron, drawn while training with a standard deviation each in x and y.

    Unlike in `GaussianReadout` the deviations are cut at 0, in place, and start from U(0, init_sigma_range) unless
    `fixed_sigma`; and the map must have the size that the readout was built for.

    Args:
        in_shape, neurons, bias, mean_responses, feature_reg_weight: see `Readout`.
        init_mu_range, batch_sample, align_corners: see `GaussianReadout`.
    """

    neuron_axis: ClassVar = {"mu": 1, "sigma": 1, "features": -1, "bias": -1}

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
        self.mu = nn.Parameter(torch.empty(1, neurons, 1, 2).uniform_(-init_mu_range, init_mu_range))
        self.sigma = nn.Parameter(first_deviation((1, neurons, 1, 2), init_sigma_range, fixed_sigma))
        self.features = nn.Parameter(torch.full((1, in_shape[0], 1, neurons), 1 / in_shape[0]))

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
        """Responses (batch, neurons[, frames]); noise is standard normal (frames or 1, neurons, 2)."""
        chosen = chosen_neurons(neurons, self.neurons)
        frames = self.frames_of(features)
        count = frames.shape[:-3].numel() if self.batch_sample else 1
        points = drawn(self.mu, self.sigma, count, self.training if sample is None else sample, noise)
        weights = self.features[0, :, 0]
        if chosen is not None:
            points, weights = points[:, chosen], weights[:, chosen]
        if shift is not None:
            points = points + of_frames(shift, features, "shift")[:, None]
        return self.finish(weighted_points(frames, points, weights, self.align_corners), features, chosen)


def first_deviation(shape: tuple[int, ...], init_sigma_range: float, fixed: bool) -> Tensor:
    """Standard deviations to start from: all the same, or U(0, r)."""
    return torch.full(shape, float(init_sigma_range)) if fixed else init_sigma_range * torch.rand(shape)


def drawn(mu: nn.Parameter, sigma: nn.Parameter, count: int, sample: bool, noise: Tensor | None) -> Tensor:
    """Positions (count or 1, points, dimensions) from means and deviations that are first cut to range, in place.

    Means and deviations hold (points, dimensions) in any shape that ends in the dimensions.
    """
    mu.data.clamp_(-1, 1)
    sigma.data.clamp_(min=0)
    mean, deviation = (value.reshape(1, -1, value.shape[-1]) for value in (mu, sigma))
    if noise is None and not sample:
        return mean
    if noise is None:
        noise = torch.randn(count, *mean.shape[1:], dtype=mean.dtype, device=mean.device)
    return (noise * deviation + mean).clamp(-1, 1)


class DeterministicGaussianReadout(Readout):
    """A mask per neuron that is an isotropic Gaussian over the map, with a sum of 1, and a weight per channel.

    Positions are (row, column), unlike everywhere else, because published weights are. Mended: it can be trained, and
    takes a shift (x, y) for each frame. There the positions are cut to range where autograd forbids it, and a shift is
    one for each neuron.

    Args:
        in_shape, neurons, bias, mean_responses, feature_reg_weight: see `Readout`; the penalty includes the variances.
        init_mu_range: positions start from U(-r, r).
        init_sigma: standard deviation to start from, in half widths of the map.
        positivity: "none"; "default", masks and features cut at 0, "abs" or "elu" (plus 1) of both.
    """

    neuron_axis: ClassVar = {"mu": 0, "log_var": 0, "features": -1, "grid": 0, "bias": -1}

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        neurons: int,
        mean_responses: Tensor | np.ndarray | None = None,
        bias: bool = True,
        init_mu_range: float = 0.1,
        init_sigma: float = 1.0,
        positivity: str = "none",
        feature_reg_weight: float = 1.0,
    ) -> None:
        super().__init__(in_shape, neurons, bias, mean_responses, feature_reg_weight)
        check_start(init_mu_range, init_sigma)
        if positivity not in ("none", "default", "abs", "elu"):
            raise ValueError(f'positivity is {positivity!r}, expected "none", "default", "abs" or "elu"')
        self.positivity = positivity
        channels, height, width = self.in_shape
        self.mu = nn.Parameter(torch.empty(neurons, 2).uniform_(-init_mu_range, init_mu_range))
        self.log_var = nn.Parameter(torch.full((neurons,), float(np.log(init_sigma**2))))
        self.features = nn.Parameter(torch.full((channels, neurons), 1 / channels))
        rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
        grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), 2)
        self.grid = nn.Parameter(grid.repeat(neurons, 1, 1, 1), requires_grad=False)

    def mask(self, shift: Tensor | None = None) -> Tensor:
        """Masks (frames or 1, neurons, height, width); shift x and y (frames, 2)."""
        self.mu.data.clamp_(-1, 1)
        centres = self.mu[None] if shift is None else self.mu[None] + shift.flip(-1)[:, None]
        squared = (self.grid - centres[:, :, None, None]).square().sum(-1)
        density = torch.exp(-0.5 * squared / self.log_var.exp()[:, None, None])
        return density / density.sum((-2, -1), keepdim=True)

    def made_positive(self, weights: Tensor) -> Tensor:
        """Masks or features as `positivity` says."""
        if self.positivity == "default":
            return weights.clamp(min=0)
        if self.positivity == "elu":
            return nn.functional.elu(weights) + 1
        return weights.abs() if self.positivity == "abs" else weights

    def regularizer(self, reduction: str = "sum") -> Tensor:
        """The L1 norm of the features and that of the variances, their "sum" or "mean", times the weight."""
        return super().regularizer(reduction) + self.feature_reg_weight * reduced(self.log_var.exp(), reduction)

    def forward(
        self,
        features: Tensor,
        shift: Tensor | None = None,
        behavior: Tensor | None = None,
        pupil_center: Tensor | None = None,
    ) -> Tensor:
        """Responses (batch, neurons[, frames]); behaviour and pupil centre are not used."""
        frames = self.frames_of(features).flatten(0, -4).flatten(2)
        mask = self.mask(None if shift is None else of_frames(shift, features, "shift"))
        under_mask = frames @ self.made_positive(mask).flatten(2).mT
        return self.finish(torch.linalg.vecdot(under_mask, self.made_positive(self.features), dim=-2), features)
