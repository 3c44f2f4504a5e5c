"""RotNet: a network tells by which quarter turn an image was rotated.

What comes in: one view of each image (1, batch, 3, size, size). What goes out: the mean cross-entropy over the four
rotations of every view, and the share that is told right (chance: 1/4). Source: Gidaris, Singh, Komodakis 2018
(https://arxiv.org/abs/1803.07728), as mouse-vision trains it (Nayebi, Kong et al. 2023).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models import feature_size
from pretrain.objectives.objective import Objective, Wants, full_precision

ROTATIONS = 4


class RotNet(Objective):
    """Backbone and a linear layer to the four rotations: 0, 90 counter-clockwise, 180 and 270 degrees, labels 0 to 3.

    All four rotations of a view are in one batch, so a step sees four times the images that a batch has.

    Args:
        backbone: maps (batch, 3, H, W) to (batch, features).
        input_size: side of a view in pixels.
    """

    wants = Wants(views=1)
    per_image = True

    def __init__(self, backbone: nn.Module, input_size: int = 64) -> None:
        super().__init__(backbone)
        self.head = nn.Linear(feature_size(backbone, input_size), ROTATIONS)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`views` (1, batch, 3, size, size) to `loss` and `accuracy`."""
        images, labels = rotated(batch["views"][0])
        return self.compare(self.features(images), labels)

    def compare(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss and share right of backbone features (images, d) for the rotations `labels` (images,)."""
        logits = self.head(features)
        with full_precision(features):
            loss = F.cross_entropy(logits.float(), labels)
        return {"loss": loss, "accuracy": (logits.argmax(1) == labels).float().mean()}


def rotated(images: Tensor) -> tuple[Tensor, Tensor]:
    """The four rotations (4 * batch, 3[, frames], size, size) of square images one after the other; their labels."""
    turned = torch.cat([torch.rot90(images, quarters, (-2, -1)) for quarters in range(ROTATIONS)])
    return turned, torch.arange(ROTATIONS, device=images.device).repeat_interleave(len(images))
