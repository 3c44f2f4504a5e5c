"""Learning rates, as a pure function of the step.

What comes in: the number of steps that are done, and `OptimizerConfig`. What goes out: the learning rate of the next
step. No schedule has a state, so that resuming needs none.

`step` and `cosine` are mouse-vision's (Nayebi, Kong et al. 2023): multiplied at milestones, or by a cosine that reaches
`min_lr` in the last epoch, after a linear warm-up that reaches `lr` in its last epoch. They are formulae of the epoch,
counted from 0. With `schedule_by=step` the same formulae are taken at fractions of an epoch, so that the rates at the
starts of epochs are the same: `lr` is reached at the start of the warm-up's last epoch, from where on the rate falls,
and `min_lr` at the start of the last epoch, where it stays. A warm-up of one epoch by step is thus none.

`timm/<name>` is timm's schedule of that name (https://huggingface.co/docs/timm, `timm.scheduler`), made and asked by
its public functions. timm counts otherwise: the rate starts at `warmup_ratio * lr`, `lr` is reached when the warm-up is
over, `min_lr` when the training is; a cosine runs during the warm-up already unless `schedule_args.warmup_prefix`.
timm's `plateau` is not among them: it follows a measurement, so that a resumed run would differ.
"""

import difflib
import inspect
import math
from typing import Any

import torch
from torch.optim import Optimizer

from pretrain.config import OptimizerConfig

TIMM_PREFIX = "timm/"
# What `create_scheduler_v2` takes beyond what has a key of its own.
TIMM_ARGUMENTS = (
    "num_epochs", "decay_epochs", "decay_rate", "cooldown_epochs", "warmup_prefix", "noise", "noise_pct", "noise_std",
    "noise_seed", "cycle_mul", "cycle_decay", "cycle_limit", "k_decay", "decay_fn", "stable_timescale",
)  # fmt: skip


def learning_rate_at(step: int, steps_per_epoch: int, epochs: int, config: OptimizerConfig) -> float:
    """Learning rate of a step (counted from 0) of a training of `epochs`.

    Raises:
        ValueError: the schedule and its keys do not fit each other, or the training.
    """
    if config.schedule.startswith(TIMM_PREFIX):
        return timm_rate(step, steps_per_epoch, epochs, config)
    epoch = step / steps_per_epoch if config.schedule_by == "step" else step // steps_per_epoch
    return learning_rate(epoch, epochs, config)


def set_learning_rate(
    optimizer: Optimizer, step: int, steps_per_epoch: int, epochs: int, config: OptimizerConfig
) -> float:
    """Give every group the learning rate of a step (counted from 0), and return it."""
    lr = learning_rate_at(step, steps_per_epoch, epochs, config)
    for group in optimizer.param_groups:
        group["lr"] = lr
    return lr


def require_possible_schedule(epochs: int, config: OptimizerConfig) -> None:
    """One line for a schedule that does not fit its keys or the length of the training."""
    if config.warmup_epochs and config.warmup_epochs >= epochs:
        raise ValueError(f"optimizer.warmup_epochs={config.warmup_epochs} must be fewer than epochs={epochs}")
    if config.schedule_args and not config.schedule.startswith(TIMM_PREFIX):
        raise ValueError(
            f"optimizer.schedule_args are of timm's schedules, and optimizer.schedule={config.schedule} is not one; "
            "leave them out, or set schedule=timm/<name>"
        )
    learning_rate_at(0, 1, epochs, config)


def learning_rate(epoch: float, epochs: int, config: OptimizerConfig) -> float:
    """Learning rate of the published schedules at an epoch, or within one (counted from 0), of `epochs`."""
    warmup = config.warmup_epochs
    # Within its last epoch a warm-up has reached its end; the other formula goes on from there.
    if epoch <= warmup - 1:
        return config.lr * (1 - (1 - (epoch + 1) / warmup) * (1 - config.warmup_ratio))
    if config.schedule == "step":
        return config.lr * config.decay_rate ** sum(epoch >= milestone for milestone in config.decay_epochs)
    share = min((epoch + 1 - warmup) / (epochs - warmup), 1.0)
    return config.min_lr + 0.5 * (config.lr - config.min_lr) * (1 + math.cos(math.pi * share))


def timm_rate(step: int, steps_per_epoch: int, epochs: int, config: OptimizerConfig) -> float:
    """What timm's schedule gives an optimiser at a step."""
    parameter = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=config.lr)
    scheduler, taken = make_timm_scheduler(optimizer, steps_per_epoch, epochs, config)
    if taken > epochs:
        raise ValueError(
            f"optimizer.schedule={config.schedule} with schedule_args={config.schedule_args} takes {taken} epochs, and "
            f"epochs={epochs}; set optimizer.schedule_args.num_epochs, or epochs={taken}"
        )
    # A run of timm's starts with what the constructor sets, which need not be the formula's value at 0.
    if config.schedule_by == "step" and step:
        scheduler.step_update(step)
    elif epoch := step // steps_per_epoch:
        scheduler.step(epoch)
    return optimizer.param_groups[0]["lr"]


def make_timm_scheduler(
    optimizer: Optimizer, steps_per_epoch: int, epochs: int, config: OptimizerConfig
) -> tuple[Any, int]:
    """timm's scheduler of an optimiser, and the number of epochs that it takes."""
    from timm.scheduler import create_scheduler_v2

    name = config.schedule.removeprefix(TIMM_PREFIX)
    require_timm_arguments(config.schedule_args, list(inspect.signature(create_scheduler_v2).parameters))
    arguments = {
        "num_epochs": epochs,
        "warmup_epochs": config.warmup_epochs,
        "warmup_lr": config.lr * config.warmup_ratio,
        "min_lr": config.min_lr,
        "decay_rate": config.decay_rate,
        "decay_milestones": config.decay_epochs,
        "step_on_epochs": config.schedule_by == "epoch",
        "updates_per_epoch": steps_per_epoch,
    }
    try:
        scheduler, taken = create_scheduler_v2(optimizer, name, **(arguments | config.schedule_args))
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(
            f"optimizer.schedule={config.schedule} cannot be made with schedule_args={config.schedule_args}: {error}"
        ) from error
    if scheduler is None:
        raise ValueError(f"this timm is too old for optimizer.schedule={config.schedule}; install a newer one")
    return scheduler, taken


def require_timm_arguments(arguments: dict[str, Any], known_to_timm: list[str]) -> None:
    """One line for an argument that timm's schedules do not take, or that has a key of its own."""
    allowed = [argument for argument in TIMM_ARGUMENTS if argument in known_to_timm]
    for argument in arguments:
        if argument not in allowed:
            near = difflib.get_close_matches(argument, allowed, n=1, cutoff=0.4)
            hint = f"; nearest: {near[0]}" if near else ""
            raise ValueError(f"unknown key 'optimizer.schedule_args.{argument}'{hint} (allowed: {', '.join(allowed)})")
