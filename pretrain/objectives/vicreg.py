"""VICReg: the two views agree (invariance), every output varies (variance), and none repeats another (covariance).

What comes in: two views of each image (2, batch, 3, height, width). What goes out: the weighted sum of three terms and
the terms themselves, see `compare`. Source: Bardes, Ponce, LeCun 2022 (https://arxiv.org/abs/2105.04906, equations 1
to 6), with the constants of mouse-vision (Nayebi, Kong et al. 2023).
"""

from lightly.loss.vicreg_loss import invariance_loss, variance_loss
from lightly.models.modules.heads import ProjectionHead
from torch import Tensor, nn

from pretrain.models import feature_size
from pretrain.objectives.objective import Objective, Wants, full_precision
from pretrain.objectives.processes import gather_with_gradient
from pretrain.objectives.redundancy import redundancy

# Added to the variance before its root, whose slope would be infinite at 0.
VARIANCE_EPSILON = 1e-4


class VICReg(Objective):
    """Backbone and a head of three linear layers, of which the first two are followed by batch norm.

    The terms are those of lightly's VICRegLoss, added up here so that each can be logged. The head is not lightly's
    ready-made one: as published, the first two linear layers have a bias and the last has none. Over several processes
    the invariance is that of each one's part, and variance and covariance are those of the whole batch, with the full
    gradient; the mean over processes is the loss of the whole batch.

    Args:
        backbone: maps (batch, 3, H, W) to (batch, features).
        input_size: side of a view in pixels.
        hidden_dim: width of the head's two hidden layers.
        dim: number of outputs.
        invariance_weight, variance_weight, covariance_weight: of the three terms; the paper's lambda, mu and nu.
    """

    wants = Wants(views=2)
    interplay = "takes variances and covariances over a batch"

    def __init__(
        self,
        backbone: nn.Module,
        input_size: int = 64,
        hidden_dim: int = 8192,
        dim: int = 8192,
        invariance_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
    ) -> None:
        super().__init__(backbone)
        weights = {"invariance": invariance_weight, "variance": variance_weight, "covariance": covariance_weight}
        check_constants(hidden_dim, dim, weights)
        self.weights = weights
        self.head = ProjectionHead(
            [
                (feature_size(backbone, input_size), hidden_dim, nn.BatchNorm1d(hidden_dim), nn.ReLU(), True),
                (hidden_dim, hidden_dim, nn.BatchNorm1d(hidden_dim), nn.ReLU(), True),
                (hidden_dim, dim, None, None, False),
            ]
        )

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`views` (2, batch, 3, H, W) to `loss` and its unweighted terms `invariance`, `variance`, `covariance`."""
        first, second = batch["views"]
        return self.compare(self.features(first), self.features(second))

    def compare(self, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        """The loss of backbone features (batch, d) of the first and of the second views.

        With x and y their (batch, dim) projections: `invariance` is the mean of (x - y)^2; `variance` the mean of
        max(0, 1 - sqrt(var + 1e-4)) over all outputs of x and of y; `covariance` the sum of the squared covariances
        between different outputs, divided by dim, of x plus that of y.
        """
        projected = [self.head(features) for features in (first, second)]
        with full_precision(first):
            parts = [part.float() for part in projected]
            whole = [gather_with_gradient(part) for part in parts]
            terms = {
                "invariance": invariance_loss(*parts),
                "variance": sum(variance_loss(views, VARIANCE_EPSILON) for views in whole) / 2,
                "covariance": sum(covariance_loss(views) for views in whole),
            }
            loss = sum(self.weights[name] * term for name, term in terms.items())
        return {"loss": loss, **terms}


def covariance_loss(outputs: Tensor) -> Tensor:
    """The sum of the squared covariances between different outputs (batch, dim), divided by dim."""
    centred = outputs - outputs.mean(0)
    return redundancy(centred.T @ centred / (len(outputs) - 1)) / outputs.shape[1]


def check_constants(hidden_dim: int, dim: int, weights: dict[str, float]) -> None:
    """One line for a constant out of range."""
    for name, value in (("hidden_dim", hidden_dim), ("dim", dim)):
        if not value > 0:
            raise ValueError(f"objective_args.{name} must be above 0, found {value}")
    for name, value in weights.items():
        if not value >= 0:
            raise ValueError(f"objective_args.{name}_weight must not be below 0, found {value}")
