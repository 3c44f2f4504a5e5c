"""lightly's LARS without waiting for the device and without copies of the weights.

What comes in: groups of parameters, as of any optimiser. What goes out: steps that equal lightly's to rounding (You et
al. 2017, https://arxiv.org/abs/1708.03888). lightly asks of each layer whether its norms are 0, for which a GPU has to
be waited for twice a layer, and adds decay in a copy of the gradient, for which a CPU has to be given memory anew.
"""

from collections.abc import Callable

import torch
from lightly.utils.lars import LARS
from torch import Tensor, nn


class Lars(LARS):
    """`lightly.utils.lars.LARS`, whose arguments and state these are."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step; without momentum, or with Nesterov's, it is lightly's own."""
        if any(not group["momentum"] or group["nesterov"] for group in self.param_groups):
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self.step_group(group)
        return loss

    def step_group(self, group: dict) -> None:
        """Move the parameters of a group that have a gradient."""
        moved = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not moved:
            return
        gradients = [parameter.grad for parameter in moved]
        # As in torch, the first step is not dampened.
        shares = [1 - group["dampening"] if "momentum_buffer" in self.state[each] else 1.0 for each in moved]
        velocities = [self.velocity_of(parameter) for parameter in moved]
        torch._foreach_mul_(velocities, group["momentum"])
        if group["weight_decay"]:
            for velocity, gradient, parameter, share, rate, decay in zip(
                velocities, gradients, moved, shares, *layer_rates(moved, gradients, group), strict=True
            ):
                velocity.addcmul_(gradient, rate, value=share).addcmul_(parameter, decay, value=share)
        else:
            torch._foreach_add_(velocities, torch._foreach_mul(gradients, shares))
        torch._foreach_add_(moved, velocities, alpha=-group["lr"])

    def velocity_of(self, parameter: nn.Parameter) -> Tensor:
        """A parameter's momentum, from 0 on."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


def layer_rates(weights: list[Tensor], gradients: list[Tensor], group: dict) -> tuple[tuple[Tensor, ...], ...]:
    """For each layer by what its gradient, and by what its weights are multiplied, () each.

    The rate is trust |w| / (|g| + decay |w| + eps). A layer whose weights or gradient are all 0 has neither rate nor
    decay.
    """
    of_weights, of_gradients = (torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, gradients))
    decay = group["weight_decay"]
    rates = group["trust_coefficient"] * of_weights / (of_gradients + decay * of_weights + group["eps"])
    moving = (of_weights != 0) & (of_gradients != 0)
    return torch.where(moving, rates, 1).unbind(), torch.where(moving, decay * rates, 0).unbind()
