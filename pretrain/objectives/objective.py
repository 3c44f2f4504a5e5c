"""What every objective is: a backbone, what is wanted of the data, and a loss in full precision.

What comes in: a batch of views (see `Wants`). What goes out: `{"loss": scalar, ...logged scalars}`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pretrain.models import flat_features


@dataclass(frozen=True)
class Wants:
    """What an objective wants of each image; a batch then holds these keys.

    `views`: this many random views, as `views` (views, batch, 3, size, size).
    `local_views`: this many smaller ones, as `local_views` (local views, batch, 3, local size, local size).
    `patches`: a 3 x 3 grid of neighbouring patches, as `patches` (9, batch, 3, size, size), row by row.
    `depth`: the depth map of the first view, as `depth` (batch, size, size), in the units of the shards.
    `label`: its class, as `label` (batch,).
    Every batch also has `index` (batch,), the global number of each image, and the scalars `epoch`, passes over the
    data so far, and `progress`, the share of training that is done.
    """

    views: int = 1
    local_views: int = 0
    patches: bool = False
    depth: bool = False
    label: bool = False


class Objective(nn.Module):
    """Owns the backbone; a subclass adds heads, and maps a batch to its loss in `forward`.

    A batch can be cut into parts that go through `forward` one after the other, each followed by its backward pass,
    before the one step of the optimiser and the one `after_step()` (see `pretrain.accumulate`). `per_image` says
    whether that is the same as the whole batch: it is where the loss is a mean over images in which no image takes
    part in another's, and where what one part leaves behind (a bank, a queue, a centre, a teacher) is not yet there for
    the next, but collected until `after_step()`. Where it is not, `interplay` says why. Batch norm is another matter,
    since its statistics, in a backbone or in a head, are always those of a part.

    `whole_backbone` says that the backbone is called as a whole, without hooks inside, and so can be compiled.
    """

    wants = Wants()
    per_image = False
    interplay = "takes several images at once into its loss"
    whole_backbone = True

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def features(self, images: Tensor) -> Tensor:
        """Backbone features (batch, d) of images (batch, 3, H, W)."""
        return flat_features(self.backbone(images))

    def with_draws(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch, with what the objective draws at random for each image, so that parts of it have their share.

        Called before a batch is cut into parts. An objective that finds no such draws in its batch makes them itself.
        """
        return batch

    def after_step(self) -> None:
        """Called after each step of the optimiser, outside of the graph."""


def mean_of_parts(parts: list[Tensor]) -> Tensor:
    """The mean of what each equal part of a batch would make of a running mean: what the whole batch makes of it."""
    return parts[0] if len(parts) == 1 else torch.stack(parts).mean(0)


def full_precision(tensor: Tensor) -> torch.autocast:
    """A block in which autocast is off, for losses; half precision loses their fourth digit."""
    return torch.autocast(tensor.device.type, enabled=False)
