"""The training loop: devices, precision, schedule, probes, checkpoints, resume, logging.

What comes in: a `Task`, which is what to train, on which batches, for how long. What goes out: checkpoints,
`metrics.csv` and what the trackers keep, in the run folder. All randomness within a step follows from (seed, step,
rank), so the only state that resuming needs is in the checkpoint: a run that was killed and resumed gives the same
numbers as one that was not.
"""

import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_

from pretrain.accumulate import mean_over_parts, split_batch, sum_over_parts
from pretrain.best import Best, keep_as_best
from pretrain.checkpoint import (
    checkpoint_to_resume,
    newest_checkpoint,
    read_checkpoint,
    restore_training_state,
    save_checkpoint,
    training_state,
)
from pretrain.durable import NO_SPACE, remove_leftovers
from pretrain.largest_batch import (
    explain_before_training,
    explain_out_of_memory,
    is_out_of_memory,
    keys_of_less_memory,
    memory_of,
)
from pretrain.log import Log
from pretrain.probe import FeaturesNotFinite
from pretrain.process_group import is_lost_process
from pretrain.profiler import profile_steps
from pretrain.progress import Meter, progress, say
from pretrain.randomness import derived_seed, seed_draws
from pretrain.recent_losses import LossNotFinite, RecentLosses
from pretrain.run_folder import RunFolder
from pretrain.shard_cache import ShardUnavailable
from pretrain.step_timer import StepTimer
from pretrain.stop_signal import StopSignal
from pretrain.task import Task
from pretrain.trackers import first_line


class TrainingStopped(RuntimeError):
    """Training cannot go on; the message says why and what to do.

    `told`: of several processes, those after the first have said already what they alone know.
    """

    told = True


