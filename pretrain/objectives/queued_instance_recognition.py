"""Instance recognition with a queue: each image is its own class, told apart from the images of earlier batches.

What comes in: two views of each image (2, batch, 3, height, width) and the images' global indices (batch,). What goes
out: the cross-entropy of the other view's embedding against a queue of embeddings of other images (InfoNCE), the mean
over both views, and how often the other view is the nearest. The queue has a fixed length, so memory does not grow with
the data, as it does with one row per image in `instance_recognition`. Sources: Wu, Xiong, Yu, Lin 2018
(https://arxiv.org/abs/1805.01978) for embedding, temperature and the task; van den Oord, Li, Vinyals 2018
(https://arxiv.org/abs/1807.03748, equation 4) for the loss; Wang, Zhang, Huang, Scott 2020
(https://arxiv.org/abs/1912.06798) for a queue of the same network's earlier embeddings.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models import feature_size
from pretrain.objectives.objective import Objective, Wants, full_precision
from pretrain.objectives.processes import gather_processes


class Queue(nn.Module):
    """The newest rows (size, dim) of all processes, the same on each; it starts with random rows of unit length.

    lightly's memory bank is in no state dict and drops rows that pass its end; this one is saved whole, and goes round.
    """

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def add(self, part: Tensor) -> Tensor:
        """Replace the oldest rows by those (batch, dim) of every process; returns the places that they went to."""
        new = gather_processes(part)[-len(self.rows) :]
        # The place stays on the device: reading it would wait for the device at every step.
        places = (self.oldest + torch.arange(len(new), device=new.device)) % len(self.rows)
        self.rows[places] = new
        self.oldest.copy_((self.oldest + len(new)) % len(self.rows))
        return places


class QueuedInstanceRecognition(Objective):
    """Backbone, linear embedding and a queue of unit vectors, one per image of the latest batches.

    There is no second, slow network. The gradient flows into both views' embeddings, and the queue's rows are
    constants. Rows of the same image, from an earlier epoch, are left out of its negatives: with a queue as long as an
    epoch they would always be there. The queue changes after each step, so a state dict taken between two steps is
    complete; in eval mode it stays. Each view goes through the backbone on its own, as the queue's rows did.

    Args:
        backbone: maps (batch, 3, H, W) to (batch, features).
        input_size: side of a view in pixels.
        dim: length of an embedding.
        queue_size: number of earlier images, each with the embedding of its first view.
        temperature: divides the inner products.
    """

    wants = Wants(views=2)

    def __init__(
        self,
        backbone: nn.Module,
        input_size: int = 64,
        dim: int = 128,
        queue_size: int = 65_536,
        temperature: float = 0.07,
    ) -> None:
        super().__init__(backbone)
        for name, value in (("dim", dim), ("queue_size", queue_size), ("temperature", temperature)):
            if not value > 0:
                raise ValueError(f"objective_args.{name} must be above 0, found {value}")
        self.embedding = nn.Linear(feature_size(backbone, input_size), dim)
        self.temperature = temperature
        self.queue = Queue(queue_size, dim)
        # No image has the index -1, so the random rows of the start are nobody's.
        self.register_buffer("queue_index", torch.full((queue_size,), -1))
        self.newest: tuple[Tensor, Tensor] | None = None

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`views` (2, batch, 3, H, W) and `index` (batch,) to `loss`, and `acc1`, a share from 0 to 1."""
        first, second = (self.embedding(self.features(view)) for view in batch["views"])
        return self.contrast(first, second, batch["index"])

    def contrast(self, first: Tensor, second: Tensor, index: Tensor) -> dict[str, Tensor]:
        """The loss of embeddings (batch, dim) of the first and of the second views of the images `index` (batch,)."""
        with full_precision(first):
            first, second = (F.normalize(view.float(), dim=1) for view in (first, second))
            own = (first * second).sum(1, keepdim=True)
            same_image = index[:, None] == self.queue_index
            parts = [self.tell_apart(view, own, same_image) for view in (first, second)]
            loss, nearest = (torch.stack(part).mean() for part in zip(*parts, strict=True))
        self.newest = (first.detach(), index) if self.training else None
        return {"loss": loss, "acc1": nearest}

    def tell_apart(self, views: Tensor, own: Tensor, same_image: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of unit-length views (batch, dim), and the share whose other view is the nearest.

        `own` (batch, 1) is their cosine with it; `same_image` (batch, queue) marks rows that are not to be told apart.
        """
        others = (views @ self.queue.rows.T).masked_fill(same_image, -torch.inf)
        logits = torch.cat([own, others], dim=1) / self.temperature
        loss = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
        # Ties count as failures: where all embeddings have come to look alike, accuracy is 0 and not 1.
        return loss, (others < own).all(1).float().mean()

    @torch.no_grad()
    def after_step(self) -> None:
        """Replace the oldest embeddings by those of this step, of every process in the same order on each."""
        if self.newest is None:
            return
        embedded, index = self.newest
        places = self.queue.add(embedded)
        self.queue_index[places] = gather_processes(index)[-len(places) :]
        self.newest = None
