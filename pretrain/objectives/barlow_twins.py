"""Barlow Twins: each output agrees between the two views, and no output repeats another.

What comes in: two views of each image (2, batch, 3, height, width). What goes out: with C the (dim, dim) correlations
over the batch between the outputs for the first views and those for the second, sum_i (1 - C_ii)^2 + weight *
sum_{i != j} C_ij^2. Source: Zbontar, Jing, Misra, LeCun, Deny 2021 (https://arxiv.org/abs/2103.03230, algorithm 1),
with the constants of mouse-vision (Nayebi, Kong et al. 2023).
"""

from lightly.models.modules.heads import ProjectionHead
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models import feature_size
from pretrain.objectives.objective import Objective, Wants, full_precision
from pretrain.objectives.processes import gather_with_gradient
from pretrain.objectives.redundancy import redundancy


class BarlowTwins(Objective):
    """Backbone and a head of three linear layers, of which the first two are followed by batch norm.

    The loss standardises each output over the batch as the published, non-affine batch norm does. Over several
    processes it is that of the whole batch, with the full gradient, where lightly's standardises over each process's
    part, which is another loss. The correlations are divided by the size of that batch, where the published code has an
    argument (`batch_size`, 2048). The head is not lightly's ready-made one, whose last layer has a bias: the published
    one has none.

    Args:
        backbone: maps (batch, 3, H, W) to (batch, features).
        input_size: side of a view in pixels.
        hidden_dim: width of the head's two hidden layers.
        dim: number of outputs.
        redundancy_weight: weight of the correlations between different outputs, the paper's lambda.
    """

    wants = Wants(views=2)
    interplay = "takes correlations over a batch"

    def __init__(
        self,
        backbone: nn.Module,
        input_size: int = 64,
        hidden_dim: int = 8192,
        dim: int = 8192,
        redundancy_weight: float = 0.0051,
    ) -> None:
        super().__init__(backbone)
        for name, value in (("hidden_dim", hidden_dim), ("dim", dim), ("redundancy_weight", redundancy_weight)):
            if not value > 0:
                raise ValueError(f"objective_args.{name} must be above 0, found {value}")
        self.head = ProjectionHead(
            [
                (feature_size(backbone, input_size), hidden_dim, nn.BatchNorm1d(hidden_dim), nn.ReLU(), False),
                (hidden_dim, hidden_dim, nn.BatchNorm1d(hidden_dim), nn.ReLU(), False),
                (hidden_dim, dim, None, None, False),
            ]
        )
        self.redundancy_weight = redundancy_weight

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`views` (2, batch, 3, H, W) to `loss`."""
        first, second = batch["views"]
        return self.compare(self.features(first), self.features(second))

    def compare(self, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        """The loss of backbone features (batch, d) of the first and of the second views."""
        projected = [self.head(features) for features in (first, second)]
        with full_precision(first):
            correlations = correlate(*(gather_with_gradient(part.float()) for part in projected))
            disagreement = (1 - correlations.diagonal()).square().sum()
            return {"loss": disagreement + self.redundancy_weight * redundancy(correlations)}


def correlate(first: Tensor, second: Tensor) -> Tensor:
    """Correlations (dim, dim) over the batch of outputs (batch, dim) for the first views with those for the second."""
    # As batch norm without weights, which adds 1e-5 to variances.
    first, second = (F.batch_norm(outputs, None, None, training=True) for outputs in (first, second))
    return (first.T @ second).div_(len(first))
