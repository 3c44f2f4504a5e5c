"""Penalties on the kernels of a core: how rough they are over space or time, how many of them are not zero.

What comes in: weights of a convolution, (outputs, inputs, height, width), with time before height where they have it.
What goes out: a scalar. Source: neuralpredictors (https://github.com/sinzlab/neuralpredictors, `regularizers.py`);
smooth filters by a Laplace penalty follow Klindt et al. 2017 (https://arxiv.org/abs/1711.02653). `padding` is that of
the Laplace filter, None for half of it; 0 leaves the borders of the kernel free. `average` takes means, else sums.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

LAPLACE_1D = (-1.0, 4.0, -1.0)
# By the side of the filter: the Laplace cross, and tables of the Laplacian of a Gaussian.
LAPLACE_2D = {
    3: ((0, -1, 0), (-1, 4, -1), (0, -1, 0)),
    5: ((0, 0, 1, 0, 0), (0, 1, 2, 1, 0), (1, 2, -16, 2, 1), (0, 1, 2, 1, 0), (0, 0, 1, 0, 0)),
    7: (
        (0, 0, 1, 1, 1, 0, 0),
        (0, 1, 3, 3, 3, 1, 0),
        (1, 3, 0, -7, 0, 3, 1),
        (1, 3, -7, -24, -7, 3, 1),
        (1, 3, 0, -7, 0, 3, 1),
        (0, 1, 3, 3, 3, 1, 0),
        (0, 0, 1, 1, 1, 0, 0),
    ),
}
CROSS = ((0, 0, 0), (0, 1, 0), (0, 0, 0))
LAPLACE_3D = (CROSS, ((0, 1, 0), (1, -6, 1), (0, 1, 0)), CROSS)


def laplace_l2(weight: Tensor, padding: int | None = None, average: bool = True, size: int = 3) -> Tensor:
    """Half the squared Laplacian of every kernel; neuralpredictors' LaplaceL2."""
    return total(roughness(weight, padding, size).square(), average) / 2


def laplace_l2norm(weight: Tensor, padding: int | None = None, average: bool = False, size: int = 3) -> Tensor:
    """Squared Laplacian over squared weights, so that small weights are no way out; LaplaceL2norm."""
    return total(roughness(weight, padding, size).square(), average) / total(weight.square(), average)


def laplace_l1(weight: Tensor, padding: int | None = 0, average: bool = True, size: int = 3) -> Tensor:
    """Absolute Laplacian; LaplaceL1."""
    return total(roughness(weight, padding, size).abs(), average)


def gaussian_laplace_l2(weight: Tensor, padding: int | None = None, average: bool = False, size: int = 3) -> Tensor:
    """Squared Laplacian, the more counted the farther from the kernel's centre, over squared weights.

    GaussianLaplaceL2 and GaussianLaplaceL2Adaptive, which differ only in when they learn the size of the kernel.
    """
    rough = roughness(weight, padding, size)
    inner = centre_bump(rough.shape[-2], rough.shape[-1]).to(weight)
    return total((rough * (1 - inner)).square(), average) / total(weight.square(), average)


def laplace_l2_3d(weight: Tensor) -> Tensor:
    """Half the mean squared Laplacian over time and space (outputs, inputs, time, height, width); LaplaceL23d."""
    kernels = weight.reshape(-1, 1, *weight.shape[2:])
    return F.conv3d(kernels, torch.tensor(LAPLACE_3D).to(weight)[None, None]).square().mean() / 2


def flat_laplace_l2_3d(weight: Tensor, padding: int | None = None, size: int = 3) -> Tensor:
    """Half the mean squared Laplacian over space of kernels with one time step; FlatLaplaceL23d."""
    if weight.shape[2] != 1:
        raise ValueError(f"weight must have one time step, found {weight.shape[2]}; use laplace_l2_3d")
    return laplace_l2(weight[:, :, 0], padding, average=True, size=size)


def temporal_laplace(weight: Tensor, padding: int | None = None, average: bool = False) -> Tensor:
    """Squared second difference over time (outputs, inputs, time) over squared weights; DepthLaplaceL21d."""
    kernels = weight.reshape(-1, 1, weight.shape[-1])
    padding = len(LAPLACE_1D) // 2 if padding is None else padding
    rough = F.conv1d(kernels, torch.tensor(LAPLACE_1D).to(weight)[None, None], padding=padding)
    return total(rough.square(), average) / total(weight.square(), average)


def group_sparsity(weight: Tensor) -> Tensor:
    """Mean over outputs and inputs of the Euclidean norm of each kernel."""
    return weight.square().sum((2, 3)).sqrt().mean()


# By the names that configurations of neuralpredictors have for the penalty on a core's first kernels.
INPUT_REGULARIZERS: dict[str, Callable[..., Tensor]] = {
    "LaplaceL2": laplace_l2,
    "LaplaceL2norm": laplace_l2norm,
    "LaplaceL1": laplace_l1,
    "GaussianLaplaceL2": gaussian_laplace_l2,
    "GaussianLaplaceL2Adaptive": gaussian_laplace_l2,
}


def input_penalty(name: str) -> Callable[..., Tensor]:
    """The penalty of this name; ValueError lists those there are."""
    if name not in INPUT_REGULARIZERS:
        raise ValueError(f"input_regularizer must be one of {', '.join(INPUT_REGULARIZERS)}, found {name!r}")
    return INPUT_REGULARIZERS[name]


def roughness(weight: Tensor, padding: int | None, size: int) -> Tensor:
    """The Laplace filter applied to each kernel, (outputs x inputs, 1, height, width)."""
    if size not in LAPLACE_2D:
        raise ValueError(f"size of the Laplace filter must be one of {', '.join(map(str, LAPLACE_2D))}, found {size}")
    laplace = torch.tensor(LAPLACE_2D[size]).to(weight)[None, None]
    return F.conv2d(
        weight.reshape(-1, 1, *weight.shape[2:]), laplace, padding=size // 2 if padding is None else padding
    )


def centre_bump(height: int, width: int) -> Tensor:
    """A Gaussian over (height, width), sigma a quarter of the shorter side, rescaled to 0..1."""
    rows, columns = torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2
    sigma = min(height, width) / 4
    bump = torch.exp(-(rows[:, None].square() + columns.square()) / (2 * sigma**2))
    return (bump - bump.min()) / (bump.max() - bump.min())


def total(values: Tensor, average: bool) -> Tensor:
    return values.mean() if average else values.sum()
