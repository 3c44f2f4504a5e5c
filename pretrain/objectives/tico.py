"""TiCo: the two views of an image agree, and projections keep away from the directions that are crowded already.

What comes in: two views of each image (2, batch, 3, height, width) and `progress`, the share of training that is done.
What goes out: with unit-length projections z of the first views, unit-length projections z' of the second views by a
slowly following teacher, and a running mean C of the second moments of z: the mean over images of
1 - z·z' + weight * zᵀ C z. Source: Zhu, Moraes, Karakulak, Sobol, Canziani, LeCun 2022
(https://arxiv.org/abs/2206.10698, section 3).
"""

import copy

import torch
from lightly.loss import TiCoLoss
from lightly.models.modules.heads import TiCoProjectionHead
from lightly.models.utils import update_momentum
from torch import Tensor, nn

from pretrain.models import feature_size, flat_features
from pretrain.objectives.byol import require_momentum, teacher_momentum
from pretrain.objectives.objective import Objective, Wants, full_precision, mean_of_parts
from pretrain.objectives.processes import gather_processes, gather_with_gradient


class TiCo(Objective):
    """Backbone and projector, their slow copies (the teacher), and the covariance so far.

    Loss, head and the teacher's update are lightly's. lightly keeps the covariance out of state dicts, so it is held
    here and lent to the loss. It starts at zero. Teacher and covariance change after each step, so a state dict taken
    between two steps is complete; in eval mode neither changes. Over several processes each one computes the loss of
    the whole batch, so loss, covariance and averaged gradient are those of one process.

    Args:
        backbone: maps (batch, 3, H, W) to (batch, features).
        input_size: side of a view in pixels.
        hidden_dim: width of the projector's hidden layer.
        dim: length of projections.
        covariance_weight: weight of the covariance term, the paper's rho.
        covariance_momentum: share of the covariance so far that a step keeps, the paper's beta.
        momentum: share of the teacher's weights that an update keeps at the start of training; it rises to 1.
    """

    wants = Wants(views=2)
    interplay = "takes second moments over a batch"

    def __init__(
        self,
        backbone: nn.Module,
        input_size: int = 64,
        hidden_dim: int = 4096,
        dim: int = 256,
        covariance_weight: float = 8.0,
        covariance_momentum: float = 0.9,
        momentum: float = 0.99,
    ) -> None:
        super().__init__(backbone)
        for name, value in (("hidden_dim", hidden_dim), ("dim", dim), ("covariance_weight", covariance_weight)):
            if not value > 0:
                raise ValueError(f"objective_args.{name} must be above 0, found {value}")
        if not 0 <= covariance_momentum < 1:
            raise ValueError(
                f"objective_args.covariance_momentum must be from 0 to below 1, found {covariance_momentum}"
            )
        require_momentum(momentum)
        self.projector = TiCoProjectionHead(feature_size(backbone, input_size), hidden_dim, dim)
        self.teacher_backbone = copy.deepcopy(self.backbone).requires_grad_(False)
        self.teacher_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.criterion = TiCoLoss(covariance_momentum, covariance_weight)
        self.register_buffer("covariance", torch.zeros(dim, dim))
        self.momentum = momentum
        self.momentum_now: float | None = None
        self.covariances: list[Tensor] = []

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`views` (2, batch, 3, H, W) and the scalar `progress` to `loss`."""
        first, second = batch["views"]
        projected = self.projector(self.features(first))
        self.momentum_now = teacher_momentum(float(batch["progress"]), self.momentum) if self.training else None
        return self.compare(projected, self.targets(second))

    def compare(self, projected: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The loss of projections (batch, dim) of the first views and the teacher's (batch, dim) of the second."""
        with full_precision(projected):
            self.criterion.C = self.covariance
            loss = self.criterion(gather_with_gradient(projected.float()), gather_processes(targets.float()))
        if self.training:
            self.covariances.append(self.criterion.C)
        return {"loss": loss}

    @torch.no_grad()
    def targets(self, images: Tensor) -> Tensor:
        """The teacher's projections (batch, dim) of images (batch, 3, H, W)."""
        return self.teacher_projector(flat_features(self.teacher_backbone(images)))

    def after_step(self) -> None:
        """Keep the covariance of this step, and move the teacher's weights a little towards the network's."""
        if self.momentum_now is None:
            return
        self.covariance.copy_(mean_of_parts(self.covariances))
        update_momentum(self.backbone, self.teacher_backbone, self.momentum_now)
        update_momentum(self.projector, self.teacher_projector, self.momentum_now)
        self.momentum_now, self.covariances = None, []
