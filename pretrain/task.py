"""What there is to train: a `Task`, which the loop takes its steps of, and the judge that may steer it.

What comes in: nothing; who trains something fills in a task. What goes out: the words in which pretraining and fitting
talk to `pretrain/loop.py`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from pretrain.autoclip import AutoClip
from pretrain.average import Average
from pretrain.checkpoint import BackboneSpec
from pretrain.config import CheckpointConfig
from pretrain.step_timer import StepTimer
from pretrain.trackers import Tracker


class Remembering(Protocol):
    """Something beside the weights whose state belongs into checkpoints, in plain values."""

    def state(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any]) -> None: ...


class Judge(Remembering, Protocol):
    """Decides at the end of an epoch how training goes on: it keeps weights, puts them back, or ends training.

    `from_start` says that it wants to know what was measured before the first step, as of epoch 0. What it changes of
    the learning rate is the schedule's to ask it for.
    """

    from_start: bool
    ended: bool

    def judge(self, objective: nn.Module, measured: dict[str, float], epoch: int, last: bool) -> bool:
        """Take in what was measured after an epoch (from 1); returns whether former weights were put back."""
        ...


@dataclass
class Task:
    """What to train, on what, for how long.

    `prepared(step, timer)` yields what the objective wants of each batch, from that of `step` on, and times its parts;
    `set_lr(optimizer, step)` is the schedule; `measure(backbone, note)` probes what is learned after the steps for
    which `measure_due(step)`, and notes how far it is; `remember` has a state that is saved and restored, by name.
    `parts(batch)` cuts a batch into parts whose losses are added up; without it, a batch is cut into `accumulate` equal
    parts, whose losses are averaged. A batch has tensors by name, or by group and name. `samples` is what they are of.
    `less_memory` names keys that need less, where they are not those of a pretraining; `activation_checkpointing` says
    that this one of those is set. `at_end()` is called when all steps are done.
    """

    objective: nn.Module
    optimizer: Optimizer
    spec: BackboneSpec
    prepared: Callable[[int, StepTimer], Iterator[dict[str, Tensor]]]
    set_lr: Callable[[Optimizer, int], float]
    measure: Callable[[nn.Module, Callable[[str], None]], dict[str, float]]
    measure_due: Callable[[int], bool]
    epochs: int
    steps_per_epoch: int
    batch_size: int
    seed: int
    log_every: int
    clip_norm: float
    saving: CheckpointConfig
    open_trackers: Callable[[int], list[Tracker]]
    accumulate: int = 1
    parts: Callable[[dict[str, Any]], list[Any]] | None = None
    autoclip: AutoClip | None = None
    judge: Judge | None = None
    average: Average | None = None
    remember: dict[str, Remembering] = field(default_factory=dict)
    profile: bool = False
    title: str = "pretrain"
    samples: str = "images"
    less_memory: str | None = None
    activation_checkpointing: bool = False
    at_end: Callable[[], None] | None = None

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def remembering(self) -> dict[str, Remembering]:
        """All that has a state to be saved, by name."""
        known = {"autoclip": self.autoclip, "judge": self.judge}
        return self.remember | {name: part for name, part in known.items() if part is not None}
