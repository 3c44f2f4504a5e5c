"""A linear probe: multinomial logistic regression on the features of a frozen backbone.

What comes in: features (images, d) with their labels. What goes out: a classifier of further features. Features are
standardised by the training images; for a penalty p the weights (d, classes) and biases are the minimum of
mean cross-entropy + p / 2 |weights|², which is scikit-learn's `LogisticRegression` with C = 1 / (p * images). The
penalty is the one of a fixed grid with the lowest cross-entropy on every fifth training image, and the weights are then
those of all of them.

All penalties are solved in one run of L-BFGS over the whole batch. It works on coordinates in which Böhning's bound on
the Hessian (1992, https://doi.org/10.1007/BF00048682), half the covariance of the features plus the penalty, is nearly
the identity: features of a network are so correlated that plain steps do not arrive within hundreds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
HELD_OUT_EVERY = 5
FEWEST_IMAGES = 2 * HELD_OUT_EVERY
# Principal directions that the coordinates are scaled along; the others are taken to be as long as the last of them.
DIRECTIONS = 256
MOST_STEPS = 100
# Enough to choose: penalties that have not arrived by then are weak ones, which are overfitted already.
CHOOSING_STEPS = 30
# Of a standard deviation, below which a feature is taken to be constant.
SMALLEST_STD = 1e-6


@dataclass(frozen=True)
class LinearProbe:
    """A fitted classifier: `weights` (d, classes) and `bias` (classes,) of features standardised by `mean` and `std`.

    `labels` (classes,) are those that occurred, `penalty` is the one that was chosen.
    """

    weights: Tensor
    bias: Tensor
    mean: Tensor
    std: Tensor
    labels: Tensor
    penalty: float

    def logits(self, features: Tensor) -> Tensor:
        """Scores (n, classes) of features (n, d)."""
        return (features - self.mean) / self.std @ self.weights + self.bias

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Share of features (n, d) that are given their label; one that never occurred counts as wrong."""
        return float((self.labels[self.logits(features).argmax(1)] == labels).float().mean())


def fit_linear_probe(features: Tensor, labels: Tensor, penalties: Sequence[float] = PENALTIES) -> LinearProbe:
    """Fit on features (images, d), in their precision and on their device.

    Raises:
        ValueError: too few images to hold some out.
    """
    if len(features) < FEWEST_IMAGES:
        raise ValueError(
            f"the linear probe holds out every fifth training image and needs {FEWEST_IMAGES} or more, found "
            f"{len(features)}; raise probe.bank_images, or leave `linear` out of probe.measures"
        )
    mean, std = features.mean(0), features.std(0)
    std = torch.where(std > SMALLEST_STD, std, torch.ones_like(std))
    known, classes = labels.unique(return_inverse=True)
    standard = (features - mean) / std
    penalty = choose_penalty(standard, classes, len(known), penalties)
    weights, bias = minimise(standard, classes, len(known), [penalty])
    return LinearProbe(weights[:, 0], bias[0], mean, std, known, penalty)


def choose_penalty(features: Tensor, classes: Tensor, count: int, penalties: Sequence[float]) -> float:
    """The penalty with the lowest cross-entropy on every fifth image, fitted on the others."""
    # Not the last fifth: shards may be in the order of their classes.
    held_out = torch.arange(len(features), device=features.device) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    weights, bias = minimise(features[~held_out], classes[~held_out], count, penalties, CHOOSING_STEPS)
    return penalties[int(cross_entropy(features[held_out], classes[held_out], weights, bias).argmin())]


def minimise(
    features: Tensor, classes: Tensor, count: int, penalties: Sequence[float], steps: int = MOST_STEPS
) -> tuple[Tensor, Tensor]:
    """Weights (d, penalties, count) and biases (penalties, count) at the minimum for each penalty.

    Args:
        features: (images, d), standardised.
        classes: (images,) numbers from 0 to `count` - 1.
        count: how many classes there are.
        penalties: on half the squared length of the weights.
        steps: most steps of the solver, which stops before where it has arrived.
    """
    strength = torch.tensor(penalties, dtype=features.dtype, device=features.device)
    scaling = Scaling.of(features, strength)
    moved = features.new_zeros(features.shape[1], len(strength), count, requires_grad=True)
    bias = features.new_zeros(len(strength), count, requires_grad=True)
    solver = torch.optim.LBFGS(
        [moved, bias],
        max_iter=steps,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        solver.zero_grad()
        weights = scaling.weights(moved)
        # The penalties do not meet in any term, so that the minimum of their sum is that of each.
        value = (cross_entropy(features, classes, weights, bias) + strength / 2 * weights.square().sum((0, 2))).sum()
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(objective)
    return scaling.weights(moved.detach()), bias.detach()


def cross_entropy(features: Tensor, classes: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
    """Mean cross-entropy (penalties,) of features (images, d)."""
    logits = (features @ weights.flatten(1)).unflatten(1, bias.shape) + bias
    each = F.cross_entropy(logits.transpose(1, 2), classes[:, None].expand(-1, len(bias)), reduction="none")
    return each.mean(0)


@dataclass(frozen=True)
class Scaling:
    """Coordinates in which the problem is round: `along` (directions, penalties) the leading `axes` (d, directions)
    of the features, and `across` (penalties,) them.
    """

    axes: Tensor
    along: Tensor
    across: Tensor

    @classmethod
    def of(cls, features: Tensor, strength: Tensor) -> "Scaling":
        """The scaling of standardised features (images, d) for penalties of that strength."""
        axes, variance = leading_directions(features, DIRECTIONS)
        along = (variance[:, None] / 2 + strength).rsqrt()
        return cls(axes, along, along[0])

    def weights(self, moved: Tensor) -> Tensor:
        """Weights (d, penalties, classes) of a point in these coordinates, of the same shape."""
        shares = torch.tensordot(self.axes, moved, dims=([0], [0])) * (self.along - self.across)[:, :, None]
        return moved * self.across[:, None] + torch.tensordot(self.axes, shares, dims=1)


def leading_directions(features: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Orthonormal directions (d, k) of most variance and their mean squares (k,), rising.

    Found by two rounds of subspace iteration (Halko et al. 2011, https://arxiv.org/abs/0909.4061), exact where k = d.
    """
    # A generator of its own on the CPU, so that the training's random numbers and the device make no difference.
    start = torch.randn(features.shape[1], min(most, *features.shape), generator=torch.Generator().manual_seed(0))
    axes = start.to(features)
    for _ in range(2):
        axes = torch.linalg.qr(features.T @ (features @ axes)).Q
    projected = features @ axes
    variance, turns = torch.linalg.eigh(projected.T @ projected / len(features))
    return axes @ turns, variance.clamp(min=0)
