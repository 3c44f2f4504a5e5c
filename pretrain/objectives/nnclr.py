"""NNCLR: a view must find, among all images of the batch, the nearest earlier neighbour of its image's other view.

What comes in: two views of each image (2, batch, 3, height, width). What goes out: the normalised,
temperature-scaled cross-entropy (NT-Xent) between the nearest neighbours of one view's projections and the predictions
from the other, the mean over both directions. Source: Dwibedi, Aytar, Tompson, Sermanet, Zisserman 2021
(https://arxiv.org/abs/2104.14548, section 3).
"""

import torch
from lightly.models.modules import NNCLRPredictionHead, NNCLRProjectionHead
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models import feature_size
from pretrain.objectives.contrastive import NTXent
from pretrain.objectives.objective import Objective, Wants, full_precision
from pretrain.objectives.queued_instance_recognition import Queue


class NNCLR(Objective):
    """Backbone, projector and predictor, and a support set: a queue of unit-length projections of earlier first views.

    Heads are lightly's. The loss is the one that lightly takes too: symmetric, as the paper's with the added term, with
    the other neighbours and the other predictions among the negatives, where the paper counts only those of the other
    kind.
    The support set is not lightly's, which is in no state dict. It changes after each step, so a state dict taken
    between two steps is complete; in eval mode it stays.

    Over several processes each one compares its own views with those of all; the mean of their losses, and their
    averaged gradient, are those of one process with the whole batch.

    Args:
        backbone: maps (batch, 3, H, W) to (batch, features).
        input_size: side of a view in pixels.
        hidden_dim: width of the projector's two hidden layers.
        dim: length of projections and predictions.
        predictor_hidden_dim: width of the predictor's hidden layer.
        queue_size: number of projections in the support set.
        temperature: divides the cosine similarities.
    """

    wants = Wants(views=2)
    interplay = "compares the views of all images in a batch"

    def __init__(
        self,
        backbone: nn.Module,
        input_size: int = 64,
        hidden_dim: int = 2048,
        dim: int = 256,
        predictor_hidden_dim: int = 4096,
        queue_size: int = 65_536,
        temperature: float = 0.1,
    ) -> None:
        super().__init__(backbone)
        sizes = {"hidden_dim": hidden_dim, "dim": dim, "predictor_hidden_dim": predictor_hidden_dim}
        for name, value in {**sizes, "queue_size": queue_size, "temperature": temperature}.items():
            if not value > 0:
                raise ValueError(f"objective_args.{name} must be above 0, found {value}")
        self.projector = NNCLRProjectionHead(feature_size(backbone, input_size), hidden_dim, dim)
        self.predictor = NNCLRPredictionHead(dim, predictor_hidden_dim, dim)
        self.criterion = NTXent(temperature)
        self.queue = Queue(queue_size, dim)
        self.newest: list[Tensor] = []

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`views` (2, batch, 3, H, W) to `loss`."""
        projections = [self.projector(self.features(view)) for view in batch["views"]]
        return self.contrast(projections, [self.predictor(projected) for projected in projections])

    def contrast(self, projections: list[Tensor], predictions: list[Tensor]) -> dict[str, Tensor]:
        """The loss of projections (batch, dim) and predictions (batch, dim) of the first and of the second views."""
        with full_precision(projections[0]):
            neighbours = [self.neighbours(projected.detach().float()) for projected in projections]
            first, second = (prediction.float() for prediction in predictions)
            loss = 0.5 * (self.criterion(neighbours[0], second) + self.criterion(neighbours[1], first))
            if self.training:
                self.newest.append(F.normalize(projections[0].detach().float(), dim=1))
        return {"loss": loss}

    def neighbours(self, projected: Tensor) -> Tensor:
        """For each projection (batch, dim), the row of the support set with the largest cosine similarity."""
        return self.queue.rows[(F.normalize(projected, dim=1) @ self.queue.rows.T).argmax(1)]

    def after_step(self) -> None:
        """Replace the oldest projections by those of this step's first views, of every process."""
        if not self.newest:
            return
        self.queue.add(torch.cat(self.newest))
        self.newest = []
