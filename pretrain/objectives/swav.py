"""SwAV: each view predicts the cluster that another view of its image is assigned to, online and evenly.

What comes in: two views of each image (2, batch, 3, height, width), smaller local views (local views, batch, 3, local
size, local size), and `epoch`, passes over the data so far. What goes out: the cross-entropy of every view's cluster
scores for the codes of each of the two whole views; codes spread the batch evenly over the clusters (Sinkhorn-Knopp).
Source: Caron, Misra, Mairal, Goyal, Bojanowski, Joulin 2020 (https://arxiv.org/abs/2006.09882, equations 1 to 6).
"""

import torch
from lightly.loss import SwaVLoss
from lightly.models.modules import SwaVProjectionHead
from lightly.models.utils import normalize_weight
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models import feature_size
from pretrain.objectives.objective import Objective, Wants, full_precision
from pretrain.objectives.processes import process_rank, world_size
from pretrain.objectives.queued_instance_recognition import Queue


class MultiCrop(Objective):
    """An objective of two whole views and of smaller local ones; the backbone must take both sizes.

    All views of one size go through the backbone together, as published, so batch norm's statistics are over them.
    """

    wants = Wants(views=2, local_views=6)

    def __init__(self, backbone: nn.Module, input_size: int, local_views: int) -> None:
        super().__init__(backbone)
        if local_views < 0:
            raise ValueError(f"objective_args.local_views must be 0 or more, found {local_views}")
        self.wants = Wants(views=2, local_views=local_views)
        self.feature_size = feature_size(backbone, input_size)
        self.accepted_size: int | None = None

    def features_of_all(self, batch: dict[str, Tensor]) -> Tensor:
        """Features ((2 + local views) * batch, d): of the first views, of the second, then of each local view."""
        whole = self.features(batch["views"].flatten(0, 1))
        if not self.wants.local_views:
            return whole
        local = batch["local_views"]
        if local.shape[-1] != self.accepted_size:
            require_same_features(self.backbone, local.shape[-1], self.feature_size)
            self.accepted_size = local.shape[-1]
        return torch.cat([whole, self.features(local.flatten(0, 1))])


