"""The losses of the latest steps, left on the device until somebody looks, because looking waits for it.

What comes in: the loss of each step, and its batch. What goes out: the losses as numbers, or `LossNotFinite`, which
says at which step and for which samples, of all processes.
"""

import math
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

NAMED_SAMPLES = 8
# Above the number of any step, and of its product with any number of processes.
NO_STEP = 2**62


class LossNotFinite(ArithmeticError):
    """A loss is infinite or no number; the message, the same in all processes, says of which step and which samples."""


class RecentLosses:
    """Losses that have not been looked at; `samples` is what batches are of."""

    def __init__(self, fabric: Fabric, samples: str) -> None:
        self.fabric, self.samples = fabric, samples
        self.unread: list[tuple[int, Tensor, dict[str, Tensor]]] = []
        self.shapes: dict[str, tuple[int, ...]] = {}

    def note(self, step: int, loss: Tensor, batch: dict[str, Any]) -> None:
        """Keep the loss of a step, and which samples it is of."""
        tensors = flat(batch)
        self.shapes = {key: tuple(value.shape) for key, value in tensors.items()}
        indices = {key: value for key, value in tensors.items() if key.rpartition("/")[2] == "index"}
        self.unread.append((step, loss, indices))

    def read(self) -> list[float]:
        """The losses since the last reading; raises LossNotFinite in all processes where one of theirs is not."""
        if not self.unread:
            return []
        steps, losses, indices = zip(*self.unread, strict=True)
        losses = torch.stack(losses).tolist()
        broken = next((number for number, loss in enumerate(losses) if not math.isfinite(loss)), None)
        if first := self.first_of_processes(None if broken is None else steps[broken]):
            step, owner = first
            what = ""
            if self.fabric.global_rank == owner:
                what = f"the loss is {losses[broken]} at step {step:,}, {self.described(indices[broken])}"
            raise LossNotFinite(self.fabric.broadcast(what, src=owner))
        self.unread.clear()
        return losses

    def first_of_processes(self, step: int | None) -> tuple[int, int] | None:
        """The earliest of the steps that processes name, and the first process that names it; None if none does."""
        world = self.fabric.world_size
        first = NO_STEP if step is None else step * world + self.fabric.global_rank
        if world > 1:
            first = -int(self.fabric.all_reduce(torch.tensor(-first, device=self.fabric.device), reduce_op="max"))
        return None if first == NO_STEP else divmod(first, world)

    def described(self, indices: dict[str, Tensor]) -> str:
        """What a batch held, and the keys of its first samples in the shards, or the numbers of each group's."""
        held = ", ".join(f"{key} {shape}" for key, shape in self.shapes.items() if shape)
        named = "; ".join(f"{key.rpartition('/')[0]} {numbers(index)}".strip() for key, index in indices.items())
        return f"whose batch held {held} of the {self.samples} {named}"


def flat(batch: dict[str, Any], group: str = "") -> dict[str, Tensor]:
    """The tensors of a batch by name, or by `group/name` where it has groups."""
    found: dict[str, Tensor] = {}
    for key, value in batch.items():
        found |= flat(value, f"{group}{key}/") if isinstance(value, dict) else {f"{group}{key}": value}
    return found


def numbers(index: Tensor) -> str:
    """The first of a batch's samples, as nine digits, and how many others there are."""
    keys = ", ".join(f"{number:09d}" for number in index[:NAMED_SAMPLES].tolist())
    return keys + (f" and {len(index) - NAMED_SAMPLES:,} others" if len(index) > NAMED_SAMPLES else "")
