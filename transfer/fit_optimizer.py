"""The optimiser of a fit: core, readouts, shifters, modulators and activations, each with rates of its own.

What comes in: an encoder, an optimiser by name (see `pretrain.optimizer`), and learning rates and decays, one for all
and others for some parts. What goes out: an optimiser whose groups say of which `part` they are, and their `peak_lr`,
which schedules are made of. Parameters that are frozen are left out.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from pretrain.config import OptimizerConfig
from pretrain.optimizer import optimizer_of, parameter_groups
from transfer.encoder import Encoder

PARTS = ("core", "readouts", "shifters", "modulators", "activations")


def make_fit_optimizer(
    encoder: Encoder,
    name: str,
    lr: float,
    weight_decay: float = 0.0,
    args: Mapping[str, Any] | None = None,
    lr_of: Mapping[str, float | None] | None = None,
    weight_decay_of: Mapping[str, float | None] | None = None,
    fused: bool = True,
) -> Optimizer:
    """The optimiser of all parameters of an encoder that need a gradient.

    Args:
        encoder: on its device.
        name: `adamw`, `adam`, `momentum`, `nesterov`, `lars`, `schedule_free_adamw` or `timm/<name>`.
        lr, weight_decay: of parts without their own; decay is of all parameters, biases too, as published.
        args: further arguments of the optimiser.
        lr_of, weight_decay_of: of some of `PARTS`; None stands for that of all.
        fused: not with 16-mixed where gradients are clipped; see `pretrain.optimizer.make_optimizer`.

    Raises:
        ValueError: an unknown name or part, arguments that do not fit, or an encoder of which all is frozen.
    """
    config = OptimizerConfig(name=name, lr=lr, weight_decay=weight_decay, args=dict(args or {}))
    rates, decays = (complete(of, value) for of, value in ((lr_of, lr), (weight_decay_of, weight_decay)))
    groups = []
    for part, module in modules_of(encoder).items():
        for group in parameter_groups(module, replace(config, lr=rates[part], weight_decay=decays[part])):
            if group["params"]:
                groups.append(group | {"lr": rates[part], "peak_lr": rates[part], "part": part})
    if not groups:
        raise ValueError("all of the encoder is frozen, so there is nothing to fit")
    return optimizer_of(groups, config, fused)


def complete(of: Mapping[str, float | None] | None, value: float) -> dict[str, float]:
    """A value for each part, its own where it has one."""
    if unknown := [part for part in of or {} if part not in PARTS]:
        raise ValueError(f"an encoder has no part {unknown[0]!r}; its parts are {', '.join(PARTS)}")
    own = {part: given for part, given in (of or {}).items() if given is not None}
    return dict.fromkeys(PARTS, value) | own


def modules_of(encoder: Encoder) -> dict[str, nn.Module]:
    """The parts of an encoder, each animal's among them, by kind; together they are all of it."""
    own = {part: getattr(encoder, part) for part in PARTS[:-1]}
    return own | {"activations": nn.ModuleList((encoder.activations, encoder.activation))}
