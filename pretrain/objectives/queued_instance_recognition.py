"""Instance recognition with a queue: each image is its own class, told apart from the images of earlier batches.

What comes in: two views of each image (2, batch, 3, height, width) and the images' global indices (batch,). What goes
out: the cross-entropy of the second view's embedding against a queue of embeddings of other images (InfoNCE), and how
often the own one is the nearest. The queue has a fixed length, so memory does not grow with the data, as it does with
one row per image in `instance_recognition`. Sources: Wu, Xiong, Yu, Lin 2018 (https://arxiv.org/abs/1805.01978) for
task, embedding and temperature; He, Fan, Wu, Xie, Girshick 2020 (https://arxiv.org/abs/1911.05722, algorithm 1, known
as MoCo v1) for queue and key network.
"""

import copy

import torch
from lightly.models.utils import batch_shuffle, batch_unshuffle, update_momentum
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models import feature_size, flat_features
from pretrain.objectives.byol import require_momentum
from pretrain.objectives.objective import Objective, Wants, full_precision
from pretrain.objectives.processes import gather_processes, world_size


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
    """Backbone and linear embedding, slow copies of both for keys, and a queue of the latest images' unit-length keys.

    The slow copies are what makes the queue work. A queue of the trained network's own embeddings does not: the network
    learns to tell now from earlier, and not image from image (He et al. 2020, section 4.1, momentum 0).

    Rows of the same image, from an earlier epoch, are left out of its negatives: with a queue as long as an epoch they
    would always be there. Keys are made of images that are shuffled over all processes, so that batch norm's
    statistics, where each process has its own, do not tell which key belongs to which view. Key network and queue
    change after each step, so a state dict taken between two steps is complete; in eval mode neither changes.

    Args:
        backbone: maps (batch, 3, H, W) to (batch, features).
        input_size: side of a view in pixels.
        dim: length of an embedding.
        queue_size: number of earlier images.
        momentum: share of the old weights that an update of the key network keeps.
        temperature: divides the inner products.
    """

    wants = Wants(views=2)
    per_image = True

    def __init__(
        self,
        backbone: nn.Module,
        input_size: int = 64,
        dim: int = 128,
        queue_size: int = 65_536,
        momentum: float = 0.999,
        temperature: float = 0.07,
    ) -> None:
        super().__init__(backbone)
        for name, value in (("dim", dim), ("queue_size", queue_size), ("temperature", temperature)):
            if not value > 0:
                raise ValueError(f"objective_args.{name} must be above 0, found {value}")
        require_momentum(momentum)
        self.embedding = nn.Linear(feature_size(backbone, input_size), dim)
        self.key_backbone = copy.deepcopy(self.backbone).requires_grad_(False)
        self.key_embedding = copy.deepcopy(self.embedding).requires_grad_(False)
        self.momentum = momentum
        self.temperature = temperature
        self.queue = Queue(queue_size, dim)
        # No image has the index -1, so the random rows of the start are nobody's.
        self.register_buffer("queue_index", torch.full((queue_size,), -1))
        self.newest: list[tuple[Tensor, Tensor]] = []

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`views` (2, batch, 3, H, W) and `index` (batch,) to `loss`, and `acc1`, a share from 0 to 1."""
        first, second = batch["views"]
        keys = self.keys(second)
        if self.training:
            self.newest.append((keys, batch["index"]))
        return self.contrast(self.embedding(self.features(first)), keys, batch["index"])

    def contrast(self, embedded: Tensor, keys: Tensor, index: Tensor) -> dict[str, Tensor]:
        """The loss of embeddings (batch, dim) for the unit-length keys (batch, dim) of the images `index` (batch,)."""
        with full_precision(embedded):
            unit = F.normalize(embedded.float(), dim=1)
            own = (unit * keys).sum(1, keepdim=True)
            same_image = index[:, None] == self.queue_index
            others = (unit @ self.queue.rows.T).masked_fill(same_image, -torch.inf)
            logits = torch.cat([own, others], dim=1) / self.temperature
            loss = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
        # Ties count as failures: where all embeddings have come to look alike, accuracy is 0 and not 1.
        return {"loss": loss, "acc1": (others < own).all(1).float().mean()}

    @torch.no_grad()
    def keys(self, images: Tensor) -> Tensor:
        """Unit-length keys (batch, dim) of images (batch, 3, H, W), in their order."""
        spread = world_size() > 1
        if spread:
            images, order = batch_shuffle(images, distributed=True)
        keys = F.normalize(self.key_embedding(flat_features(self.key_backbone(images))).float(), dim=1)
        return batch_unshuffle(keys, order, distributed=True) if spread else keys

    @torch.no_grad()
    def after_step(self) -> None:
        """Replace the oldest keys by those of every process, and move the key network a little towards the other."""
        if not self.newest:
            return
        keys, index = (torch.cat(parts) for parts in zip(*self.newest, strict=True))
        places = self.queue.add(keys)
        self.queue_index[places] = gather_processes(index)[-len(places) :]
        update_momentum(self.backbone, self.key_backbone, self.momentum)
        update_momentum(self.embedding, self.key_embedding, self.momentum)
        self.newest = []
