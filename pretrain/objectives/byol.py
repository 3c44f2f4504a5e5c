"""BYOL: a network predicts, from one view, what a slowly following copy of itself makes of the other view.

What comes in: two views of each image (2, batch, 3, height, width) and `progress`, the share of training that is done.
What goes out: the squared distance between unit-length predictions and targets, the mean over images, summed over both
directions (0 to 8). Source: Grill et al. 2020 (https://arxiv.org/abs/2006.07733, equation 2 and algorithm 1).
"""

import copy
import math

import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
from lightly.models.utils import update_momentum
from torch import Tensor, nn

from pretrain.models import feature_size, flat_features
from pretrain.objectives.objective import Objective, Wants, full_precision


class BYOL(Objective):
    """Backbone, projector and predictor, and a teacher: slow copies of backbone and projector.

    Heads, cosine and the teacher's update are lightly's. Each view goes through the networks on its own, so batch
    norm's statistics are over one view of each image; the teacher's are its own, as published. The teacher follows
    after each step, so a state dict taken between two steps is complete. In eval mode it stays.

    Args:
        backbone: maps (batch, 3, H, W) to (batch, features).
        input_size: side of a view in pixels.
        hidden_dim: width of the hidden layer of projector and predictor.
        dim: length of projections and predictions.
        momentum: share of the teacher's weights that an update keeps at the start of training; it rises to 1. The
            paper takes 0.99 for trainings of 300 epochs or fewer.
    """

    wants = Wants(views=2)
    per_image = True

    def __init__(
        self,
        backbone: nn.Module,
        input_size: int = 64,
        hidden_dim: int = 4096,
        dim: int = 256,
        momentum: float = 0.996,
    ) -> None:
        super().__init__(backbone)
        for name, value in (("hidden_dim", hidden_dim), ("dim", dim)):
            if not value > 0:
                raise ValueError(f"objective_args.{name} must be above 0, found {value}")
        require_momentum(momentum)
        self.projector = BYOLProjectionHead(feature_size(backbone, input_size), hidden_dim, dim)
        self.predictor = BYOLPredictionHead(dim, hidden_dim, dim)
        self.teacher_backbone = copy.deepcopy(self.backbone).requires_grad_(False)
        self.teacher_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.criterion = NegativeCosineSimilarity()
        self.momentum = momentum
        self.momentum_now: float | None = None

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`views` (2, batch, 3, H, W) and the scalar `progress` to `loss`."""
        predictions = [self.predictor(self.projector(self.features(view))) for view in batch["views"]]
        targets = [self.targets(view) for view in batch["views"]]
        self.momentum_now = teacher_momentum(float(batch["progress"]), self.momentum) if self.training else None
        return self.compare(predictions, targets)

    def compare(self, predictions: list[Tensor], targets: list[Tensor]) -> dict[str, Tensor]:
        """The loss of predictions (batch, dim) and targets (batch, dim) of the first and of the second views."""
        with full_precision(predictions[0]):
            first, second = (prediction.float() for prediction in predictions)
            # |a - b|² = 2 - 2 a·b of unit vectors; lightly's cosine is negative.
            cosines = self.criterion(first, targets[1].float()) + self.criterion(second, targets[0].float())
            return {"loss": 4 + 2 * cosines}

    @torch.no_grad()
    def targets(self, images: Tensor) -> Tensor:
        """The teacher's projections (batch, dim) of images (batch, 3, H, W)."""
        return self.teacher_projector(flat_features(self.teacher_backbone(images)))

    def after_step(self) -> None:
        """Move the teacher's weights a little towards the network's."""
        if self.momentum_now is None:
            return
        update_momentum(self.backbone, self.teacher_backbone, self.momentum_now)
        update_momentum(self.projector, self.teacher_projector, self.momentum_now)
        self.momentum_now = None


def teacher_momentum(progress: float, start: float) -> float:
    """Share of a teacher's weights that an update keeps: from `start` at progress 0, by half a cosine, to 1 at 1."""
    return 1 - (1 - start) * (math.cos(math.pi * progress) + 1) / 2


def require_momentum(momentum: float) -> None:
    """One line for a momentum out of range."""
    if not 0 <= momentum < 1:
        raise ValueError(f"objective_args.momentum must be from 0 to below 1, found {momentum}")
