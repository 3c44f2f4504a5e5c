"""ELU in place, several times as fast on a CPU as torch's.

What comes in: any tensor that nothing else needs. What goes out: the same memory with x where x > 0, else exp(x) - 1
(Clevert et al. 2016, https://arxiv.org/abs/1511.07289). torch's goes through a slow exp(x) - 1 with full relative
precision near 0; this one has full precision relative to 1, which is 6e-8 in float32. Elsewhere torch's own is used.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class InPlaceElu(torch.autograd.Function):
    """Keeps its result alone, from which the slope follows."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        below = values.clamp(max=0).exp_().sub_(1)
        torch.maximum(values, below, out=values)
        ctx.mark_dirty(values)
        ctx.save_for_backward(values)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        (result,) = ctx.saved_tensors
        return result.clamp(max=0).add_(1).mul_(gradient)


def elu_(values: Tensor) -> Tensor:
    """ELU of `values`, written over them."""
    if values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64):
        return InPlaceElu.apply(values)
    return F.elu(values, inplace=True)


class ShiftedElu(nn.Module):
    """ELU(x - x_shift) + y_shift; neuralpredictors' AdaptiveELU. Its input is not kept."""

    def __init__(self, x_shift: float = 0.0, y_shift: float = 0.0) -> None:
        super().__init__()
        self.x_shift, self.y_shift = x_shift, y_shift

    def forward(self, values: Tensor) -> Tensor:
        bent = elu_(values - self.x_shift if self.x_shift else values)
        return bent + self.y_shift if self.y_shift else bent
