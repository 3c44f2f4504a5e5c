"""MoCo v2: a view must find the other view of its image among the views of earlier batches.

What comes in: two views of each image (2, batch, 3, height, width); the first gives the query, the second the key.
What goes out: the cross-entropy of the own key against a queue of older keys (InfoNCE), and how often the own key is
first or among the first five. Source: Chen, Fan, Girshick, He 2020 (https://arxiv.org/abs/2003.04297) and He, Fan, Wu,
Xie, Girshick 2020 (https://arxiv.org/abs/1911.05722, algorithm 1), with the constants of mouse-vision (Nayebi, Kong et
al. 2023).
"""

import copy

import torch
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import batch_shuffle, batch_unshuffle, update_momentum
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models import feature_size, flat_features
from pretrain.objectives.objective import Objective, Wants, full_precision
from pretrain.objectives.processes import gather_processes, world_size


class MoCoV2(Objective):
    """Backbone and head for queries, their slow copies for keys, and a queue of unit-length keys.

    The head, the momentum update and the shuffling are lightly's. The loss is not its NTXentLoss with a memory bank:
    that bank is in no checkpoint, and it fills before the backward pass. The key encoder is updated before the first
    forward pass of a step, the queue after each step, so a state dict taken between two steps is complete. In eval mode
    neither changes.

    Keys are made of images that are shuffled over all processes, so that batch norm's statistics, which the
    key encoder takes over each process's part, do not tell which key belongs to which query.

    Args:
        backbone: maps (batch, 3, H, W) to (batch, features).
        input_size: side of a view in pixels.
        hidden_dim: width of the head's hidden layer.
        dim: length of queries and keys.
        queue_size: number of older keys; a multiple of the batch over all processes.
        momentum: share of the old weights that an update of the key encoder keeps.
        temperature: divides the cosine similarities.
    """

    wants = Wants(views=2)
    per_image = True

    def __init__(
        self,
        backbone: nn.Module,
        input_size: int = 64,
        hidden_dim: int = 2048,
        dim: int = 128,
        queue_size: int = 65_536,
        momentum: float = 0.999,
        temperature: float = 0.2,
    ) -> None:
        super().__init__(backbone)
        check_constants(hidden_dim, dim, queue_size, momentum, temperature)
        self.head = MoCoProjectionHead(feature_size(backbone, input_size), hidden_dim, dim)
        for layer in self.head.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        self.key_backbone = copy.deepcopy(self.backbone).requires_grad_(False)
        self.key_head = copy.deepcopy(self.head).requires_grad_(False)
        self.momentum = momentum
        self.temperature = temperature
        self.register_buffer("queue", F.normalize(torch.randn(queue_size, dim), dim=1))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.long))
        self.new_keys: list[Tensor] = []

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`views` (2, batch, 3, H, W) to `loss`, and `acc1` and `acc5`, shares from 0 to 1."""
        first, second = batch["views"]
        if self.training:
            self.require_whole_batches(len(second) * world_size())
            if not self.new_keys:
                self.update_key_encoder()
        keys = self.keys(second)
        if self.training:
            self.new_keys.append(keys)
        return self.contrast(self.head(self.features(first)), keys)

    def contrast(self, queries: Tensor, keys: Tensor) -> dict[str, Tensor]:
        """The loss of the head's outputs (batch, dim) for their unit-length keys (batch, dim) against the queue."""
        with full_precision(queries):
            queries = F.normalize(queries.float(), dim=1)
            own = (queries * keys).sum(1, keepdim=True)
            older = queries @ self.queue.T
            logits = torch.cat([own, older], dim=1) / self.temperature
            loss = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
        # Ties count as failures: where all outputs have come to look alike, accuracy is 0 and not 1.
        better = (older >= own).sum(1)
        return {"loss": loss, "acc1": (better < 1).float().mean(), "acc5": (better < 5).float().mean()}

    @torch.no_grad()
    def keys(self, images: Tensor) -> Tensor:
        """Unit-length keys (batch, dim) of images (batch, 3, H, W), in their order."""
        spread = world_size() > 1
        if spread:
            images, order = batch_shuffle(images, distributed=True)
        keys = F.normalize(self.key_head(flat_features(self.key_backbone(images))).float(), dim=1)
        return batch_unshuffle(keys, order, distributed=True) if spread else keys

    def update_key_encoder(self) -> None:
        """Move the key encoder's weights a little towards the queries'; batch norm's statistics are its own."""
        update_momentum(self.backbone, self.key_backbone, self.momentum)
        update_momentum(self.head, self.key_head, self.momentum)

    @torch.no_grad()
    def after_step(self) -> None:
        """Replace the oldest keys by those of this step, of every process in the same order on each."""
        if not self.new_keys:
            return
        keys = gather_processes(torch.cat(self.new_keys))
        self.require_whole_batches(len(keys))
        # The row stays on the device: reading it would wait for the device at every step.
        rows = (self.oldest + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[rows] = keys
        self.oldest.copy_((self.oldest + len(keys)) % len(self.queue))
        self.new_keys = []

    def require_whole_batches(self, batch_size: int) -> None:
        """One line where the queue does not hold a whole number of batches."""
        if len(self.queue) % batch_size:
            nearest = max(1, round(len(self.queue) / batch_size)) * batch_size
            raise ValueError(
                f"objective_args.queue_size={len(self.queue)} must be a multiple of the batch of {batch_size} images "
                f"over all devices (batch_size); nearest: {nearest}"
            )


def check_constants(hidden_dim: int, dim: int, queue_size: int, momentum: float, temperature: float) -> None:
    """One line for a constant out of range."""
    sizes = {"hidden_dim": hidden_dim, "dim": dim, "queue_size": queue_size, "temperature": temperature}
    for name, value in sizes.items():
        if not value > 0:
            raise ValueError(f"objective_args.{name} must be above 0, found {value}")
    if not 0 <= momentum < 1:
        raise ValueError(f"objective_args.momentum must be from 0 to below 1, found {momentum}")
