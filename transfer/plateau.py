"""Judges of a fit: when the validation no longer improves, put the best weights back, lower the rate, or end.

What comes in: what was measured after an epoch, the higher the better. What goes out: whether former weights were put
back, `reductions`, how often the learning rate was lowered so far, and `ended`. The state of the optimiser is never put
back. All that a judge knows, the best weights too, is in the checkpoint. The projects count differently:

- `Plateau`, of V1T (https://github.com/bryanlimy/V1T) and ViV1T: after some epochs without a better one, the best
  weights are put back and the rate is lowered, at once; if this does not help several times in a row, training ends.
- `Rounds`, of neuralpredictors' `early_stopping` with torch's `ReduceLROnPlateau`, as Sensorium's trainers use them:
  the best weights are put back after `patience` epochs; the rate follows one epoch later, because it has a count of its
  own; training ends after some rounds.
- `EarlyStopping`, of ViV1T's closed-loop version: training ends, and nothing else.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

MEASURE = "single_trial_correlation"
# A correlation that rounds to this, after a better one than the other, is a collapse (ViV1T).
COLLAPSED, ALIVE = 0.005, 0.05


class BestWeights:
    """A copy of the weights that were best."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}

    def keep(self, module: nn.Module) -> None:
        """Copy a module's weights and buffers."""
        self.weights = {key: value.detach().clone() for key, value in module.state_dict().items()}

    def put_back(self, module: nn.Module) -> bool:
        """Give a module the weights that were kept; returns whether there were any."""
        if self.weights:
            module.load_state_dict(self.weights)
        return bool(self.weights)


class Plateau:
    """V1T's and ViV1T's scheduler.

    Args:
        patience: epochs without a better one, of which the last acts.
        failures: the action of this number, in a row, ends training instead of lowering the rate.
        min_epochs: epochs that are not counted.
        collapse: put the best weights back where the correlation collapses, without counting the epoch (ViV1T).
        measure: what is judged.
    """

    from_start = False

    def __init__(
        self, patience: int, failures: int = 3, min_epochs: int = 0, collapse: bool = True, measure: str = MEASURE
    ) -> None:
        self.patience, self.failures, self.min_epochs = patience, failures, min_epochs
        self.collapse, self.measure = collapse, measure
        # A first correlation below 0 is no best one.
        self.best, self.waited, self.failed, self.reductions, self.ended = 0.0, 0, 0, 0, False
        self.best_weights = BestWeights()

    def judge(self, objective: nn.Module, measured: dict[str, float], epoch: int, last: bool) -> bool:
        """Take in what was measured after an epoch (from 1); returns whether the best weights were put back."""
        value = measured[self.measure]
        if value > self.best:
            self.best, self.waited, self.failed = value, 0, 0
            self.best_weights.keep(objective)
            return False
        self.ended = not math.isfinite(value)
        collapsed = self.collapse and value < COLLAPSED and self.best >= ALIVE
        if collapsed or self.ended or not self.acts(epoch):
            return (collapsed or self.ended or last) and self.best_weights.put_back(objective)
        self.failed += 1
        self.ended = self.failed >= self.failures
        self.reductions += not self.ended
        return self.best_weights.put_back(objective)

    def acts(self, epoch: int) -> bool:
        """Count an epoch without a better one; whether it is one too many."""
        self.waited += epoch > self.min_epochs
        if self.waited < self.patience:
            return False
        self.waited = 0
        return True

    def state(self) -> dict[str, Any]:
        """All counts, and the best weights."""
        counts = {name: getattr(self, name) for name in ("best", "waited", "failed", "reductions", "ended")}
        return counts | {"weights": self.best_weights.weights}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        restore_counts(self, state)


