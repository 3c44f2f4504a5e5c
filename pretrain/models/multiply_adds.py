"""What one forward pass of a network costs.

What comes in: a network, and the side of its input in pixels or the shapes of its inputs. What goes out: multiply-adds,
those of convolutions, linear layers and attention. Counted by torch's own counter of floating-point operations, two of
which are one multiply-add, without memory for weights or activations.
"""

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def multiply_adds(model: nn.Module, input_size: int) -> int:
    """Multiply-adds of one image of `input_size` x `input_size` pixels in evaluation mode."""
    return multiply_adds_of(model, (1, 3, input_size, input_size))


def multiply_adds_of(model: nn.Module, *shapes: tuple[int, ...]) -> int:
    """Multiply-adds of `model(*inputs)` for inputs of these shapes in evaluation mode."""
    inputs = [torch.zeros(shape, device="meta") for shape in shapes]
    # The counter hooks gradients, and fails at a view of a parameter, which under no_grad has no gradient function.
    copied = copy.deepcopy(model).to("meta").eval().requires_grad_(False)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        copied(*inputs)
    return counter.get_total_flops() // 2
