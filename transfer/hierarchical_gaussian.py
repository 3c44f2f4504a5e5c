"""Hierarchical Gaussian readout: each neuron reads one point of the map, and so do groups of neurons, which are fused.

What comes in: features of a core (batch, channels, frames, height, width), or of images without the axis of frames; a
shift (batch, 2, frames) in units of the map, -1 to 1 from edge to edge. What goes out: responses
(batch, neurons, frames), before the output activation. Level 1 is the Gaussian readout of Lurz et al. 2021
(https://openreview.net/forum?id=Tp7kI90Htd): a weighted sum of the features at a neuron's position, which is a normal
distribution around what an MLP makes of its place in cortex. At level k, neurons in their order share positions and
weights by about k; what they read passes an MLP of one number. Source: Zhu 2023, second of Sensorium 2023,
https://github.com/zhuyu-cs/Dynamic-VFM; state-dict keys are the published ones.

The positions of level k are those of every k-th neuron, so features are taken from the map once for all levels, and a
coarse response is refined before it is spread to the neurons: the same numbers for a fraction of the work. Levels that
are not used are not computed. Mended: the adaptive fusion takes any number of frames (published: 15), and the shift may
be left out.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from transfer.gaussian_readout import GaussianReadout
from transfer.readout import of_frames

# Channels of the MLP of each level.
REFINEMENT = {2: 32, 4: 64, 8: 128, 16: 256}
LEVELS = tuple(REFINEMENT)
FUSIONS = ("mean", "adaptive")
# How many values are taken from maps at once.
VALUES_AT_ONCE = 2**25


class HierarchicalGaussianReadout(GaussianReadout):
    """The readout of one animal.

    Args:
        in_shape, neurons, mean_responses, feature_reg_weight: see `Readout`.
        coordinates: see `GaussianReadout`, of which level 1 has the parameters.
        levels: those used beside level 1, of 2, 4, 8 and 16, also as published: "2_4_8_16", "0" for level 1 alone. It
            can be set later, as the published weights hold all levels whichever are used.
        fusion: "mean" of the levels, or "adaptive": a sum whose weights follow from the levels' means over neurons and
            frames. The bias comes after it.
        held_levels: levels that there are parameters for; those not used have no gradient.
        init_mu_range, init_sigma: of free positions, and of the entries of their covariances' roots, uniform.
        predictor_hidden: units of the MLP that makes positions.
    """

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        neurons: int,
        coordinates: Tensor | np.ndarray | None = None,
        mean_responses: Tensor | np.ndarray | None = None,
        levels: str | Sequence[int] = LEVELS,
        fusion: str = "mean",
        held_levels: Sequence[int] = LEVELS,
        init_mu_range: float = 0.3,
        init_sigma: float = 0.2,
        predictor_hidden: int = 32,
        own_offsets: bool = False,
        feature_reg_weight: float = 1.0,
    ) -> None:
        super().__init__(
            in_shape,
            neurons,
            coordinates,
            mean_responses,
            init_mu_range=init_mu_range,
            init_sigma=init_sigma,
            predictor_features=predictor_hidden,
            own_offsets=own_offsets,
            feature_reg_weight=feature_reg_weight,
        )
        self.held_levels = known_levels(held_levels, LEVELS)
        self.levels = levels
        if fusion not in FUSIONS:
            raise ValueError(f"fusion must be one of {', '.join(FUSIONS)}, found {fusion!r}")
        if neurons < max(self.held_levels, default=1):
            raise ValueError(f"level {max(self.held_levels)} needs as many neurons, found {neurons}; hold fewer levels")
        self.fusion = fusion
        channels = self.in_shape[0]
        for level in self.held_levels:
            weights = torch.full((1, channels, 1, neurons // level), 1 / channels)
            self.register_parameter(f"_features{level}", nn.Parameter(weights))
            self.add_module(f"up_refine{level}", refinement(REFINEMENT[level]))
            self.register_buffer(f"members{level}", nearest(neurons, neurons // level), persistent=False)
            self.register_buffer(f"groups{level}", nearest(neurons // level, neurons), persistent=False)
        for maps in range(2, 2 + len(self.held_levels)) if fusion == "adaptive" else ():
            self.add_module(f"fusion_block{maps}", AdaptiveFusion(maps))

    @property
    def levels(self) -> tuple[int, ...]:
        """Levels that are used beside level 1."""
        return self._levels

    @levels.setter
    def levels(self, levels: str | Sequence[int]) -> None:
        self._levels = known_levels(levels, self.held_levels)

    @property
    def unused_parameters(self) -> tuple[str, ...]:
        """Parameters that the responses do not depend on, those of levels and fusions that are not used."""
        unused = [each for each in self.held_levels if each not in self.levels]
        prefixes = [f"_features{level}" for level in unused] + [f"up_refine{level}." for level in unused]
        prefixes += [f"fusion_block{maps}." for maps in range(2, 6) if maps != 1 + len(self.levels)]
        return tuple(name for name, _ in self.named_parameters() if name.startswith(tuple(prefixes)))

    def keep_neurons(self, chosen: Tensor) -> None:
        """Refused: which neurons share weights at the levels follows from their order."""
        raise ValueError("a hierarchical readout cannot drop neurons: choose among its responses instead")

    def effective_features(self) -> Tensor:
        """Weights (1, channels, 1, neurons and groups of neurons) of the levels that are used."""
        return torch.cat([self._features, *(getattr(self, f"_features{level}") for level in self.levels)], 3)

    def forward(
        self,
        features: Tensor,
        shift: Tensor | None = None,
        behavior: Tensor | None = None,
        pupil_center: Tensor | None = None,
        sample: bool | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Responses (batch, neurons[, frames]); `sample` and `noise` are those of `GaussianReadout.points`."""
        maps = self.frames_of(features, any_size=True).flatten(0, -4)
        points = self.points(len(maps), sample, noise)
        if shift is not None:
            points = points + of_frames(shift, features, "shift")[:, None]
        batch = features.shape[0]
        levels = [each.unflatten(0, (batch, -1)).mT for each in self.refined(self.read(maps, points))]
        responses = self.fused(levels) + self.bias[:, None]
        return responses if features.ndim == 5 else responses[..., 0]

    def read(self, maps: Tensor, positions: Tensor) -> list[Tensor]:
        """Responses of level 1 and the used levels, (frames, neurons // level) each, from maps (frames, channels, ...).

        What is taken from the maps is `channels` times larger than the responses: it is taken for some frames at a
        time, and taken again for the gradient.
        """
        positions = positions.expand(len(maps), -1, -1)
        at_once = max(1, VALUES_AT_ONCE // (maps.shape[1] * self.neurons))
        weights = self.weights()
        # As torch does it for a sampled grid, in the parameters' precision also where the core is not in it.
        maps, positions = maps.to(weights.dtype), positions.to(weights.dtype)
        with torch.autocast(maps.device.type, enabled=False):
            parts = [
                without_keeping(read_points, some_maps, some_positions, weights)
                for some_maps, some_positions in zip(maps.split(at_once), positions.split(at_once), strict=True)
            ]
        finest, *coarse = torch.cat(parts, 1).unbind(2)
        members = (getattr(self, f"members{level}") for level in self.levels)
        return [finest.T, *(each[which].T for each, which in zip(coarse, members, strict=True))]

    def weights(self) -> Tensor:
        """Weights (neurons, channels, 1 + used levels), a level's with the neurons whose positions it reads."""
        columns = [self._features[0, :, 0].T]
        for level in self.levels:
            weights = getattr(self, f"_features{level}")[0, :, 0].T
            columns.append(torch.zeros_like(columns[0]).index_copy(0, getattr(self, f"members{level}"), weights))
        return torch.stack(columns, 2)

    def refined(self, found: list[Tensor]) -> list[Tensor]:
        """Level 1, and the other levels through their MLPs, one response (frames, neurons) per neuron."""
        finest, *coarse = found
        refined = [finest]
        for level, response in zip(self.levels, coarse, strict=True):
            response = getattr(self, f"up_refine{level}")(response[:, None])[:, 0]
            refined.append(response.index_select(1, getattr(self, f"groups{level}")))
        return refined

    def fused(self, levels: list[Tensor]) -> Tensor:
        """One response (batch, neurons, frames) of those of all levels."""
        if len(levels) == 1:
            return levels[0]
        if self.fusion == "mean":
            return sum(levels) / len(levels)
        return getattr(self, f"fusion_block{len(levels)}")(levels)


class AdaptiveFusion(nn.Module):
    """A sum of maps (batch, neurons, frames) with weights from 0 to 1 that an MLP makes of their means."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.module = nn.Sequential(nn.Linear(maps, maps), nn.ReLU(), nn.Linear(maps, maps), nn.Sigmoid())

    def forward(self, maps: list[Tensor]) -> Tensor:
        weights = self.module(torch.stack([each.mean((1, 2)) for each in maps], 1))
        return sum(weight[:, None, None] * each for weight, each in zip(weights.unbind(1), maps, strict=True))


def refinement(hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(1, hidden, 1), nn.ELU(), nn.Conv1d(hidden, 1, 1, bias=False))


def without_keeping(read: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """What a function reads, of which nothing but its arguments is kept for the gradient."""
    if not torch.is_grad_enabled():
        return read(*inputs)
    return checkpoint(read, *inputs, use_reentrant=False, preserve_rng_state=False)


def read_points(maps: Tensor, positions: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of features at positions.

    Args:
        maps: (frames, channels, height, width).
        positions: (frames, neurons, 2), x and y, -1 to 1 between the centres of the outermost pixels; bilinear between
            pixels, 0 beyond the outermost ones.
        weights: (neurons, channels, columns).

    Returns:
        (neurons, frames, columns).
    """
    frames, channels, height, width = maps.shape
    pixels, shares = corners(positions, height, width)
    pixels = pixels + height * width * torch.arange(frames, device=maps.device)[:, None, None]
    rows = maps.permute(0, 2, 3, 1).reshape(-1, channels)
    # A weighted sum of rows of a table is what embedding bags are; it takes half the time of `grid_sample`.
    bags, shares = (each.transpose(0, 1).reshape(-1, 4) for each in (pixels, shares))
    points = F.embedding_bag(bags, rows, per_sample_weights=shares, mode="sum")
    return points.view(-1, frames, channels) @ weights


def corners(positions: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The four pixels around each position, numbered row by row, and the share of each, 0 outside the map."""
    size = positions.new_tensor([width - 1, height - 1])
    place = (positions + 1) / 2 * size
    first = place.detach().floor()
    beyond = place - first
    pixels, shares = [], []
    for row in (0, 1):
        for column in (0, 1):
            step = positions.new_tensor([column, row])
            corner = first + step
            inside = ((corner >= 0) & (corner <= size)).all(-1)
            x, y = torch.minimum(corner.clamp(min=0), size).long().unbind(-1)
            pixels.append(y * width + x)
            shares.append((1 - step + (2 * step - 1) * beyond).prod(-1) * inside)
    return torch.stack(pixels, -1), torch.stack(shares, -1)


def nearest(inputs: int, outputs: int) -> Tensor:
    """For each of the outputs the input that torch's nearest-neighbour interpolation takes, in its rounding."""
    numbers = torch.arange(inputs, dtype=torch.float32)
    return F.interpolate(numbers[None, None], outputs, mode="nearest")[0, 0].long()


def known_levels(levels: str | Sequence[int], held: Sequence[int]) -> tuple[int, ...]:
    """Levels in rising order, also from the published names ("2_4_8_16", "0")."""
    if isinstance(levels, str):
        named = levels.split("_")
        levels = [int(each) if each.isdecimal() else each for each in named] if levels != "0" else []
    unknown = [each for each in levels if each not in held]
    if unknown:
        allowed = ", ".join(map(str, held)) or "none"
        raise ValueError(f"levels are some of {allowed}, or '0' for level 1 alone, found {unknown[0]!r}")
    return tuple(sorted(set(levels)))