class Rounds:
    """neuralpredictors' `early_stopping(lr_decay_steps=rounds)` with `ReduceLROnPlateau`, both absolute.

    Args:
        patience: validations without a better one that end a round; the rate is lowered at one more.
        rounds: after which training ends.
        tolerance: by how much a better one must be better.
        measure: what is judged.
    """

    # The untrained model is the first best one.
    from_start = True

    def __init__(self, patience: int, rounds: int = 4, tolerance: float = 1e-6, measure: str = MEASURE) -> None:
        self.patience, self.rounds, self.tolerance, self.measure = patience, rounds, tolerance, measure
        self.best, self.waited, self.round, self.ended = -math.inf, 0, 0, False
        # The scheduler has not seen the untrained model.
        self.scheduler_best, self.scheduler_waited, self.reductions = -math.inf, 0, 0
        self.best_weights = BestWeights()

    def judge(self, objective: nn.Module, measured: dict[str, float], epoch: int, last: bool) -> bool:
        """Take in what was measured after an epoch (0: before the first); returns whether weights were put back."""
        value = measured[self.measure]
        if not math.isfinite(value):
            self.ended = True
            return self.best_weights.put_back(objective)
        if epoch:
            self.schedule(value)
        if value > self.best + self.tolerance:
            self.best, self.waited = value, 0
            self.best_weights.keep(objective)
            return False
        self.waited += 1
        if self.waited < self.patience:
            return last and self.best_weights.put_back(objective)
        self.round, self.waited = self.round + 1, 0
        self.ended = self.round >= self.rounds
        return self.best_weights.put_back(objective)

    def schedule(self, value: float) -> None:
        """Count as `ReduceLROnPlateau(mode="max", threshold_mode="abs")` does."""
        if value > self.scheduler_best + self.tolerance:
            self.scheduler_best, self.scheduler_waited = value, 0
            return
        self.scheduler_waited += 1
        if self.scheduler_waited > self.patience:
            self.scheduler_waited, self.reductions = 0, self.reductions + 1

    def state(self) -> dict[str, Any]:
        """All counts, and the best weights."""
        names = ("best", "waited", "round", "ended", "scheduler_best", "scheduler_waited", "reductions")
        return {name: getattr(self, name) for name in names} | {"weights": self.best_weights.weights}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        restore_counts(self, state)


class EarlyStopping:
    """Ends training once the best epoch lies `patience` epochs back; a correlation must be above 0 to be the best."""

    from_start = False
    reductions = 0

    def __init__(self, patience: int = 10, measure: str = MEASURE) -> None:
        self.patience, self.measure = patience, measure
        self.best, self.best_epoch, self.ended = 0.0, 0, False

    def judge(self, objective: nn.Module, measured: dict[str, float], epoch: int, last: bool) -> bool:
        """Take in what was measured after an epoch (from 1); no weights are put back."""
        value = measured[self.measure]
        if value > self.best:
            self.best, self.best_epoch = value, epoch
        self.ended = not math.isfinite(value) or epoch - self.best_epoch >= self.patience
        return False

    def state(self) -> dict[str, Any]:
        """The best value, its epoch, and whether training has ended."""
        return {name: getattr(self, name) for name in ("best", "best_epoch", "ended")}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        for name, value in state.items():
            setattr(self, name, value)


def restore_counts(judge: Plateau | Rounds, state: dict[str, Any]) -> None:
    """Give a judge its counts and its best weights back."""
    for name, value in state.items():
        if name == "weights":
            # What is read lies in the checkpoint's file, which will be removed.
            judge.best_weights.weights = {key: torch.clone(weight) for key, weight in value.items()}
        else:
            setattr(judge, name, value)


COUNTINGS = ("viv1t", "v1t", "neuralpredictors")


def make_plateau(
    counting: str, patience: int, reductions: int, tolerance: float = 1e-6, measure: str = MEASURE
) -> Plateau | Rounds:
    """The judge of a plateau schedule, with each project's own numbers.

    Args:
        counting: whose: `viv1t`, `v1t` or `neuralpredictors`.
        patience: theirs; V1T acts one epoch later than it says, as published.
        reductions: ViV1T's `max_reduce`, of which the last ends training; V1T's, after which the next one does;
            neuralpredictors' `lr_decay_steps`.
        tolerance: of neuralpredictors; the others have none.

    Raises:
        ValueError: an unknown counting, or a patience or number below 1.
    """
    if counting not in COUNTINGS:
        raise ValueError(f"unknown schedule.counting={counting} (allowed: {', '.join(COUNTINGS)})")
    if patience < 1 or reductions < 1:
        raise ValueError(f"schedule.patience={patience} and schedule.reductions={reductions} must be at least 1")
    if counting == "neuralpredictors":
        return Rounds(patience, reductions, tolerance, measure)
    if counting == "v1t":
        return Plateau(patience + 1, reductions + 1, collapse=False, measure=measure)
    return Plateau(patience, reductions, measure=measure)
