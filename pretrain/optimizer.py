"""Optimisers, and which parameters have weight decay.

What comes in: `OptimizerConfig`. What goes out: an optimiser over an objective's trainable parameters. All but two are
timm's, which are torch's own where torch has them; timm's further ones are named `timm/<name>`.

LARS is lightly's (You et al. 2017, https://arxiv.org/abs/1708.03888; `pretrain.lars`): layer-wise rates and decay for
weights, neither for biases and the scales of norm layers, wherever they lie. The published code misses the norm scales
of backbones. It also keeps the learning rate inside the momentum; lightly, as torch does, multiplies by it after. At a
constant rate both are the same.

`schedule_free_adamw` is that of its authors (Defazio et al. 2024, https://arxiv.org/abs/2405.15682; PyPI
`schedulefree`). It stays in training mode; the weights that it is about are averages, which `pretrain.average` finds.
"""

import difflib
import inspect
from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from pretrain.config import OptimizerConfig

TIMM_PREFIX = "timm/"
# timm's "sgd" is Nesterov's; "momentum" is the plain one.
OWN_NAMES = {"momentum": "momentum", "nesterov": "sgd", "adam": "adam", "adamw": "adamw"}
SCHEDULE_FREE = "schedule_free_adamw"
LARS_FAMILY = {"lars", "larc", "nlars", "nlarc"}
LOOKAHEAD = "lookahead_"
# Batch and instance norms, ours over processes too, and timm's, which are subclasses of these.
NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
# Arguments with keys of their own, beside `optimizer.args`.
OWN_KEYS = {"lr": "lr", "momentum": "momentum", "weight_decay": "weight_decay", "trust_coefficient": "trust"}


def make_optimizer(objective: nn.Module, config: OptimizerConfig, fused: bool = True) -> Optimizer:
    """The optimiser of all parameters that need a gradient.

    Those of torch's own that can update all parameters in one pass over memory do, unless `fused` is off, which it must
    be where gradients are scaled (16-mixed) and clipped. It takes a fifth of the time, on a CPU too.

    Raises:
        ValueError: an unknown name, arguments that do not fit, settings that contradict each other, or an optimiser
            that needs what is not installed.
    """
    return optimizer_of(parameter_groups(objective, config), config, fused)


def optimizer_of(groups: list[dict], config: OptimizerConfig, fused: bool = True) -> Optimizer:
    """`make_optimizer` of groups of parameters, which may have learning rates of their own."""
    require_known_optimizer(config.name)
    if config.name == "lars":
        return make_lars(groups, config)
    if config.name == SCHEDULE_FREE:
        return make_schedule_free(groups, config)
    from timm.optim import create_optimizer_v2

    name = timm_name(config.name)
    with_own_keys = {"lr": config.lr, "weight_decay": config.weight_decay, "momentum": config.momentum}
    kind = optimizer_class(config)
    arguments = fitting_arguments(config, kind)
    if fused and "fused" in inspect.signature(kind.__init__).parameters and "foreach" not in arguments:
        arguments = {"fused": True} | arguments
    return constructed(config, create_optimizer_v2, groups, opt=name, **with_own_keys, **arguments)


def make_lars(groups: list[dict], config: OptimizerConfig) -> Optimizer:
    """LARS, whose groups without decay are those that it leaves unscaled."""
    from pretrain.lars import Lars

    if not config.weight_decay:
        raise ValueError(
            "optimizer.name=lars needs optimizer.weight_decay above 0: lightly leaves layers without decay unscaled"
        )
    arguments = fitting_arguments(config, Lars)
    rates = {"lr": config.lr, "momentum": config.momentum, "trust_coefficient": config.trust}
    return constructed(config, Lars, groups, **rates, **arguments)


def make_schedule_free(groups: list[dict], config: OptimizerConfig) -> Optimizer:
    """Schedule-Free AdamW, in training mode."""
    try:
        from schedulefree import AdamWScheduleFree
    except ImportError as error:
        raise ValueError(f"optimizer.name={config.name} needs the package schedulefree: {error}") from error
    arguments = fitting_arguments(config, AdamWScheduleFree)
    rates = {"lr": config.lr, "weight_decay": config.weight_decay}
    optimizer = constructed(config, AdamWScheduleFree, groups, **rates, **arguments)
    optimizer.train()
    return optimizer


