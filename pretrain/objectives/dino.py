"""DINO: a network matches, from every view, the output distribution of a slow copy of itself for the whole views.

What comes in: two views of each image (2, batch, 3, height, width), smaller local views (local views, batch, 3, local
size, local size), `epoch`, passes over the data so far, and `progress`, the share of training that is done. What goes
out: the cross-entropy of the network's distribution for the teacher's, over all pairs of different views. The teacher's
outputs are centred and sharpened. Source: Caron, Touvron, Misra, Jégou, Mairal, Bojanowski, Joulin 2021
(https://arxiv.org/abs/2104.14294, equations 1 to 4 and algorithm 1).
"""

import copy
import warnings

import torch
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from lightly.models.utils import update_momentum
from lightly.utils.scheduler import linear_warmup_schedule
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models import flat_features
from pretrain.objectives.byol import require_momentum, teacher_momentum
from pretrain.objectives.objective import full_precision, mean_of_parts
from pretrain.objectives.swav import MultiCrop, without_gradient


class DINO(MultiCrop):
    """Backbone and head, and a teacher: slow copies of both, which see the whole views only.

    Head, loss, centre and the teacher's update are lightly's. As published, the teacher drops nothing out, and the
    statistics of its batch norms are its own. The centre is the mean over all processes. Teacher and centre follow
    after each step, so a state dict taken between two steps is complete. In eval mode neither changes.

    Args:
        backbone: maps (batch, 3, H, W) to (batch, features), for whole and for local views.
        input_size: side of a whole view in pixels.
        local_views: number of local views of each image.
        hidden_dim: width of the head's hidden layers.
        bottleneck_dim: length of the unit vectors before the head's last layer.
        dim: number of outputs.
        batch_norm: batch norm in the head; the paper has none with vision transformers.
        norm_last_layer: keep the last layer's rows at unit length, which is steadier.
        student_temperature: divides the network's outputs.
        teacher_temperature: divides the teacher's outputs after the warm-up.
        warmup_teacher_temperature: the same at the start; it rises linearly.
        warmup_teacher_epochs: length of that warm-up.
        center_momentum: share of the centre that a step keeps.
        momentum: share of the teacher's weights that an update keeps at the start of training; it rises to 1.
        frozen_epochs: epochs at the start in which the head's last layer stays as it is.
    """

    per_image = True

    def __init__(
        self,
        backbone: nn.Module,
        input_size: int = 64,
        local_views: int = 6,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        dim: int = 65_536,
        batch_norm: bool = False,
        norm_last_layer: bool = True,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.07,
        warmup_teacher_temperature: float = 0.04,
        warmup_teacher_epochs: float = 30.0,
        center_momentum: float = 0.9,
        momentum: float = 0.996,
        frozen_epochs: float = 1.0,
    ) -> None:
        super().__init__(backbone, input_size, local_views)
        sizes = {"hidden_dim": hidden_dim, "bottleneck_dim": bottleneck_dim, "dim": dim}
        for name, value in {**sizes, "student_temperature": student_temperature}.items():
            if not value > 0:
                raise ValueError(f"objective_args.{name} must be above 0, found {value}")
        check_schedules(warmup_teacher_temperature, teacher_temperature, warmup_teacher_epochs, frozen_epochs)
        if not 0 <= center_momentum < 1:
            raise ValueError(f"objective_args.center_momentum must be from 0 to below 1, found {center_momentum}")
        require_momentum(momentum)
        shape = (self.feature_size, hidden_dim, bottleneck_dim, dim, batch_norm)
        self.head = make_head(*shape, norm_last_layer)
        self.teacher_backbone = without_dropout(copy.deepcopy(self.backbone)).requires_grad_(False)
        # A weight-normalised layer cannot be copied before it has been used.
        self.teacher_head = make_head(*shape, norm_last_layer).requires_grad_(False)
        self.teacher_head.load_state_dict(self.head.state_dict())
        self.criterion = DINOLoss(dim, student_temp=student_temperature, center_momentum=center_momentum)
        self.warmup = (warmup_teacher_epochs, warmup_teacher_temperature, teacher_temperature)
        self.frozen_epochs = frozen_epochs
        self.momentum = momentum
        self.momentum_now: float | None = None
        self.frozen_last_layer: dict[str, Tensor] = {}
        self.centers: list[Tensor] = []

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`views` (2, batch, 3, H, W), `local_views`, and the scalars `epoch` and `progress` to `loss`."""
        epoch = float(batch["epoch"])
        outputs = self.outputs(self.features_of_all(batch), frozen=epoch < self.frozen_epochs)
        self.momentum_now = teacher_momentum(float(batch["progress"]), self.momentum) if self.training else None
        return self.match(outputs.chunk(2 + self.wants.local_views), self.targets(batch["views"]).chunk(2), epoch)

    def match(self, outputs: tuple[Tensor, ...], targets: tuple[Tensor, ...], epoch: float) -> dict[str, Tensor]:
        """The loss of outputs (batch, dim) for each view and the teacher's (batch, dim) for the two whole ones."""
        center = self.criterion.center.clone()
        with full_precision(outputs[0]):
            loss = self.criterion(
                [view.float() for view in targets],
                [view.float() for view in outputs],
                teacher_temp=linear_warmup_schedule(epoch, *self.warmup),
            )
        # lightly moves the centre in every forward pass.
        if self.training:
            self.centers.append(self.criterion.center.clone())
        self.criterion.center.copy_(center)
        return {"loss": loss}

    def outputs(self, features: Tensor, frozen: bool) -> Tensor:
        """The head's outputs (batch, dim) for features (batch, d); while frozen, its last layer has no gradient."""
        last = self.head.last_layer
        trained = {name: weights for name, weights in last.named_parameters() if weights.requires_grad}
        self.frozen_last_layer = {name: weights.detach().clone() for name, weights in trained.items() if frozen}
        if not frozen:
            return self.head(features)
        unit = F.normalize(self.head.layers(features), dim=-1)
        return torch.func.functional_call(last, {name: without_gradient(trained[name]) for name in trained}, (unit,))

    @torch.no_grad()
    def targets(self, views: Tensor) -> Tensor:
        """The teacher's outputs (2 * batch, dim) for the whole views (2, batch, 3, H, W)."""
        return self.teacher_head(flat_features(self.teacher_backbone(views.flatten(0, 1))))

    @torch.no_grad()
    def after_step(self) -> None:
        """Put back what is frozen; move the centre, and the teacher's weights a little towards the network's."""
        if self.momentum_now is None:
            return
        self.criterion.center.copy_(mean_of_parts(self.centers))
        # Weight decay moves weights without gradient too.
        for name, weights in self.frozen_last_layer.items():
            self.head.last_layer.get_parameter(name).copy_(weights)
        update_momentum(self.backbone, self.teacher_backbone, self.momentum_now)
        update_momentum(self.head, self.teacher_head, self.momentum_now)
        self.momentum_now, self.frozen_last_layer, self.centers = None, {}, []


def make_head(
    features: int, hidden_dim: int, bottleneck_dim: int, dim: int, batch_norm: bool, norm_last_layer: bool
) -> DINOProjectionHead:
    """lightly's head, without torch's warning about the weight norm that lightly chose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return DINOProjectionHead(
            features, hidden_dim, bottleneck_dim, dim, batch_norm=batch_norm, norm_last_layer=norm_last_layer
        )


def without_dropout(module: nn.Module) -> nn.Module:
    """The module, which drops neither units nor paths any more, in training mode either."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        elif isinstance(part, DropPath):
            part.drop_prob = 0.0
    return module


def check_schedules(start: float, end: float, warmup_epochs: float, frozen_epochs: float) -> None:
    """One line for a schedule out of range."""
    if not 0 < start <= end:
        raise ValueError(
            "objective_args.warmup_teacher_temperature must be above 0 and at most "
            f"teacher_temperature={end}, found {start}"
        )
    for name, value in (("warmup_teacher_epochs", warmup_epochs), ("frozen_epochs", frozen_epochs)):
        if not value >= 0:
            raise ValueError(f"objective_args.{name} must be 0 or more, found {value}")
