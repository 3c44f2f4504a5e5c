"""Fitting an encoder to recordings, from a config to a run folder.

What comes in: a `FitConfig`. What goes out: the run folder with `config.yaml`, `metrics.csv`, `checkpoints/` with the
best epoch as `best.pt`, `tensorboard/`, and the scores of the validation trials in `status.json`.
`transfer.fitted.load_fitted` reads the encoder back. It is pretraining's loop: killed and started again, a fit gives
the same numbers.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from pretrain.autoclip import AutoClip
from pretrain.average import make_average
from pretrain.execution import checkpoint_activations
from pretrain.freed_memory import keep_freed_memory
from pretrain.largest_batch import memory_before_training
from pretrain.loop import Training
from pretrain.optimizer import require_known_optimizer
from pretrain.progress import say
from pretrain.run import device_name, require_device
from pretrain.run_folder import RunFolder, open_run
from pretrain.step_timer import StepTimer
from pretrain.task import Judge, Task
from pretrain.trackers import open_trackers, require_installed
from transfer.cutmix import CutMix
from transfer.distillation import Distillation
from transfer.encoder import Encoder
from transfer.encoder_builder import build_encoder
from transfer.encoder_spec import unknown
from transfer.fit_config import FitConfig, FitScheduleConfig
from transfer.fit_data import FitData, fit_spec, normalised, open_data, require_same_neurons
from transfer.fit_encoder import animal_facts, encoder_spec, make_encoder
from transfer.fit_objective import FitObjective
from transfer.fit_optimizer import make_fit_optimizer
from transfer.fit_schedule import FitSchedule
from transfer.fit_trials import say_trials
from transfer.fitted import FitSpec, load_fitted
from transfer.losses import LOSSES, ResponseLoss, TrialCounts, create_loss
from transfer.normalisation import Normalisation
from transfer.normalisation_rules import NORMALISATIONS
from transfer.plateau import EarlyStopping, make_plateau
from transfer.trial_stream import TrialStream
from transfer.validation import Validation

Report = Callable[[dict[str, float]], None]


@memory_before_training()
def fit(config: FitConfig, report: Report | None = None) -> Path:
    """Fit an encoder and return its run folder; the same config resumes the same folder.

    Args:
        config: see `murine fit --help`.
        report: called with each validation's scores.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: one line on what is wrong with the config or the recordings.
        pretrain.loop.TrainingStopped: the loss is not finite, or memory or disk are full.
        MemoryError: memory ended before the first step.
        KeyboardInterrupt: a signal asked to stop; the state is saved.
    """
    require_consistent(config)
    initial = load_fitted(config.initial) if config.initial else None
    data = open_data(config, initial)
    require_same_neurons(data.animals, initial)
    spec = encoder_spec(config, initial)
    # Built without memory first, so that a wrong argument leaves no folder behind.
    with torch.device("meta"):
        build_encoder(spec, {name: animal_facts(animal, data.stimulus_scale) for name, animal in data.animals.items()})
    require_device(config.accelerator)
    fabric = Fabric(accelerator=config.accelerator, devices=1, precision=config.precision)
    if fabric.device.type == "cpu":
        keep_freed_memory()
    run = open_run(config, "fit", f"fit-{config.model or 'initial'}")
    normalisations = normalised(data, run)
    facts = {
        name: animal_facts(animal, data.stimulus_scale, normalisations[name], data.trials.train[name])
        for name, animal in data.animals.items()
    }
    encoder = make_encoder(config, spec, facts, initial)
    objective = FitObjective(encoder, make_loss(config, data), make_distillation(config)).to(fabric.device)
    if config.activation_checkpointing:
        checkpoint_activations(encoder.core)
    if config.compile:
        encoder.core.compile()
    saved = fit_spec(config, data, spec, facts, normalisations)
    task = make_task(config, fabric, objective, saved, data, normalisations, run, report)
    training = Training(task, fabric, run)
    announce(config, run, data, fabric, task)
    if training.finished:
        say(f"{run.path} is complete already")
    else:
        training.train()
    note_scores(run)
    run.status(state="finished")
    return run.path


def require_consistent(config: FitConfig) -> None:
    """Fail on a wrong name or on keys that contradict each other before anything is read."""
    if config.recording is None and not config.recordings:
        raise ValueError("recording is not set; name one that `murine data info` knows, or make one: murine simulate")
    if config.normalisation is not None and config.normalisation not in NORMALISATIONS:
        raise ValueError(f"normalisation={unknown(config.normalisation, NORMALISATIONS)}")
    if config.loss not in LOSSES:
        raise ValueError(f"loss={unknown(config.loss, LOSSES)}")
    if config.distillation.teacher and config.batching != "mixed":
        raise ValueError(f"distillation fills mixed batches, and batching={config.batching}; set batching=mixed")
    if config.schedule.patience and not config.validation.every_epochs:
        raise ValueError("schedule.patience counts validations, and validation.every_epochs=0; set one of them")
    make_judge(config.schedule)
    require_known_optimizer(config.optimizer.name)
    require_installed(config.logging.trackers)


def make_loss(config: FitConfig, data: FitData) -> ResponseLoss:
    """The loss, which knows how many trials each animal has."""
    counts = {
        name: TrialCounts(all=len(recording.trials), train=len(data.trials.train[name]))
        for name, recording in data.recordings.items()
    }
    return create_loss(config.loss, counts, **config.loss_args)


def make_distillation(config: FitConfig) -> Distillation | None:
    """The teacher of the config's fold, if there is one."""
    teacher = config.distillation.teacher
    if teacher is None:
        return None
    return Distillation(
        load_fitted(teacher.replace("{fold}", str(config.trials.fold))).encoder, config.distillation.share
    )


