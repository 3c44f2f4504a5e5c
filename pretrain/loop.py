"""The training loop: devices, precision, schedule, checkpoints, resume, logging.

What comes in: a `Task`, which is what to train, on which batches, for how long. What goes out: checkpoints,
`metrics.csv` and TensorBoard events in the run folder. All randomness within a step follows from (seed, step, rank),
so the only state that resuming needs is in the checkpoint: a run that was killed and resumed gives the same numbers
as one that was not.
"""

import math
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.tensorboard import SummaryWriter

from pretrain.best import Best, keep_as_best
from pretrain.checkpoint import (
    BackboneSpec,
    newest_checkpoint,
    read_checkpoint,
    restore_training_state,
    save_checkpoint,
    training_state,
)
from pretrain.config import CheckpointConfig
from pretrain.durable import remove_leftovers
from pretrain.progress import Meter, progress, say
from pretrain.run_folder import MetricsFile, RunFolder


class TrainingStopped(RuntimeError):
    """Training cannot go on; the message says why and what to do."""


@dataclass
class Task:
    """What to train, on what, for how long.

    `batches(epoch, start)` yields an epoch's batches from number `start` on; `prepare(batch, step)` makes the views on
    the device; `set_lr(optimizer, epoch)` is the schedule; `measure(note)` probes what is
    learned at the end of an epoch, and notes how far it is.
    """

    objective: nn.Module
    optimizer: Optimizer
    spec: BackboneSpec
    batches: Callable[[int, int], Iterator[dict[str, Tensor]]]
    prepare: Callable[[dict[str, Tensor], int], dict[str, Tensor]]
    set_lr: Callable[[Optimizer, int], float]
    measure: Callable[[Callable[[str], None]], dict[str, float]]
    epochs: int
    steps_per_epoch: int
    batch_size: int
    seed: int
    log_every: int
    clip_norm: float
    probe_every_epochs: int
    saving: CheckpointConfig
    after_measure: Callable[[], None] = field(default=lambda: None)

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch


class Log:
    """Rows to metrics.csv and TensorBoard, on the first process only."""

    def __init__(self, folder: Path, step: int, enabled: bool) -> None:
        self.file = MetricsFile(folder / "metrics.csv", step) if enabled else None
        self.board = SummaryWriter(folder / "tensorboard", purge_step=step + 1) if enabled else None

    def add(self, step: int, epoch: int, images_seen: int, values: dict[str, float]) -> None:
        if self.file is None:
            return
        self.file.add({"step": step, "epoch": epoch, "images_seen": images_seen, **values})
        for name, value in values.items():
            self.board.add_scalar(name, value, step)
        self.board.flush()


