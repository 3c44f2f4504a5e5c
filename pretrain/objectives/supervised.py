"""Classification by labels: a backbone trained from its labels, and a linear readout of a frozen one.

What comes in: one view of each image (1, batch, 3, size, size) and its class (batch,). What goes out: the mean
cross-entropy, and how often the right class is the first of the predicted ones and among the first five. Source: the
supervised and the finetuning trainers of mouse-vision (Nayebi, Kong et al. 2023,
https://doi.org/10.1371/journal.pcbi.1011506).
"""

import difflib
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models import feature_size, flat_features
from pretrain.objectives.objective import Objective, Wants, full_precision

READOUT_HEADS = ("linear", "pooled")
POOLED_SIZE = 6


class Supervised(Objective):
    """Backbone and a linear layer to the classes, both trained.

    Args:
        backbone: maps (batch, 3, H, W) to (batch, features).
        classes: number of classes of the training shards.
        input_size: side of a view in pixels.
    """

    wants = Wants(views=1, label=True)
    per_image = True

    def __init__(self, backbone: nn.Module, classes: int, input_size: int = 64) -> None:
        super().__init__(backbone)
        require_classes("supervised", classes)
        self.head = nn.Linear(feature_size(backbone, input_size), classes)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`views` (1, batch, 3, size, size) and `label` (batch,) to `loss`, `train_top1` and `train_top5`."""
        return loss_and_hits(self.logits(batch["views"][0]), batch["label"])

    def logits(self, images: Tensor) -> Tensor:
        """Scores (batch, classes) of images (batch, 3, size, size)."""
        return self.head(self.features(images))


class LinearReadout(Objective):
    """A linear layer to the classes, trained on a backbone that stays as it is, in evaluation mode.

    Args:
        backbone: maps (batch, 3, H, W) to (batch, features) or to maps (batch, channels, h, w).
        classes: number of classes of the training shards.
        input_size: side of a view in pixels.
        head: "linear", the flattened features as they are; "pooled", RotNet's: maps are max-pooled to 6 x 6, and each
            channel is normalised by its mean and variance over batch and places, without parameters.
        layer: read out this layer of the backbone, by its name in `named_modules()`, and not its output.
    """

    wants = Wants(views=1, label=True)
    per_image = True

    def __init__(
        self,
        backbone: nn.Module,
        classes: int,
        input_size: int = 64,
        head: str = "linear",
        layer: str | None = None,
    ) -> None:
        super().__init__(backbone.requires_grad_(False).eval())
        require_classes("linear_readout", classes)
        if head not in READOUT_HEADS:
            raise ValueError(f"objective_args.head must be one of {', '.join(READOUT_HEADS)}, found {head!r}")
        if layer is not None:
            require_layer(backbone, layer)
        self.layer = layer
        self.whole_backbone = layer is None
        device = next(backbone.parameters()).device
        example = self.frozen(torch.zeros(1, 3, input_size, input_size, device=device))
        self.readout = pooled_head(example, classes) if head == "pooled" else linear_head(example, classes)

    def train(self, mode: bool = True) -> "LinearReadout":
        """Training mode of the readout alone."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`views` (1, batch, 3, size, size) and `label` (batch,) to `loss`, `train_top1` and `train_top5`."""
        return loss_and_hits(self.logits(batch["views"][0]), batch["label"])

    def logits(self, images: Tensor) -> Tensor:
        """Scores (batch, classes) of images (batch, 3, size, size)."""
        return self.readout(self.frozen(images))

    @torch.no_grad()
    def frozen(self, images: Tensor) -> Tensor:
        """What the backbone, or the layer of it, gives for images (batch, 3, size, size), in the shape it has there."""
        found: list[Tensor] = []
        if self.layer is None:
            output = self.backbone(images)
            return flat_features(output) if isinstance(output, dict) else output
        # A copy, because a later in-place ReLU would change it.
        hook = self.backbone.get_submodule(self.layer).register_forward_hook(
            lambda module, arguments, output: found.append(output.clone())
        )
        try:
            self.backbone(images)
        finally:
            hook.remove()
        if not found:
            raise ValueError(f"objective_args.layer={self.layer!r} takes no part in the backbone's forward pass")
        return found[-1]


def loss_and_hits(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Mean cross-entropy and hits (0 to 1) of logits (batch, classes) for labels (batch,).

    The hits are not named `top1`, which is what a probe measures on held-out images.
    """
    with full_precision(logits):
        loss = F.cross_entropy(logits.float(), labels)
    hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return {"loss": loss, "train_top1": hits[:, 0].float().mean(), "train_top5": hits.any(1).float().mean()}


def linear_head(example: Tensor, classes: int) -> nn.Sequential:
    """Flatten, and a linear layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(example[0].numel(), classes))


def pooled_head(example: Tensor, classes: int) -> nn.Sequential:
    """The readout of RotNet's AlexNet, for maps of the shape of `example` (1, channels, h, w)."""
    if example.ndim != 4:
        raise ValueError(
            f"objective_args.head=pooled needs maps (channels, height, width), found shape {tuple(example.shape[1:])}; "
            "name a convolutional layer with objective_args.layer, or set head=linear"
        )
    channels = example.shape[1]
    linear = nn.Linear(channels * POOLED_SIZE**2, classes)
    nn.init.normal_(linear.weight, std=math.sqrt(2 / classes))
    nn.init.zeros_(linear.bias)
    return nn.Sequential(
        nn.AdaptiveMaxPool2d(POOLED_SIZE), nn.BatchNorm2d(channels, affine=False), nn.Flatten(), linear
    )


def require_classes(objective: str, classes: int) -> None:
    """One line where there is nothing to tell apart."""
    if classes < 2:
        raise ValueError(
            f"objective {objective!r} needs labelled shards with 2 classes or more, found {classes}; write shards from "
            "class folders, or from a Parquet file with label_column="
        )


def require_layer(backbone: nn.Module, layer: str) -> None:
    """One line where the backbone has no layer of this name."""
    names = [name for name, _ in backbone.named_modules() if name]
    if layer not in names:
        near = difflib.get_close_matches(layer, names, n=3, cutoff=0.4) or names[:5]
        raise ValueError(f"objective_args.layer={layer!r} is no layer of the backbone; nearest: {', '.join(near)}")