def make_task(
    config: FitConfig,
    fabric: Fabric,
    objective: FitObjective,
    spec: FitSpec,
    data: FitData,
    normalisations: dict[str, Normalisation],
    run: RunFolder,
    report: Report | None,
) -> Task:
    """Everything the loop needs, bound to this config."""
    stream = TrialStream(
        data.recordings,
        data.trials.train,
        normalisations,
        data.plan,
        batching=config.batching,
        batch_size=config.batch_size,
        seed=config.seed,
        samples_per_epoch=config.samples_per_epoch or None,
        workers=config.workers,
    )
    for note in stream.notes:
        say(note)
    validation = Validation(
        data.recordings,
        data.trials.validation,
        normalisations,
        data.plan,
        config.validation.first_frame,
        config.validation.batch_size,
        fabric.device,
    )
    steps_per_epoch = stream.steps_per_epoch
    optimizer, judge = fit_optimizer(config, objective.backbone), make_judge(config.schedule)
    cutmix = make_cutmix(config, objective.backbone)

    def prepared(step: int, timer: StepTimer) -> Iterator[dict[str, Any]]:
        batches = stream.batches(step, config.epochs * steps_per_epoch)
        for number in count(step):
            with timer.part("data"):
                batch = next(batches, None)
            if batch is None:
                return
            with timer.part("views"):
                batch = on_device(batch, fabric.device)
                yielded = cutmix(batch, number) if cutmix else batch
            yield yielded

    def measure(backbone: nn.Module, note: Callable[[str], None]) -> dict[str, float]:
        measured = validation.measure(backbone, note)
        if report:
            report(measured)
        return measured

    return Task(
        objective=objective,
        optimizer=optimizer,
        spec=spec,
        prepared=prepared,
        set_lr=make_schedule(config, steps_per_epoch, judge),
        measure=measure,
        measure_due=partial(validation_is_due, config, data, steps_per_epoch),
        epochs=config.epochs,
        steps_per_epoch=steps_per_epoch,
        batch_size=config.batch_size * (len(data.animals) if config.batching == "all" else 1),
        seed=config.seed,
        log_every=config.log_every,
        clip_norm=config.optimizer.clip_norm,
        saving=config.checkpoint,
        open_trackers=partial(open_trackers, config.logging.trackers, run.path, config),
        parts=partial(objective.parts, accumulate=micro_batches(config)),
        autoclip=AutoClip(config.optimizer.autoclip) if config.optimizer.autoclip else None,
        judge=judge,
        average=make_average(objective.backbone, config.average, optimizer),
        remember={"validation": validation},
        profile=config.profile,
        less_memory="lower batch_size or micro_batch, or set precision=bf16-mixed or activation_checkpointing=true",
        title="fit",
        samples="samples",
    )