class Training:
    """One run of a task in a run folder."""

    def __init__(self, task: Task, fabric: Fabric, run: RunFolder) -> None:
        self.task, self.fabric, self.run = task, fabric, run
        self.checkpoints = run.path / "checkpoints"
        self.best = Best()
        try:
            self.step = self.resume()
            # After resuming, so that the wrapped optimiser keeps the restored momentum on the device.
            self.model, self.optimizer = fabric.setup(task.objective, task.optimizer)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.fail(explain_before_training(error, memory_of(fabric.device)), error)
        self.timer = StepTimer(fabric.device)
        self.losses = RecentLosses(fabric, task.samples)
        self.shown = ""
        self.stopping: signal.Signals | None = None
        self.saved_at = self.logged_at = time.monotonic()
        self.logged_step = self.step

    def resume(self) -> int:
        """Restore the newest intact checkpoint, if there is one; returns its step.

        Raises:
            TrainingStopped: there are checkpoints, and none is intact.
        """
        path = self.checkpoint_to_resume()
        if path is None:
            return 0
        state = read_checkpoint(path)
        restore_training_state(state, self.task.objective, self.task.optimizer, self.task.average)
        self.fabric.strategy.precision.load_state_dict(state.get("precision", {}))
        for name, remembering in self.task.remembering.items():
            if name in state.get("remembered", {}):
                remembering.restore(state["remembered"][name])
        self.best = Best(**state["best"])
        # A kill can come between saving an epoch's end and keeping it as the best.
        if self.fabric.is_global_zero and state["step"] == self.best.epoch * self.task.steps_per_epoch > 0:
            keep_as_best(path)
        if self.fabric.is_global_zero:
            say(f"going on from {path} (step {state['step']:,} of {self.task.steps:,})")
        return state["step"]

    def checkpoint_to_resume(self) -> Path | None:
        """The checkpoint that all processes go on from, which the first one looks for."""
        found: tuple[Path | None, list[Path]] = (None, [])
        if self.fabric.is_global_zero:
            remove_leftovers(self.checkpoints)
            found = checkpoint_to_resume(self.checkpoints)
        path, damaged = self.fabric.broadcast(found)
        if damaged:
            names = ", ".join(each.name for each in damaged)
            self.stop(
                f"no checkpoint in {self.checkpoints} is intact ({names}); to train from the start remove that "
                "folder, or choose another out=",
                together=True,
            )
        return path

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or the judge has ended training."""
        return self.step >= self.task.steps or bool(self.task.judge and self.task.judge.ended)

    def train(self) -> None:
        """Train to the end of the last epoch, saving when it is time, after the probes of an epoch, and at the end.

        Raises:
            TrainingStopped: the loss is not finite, or memory or disk are full.
            KeyboardInterrupt: a signal asked to stop; the state is saved.
        """
        try:
            with self.logging():
                self.take_steps()
        except TrainingStopped:
            raise
        except Exception as error:
            if what := self.explained(error):
                self.fail(what, error)
            raise
        if self.task.at_end:
            self.task.at_end()

    @contextmanager
    def logging(self) -> Iterator[None]:
        """The log, with what the trackers keep, for the duration of the block."""
        trackers = self.task.open_trackers(self.step) if self.fabric.is_global_zero else None
        self.log = Log(self.run.path, self.step, trackers, self.task.samples)
        failed = True
        try:
            yield
            failed = False
        finally:
            self.log.close(failed)

    def take_steps(self) -> None:
        """All steps from the one that training goes on from."""
        task = self.task
        shown = progress(task.title, task.steps * task.batch_size, self.step * task.batch_size)
        with StopSignal() as stop, shown as meter, self.profiler() as profiler:
            if self.step == 0 and task.judge and task.judge.from_start:
                task.judge.judge(task.objective, self.measure(-1, meter), 0, last=False)
            for batch in task.prepared(self.step, self.timer):
                self.train_step(batch)
                if profiler:
                    profiler.step()
                self.after_step(meter, stop)
                if self.finished:
                    break

    def explained(self, error: Exception) -> str | None:
        """What an error means for the training, in one line; None where it is not one that is known."""
        if isinstance(error, FeaturesNotFinite):
            return f"{error}; this was measured at step {self.step:,}"
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            return (
                f"no space in {error.filename or self.run.path} at step {self.step:,} ({error.strerror}); make room, "
                "and the same command goes on"
            )
        if isinstance(error, ShardUnavailable):
            return f"{error}; this was at step {self.step:,}, and the same command goes on from the last checkpoint"
        if is_out_of_memory(error):
            return explain_out_of_memory(error, self.task.batch_size, self.fabric.device, self.less_memory())
        if self.fabric.world_size == 1:
            return None
        if is_lost_process(error):
            return f"another process of this training has ended, and its own line says why ({first_line(error)})"
        # Of an error in one of the others, the first process would only know that it ended.
        return None if self.fabric.is_global_zero else f"{type(error).__name__}: {first_line(error)}"

    def less_memory(self) -> str:
        """Keys that need less memory."""
        task, precision = self.task, self.fabric.strategy.precision.precision
        return task.less_memory or keys_of_less_memory(
            task.batch_size, self.fabric.device, task.accumulate, precision, task.activation_checkpointing
        )

    def profiler(self) -> AbstractContextManager:
        """The profiler that a run is asked for, on the first process."""
        return profile_steps(self.run.path) if self.task.profile and self.fabric.is_global_zero else nullcontext()

    def train_step(self, batch: dict[str, Any]) -> None:
        """One step of the optimiser; dropout and noise draws follow from (seed, step, rank)."""
        task = self.task
        seed_draws(derived_seed(task.seed, "step", self.step, self.fabric.global_rank), self.fabric.device)
        self.lr = task.set_lr(self.optimizer, self.step)
        with self.timer.part("forward_backward"):
            self.values = self.gradients(batch)
        with self.timer.part("optimizer"):
            self.clip_gradients()
            self.optimizer.step()
            task.objective.after_step()
            self.step += 1
            if task.average:
                task.average.update(task.objective.backbone, self.step)
        self.losses.note(self.step, self.values["loss"], batch)

    def gradients(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Forward and backward, in parts one after the other; returns the logged values of the whole."""
        self.optimizer.zero_grad()
        parts = self.parts(batch)
        averaged = len(parts) if self.task.parts is None else 1
        made = []
        for number, part in enumerate(parts, 1):
            # Processes exchange the sum of the parts' gradients once.
            with self.fabric.no_backward_sync(self.model, enabled=number < len(parts)):
                values = self.model(part)
                self.fabric.backward(values["loss"] / averaged if averaged > 1 else values["loss"])
            made.append({name: value.detach() for name, value in values.items()})
        if len(made) == 1:
            return made[0]
        return mean_over_parts(made) if averaged > 1 else sum_over_parts(made)

    def parts(self, batch: dict[str, Any]) -> list[Any]:
        """What goes through the objective one after the other."""
        task = self.task
        if task.parts:
            return task.parts(batch)
        return split_batch(task.objective.with_draws(batch) if task.accumulate > 1 else batch, task.accumulate)

    def clip_gradients(self) -> None:
        """Shorten gradients that are longer than they may be, at most one of the two ways."""
        task = self.task
        if not (task.autoclip or task.clip_norm):
            return
        longest = math.inf if task.autoclip else task.clip_norm
        # A gradient that is not finite shows in the next loss, which stops the run with its step.
        length = self.fabric.clip_gradients(self.model, self.optimizer, max_norm=longest, error_if_nonfinite=False)
        if task.autoclip:
            limit = task.autoclip.limit(float(length))
            clip_grads_with_norm_(task.objective.parameters(), limit, length)

    def after_step(self, meter: Meter, stop: StopSignal) -> None:
        """What comes between two steps: progress and log, and when it is time probes and checkpoints."""
        task = self.task
        epoch, within = divmod(self.step, task.steps_per_epoch)
        self.show(epoch if within else epoch - 1, meter)
        if not within:
            # After an epoch's last step its probe comes before saving, or resuming would leave it out.
            self.finish_epoch(epoch - 1, meter, stop)
        else:
            if task.measure_due(self.step):
                self.measure(epoch, meter)
            self.save_if_due(epoch, stop)
        self.stop_if_asked()

    def show(self, epoch: int, meter: Meter) -> None:
        """Move the progress on, and log when it is time."""
        if self.row_is_due():
            self.log_step(epoch)
        meter.advance(self.task.batch_size, f"epoch {epoch + 1}/{self.task.epochs}  {self.shown}")

    def row_is_due(self) -> bool:
        """Whether a row is logged: every so many steps, at the last one, and at the end of epochs that are shorter."""
        task = self.task
        ends_short_epoch = task.steps_per_epoch < task.log_every and self.step % task.steps_per_epoch == 0
        return self.step % task.log_every == 0 or self.step == task.steps or ends_short_epoch

    def save_if_due(self, epoch: int, stop: StopSignal) -> None:
        """Save within an epoch when it is time, or when a signal asks to stop."""
        if self.agree(stop):
            self.save(epoch)

    def agree(self, stop: StopSignal) -> bool:
        """Whether it is time to save; all processes do, or none does, and all stop where one is asked to.

        A process alone decides at each step. Several ask each other when a row is logged, and at the end of an epoch,
        because asking makes them wait for each other.
        """
        due = time.monotonic() - self.saved_at > self.task.saving.every_minutes * 60
        received = int(stop.received or 0)
        if self.fabric.world_size > 1:
            if self.step % self.task.log_every and self.step % self.task.steps_per_epoch:
                return False
            wanted = torch.tensor([int(due), received], device=self.fabric.device)
            due, received = self.fabric.all_reduce(wanted, reduce_op="max").tolist()
        if received:
            self.stopping = signal.Signals(received)
        return bool(due or received)

    def stop_if_asked(self) -> None:
        """Note the stop in the status and leave by the way of Ctrl-C; the state has just been saved."""
        if self.stopping:
            if self.fabric.is_global_zero:
                self.run.status(state="stopped", message=f"stopped by {self.stopping.name}; the same command goes on")
            raise KeyboardInterrupt(f"stopped by {self.stopping.name}")

    def log_step(self, epoch: int) -> None:
        self.read_losses()
        steps = self.step - self.logged_step
        values = self.mean_over_processes()
        parts = self.timer.read(steps)
        rate = steps * self.task.batch_size / (time.monotonic() - self.logged_at)
        self.shown = f"loss {values['loss']:.3f}  {rate:,.0f} {self.task.samples}/s"
        values |= {"lr": self.lr, f"{self.task.samples}_per_s": round(rate, 1)}
        values |= {name: round(value, 3) for name, value in parts.items()}
        self.log.add(self.step, epoch, self.step * self.task.batch_size, values)
        self.start_counting()

    def start_counting(self) -> None:
        """Count steps and time anew, as after a row or after what is no training."""
        self.timer.reset()
        self.logged_at, self.logged_step = time.monotonic(), self.step

    def mean_over_processes(self) -> dict[str, float]:
        """The last step's values; each process has those of its part of the batch."""
        means = self.fabric.all_reduce(torch.stack([value.float() for value in self.values.values()]), reduce_op="mean")
        return dict(zip(self.values, means.tolist(), strict=True))

    def read_losses(self) -> None:
        """Stop at a loss that is not finite. Reading losses waits for the device, so it is not done at every step."""
        try:
            losses = self.losses.read()
        except LossNotFinite as error:
            self.fail(
                f"{error}; lower optimizer.lr, with another out=, or look at these {self.task.samples}", together=True
            )
        for loss in losses:
            self.best.add_loss(loss)

    def fail(self, what: str, error: BaseException | None = None, together: bool = False) -> NoReturn:
        """Stop for good, with the last checkpoint that was good; `together` where all processes do for the same."""
        good = newest_checkpoint(self.checkpoints)
        self.stop(f"{what}; the last good checkpoint is {good or 'none yet'}", error, together)

    def stop(self, message: str, error: BaseException | None = None, together: bool = False) -> NoReturn:
        """Stop for good: the first process notes why in the status, another says what it alone knows."""
        if self.fabric.is_global_zero:
            # A full disk must not hide the message.
            with suppress(OSError):
                self.run.status(state="failed", message=message)
        elif not (together or is_lost_process(error)):
            print(f"process {self.fabric.global_rank}: {message}", file=sys.stderr, flush=True)
        if together:
            # The end of another process ends the first one, which may still be writing.
            self.fabric.barrier()
        raise TrainingStopped(message) from error

    def finish_epoch(self, epoch: int, meter: Meter, stop: StopSignal) -> None:
        """Probe, and save what was probed; the checkpoint of the best epoch is kept beside the newest ones.

        Other epochs are saved when it is time: those of a small set take less time than a checkpoint.
        """
        self.read_losses()
        task = self.task
        measured = self.measure(epoch, meter) if task.measure_due(self.step) else {}
        last = self.step == task.steps
        put_back = bool(measured and task.judge and task.judge.judge(task.objective, measured, epoch + 1, last))
        due = self.agree(stop)
        if not (measured or due or last):
            self.best.pass_epoch()
            return
        # Weights that were put back are not those that were measured.
        is_best = not put_back and self.best.end_epoch(epoch + 1, measured)
        if put_back:
            self.best.pass_epoch()
        path = self.save(epoch + 1)
        if path and is_best:
            keep_as_best(path)
            self.run.status(best={"epoch": self.best.epoch, self.best.measure: self.best.value})

    def measure(self, epoch: int, meter: Meter) -> dict[str, float]:
        """Probe the backbone, or the average of its weights where there is one."""
        self.read_losses()
        average = self.task.average
        with self.fabric.autocast():
            backbone = average.backbone if average else self.task.objective.backbone
            measured = self.task.measure(backbone, lambda text: meter.advance(0, text))
        self.log.add(self.step, epoch, self.step * self.task.batch_size, measured)
        shown = "  ".join(f"{name} {value:.3f}" for name, value in measured.items())
        if self.fabric.is_global_zero:
            say(f"epoch {epoch + 1}, step {self.step:,}: {shown}")
        self.start_counting()
        return measured

    def save(self, epoch: int) -> Path | None:
        """Write a checkpoint of the state after the last step; a state that is not finite is never written."""
        self.read_losses()
        path = None
        if self.fabric.is_global_zero:
            path = self.write_checkpoint(epoch)
            self.run.status(step=self.step, steps=self.task.steps, epoch=epoch, epochs=self.task.epochs)
        self.fabric.barrier()
        self.saved_at = time.monotonic()
        self.start_counting()
        return path

    def write_checkpoint(self, epoch: int) -> Path:
        task = self.task
        state = training_state(task.objective, task.optimizer, task.spec, epoch, task.average)
        state["best"] = self.best.state()
        state["precision"] = self.fabric.strategy.precision.state_dict()
        state["remembered"] = {name: remembering.state() for name, remembering in task.remembering.items()}
        if broken := not_finite(state["backbone"] | state["heads"]):
            self.fail(f"{broken!r} is not finite at step {self.step:,}; lower optimizer.lr, with another out=")
        return save_checkpoint(self.checkpoints, self.step, state, task.saving.keep)


def not_finite(weights: dict[str, Tensor]) -> str | None:
    """The name of the first tensor with a value that is not finite."""
    for key, value in weights.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            return key
    return None
