"""Batches that do not fit on a device: cut into parts, whose gradients are added up before one step.

What comes in: a prepared batch, as `pretrain.objectives.objective.Wants` describes it, with the objective's draws.
What goes out: parts of equal size with the same keys. The mean of the parts' losses is the loss of the whole batch, and
so is its gradient, where the objective is `per_image` and has no batch norm; elsewhere one line says what differs.
Dropout draws anew for each part.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pretrain.objectives.objective import Objective

# These have the images in dimension 1, as (views, batch, ...); all others that are no scalars in dimension 0.
IMAGES_SECOND = ("views", "local_views", "patches")


def split_batch(prepared: dict[str, Tensor], parts: int) -> list[dict[str, Tensor]]:
    """Equal parts of a batch, one after the other; scalars are the same in each.

    Raises:
        ValueError: the images cannot be divided by the number of parts.
    """
    if parts == 1:
        return [prepared]
    images = count_images(prepared)
    if images % parts:
        raise ValueError(
            f"accumulate={parts} cannot cut the {images} images that each device has of a batch into equal parts; "
            "set accumulate or batch_size so that it can"
        )
    size = images // parts
    return [
        {key: rows_of(key, value, slice(start, start + size)) for key, value in prepared.items()}
        for start in range(0, images, size)
    ]


def rows_of(key: str, value: Tensor, rows: slice) -> Tensor:
    """Some images' share of the value of a key."""
    if value.ndim == 0:
        return value
    return value[:, rows] if key in IMAGES_SECOND else value[rows]


def count_images(prepared: dict[str, Tensor]) -> int:
    """Images of a batch."""
    counts = {value.shape[int(key in IMAGES_SECOND)] for key, value in prepared.items() if value.ndim}
    assert len(counts) == 1, f"the keys of a batch differ in the number of images: {sorted(counts)}"
    return counts.pop()


def mean_over_parts(values: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The logged values of a step, each the mean over parts, without graph."""
    return {name: torch.stack([each[name].detach() for each in values]).mean(0) for name in values[0]}


def sum_over_parts(values: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The logged values of a step, each the sum over parts, without graph."""
    return {name: torch.stack([each[name].detach() for each in values]).sum(0) for name in values[0]}


def accumulation_warning(objective: Objective, name: str, parts: int) -> str | None:
    """One line where steps with a batch in parts are not those with the whole batch."""
    if parts == 1:
        return None
    reasons = [] if objective.per_image else [f"{name} {objective.interplay}, and finds those of a part"]
    if has_batch_statistics(objective):
        reasons.append("batch norm's statistics are those of a part")
    if not reasons:
        return None
    return f"WARNING: accumulate={parts} is not the large batch: {'; '.join(reasons)}"


def has_batch_statistics(module: nn.Module) -> bool:
    """Whether a batch norm inside normalises by the statistics of the batch, and not by running ones."""
    norms = (part for part in module.modules() if isinstance(part, _BatchNorm))
    return any(norm.training or norm.running_mean is None for norm in norms)