class SwAV(MultiCrop):
    """Backbone, projector and unit-length prototypes, which are the centres of the clusters.

    Projector, Sinkhorn-Knopp and loss are lightly's. The prototypes are not: lightly's have a bias, the published
    ones are unit vectors alone. They are normalised after each step, and stay as they are during the first epoch.

    The queue adds projections of earlier views when codes are made. It is off by default, because it is for batches
    that are too small to be spread over the clusters: the paper takes none at 4,096 images, and 3,840 rows from epoch
    15 on at 256 images. It fills from the first step on.

    Over several processes codes are made of the views of all, and each process uses its share of the queue; the mean of
    their losses, and their averaged gradient, are those of one process with the whole batch.

    Args:
        backbone: maps (batch, 3, H, W) to (batch, features), for whole and for local views.
        input_size: side of a whole view in pixels.
        local_views: number of local views of each image.
        hidden_dim: width of the projector's hidden layer.
        dim: length of projections.
        prototypes: number of clusters.
        temperature: divides the scores of which a view predicts a code.
        epsilon: divides the scores of which codes are made; smaller is sharper.
        sinkhorn_iterations: rounds of normalising over clusters and over views.
        frozen_epochs: epochs at the start in which the prototypes stay as they are.
        queue_size: rows of earlier views, for each of the two whole views; 0 is none.
        queue_from_epoch: passes over the data before the queue is used.
    """

    interplay = "spreads a batch evenly over its clusters"

    def __init__(
        self,
        backbone: nn.Module,
        input_size: int = 64,
        local_views: int = 6,
        hidden_dim: int = 2048,
        dim: int = 128,
        prototypes: int = 3000,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        sinkhorn_iterations: int = 3,
        frozen_epochs: float = 1.0,
        queue_size: int = 0,
        queue_from_epoch: float = 15.0,
    ) -> None:
        super().__init__(backbone, input_size, local_views)
        sizes = {"hidden_dim": hidden_dim, "dim": dim, "prototypes": prototypes, "temperature": temperature}
        for name, value in {**sizes, "epsilon": epsilon, "sinkhorn_iterations": sinkhorn_iterations}.items():
            if not value > 0:
                raise ValueError(f"objective_args.{name} must be above 0, found {value}")
        for name, value in {"frozen_epochs": frozen_epochs, "queue_size": queue_size}.items():
            if not value >= 0:
                raise ValueError(f"objective_args.{name} must be 0 or more, found {value}")
        self.projector = SwaVProjectionHead(self.feature_size, hidden_dim, dim)
        self.prototypes = nn.Linear(dim, prototypes, bias=False)
        normalize_weight(self.prototypes.weight)
        self.criterion = SwaVLoss(temperature, sinkhorn_iterations, epsilon, sinkhorn_gather_distributed=True)
        self.frozen_epochs = frozen_epochs
        self.queue_from_epoch = queue_from_epoch
        self.queues = nn.ModuleList(Queue(queue_size, dim) for _ in range(2) if queue_size)
        self.stepped = False
        self.frozen_prototypes: Tensor | None = None
        self.newest: list[list[Tensor]] = []

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`views` (2, batch, 3, H, W), `local_views` (local views, batch, 3, h, w) and `epoch` to `loss`."""
        views = 2 + self.wants.local_views
        projected = self.projector(self.features_of_all(batch)).chunk(views)
        return self.swap(list(projected), float(batch["epoch"]))

    def swap(self, projections: list[Tensor], epoch: float) -> dict[str, Tensor]:
        """The loss of projections (batch, dim) of each view, the two whole ones first, at an epoch."""
        weights = self.prototypes.weight
        frozen = epoch < self.frozen_epochs
        with full_precision(projections[0]):
            unit = [F.normalize(view.float(), dim=1) for view in projections]
            scores = [F.linear(view, without_gradient(weights) if frozen else weights) for view in unit]
            queued = [F.linear(rows, weights.detach()) for rows in self.rows_in_use(epoch)]
            loss = self.criterion(scores[:2], scores[2:], queued or None).squeeze()
        self.stepped = self.training
        self.frozen_prototypes = weights.detach().clone() if frozen else None
        if self.training:
            self.newest.append([view.detach() for view in unit[:2]])
        return {"loss": loss}

    def rows_in_use(self, epoch: float) -> list[Tensor]:
        """This process's share of each queue, (rows, dim); nothing before the queues are used."""
        if epoch < self.queue_from_epoch:
            return []
        for queue in self.queues:
            if len(queue.rows) % world_size():
                raise ValueError(
                    f"objective_args.queue_size={len(queue.rows)} must be a multiple of the {world_size()} devices"
                )
        return [queue.rows[process_rank() :: world_size()] for queue in self.queues]

    @torch.no_grad()
    def after_step(self) -> None:
        """Bring the prototypes back to unit length, or to where they are frozen; add this step's views to queues."""
        if not self.stepped:
            return
        if self.frozen_prototypes is None:
            normalize_weight(self.prototypes.weight)
        else:
            # Weight decay moves weights without gradient too.
            self.prototypes.weight.copy_(self.frozen_prototypes)
        for queue, parts in zip(self.queues, zip(*self.newest, strict=True), strict=False):
            queue.add(torch.cat(parts))
        self.stepped, self.frozen_prototypes, self.newest = False, None, []


def without_gradient(weights: Tensor) -> Tensor:
    """The same weights, whose gradient is zero; a missing one would make processes that train together wait for it."""
    return weights.detach() + 0 * weights


def require_same_features(backbone: nn.Module, size: int, features: int) -> None:
    """One line where a backbone does not give `features` features for local views of `size` pixels too."""
    remedy = (
        "set objective_args.local_views=0, or another views.local_size, or for a vision transformer "
        "model_args.dynamic_img_size=true"
    )
    try:
        found = feature_size(backbone, size)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(f"the backbone does not take local views of {size} pixels ({error}); {remedy}") from error
    if found != features:
        raise ValueError(
            f"the backbone gives {found} features for local views of {size} pixels, and {features} for whole views; "
            f"{remedy}"
        )
