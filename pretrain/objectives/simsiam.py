"""SimSiam: a small network predicts the projection of one view from that of the other.

What comes in: two views of each image (2, batch, 3, height, width). What goes out: half the sum of the two negative
cosine similarities between prediction and projection, from -1 (perfect) to 1. Source: Chen, He 2021
(https://arxiv.org/abs/2011.10566, algorithm 1), with the constants of mouse-vision (Nayebi, Kong et al. 2023).
"""

import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules.heads import ProjectionHead
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models import feature_size
from pretrain.objectives.objective import Objective, Wants, full_precision


class SimSiam(Objective):
    """Backbone, projector of three layers and predictor of two.

    The loss is lightly's. The projector and the predictor are not its ready-made ones, which leave out the linear
    layers' biases before a batch norm and the last batch norm's scale and shift: the published heads have them. Each
    view goes through backbone and heads on its own, so batch norm's statistics are over one view. Over several
    processes each has the loss of its part; with synchronised batch norm, the mean is the loss of the whole batch.

    Args:
        backbone: maps (batch, 3, H, W) to (batch, features).
        input_size: side of a view in pixels.
        hidden_dim: width of the projector's two hidden layers.
        dim: length of projections and predictions.
        predictor_dim: width of the predictor's hidden layer.
    """

    wants = Wants(views=2)
    per_image = True

    def __init__(
        self,
        backbone: nn.Module,
        input_size: int = 64,
        hidden_dim: int = 2048,
        dim: int = 2048,
        predictor_dim: int = 512,
    ) -> None:
        super().__init__(backbone)
        for name, value in (("hidden_dim", hidden_dim), ("dim", dim), ("predictor_dim", predictor_dim)):
            if not value > 0:
                raise ValueError(f"objective_args.{name} must be above 0, found {value}")
        self.projector = ProjectionHead(
            [
                (feature_size(backbone, input_size), hidden_dim, nn.BatchNorm1d(hidden_dim), nn.ReLU(), True),
                (hidden_dim, hidden_dim, nn.BatchNorm1d(hidden_dim), nn.ReLU(), True),
                (hidden_dim, dim, nn.BatchNorm1d(dim), None, True),
            ]
        )
        self.predictor = ProjectionHead(
            [
                (dim, predictor_dim, nn.BatchNorm1d(predictor_dim), nn.ReLU(), True),
                (predictor_dim, dim, None, None, True),
            ]
        )
        self.distance = NegativeCosineSimilarity()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`views` (2, batch, 3, H, W) to `loss` and `output_std`."""
        first, second = batch["views"]
        return self.compare(self.features(first), self.features(second))

    def compare(self, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        """The loss of backbone features (batch, d) of the first and of the second views.

        `output_std` is the standard deviation over images of the unit-length projections, averaged over their
        dimensions: 0 where all images have come to look alike, 1 / sqrt(dim) where directions are random.
        """
        projected = [self.projector(features) for features in (first, second)]
        predicted = [self.predictor(projection) for projection in projected]
        with full_precision(first):
            # Without stopping the gradient here, one constant output would solve the task.
            targets = [projection.detach().float() for projection in projected]
            there, back = (self.distance(predicted[i].float(), targets[1 - i]) for i in range(2))
            spread = torch.cat([F.normalize(target, dim=1).std(0) for target in targets]).mean()
        return {"loss": (there + back) / 2, "output_std": spread}