def constructed(config: OptimizerConfig, make: Any, groups: list[dict], **arguments: Any) -> Optimizer:
    """The optimiser, or one line on what its constructor does not take."""
    try:
        return make(groups, **arguments)
    except (TypeError, ValueError, AssertionError, ImportError) as error:
        raise ValueError(
            f"optimizer.name={config.name} cannot be made with lr={config.lr} and args={config.args}: {error}"
        ) from error


def require_known_optimizer(name: str) -> None:
    """One line for a name that neither we nor timm know, or for an optimiser that the loop cannot run."""
    from timm.optim import get_optimizer_info, list_optimizers

    if name in (*OWN_NAMES, "lars", SCHEDULE_FREE):
        return
    inner = name.removeprefix(TIMM_PREFIX).removeprefix(LOOKAHEAD)
    if not name.startswith(TIMM_PREFIX) or inner not in list_optimizers():
        known = [*OWN_NAMES, "lars", SCHEDULE_FREE, *(TIMM_PREFIX + other for other in list_optimizers())]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        near += difflib.get_close_matches(TIMM_PREFIX + name, known, n=1, cutoff=0.9)
        hint = f"; nearest: {', '.join(dict.fromkeys(near))}" if near else ""
        raise ValueError(
            f"unknown optimizer.name={name}{hint} (allowed: {', '.join(OWN_NAMES)}, lars, {SCHEDULE_FREE}, or "
            "timm/<name> for any of timm.optim.list_optimizers())"
        )
    if get_optimizer_info(inner).second_order:
        raise ValueError(
            f"optimizer.name={name} needs second derivatives, which training does not compute; choose another one"
        )


def timm_name(name: str) -> str:
    """timm's name of one of its optimisers, of which some have a name of ours."""
    return OWN_NAMES.get(name, name.removeprefix(TIMM_PREFIX))


def optimizer_class(config: OptimizerConfig) -> type[Optimizer]:
    """The class behind a name of timm's; those of other packages need a GPU, and the package."""
    from timm.optim import get_optimizer_class

    try:
        return get_optimizer_class(timm_name(config.name).removeprefix(LOOKAHEAD), bind_defaults=False)
    except (AssertionError, ImportError) as error:
        raise ValueError(f"optimizer.name={config.name} is not available here: {error}") from error


def fitting_arguments(config: OptimizerConfig, kind: type[Optimizer]) -> dict[str, Any]:
    """`optimizer.args` as the constructor wants them; one line for one that it does not take."""
    taken = list(inspect.signature(kind.__init__).parameters)[2:]
    allowed = [name for name in taken if name not in OWN_KEYS]
    for name in config.args:
        if name in OWN_KEYS and name in taken:
            raise ValueError(f"optimizer.args.{name} has a key of its own: set optimizer.{OWN_KEYS[name]}")
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.4)
            hint = f"; nearest: {near[0]}" if near else ""
            raise ValueError(
                f"unknown key 'optimizer.args.{name}' for {config.name}{hint} (allowed: {', '.join(allowed)})"
            )
    # YAML has lists where the constructors want pairs.
    return {name: tuple(value) if isinstance(value, list) else value for name, value in config.args.items()}


def parameter_groups(objective: nn.Module, config: OptimizerConfig) -> list[dict]:
    """Parameters with weight decay, and those without."""
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    never_biases = timm_name(config.name).removeprefix(LOOKAHEAD) in LARS_FAMILY
    if config.decay_biases and not never_biases:
        return [{"params": trained, "weight_decay": config.weight_decay}]
    free = set(free_of_decay(objective, config.decay_tokens))
    weights = [parameter for parameter in trained if parameter not in free]
    others = [parameter for parameter in trained if parameter in free]
    groups = [{"params": weights, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def free_of_decay(module: nn.Module, decay_tokens: bool = False) -> Iterator[nn.Parameter]:
    """Biases, parameters of norm layers, and other scalars and vectors; tokens unless they are to decay.

    The rule is that of `timm.optim.param_groups_weight_decay`, and of norm layers by their class besides, since some
    have scales of several dimensions. Tokens are what a model of timm's, wherever it lies, has in `no_weight_decay()`.
    """
    for name, parameter in module.named_parameters():
        if parameter.ndim <= 1 or name.rpartition(".")[2] == "bias":
            yield parameter
    for part in module.modules():
        if isinstance(part, NORMS):
            yield from part.parameters(recurse=False)
        patterns = part.no_weight_decay() if hasattr(part, "no_weight_decay") and not decay_tokens else ()
        for name, parameter in part.named_parameters() if patterns else ():
            if any(fnmatch(name, pattern) for pattern in patterns):
                yield parameter
