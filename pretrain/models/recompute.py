"""Steps of a network of which only the input is kept: what lies within is computed again for the gradient.

What comes in: a step, the batch norm within it, its input. What goes out: what the step gives. Source: Chen 2016,
https://arxiv.org/abs/1604.06174; torch stops before a last convolution or product, which is so computed once. An
operation of ours that comes last in a step is told by `making_again`, and need not compute what nothing will use.

What is computed again uses the weights that the module has then: of `torch.func.functional_call` with other weights,
the backward pass must be taken while they are in place, or gradients are those of another network.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.utils.checkpoint import checkpoint

RUNNING = ("running_mean", "running_var", "num_batches_tracked")

# Whether this thread is making again what a step kept, so that what its last product would give is not needed.
making_again: ContextVar[bool] = ContextVar("making_again", default=False)


def without_keeping(step: Callable[[Tensor], Tensor], norm: _BatchNorm, activation: Tensor) -> Tensor:
    """What a step gives, of which only its input is kept for the gradient; `norm` is the batch norm within."""
    # torch.compile takes no contexts, and decides itself what is kept.
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return step(activation)
    return checkpoint(
        step,
        activation,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), computed_again(norm)),
    )


def in_turn(first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Both as one step."""
    return lambda activation: second(first(activation))


@contextmanager
def computed_again(norm: _BatchNorm) -> Iterator[None]:
    """While activations are computed again, operations know it, and running statistics stay."""
    token = making_again.set(True)
    try:
        with statistics_kept(norm):
            yield
    finally:
        making_again.reset(token)


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """While a module is computed again, its norms in training move copies of their running statistics."""
    kept = [
        (norm, name, getattr(norm, name))
        for norm in module.modules()
        if isinstance(norm, _NormBase) and norm.training
        for name in RUNNING
        if getattr(norm, name) is not None
    ]
    for norm, name, value in kept:
        setattr(norm, name, value.clone())
    try:
        yield
    finally:
        for norm, name, value in kept:
            setattr(norm, name, value)
