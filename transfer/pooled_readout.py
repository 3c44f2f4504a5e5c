"""Point readouts over several scales of the map: pooled step by step, or split into a Laplacian pyramid.

What comes in: features (batch, channels[, frames], height, width), optionally the gaze shift. What goes out: responses
(batch, neurons[, frames]) before the output activation: each neuron has one learned point, the features there at all
scales, channels of one scale after those of the one before, and a weight for each. Source: `PointPooled2d`,
`SpatialTransformerPooled3d` and `PointPyramid2d` of neuralpredictors (Sinz et al. 2018,
https://papers.nips.cc/paper/7950), whose state-dict keys these are.

Kept, because published weights need it: points are clamped in place before use, the shift comes after. Mended: the
penalty's weight is what was asked for (there `gamma_readout` is ignored); responses of video are (batch, neurons,
frames), there (batch, frames, neurons).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfer.gaussian_readout import check_range
from transfer.point_sampling import weighted_points
from transfer.readout import Readout, chosen_neurons, of_frames

# A Gaussian, rounded to 6 digits as published; the products of (1, 2, 1) / 4 and of (1, 4, 6, 4, 1) / 16.
PYRAMID_FILTERS = {
    "gauss5x5": (
        (0.003765, 0.015019, 0.023792, 0.015019, 0.003765),
        (0.015019, 0.059912, 0.094907, 0.059912, 0.015019),
        (0.023792, 0.094907, 0.150342, 0.094907, 0.023792),
        (0.015019, 0.059912, 0.094907, 0.059912, 0.015019),
        (0.003765, 0.015019, 0.023792, 0.015019, 0.003765),
    ),
    "gauss3x3": np.outer((1, 2, 1), (1, 2, 1)) / 16,
    "laplace5x5": np.outer((1, 4, 6, 4, 1), (1, 4, 6, 4, 1)) / 256,
}


class PointsAtScales(Readout, ABC):
    """One fixed point per neuron and weights for the features at several scales; a subclass says which scales.

    Args:
        in_shape, neurons, bias, mean_responses, feature_reg_weight: see `Readout`.
        scales: how many maps `maps` gives.
        init_range: points start from U(-r, r), 0 < r <= 1.
        align_corners: whether -1 and 1 are the centres of the outermost pixels, or their outer edges.
        positive: weights are clamped in place to at least 0.
    """

    neuron_axis: ClassVar = {"grid": 1, "features": -1, "bias": -1}

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        neurons: int,
        scales: int,
        mean_responses: Tensor | np.ndarray | None = None,
        bias: bool = True,
        init_range: float = 0.1,
        align_corners: bool = True,
        positive: bool = False,
        feature_reg_weight: float = 1.0,
    ) -> None:
        super().__init__(in_shape, neurons, bias, mean_responses, feature_reg_weight)
        check_range("init_range", init_range)
        self.align_corners = align_corners
        self.positive = positive
        self.grid = nn.Parameter(torch.empty(1, neurons, 1, 2).uniform_(-init_range, init_range))
        self.features = nn.Parameter(torch.full((1, in_shape[0] * scales, 1, neurons), 1 / in_shape[0]))

    @abstractmethod
    def maps(self, frames: Tensor) -> Iterator[Tensor]:
        """The maps (..., channels, height, width) of all scales."""

    def forward(
        self,
        features: Tensor,
        shift: Tensor | None = None,
        behavior: Tensor | None = None,
        pupil_center: Tensor | None = None,
        neurons: Tensor | np.ndarray | None = None,
    ) -> Tensor:
        """Responses (batch, neurons[, frames]) of all or the chosen neurons."""
        chosen = chosen_neurons(neurons, self.neurons)
        self.grid.data.clamp_(-1, 1)
        if self.positive:
            self.features.data.clamp_(min=0)
        points, weights = self.grid[:, :, 0], self.effective_features()
        if chosen is not None:
            points, weights = points[:, chosen], weights[..., chosen]
        if shift is not None:
            points = points + of_frames(shift, features, "shift")[:, None]
        maps = list(self.maps(self.frames_of(features)))
        return self.finish(self.weighted(maps, points, weights), features, chosen)

    def weighted(self, maps: list[Tensor], points: Tensor, weights: Tensor) -> Tensor:
        """Sums (frames, neurons) over all scales by weights (1, channels x scales, 1, neurons)."""
        of_scales = weights[0, :, 0].split(self.in_shape[0])
        return sum(
            weighted_points(each, points, w, self.align_corners) for each, w in zip(maps, of_scales, strict=True)
        )


class PointPooledReadout(PointsAtScales):
    """The map, and averages of it over ever larger squares.

    Args:
        pool_steps: how often to average; each halves (or thirds, ...) the map.
        pool_kernel, pool_stride: side and step of the squares; the step is the side unless given. Pixels beyond the
            border do not count.
    """

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        neurons: int,
        pool_steps: int = 2,
        pool_kernel: int = 2,
        pool_stride: int | None = None,
        **kwargs: object,
    ) -> None:
        super().__init__(in_shape, neurons, pool_steps + 1, **kwargs)
        self.pool_steps, self.pool_kernel, self.pool_stride = pool_steps, pool_kernel, pool_stride

    def maps(self, frames: Tensor) -> Iterator[Tensor]:
        """The map and its averages."""
        yield frames
        frames = frames.flatten(0, -4)
        for _ in range(self.pool_steps):
            frames = F.avg_pool2d(frames, self.pool_kernel, self.pool_stride, count_include_pad=False)
            yield frames


class SpatialTransformerPooledReadout(PointPooledReadout):
    """`PointPooledReadout` whose weights can be pruned one by one: `mask` (1, channels x scales, 1, neurons) is 1 or 0.

    Args:
        stop_grad: no gradient reaches the core.
    """

    neuron_axis: ClassVar = {**PointsAtScales.neuron_axis, "mask": -1}

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        neurons: int,
        pool_steps: int = 1,
        init_range: float = 0.05,
        stop_grad: bool = False,
        **kwargs: object,
    ) -> None:
        super().__init__(in_shape, neurons, pool_steps, init_range=init_range, **kwargs)
        self.stop_grad = stop_grad
        self.register_buffer("mask", torch.ones_like(self.features))

    def effective_features(self) -> Tensor:
        """The weights that are not pruned."""
        return self.features * self.mask

    def maps(self, frames: Tensor) -> Iterator[Tensor]:
        """The map and its averages, detached where the core is to be left alone."""
        return super().maps(frames.detach() if self.stop_grad else frames)

    @torch.no_grad()
    def prune(self, scores: Tensor) -> None:
        """Set to 0 the weight of each neuron that has the lowest score, of those left.

        Args:
            scores: as `features`, such as the mean over batches of (gradient x weight)^2 / 2 (Theis et al. 2018,
                https://arxiv.org/abs/1801.05787, Fisher pruning).
        """
        lowest = scores.masked_fill(self.mask == 0, torch.inf).argmin(1, keepdim=True)
        self.mask.scatter_(1, lowest, 0)
        self.features.mul_(self.mask)


class PointPyramidReadout(PointsAtScales):
    """A Laplacian pyramid (Burt and Adelson 1983): what each smoothing takes away, then what is left.

    Args:
        levels: smoothings.
        filter_name: "gauss5x5", "gauss3x3" or "laplace5x5".
        downsample: keep every other pixel of what is left, and compare with its enlargement.
    """

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        neurons: int,
        levels: int = 4,
        filter_name: str = "gauss5x5",
        downsample: bool = True,
        **kwargs: object,
    ) -> None:
        super().__init__(in_shape, neurons, levels + 1, **kwargs)
        if filter_name not in PYRAMID_FILTERS:
            raise ValueError(f"filter_name is {filter_name!r}, expected one of {', '.join(PYRAMID_FILTERS)}")
        self.gauss_pyramid = LaplacianPyramid(levels, filter_name, downsample)

    def maps(self, frames: Tensor) -> Iterator[Tensor]:
        """All levels, from fine to coarse."""
        return self.gauss_pyramid(frames.flatten(0, -4))


class LaplacianPyramid(nn.Module):
    """Splits maps (frames, channels, height, width) into levels, from fine to coarse."""

    def __init__(self, levels: int, filter_name: str, downsample: bool) -> None:
        super().__init__()
        self.levels, self.downsample = levels, downsample
        self.register_buffer("filter", torch.tensor(np.asarray(PYRAMID_FILTERS[filter_name]), dtype=torch.float32))

    def forward(self, maps: Tensor) -> Iterator[Tensor]:
        """What each of the smoothings takes away, then what is left."""
        kernel = self.filter.expand(maps.shape[1], 1, -1, -1)
        padding = self.filter.shape[0] // 2
        for _ in range(self.levels):
            smooth = F.conv2d(maps, kernel, padding=padding, groups=len(kernel))
            coarse = smooth[..., ::2, ::2] if self.downsample else smooth
            yield maps - (enlarged(coarse, kernel, padding, maps.shape[-2:]) if self.downsample else coarse)
            maps = coarse
        yield maps


def enlarged(coarse: Tensor, kernel: Tensor, padding: int, size: torch.Size) -> Tensor:
    """Every other pixel of a map filled in by the kernel, 4 times for the pixels that are 0 before."""
    more = [(side + 1) % 2 for side in size]
    return 4 * F.conv_transpose2d(coarse, kernel, None, 2, padding, more, groups=len(kernel))


def pruning_scores(readout: SpatialTransformerPooledReadout) -> Tensor:
    """Fisher scores of one batch, after its backward pass: (gradient x weight)^2 / 2."""
    if readout.features.grad is None:
        raise ValueError("pruning scores need the gradient of the features: call backward() first")
    return (0.5 * readout.features.grad.square() * readout.features.square()).detach()
