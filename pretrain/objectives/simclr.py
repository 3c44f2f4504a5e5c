"""SimCLR: the two views of an image must find each other among all views of the batch.

What comes in: two views of each image (2, batch, 3, height, width). What goes out: the normalised, temperature-scaled
cross-entropy over the 2 * batch - 1 other views (NT-Xent), the mean over all 2 * batch views. Source: Chen, Kornblith,
Norouzi, Hinton 2020 (https://arxiv.org/abs/2002.05709), with the constants of mouse-vision (Nayebi, Kong et al. 2023).
"""

from lightly.models.modules import SimCLRProjectionHead
from torch import Tensor, nn

from pretrain.models import feature_size
from pretrain.objectives.contrastive import NTXent
from pretrain.objectives.objective import Objective, Wants, full_precision

# Standard deviation of the head's weights at the start.
WEIGHT_STD = 0.01


class SimCLR(Objective):
    """Backbone and a head of two linear layers, each followed by batch norm.

    The head is lightly's, which computes what is published; only the start of the weights is our own. Both views go
    through backbone and head as one batch, so batch norm's statistics are over 2 * batch views.

    Over several processes each one compares its own views with the views of all. Its loss is that of its part, and the
    mean over processes is the loss of the whole batch. The published code lets the gradient flow into the own
    part only. Ours lets it flow into every part, so that the gradient averaged over processes is exactly
    that of one process with the whole batch.

    Args:
        backbone: maps (batch, 3, H, W) to (batch, features).
        input_size: side of a view in pixels.
        hidden_dim: width of the head's hidden layer.
        dim: length of a projection.
        temperature: divides the cosine similarities.
    """

    wants = Wants(views=2)
    interplay = "compares the views of all images in a batch"

    def __init__(
        self,
        backbone: nn.Module,
        input_size: int = 64,
        hidden_dim: int = 2048,
        dim: int = 128,
        temperature: float = 0.1,
    ) -> None:
        super().__init__(backbone)
        for name, value in (("hidden_dim", hidden_dim), ("dim", dim), ("temperature", temperature)):
            if not value > 0:
                raise ValueError(f"objective_args.{name} must be above 0, found {value}")
        self.head = SimCLRProjectionHead(feature_size(backbone, input_size), hidden_dim, dim)
        for layer in self.head.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=WEIGHT_STD)
        self.criterion = NTXent(temperature)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`views` (2, batch, 3, H, W) to `loss`."""
        return self.contrast(self.features(batch["views"].flatten(0, 1)))

    def contrast(self, features: Tensor) -> dict[str, Tensor]:
        """The loss of backbone features (2 * batch, d): of the first views, then of the second in the same order."""
        projected = self.head(features)
        # In half precision exp(1 / 0.1) loses its fourth digit, so the loss leaves autocast.
        with full_precision(projected):
            return {"loss": self.criterion(*projected.float().chunk(2))}
