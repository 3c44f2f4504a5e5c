"""Learning rates of a fit: those of the published solutions, as functions of the step and of what a judge has seen.

What comes in: the number of steps that are done, and the highest rate of each part. What goes out: the rate of the next
step. Nothing has a state here; how often a plateau has lowered the rate is the judge's (`transfer.plateau`).

| name | rate, after a linear warm-up from `warmup_ratio` of it | of |
|---|---|---|
| `constant` | the highest | ViV1T's closed-loop version |
| `warmup_cosine` | by step, half a cosine from the end of the warm-up to `min_lr` at the end | DwiseNeuro |
| `two_cosines` | by epoch, the highest, and from `second_epoch` on half a cosine to `min_lr` | Dynamic-VFM |
| `plateau` | the highest times `factor` as often as the judge said, at least `min_lr` | V1T, ViV1T, Sensorium |
"""

import math
from dataclasses import dataclass
from typing import Protocol

from torch.optim import Optimizer

SCHEDULES = ("constant", "warmup_cosine", "two_cosines", "plateau")


class Reducing(Protocol):
    """A judge that counts how often the rate was lowered."""

    reductions: int


@dataclass(frozen=True)
class FitSchedule:
    """Sets the learning rate of each group of an optimiser of `make_fit_optimizer` before each step.

    Args:
        name: of `SCHEDULES`.
        steps_per_epoch, epochs: of the training.
        warmup_steps: over which the rate rises linearly, or `warmup_epochs` of them.
        warmup_ratio: where the warm-up starts, as a share of the rate.
        min_lr: see this file.
        second_epoch: start of the second cosine.
        factor, judge: of `plateau`.

    Raises:
        ValueError: an unknown name, both kinds of warm-up, or a warm-up or first cosine as long as the training.
    """

    name: str
    steps_per_epoch: int
    epochs: int
    warmup_steps: int = 0
    warmup_epochs: float = 0.0
    warmup_ratio: float = 0.0
    min_lr: float = 0.0
    second_epoch: int = 80
    factor: float = 0.3
    judge: Reducing | None = None

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise ValueError(f"unknown schedule.name={self.name} (allowed: {', '.join(SCHEDULES)})")
        if self.warmup_steps and self.warmup_epochs:
            raise ValueError("schedule.warmup_steps and schedule.warmup_epochs are both set; set one of them")
        if self.warmup >= self.steps:
            raise ValueError(f"the warm-up has {self.warmup:,} steps, and the training has {self.steps:,}; shorten it")
        if self.name == "two_cosines" and self.second_epoch >= self.epochs:
            raise ValueError(f"schedule.second_epoch={self.second_epoch} must be below epochs={self.epochs}")
        if self.name == "plateau" and self.judge is None:
            raise ValueError("schedule.name=plateau needs a judge, and so schedule.patience above 0")

    @property
    def steps(self) -> int:
        """Of the whole training."""
        return self.epochs * self.steps_per_epoch

    @property
    def warmup(self) -> int:
        """Steps of the warm-up."""
        return self.warmup_steps or round(self.warmup_epochs * self.steps_per_epoch)

    def __call__(self, optimizer: Optimizer, step: int) -> float:
        """Give every group the rate of a step (counted from 0); returns that of the first."""
        for group in optimizer.param_groups:
            group["lr"] = self.rate(group["peak_lr"], step)
        return optimizer.param_groups[0]["lr"]

    def rate(self, peak: float, step: int) -> float:
        """The learning rate of a step, where the highest is `peak`."""
        rate = self.after_warmup(peak, step)
        if step < self.warmup:
            return rate * (self.warmup_ratio + (1 - self.warmup_ratio) * step / self.warmup)
        return rate

    def after_warmup(self, peak: float, step: int) -> float:
        """The rate without its warm-up."""
        if self.name == "plateau":
            return max(peak * self.factor**self.judge.reductions, min(self.min_lr, peak))
        if self.name == "warmup_cosine":
            return self.cosine(peak, max(step - self.warmup, 0) / (self.steps - self.warmup))
        if self.name == "two_cosines":
            later = step // self.steps_per_epoch - self.second_epoch
            return self.cosine(peak, max(later, 0) / (self.epochs - self.second_epoch))
        return peak

    def cosine(self, peak: float, share: float) -> float:
        """From the highest rate to the lowest."""
        return self.min_lr + 0.5 * (peak - self.min_lr) * (1 + math.cos(math.pi * share))
