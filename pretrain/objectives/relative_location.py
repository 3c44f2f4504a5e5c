"""Relative location: a network tells where a patch lies, seen from the patch in the centre of a 3 x 3 grid.

What comes in: the grid's patches (9, batch, 3, size, size), row by row; the fifth is the centre. What goes out: the
mean cross-entropy over the eight pairs of a patch and the centre, and the share that is told right (chance: 1/8).
Source: Doersch, Gupta, Efros 2015 (https://arxiv.org/abs/1505.05192), with the head of mouse-vision (Nayebi, Kong et
al. 2023).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models import feature_size
from pretrain.objectives.objective import Objective, Wants, full_precision

PATCHES = 9
CENTRE = 4
NEIGHBOURS = PATCHES - 1
NECK_BIAS = 0.1
WEIGHT_STD = 0.005
NORM_MOMENTUM = 0.003


class RelativeLocation(Objective):
    """Backbone, a hidden layer over the features of patch and centre, and a linear layer to the eight places.

    Every patch goes through the backbone once, and the centre's features are shared by its eight pairs. The published
    code passes the centre eight times, at nearly twice the price. That differs where the backbone has batch norm (the
    centre is a ninth of what its statistics are of, and not half) or dropout (all pairs have the same draw of it).

    Args:
        backbone: maps (batch, 3, H, W) to (batch, features).
        input_size: side of a patch in pixels.
        hidden_dim: width of the hidden layer.
        dropout: probability after it.
    """

    wants = Wants(views=0, patches=True)
    per_image = True

    def __init__(self, backbone: nn.Module, input_size: int = 64, hidden_dim: int = 4096, dropout: float = 0.5) -> None:
        super().__init__(backbone)
        if not hidden_dim > 0:
            raise ValueError(f"objective_args.hidden_dim must be above 0, found {hidden_dim}")
        if not 0 <= dropout < 1:
            raise ValueError(f"objective_args.dropout must be from 0 to below 1, found {dropout}")
        self.neck = nn.Sequential(
            nn.Linear(2 * feature_size(backbone, input_size), hidden_dim),
            nn.BatchNorm1d(hidden_dim, momentum=NORM_MOMENTUM),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
        )
        self.head = nn.Linear(hidden_dim, NEIGHBOURS)
        for layer, bias in ((self.neck[0], NECK_BIAS), (self.head, 0.0)):
            nn.init.normal_(layer.weight, std=WEIGHT_STD)
            nn.init.constant_(layer.bias, bias)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`patches` (9, batch, 3, size, size) to `loss` and `accuracy`."""
        patches = batch["patches"]
        features = self.features(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])
        return self.compare(*paired_with_centre(features))

    def compare(self, pairs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss and share right of pairs (pairs, 2 d), the patch's features before the centre's, for their places."""
        logits = self.head(self.neck(pairs))
        with full_precision(pairs):
            loss = F.cross_entropy(logits.float(), labels)
        return {"loss": loss, "accuracy": (logits.argmax(1) == labels).float().mean()}


def paired_with_centre(features: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs (8 * batch, 2 d) of features (9, batch, d), and which place of the grid, without the centre, each is."""
    # Slices, because a device waits for a list of places.
    neighbours = torch.cat([features[:CENTRE], features[CENTRE + 1 :]])
    pairs = torch.cat([neighbours, features[CENTRE].expand_as(neighbours)], 2)
    labels = torch.arange(NEIGHBOURS, device=features.device)
    return pairs.flatten(0, 1), labels.repeat_interleave(features.shape[1])
