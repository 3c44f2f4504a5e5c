"""The Gaussian readout: each neuron looks at one point of the map, which is learned by drawing it from a Gaussian.

What comes in: features (batch, channels[, frames], height, width), optionally the gaze shift. What goes out: responses
(batch, neurons[, frames]) before the output activation,

    y_i = bias_i + sum_c f_ci F_c(p_i),  p_i = clamp(mu_i + A_i z, -1, 1) + shift,

F bilinear, z standard normal while training and 0 otherwise. Source: Lurz et al. 2021
(https://openreview.net/forum?id=Tp7kI90Htd), as `FullGaussian2d` of neuralpredictors, whose state-dict keys these are;
it is the readout of the Sensorium 2022 and 2023 baselines, V1T, ViV1T and, as its first level, of Dynamic-VFM.

Kept, because published weights need it: the shift comes after the clamp, so that points may leave the map and read 0;
free positions are clamped in place at each call; A is unconstrained (its sign is lost in the noise's symmetry); noise
is drawn for each frame of each clip. Mended: the bias is a copy of the mean responses; what a borrower shares is not
drawn anew; unknown arguments are refused; the dispersion of positions is known for predicted and shared ones too. As
there, a map of another size than `in_shape` is accepted, since positions are relative to it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from transfer.grid_predictor import grid_predictor, source_grid
from transfer.point_sampling import weighted_points
from transfer.readout import Readout, chosen_neurons, of_frames

SIGMA_SHAPES = {"full": (2, 2), "uncorrelated": (1, 2), "isotropic": (1, 1)}


@dataclass(frozen=True)
class Shared:
    """Neurons that share weights: equal `match_ids` (neurons,) mean the same, within a readout and between readouts.

    Without `owner` the readout has one set for each id, in ascending order of the ids; with one it uses that readout's.
    """

    match_ids: np.ndarray
    owner: "GaussianReadout | None" = None

    def index(self, neurons: int) -> Tensor:
        """Which of the sorted ids each neuron has, int64 (neurons,)."""
        ids = np.asarray(self.match_ids)
        if ids.shape != (neurons,):
            raise ValueError(f"match_ids have shape {ids.shape}, expected ({neurons},), one per neuron")
        return torch.from_numpy(np.unique(ids, return_inverse=True)[1]).long()


class GaussianReadout(Readout):
    """One point per neuron, drawn from a Gaussian while training.

    Args:
        in_shape, neurons, bias, mean_responses, feature_reg_weight: see `Readout`.
        coordinates: (neurons, 2 or 3) in cortex; positions are predicted from them (`transfer.grid_predictor`). None
            for free positions.
        init_mu_range: free positions start from U(-r, r), 0 < r <= 1.
        init_sigma: standard deviation to start from; with "full" every entry of A from U(-s, s).
        gauss_type: "full", A is any matrix 2 x 2; "uncorrelated", it is diagonal; "isotropic", a number.
        batch_sample: draw for each frame; otherwise once for all frames of a call.
        align_corners: whether -1 and 1 are the centres of the outermost pixels, or their outer edges.
        predictor_layers, predictor_features, predictor_tanh: of the network from coordinates to positions.
        own_offsets: each neuron also learns how far it is from where its coordinates say: receptive fields scatter
            around the retinotopic map, which a network that all neurons share cannot follow. Not in neuralpredictors.
        shared_features, shared_grid: neurons with equal ids share features (times a scale each) or free positions; a
            borrowed grid goes through an affine map of its own.
    """

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        neurons: int,
        coordinates: Tensor | np.ndarray | None = None,
        mean_responses: Tensor | np.ndarray | None = None,
        bias: bool = True,
        init_mu_range: float = 0.1,
        init_sigma: float = 1.0,
        gauss_type: str = "full",
        batch_sample: bool = True,
        align_corners: bool = True,
        predictor_layers: int = 1,
        predictor_features: int = 30,
        predictor_tanh: bool = True,
        own_offsets: bool = False,
        shared_features: Shared | None = None,
        shared_grid: Shared | None = None,
        feature_reg_weight: float = 1.0,
    ) -> None:
        super().__init__(in_shape, neurons, bias, mean_responses, feature_reg_weight)
        check_start(init_mu_range, init_sigma)
        if gauss_type not in SIGMA_SHAPES:
            raise ValueError(f"gauss_type is {gauss_type!r}, expected one of {', '.join(SIGMA_SHAPES)}")
        if coordinates is not None and shared_grid is not None:
            raise ValueError("shared_grid is for free positions: leave it out, or coordinates")
        self.gauss_type = gauss_type
        self.batch_sample = batch_sample
        self.align_corners = align_corners
        if coordinates is None:
            self.add_positions(init_mu_range, shared_grid)
        else:
            grid = source_grid(coordinates, neurons)
            self.mu_transform = grid_predictor(grid.shape[1], predictor_layers, predictor_features, predictor_tanh)
            self.register_buffer("source_grid", grid)
        if own_offsets:
            if coordinates is None:
                raise ValueError("own_offsets are from positions that coordinates predict: give coordinates")
            self.offsets = nn.Parameter(torch.zeros(1, neurons, 1, 2))
        self.sigma = nn.Parameter(self.first_sigma(init_sigma))
        self.add_features(shared_features)

    def first_sigma(self, init_sigma: float) -> Tensor:
        """Spread to start from, (1, neurons, 2, 2), (1, neurons, 1, 2) or (1, neurons, 1, 1)."""
        shape = (1, self.neurons, *SIGMA_SHAPES[self.gauss_type])
        if self.gauss_type == "full":
            return torch.empty(shape).uniform_(-init_sigma, init_sigma)
        return torch.full(shape, float(init_sigma))

    def add_positions(self, init_mu_range: float, shared: Shared | None) -> None:
        """Free positions `_mu`, of this readout or another's."""
        count = self.neurons
        if shared is not None:
            self.register_buffer("grid_sharing_index", shared.index(self.neurons))
            count = len(np.unique(shared.match_ids))
        if shared is None or shared.owner is None:
            self._mu = nn.Parameter(torch.empty(1, count, 1, 2).uniform_(-init_mu_range, init_mu_range))
            return
        self._mu = borrowed(shared.owner, "_mu", (1, count, 1, 2))
        self.mu_transform = nn.Linear(2, 2)
        nn.init.eye_(self.mu_transform.weight)
        nn.init.zeros_(self.mu_transform.bias)

    def features_shape(self, count: int) -> tuple[int, ...]:
        """Shape of the weights of `count` neurons, which are the last axis."""
        return (1, self.in_shape[0], 1, count)

    def add_features(self, shared: Shared | None) -> None:
        """Feature weights `_features`, 1 / channels to start from, of this readout or another's."""
        count = self.neurons
        self.borrows_features = shared is not None and shared.owner is not None
        if shared is not None:
            self.register_buffer("feature_sharing_index", shared.index(self.neurons))
            count = len(np.unique(shared.match_ids))
            scales = (*self.features_shape(1)[:-4], 1, 1, 1, self.neurons)
            self.scales = nn.Parameter(torch.ones(scales))
        shape = self.features_shape(count)
        if self.borrows_features:
            self._features = borrowed(shared.owner, "_features", shape)
        else:
            self._features = nn.Parameter(torch.full(shape, 1 / self.in_shape[0]))

    @property
    def neuron_axis(self) -> dict[str, int]:
        """Shared weights do not lie along the neurons; what points at them does."""
        own = {"bias": -1, "sigma": 1, "source_grid": 0, "offsets": 1, "scales": -1}
        own |= {"grid_sharing_index": 0} if hasattr(self, "grid_sharing_index") else {"_mu": 1}
        return own | ({"feature_sharing_index": 0} if hasattr(self, "feature_sharing_index") else {"_features": -1})

    @property
    def mu(self) -> Tensor:
        """Mean positions (1, neurons, 1, 2), x and y."""
        if hasattr(self, "source_grid"):
            predicted = self.mu_transform(self.source_grid)[None, :, None]
            return predicted + self.offsets if hasattr(self, "offsets") else predicted
        if not hasattr(self, "grid_sharing_index"):
            return self._mu
        shared = self.mu_transform(self._mu) if hasattr(self, "mu_transform") else self._mu
        return shared[:, self.grid_sharing_index]

    def mu_dispersion(self) -> Tensor:
        """Sum over x and y of the standard deviation of the positions over neurons."""
        return self.mu[0, :, 0].std(0).sum()

    def effective_features(self) -> Tensor:
        """Weights (1, channels, 1, neurons), scales of shared ones included."""
        if not hasattr(self, "feature_sharing_index"):
            return self._features
        return self.scales * self._features[..., self.feature_sharing_index]

    def regularizer(self, reduction: str = "sum") -> Tensor:
        """`feature_reg_weight` times the L1 norm of the weights, their "sum" or "mean"; 0 for borrowed ones."""
        return self.sigma.new_zeros(()) if self.borrows_features else super().regularizer(reduction)

    def points(self, frames: int, sample: bool | None = None, noise: Tensor | None = None) -> Tensor:
        """Positions (frames, neurons, 2), or (1, neurons, 2) where they are the same in all frames.

        Args:
            frames: of all clips together.
            sample: draw, or take the means; None draws while training.
            noise: standard normal (frames or 1, neurons, 2) in place of a draw.
        """
        if not (hasattr(self, "source_grid") or hasattr(self, "grid_sharing_index")):
            self._mu.data.clamp_(-1, 1)
        mu = self.mu[:, :, 0]
        if noise is None and not (self.training if sample is None else sample):
            return mu.clamp(-1, 1)
        if noise is None:
            noise = torch.randn(frames if self.batch_sample else 1, self.neurons, 2, dtype=mu.dtype, device=mu.device)
        spread = (
            torch.einsum("ncd,fnd->fnc", self.sigma[0], noise)
            if self.gauss_type == "full"
            else self.sigma[0].squeeze(1) * noise
        )
        return (mu + spread).clamp(-1, 1)

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
        """Responses (batch, neurons[, frames]); behaviour and pupil centre are not used.

        `sample` and `noise` are those of `points`; `neurons`, indices or a mask, are the ones to compute.
        """
        chosen = chosen_neurons(neurons, self.neurons)
        frames = self.frames_of(features, any_size=True)
        points = self.points(frames.shape[:-3].numel(), sample, noise)
        weights = self.effective_features()
        if chosen is not None:
            points, weights = points[:, chosen], weights[..., chosen]
        if shift is not None:
            points = points + of_frames(shift, features, "shift")[:, None]
        return self.finish(self.weighted(frames, points, weights), features, chosen)

    def weighted(self, frames: Tensor, points: Tensor, weights: Tensor) -> Tensor:
        """Sums (frames, neurons) of the features at the points by weights (1, channels, 1, neurons)."""
        return weighted_points(frames, points, weights[0, :, 0], self.align_corners)


def check_start(init_mu_range: float, init_sigma: float) -> None:
    """ValueError where positions would start outside the map, or spreads would not be positive."""
    check_range("init_mu_range", init_mu_range)
    if not init_sigma > 0:
        raise ValueError(f"init_sigma is {init_sigma}, expected above 0")


def check_range(name: str, value: float) -> None:
    """ValueError where positions would start outside the map."""
    if not 0 < value <= 1:
        raise ValueError(f"{name} is {value}, expected above 0 and at most 1")


def borrowed(owner: Readout, name: str, shape: tuple[int, ...]) -> nn.Parameter:
    """A parameter of another readout, which then has two users; ValueError where its shape is not the wanted one."""
    parameter = getattr(owner, name)
    if parameter.shape != shape:
        raise ValueError(f"{name} of the owner has shape {tuple(parameter.shape)}, the borrower needs {shape}")
    return parameter