class StopSignal:
    """Notes Ctrl-C and SIGTERM, so that the loop can save and stop between two steps."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.process = os.getpid()

    def __enter__(self) -> "StopSignal":
        # Only the main thread may set handlers; a Ray trial runs in another and is stopped by Ray.
        self.handlers = {}
        if threading.current_thread() is threading.main_thread():
            self.handlers = {s: signal.signal(s, self.note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def note(self, number: int, frame: FrameType | None) -> None:
        # Reader processes inherit the handler, and leave stopping to the process that trains.
        if os.getpid() == self.process:
            self.received = signal.Signals(number)
            say(f"{self.received.name}: saving after this step (again to stop at once)")
            signal.signal(number, self.handlers[number])

    def raise_if_received(self) -> None:
        """Leave by the way of Ctrl-C."""
        if self.received:
            raise KeyboardInterrupt(f"stopped by {self.received.name}")


class Training:
    """One run of a task in a run folder."""

    def __init__(self, task: Task, fabric: Fabric, run: RunFolder) -> None:
        self.task, self.fabric, self.run = task, fabric, run
        self.checkpoints = run.path / "checkpoints"
        self.best = Best()
        self.step = self.resume()
        # After resuming, so that the wrapped optimiser keeps the restored momentum on the device.
        self.model, self.optimizer = fabric.setup(task.objective, task.optimizer)
        self.unchecked: list[tuple[int, Tensor]] = []
        self.shown = ""
        self.saved_at = self.logged_at = time.monotonic()
        self.logged_step = self.step

    def resume(self) -> int:
        """Restore the newest intact checkpoint, if there is one; returns its step."""
        if self.fabric.is_global_zero:
            remove_leftovers(self.checkpoints)
        path = newest_checkpoint(self.checkpoints)
        if path is None:
            return 0
        state = read_checkpoint(path)
        restore_training_state(state, self.task.objective, self.task.optimizer)
        self.best = Best(**state["best"])
        # A kill can come between saving an epoch's end and keeping it as the best.
        if self.fabric.is_global_zero and state["step"] == self.best.epoch * self.task.steps_per_epoch > 0:
            keep_as_best(path)
        if self.fabric.is_global_zero:
            say(f"going on from {path} (step {state['step']:,} of {self.task.steps:,})")
        return state["step"]

    def train(self) -> None:
        """Train to the end of the last epoch, saving at least at the end of each.

        Raises:
            TrainingStopped: the loss is not finite.
            KeyboardInterrupt: a signal asked to stop; the state is saved.
        """
        task = self.task
        self.log = Log(self.run.path, self.step, self.fabric.is_global_zero)
        shown = progress("pretrain", task.steps * task.batch_size, self.step * task.batch_size)
        with StopSignal() as stop, shown as meter:
            while self.step < task.steps:
                epoch, start = divmod(self.step, task.steps_per_epoch)
                lr = task.set_lr(self.optimizer, epoch)
                for batch in task.batches(epoch, start):
                    self.train_step(batch)
                    self.show(epoch, lr, meter)
                    # After an epoch's last step its probe comes before saving, or resuming would leave it out.
                    if self.step % task.steps_per_epoch:
                        self.save_if_due(epoch, stop)
                self.finish_epoch(epoch, meter)
                self.stop_if_asked(stop)

    def train_step(self, batch: dict[str, Tensor]) -> None:
        """One step of the optimiser; dropout and noise draws follow from (seed, step, rank)."""
        batch = self.task.prepare(batch, self.step)
        torch.manual_seed(derived_seed(self.task.seed, "step", self.step, self.fabric.global_rank))
        values = self.model(batch)
        self.optimizer.zero_grad()
        self.fabric.backward(values["loss"])
        if self.task.clip_norm:
            # A gradient that is not finite shows in the next loss, which stops the run with its step.
            self.fabric.clip_gradients(
                self.model, self.optimizer, max_norm=self.task.clip_norm, error_if_nonfinite=False
            )
        self.optimizer.step()
        self.task.objective.after_step()
        self.step += 1
        self.values = {name: value.detach() for name, value in values.items()}
        self.unchecked.append((self.step, self.values["loss"]))

    def show(self, epoch: int, lr: float, meter: Meter) -> None:
        """Move the progress on, and log when it is time."""
        if self.step % self.task.log_every == 0:
            self.log_step(epoch, lr)
        meter.advance(self.task.batch_size, f"epoch {epoch + 1}/{self.task.epochs}  {self.shown}")

    def save_if_due(self, epoch: int, stop: StopSignal) -> None:
        """Save within an epoch when it is time, or when a signal asks to stop."""
        if stop.received or time.monotonic() - self.saved_at > self.task.saving.every_minutes * 60:
            self.save(epoch)
        self.stop_if_asked(stop)

    def stop_if_asked(self, stop: StopSignal) -> None:
        """Note the stop in the status and leave; the state has just been saved."""
        if stop.received:
            self.run.status(state="stopped", message=f"stopped by {stop.received.name}; the same command goes on")
        stop.raise_if_received()

    def log_step(self, epoch: int, lr: float) -> None:
        self.log_pending_check()
        seconds = time.monotonic() - self.logged_at
        rate = (self.step - self.logged_step) * self.task.batch_size / seconds
        values = self.mean_over_processes()
        self.shown = f"loss {values['loss']:.3f}  {rate:,.0f} images/s"
        values |= {"lr": lr, "images_per_s": round(rate, 1)}
        self.log.add(self.step, epoch, self.step * self.task.batch_size, values)
        self.logged_at, self.logged_step = time.monotonic(), self.step

    def mean_over_processes(self) -> dict[str, float]:
        """The last step's values; each process has those of its part of the batch."""
        means = self.fabric.all_reduce(torch.stack([value.float() for value in self.values.values()]), reduce_op="mean")
        return dict(zip(self.values, means.tolist(), strict=True))

    def log_pending_check(self) -> None:
        """Stop at a loss that is not finite. Reading losses waits for the device, so it is not done at every step."""
        for step, loss in self.unchecked:
            if not math.isfinite(loss.item()):
                self.fail(f"the loss is {loss.item()}", step)
            self.best.add_loss(loss.item())
        self.unchecked.clear()

    def fail(self, what: str, step: int) -> None:
        """Stop for good, with the last checkpoint that was good."""
        good = newest_checkpoint(self.checkpoints)
        self.run.status(state="failed", message=f"{what} at step {step}")
        raise TrainingStopped(
            f"{what} at step {step:,}; the last good checkpoint is {good or 'none yet'}; "
            "lower optimizer.lr (with another out=) or look at the data of that step"
        )

    def finish_epoch(self, epoch: int, meter: Meter) -> None:
        """Probe and save; the checkpoint of the best epoch is kept beside the newest ones."""
        self.log_pending_check()
        measured = {}
        if self.task.probe_every_epochs and (epoch + 1) % self.task.probe_every_epochs == 0:
            measured = self.measure(epoch, meter)
        is_best = self.best.end_epoch(epoch + 1, measured)
        path = self.save(epoch + 1)
        if path and is_best:
            keep_as_best(path)
            self.run.status(best={"epoch": self.best.epoch, self.best.measure: self.best.value})

    def measure(self, epoch: int, meter: Meter) -> dict[str, float]:
        with self.fabric.autocast():
            measured = self.task.measure(lambda text: meter.advance(0, text))
        self.log.add(self.step, epoch, self.step * self.task.batch_size, measured)
        self.task.after_measure()
        shown = "  ".join(f"{name} {value:.3f}" for name, value in measured.items())
        if self.fabric.is_global_zero:
            say(f"epoch {epoch + 1}: {shown}")
        self.logged_at, self.logged_step = time.monotonic(), self.step
        return measured

    def save(self, epoch: int) -> Path | None:
        """Write a checkpoint of the state after the last step; a state that is not finite is never written."""
        self.log_pending_check()
        path = None
        if self.fabric.is_global_zero:
            state = training_state(self.task.objective, self.task.optimizer, self.task.spec, epoch)
            state["best"] = self.best.state()
            if broken := not_finite(state["backbone"] | state["heads"]):
                self.fail(f"{broken!r} is not finite", self.step)
            path = save_checkpoint(self.checkpoints, self.step, state, self.task.saving.keep)
            self.run.status(step=self.step, steps=self.task.steps, epoch=epoch, epochs=self.task.epochs)
        self.fabric.barrier()
        self.saved_at = self.logged_at = time.monotonic()
        self.logged_step = self.step
        return path


def not_finite(weights: dict[str, Tensor]) -> str | None:
    """The name of the first tensor with a value that is not finite."""
    for key, value in weights.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            return key
    return None


def derived_seed(*parts: int | str) -> int:
    """A seed of 63 bits that is a pure function of its parts, for example (seed, "views", step)."""
    return random.Random(" ".join(map(str, parts))).getrandbits(63)