def fit_optimizer(config: FitConfig, encoder: Encoder) -> Optimizer:
    """The optimiser, with the rates and decays that parts have of their own."""
    of_part = {"core": config.core, "readouts": config.readout, "shifters": config.shifter}
    of_part |= {"modulators": config.modulator, "activations": config.activation}
    settings = config.optimizer
    return make_fit_optimizer(
        encoder,
        settings.name,
        settings.lr,
        settings.weight_decay,
        settings.args,
        lr_of={part: own.lr for part, own in of_part.items()},
        weight_decay_of={part: own.weight_decay for part, own in of_part.items()},
        fused=config.precision != "16-mixed",
    )


def make_judge(schedule: FitScheduleConfig) -> Judge | None:
    """Who says when the rate is lowered or training ends, where anyone does."""
    if schedule.name == "plateau":
        return make_plateau(schedule.counting, schedule.patience, schedule.reductions, schedule.tolerance)
    return EarlyStopping(schedule.patience) if schedule.patience else None


def make_schedule(config: FitConfig, steps_per_epoch: int, judge: Judge | None) -> FitSchedule:
    """The learning rate of each step."""
    own = ("name", "warmup_steps", "warmup_epochs", "warmup_ratio", "min_lr", "second_epoch", "factor")
    keys = {name: getattr(config.schedule, name) for name in own}
    return FitSchedule(steps_per_epoch=steps_per_epoch, epochs=config.epochs, judge=judge, **keys)


def make_cutmix(config: FitConfig, encoder: Encoder) -> CutMix | None:
    """CutMix, where samples are mixed; of a core that makes planes of signals these are pasted too, as published."""
    if not config.cutmix.probability:
        return None
    planes = getattr(encoder.core, "planes", None)
    return CutMix(config.cutmix.probability, config.cutmix.alpha, config.seed, planes)


def micro_batches(config: FitConfig) -> int:
    """Into how many micro-batches a batch is cut."""
    return -(-config.batch_size // config.micro_batch) if config.micro_batch else 1


def validation_is_due(config: FitConfig, data: FitData, steps_per_epoch: int, step: int) -> bool:
    """Whether the encoder is measured after a step: at the end of every so many epochs and of the last one, where there
    are trials to."""
    every, last = config.validation.every_epochs * steps_per_epoch, config.epochs * steps_per_epoch
    due = every and (step % every == 0 or step == last)
    return bool(due and any(map(len, data.trials.validation.values())))


def on_device(batch: Mapping[str, Mapping[str, Tensor]], device: torch.device) -> dict[str, dict[str, Tensor]]:
    """A step's batch on the device, floats in full precision."""
    return {
        animal: {name: value.to(device, non_blocking=True) for name, value in of_animal.items()}
        for animal, of_animal in batch.items()
    }


def announce(config: FitConfig, run: RunFolder, data: FitData, fabric: Fabric, task: Task) -> None:
    """Say what is about to run, and note it in the status."""
    say_trials(data.trials, data.recordings)
    parameters = sum(parameter.numel() for parameter in task.objective.backbone.parameters())
    say(
        f"{config.model or 'encoder of initial'}: {len(data.animals)} animals, {parameters:,} parameters, at most "
        f"{config.epochs} epochs of {task.steps_per_epoch:,} steps\n{device_name(fabric.device)}, {config.precision}; "
        f"run folder {run.path}"
    )
    run.status(
        device=device_name(fabric.device),
        animals={name: len(animal.neuron_ids) for name, animal in data.animals.items()},
        parameters=parameters,
        steps_per_epoch=task.steps_per_epoch,
    )


def note_scores(run: RunFolder) -> None:
    """Put the scores of the best epoch, with what they are of, into the status."""
    fitted = load_fitted(run.path)
    run.status(scores=dict(fitted.scores), score_options=dict(fitted.score_options))
