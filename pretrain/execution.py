"""How a network is executed: the same numbers with another memory layout, with less memory, or compiled.

What comes in: an objective, on its device, and the keys `channels_last`, `activation_checkpointing` and `compile` of
`PretrainConfig`. What goes out: the same objective, whose parameters, state-dict keys, module names and hooks are as
before. Sources: Chen, Xu, Zhang, Guestrin 2016 (https://arxiv.org/abs/1604.06174) for computing activations again, by
`torch.utils.checkpoint`; `torch.nn.Module.compile`.

Batch norm's running statistics are those of one forward pass: while a block is computed again, its norms get copies of
them to move. Dropout drops the same units again.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.utils.checkpoint import checkpoint

from pretrain.config import PretrainConfig
from pretrain.freed_memory import keep_freed_memory
from pretrain.models.hour_glass import HourGlass
from pretrain.models.recompute import statistics_kept
from pretrain.objectives.objective import Objective

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def set_up_execution(objective: Objective, config: PretrainConfig) -> None:
    """Do to an objective what the config asks for; once it is on its device, and before it is wrapped for training.

    On a CPU, whose activations and gradients are large blocks, the process keeps freed memory from then on.

    Raises:
        ValueError: the backbone, or the way in which the objective uses it, does not allow what is asked for.
    """
    if next(objective.parameters()).device.type == "cpu":
        keep_freed_memory()
    if config.channels_last:
        use_channels_last(objective)
    if config.activation_checkpointing:
        checkpoint_activations(objective.backbone)
    if config.compile:
        require_compilable(objective, config)
        objective.backbone.compile()


def use_channels_last(module: nn.Module) -> None:
    """Lay out the weights of two-dimensional convolutions with channels last; what they compute then is, too."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def require_compilable(objective: Objective, config: PretrainConfig) -> None:
    """One line where the backbone's forward pass cannot be compiled, or would not be the one that is used."""
    if not objective.whole_backbone:
        raise ValueError(
            f"compile=true compiles the backbone as a whole, and objective={config.objective} as it is set reaches "
            "into it; set compile=false"
        )
    if config.activation_checkpointing and has_batch_norm(objective.backbone):
        raise ValueError(
            f"compile=true and activation_checkpointing=true do not go together where there is batch norm, as in "
            f"{config.model}; set one of them to false"
        )


def checkpoint_activations(backbone: nn.Module) -> None:
    """Keep only the inputs of the backbone's blocks, and compute what is within them again for the gradient.

    Raises:
        ValueError: no blocks are found in the backbone.
    """
    blocks = [] if isinstance(backbone, HourGlass) else list(blocks_of(backbone))
    if not blocks:
        raise ValueError(
            f"activation_checkpointing=true finds no blocks in {type(backbone).__name__}; set "
            "activation_checkpointing=false"
        )
    for block in blocks:
        # On the instance, so that names stay, and hooks of the block itself run once. The block is an argument, which
        # a copy of it (a teacher) replaces by itself.
        block.forward = partial(run_segments if is_chain(block) else run_again, block)


def run_again(block: nn.Module, *inputs: Tensor, **keywords: Tensor) -> Tensor:
    """A block's output, of whose activations nothing is kept."""
    # A list can have grown by the time the block is computed again (DenseNet's does).
    inputs = tuple(list(each) if isinstance(each, list) else each for each in inputs)
    return without_keeping(block, partial(type(block).forward, block), *inputs, **keywords)


def run_segments(chain: nn.Sequential, activation: Tensor) -> Tensor:
    """The output of a chain of layers, of which the inputs of its convolutions are kept."""
    for layers in segments(chain):
        activation = without_keeping(chain, partial(run_layers, layers), activation)
    return activation


def run_layers(layers: list[nn.Module], activation: Tensor) -> Tensor:
    for layer in layers:
        activation = layer(activation)
    return activation


def segments(chain: nn.Sequential) -> list[list[nn.Module]]:
    """The layers of a chain, cut before each convolution but the first."""
    cut: list[list[nn.Module]] = [[]]
    for layer in chain:
        if isinstance(layer, _ConvNd) and any(isinstance(before, _ConvNd) for before in cut[-1]):
            cut.append([])
        cut[-1].append(layer)
    return cut


def without_keeping(block: nn.Module, forward: Callable[..., Tensor], *inputs: Tensor, **keywords: Tensor) -> Tensor:
    """`forward` of inputs; only these are kept for the gradient, with the state of the random generators."""
    if not torch.is_grad_enabled():
        return forward(*inputs, **keywords)
    # torch.compile takes no contexts, so they are left out where there is nothing for them to do.
    contexts = {"context_fn": lambda: (nullcontext(), statistics_kept(block))} if has_batch_norm(block) else {}
    return checkpoint(forward, *inputs, use_reentrant=False, **contexts, **keywords)


def has_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(part, _NormBase) for part in module.modules())


def blocks_of(module: nn.Module) -> Iterator[nn.Module]:
    """The innermost parts of a network that repeat: residual blocks, transformer blocks, chains of convolutions.

    They are the members of a container (a sequence, list or dictionary of modules) that have parts themselves and hold
    no such container, the convolutions of a dictionary, and chains wherever they lie.
    """
    if is_chain(module):
        yield module
        return
    for child in module.children():
        named_convolution = isinstance(module, nn.ModuleDict) and isinstance(child, _ConvNd)
        if named_convolution or (isinstance(module, CONTAINERS) and is_block(child)):
            yield child
        else:
            yield from blocks_of(child)


def is_block(module: nn.Module) -> bool:
    """Whether a member of a container is computed again as a whole."""
    inner = [part for part in module.modules() if isinstance(part, CONTAINERS)]
    repeats_within = any(has_parts(member) for container in inner for member in container.children())
    return has_parts(module) and not is_chain(module) and not repeats_within


def has_parts(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def is_chain(module: nn.Module) -> bool:
    """Whether a module is a sequence of single layers with several convolutions, as AlexNet's and VGG's are."""
    if not isinstance(module, nn.Sequential) or any(map(has_parts, module)):
        return False
    return sum(isinstance(layer, _ConvNd) for layer in module) > 1
