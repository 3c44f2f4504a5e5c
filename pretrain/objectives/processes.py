"""Batches that are spread over processes.

What comes in: each process's part (batch, ...) of a batch. What goes out: the parts of all, one after the other.
All parts have the same length.
"""

import torch
import torch.distributed as dist
from lightly.utils.dist import gather
from torch import Tensor


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def gather_processes(part: Tensor) -> Tensor:
    """The parts (batch, ...) of all processes, without gradient; the part itself where there is one process."""
    if world_size() == 1:
        return part
    parts = [torch.empty_like(part) for _ in range(world_size())]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts)


def gather_with_gradient(part: Tensor) -> Tensor:
    """As `gather_processes`; the gradient of the whole, summed over processes, flows back into each part.

    Every process computes the same loss of the whole, so the sum is `world_size()` times its gradient; averaging
    gradients over processes, as DDP does, takes that factor out again.
    """
    return part if world_size() == 1 else torch.cat(gather(part.contiguous()))
