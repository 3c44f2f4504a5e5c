"""Pretraining from a config to a run folder.

What comes in: a `PretrainConfig`. What goes out: the run folder with `config.yaml`, `metrics.csv`, `checkpoints/`,
`tensorboard/`, and pictures of the views (`views.png`) and of the first layer's filters (`filters.png`).
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from pretrain.augment import draw_parameters, evaluation_view, make_view
from pretrain.checkpoint import BackboneSpec
from pretrain.config import OptimizerConfig, PretrainConfig
from pretrain.loop import Task, Training, derived_seed
from pretrain.models import create_model, model_info
from pretrain.objectives import create_objective, known_objective
from pretrain.pictures import save_filters, save_views
from pretrain.probe import Probe
from pretrain.progress import say
from pretrain.run_folder import RunFolder, open_run
from pretrain.stream import EpochBatches, ShardSet, load_batches, open_shards


def pretrain(config: PretrainConfig, report: Callable[[dict[str, float]], None] | None = None) -> Path:
    """Train a backbone without labels and return its run folder; the same config resumes the same folder.

    Args:
        config: see `murine pretrain --help`.
        report: called with each probe's measurements.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: one line on what is wrong with the config or the data.
        pretrain.loop.TrainingStopped: the loss is not finite.
        KeyboardInterrupt: a signal asked to stop; the state is saved.
    """
    require_consistent(config)
    train = open_shards(config.data.shards)
    held_out = open_shards(config.data.labelled, "data.labelled") if config.data.labelled else None
    steps_per_epoch = train.samples // config.batch_size
    if steps_per_epoch == 0:
        raise ValueError(
            f"batch_size={config.batch_size} is larger than the {train.samples:,} images in {train.folder}"
        )
    fabric = make_fabric(config)
    spec = backbone_spec(config)
    # Made before the folder is, so that a wrong argument leaves no folder behind.
    objective = build_objective(config, spec, train)
    # One process makes the folder; the others would find it half made.
    with fabric.rank_zero_first():
        run = open_run(config, "pretrain", f"{config.model}-{config.objective}")
    run.status(device=device_name(fabric.device), shards=str(train.folder), images=train.samples)
    task = make_task(config, fabric, spec, objective, run, train, held_out, steps_per_epoch, report)
    training = Training(task, fabric, run)
    if fabric.is_global_zero:
        announce(config, run, train, fabric, steps_per_epoch)
        save_pictures_of_views(run.path / "views.png", config, spec, train)
    if training.step < task.steps:
        training.train()
    else:
        say(f"{run.path} is complete already")
    run.status(state="finished")
    return run.path


def require_consistent(config: PretrainConfig) -> None:
    """Fail on a wrong name or on keys that contradict each other before anything is read."""
    model_info(config.model)
    known_objective(config.objective)
    views = config.views
    if views.crop_area_min > views.crop_area_max:
        raise ValueError(
            f"views.crop_area_min={views.crop_area_min} is larger than views.crop_area_max={views.crop_area_max}"
        )


def make_fabric(config: PretrainConfig) -> Fabric:
    # Buffers follow from the data that all processes gather (the bank) or differ little (batch norm's statistics);
    # sending them at every step would cost more than the step.
    strategy = DDPStrategy(broadcast_buffers=False) if config.devices > 1 else "auto"
    fabric = Fabric(
        accelerator=config.accelerator, strategy=strategy, devices=config.devices, precision=config.precision
    )
    fabric.launch()
    if config.batch_size % fabric.world_size:
        raise ValueError(f"batch_size={config.batch_size} cannot be divided by {fabric.world_size} devices")
    return fabric


def backbone_spec(config: PretrainConfig) -> BackboneSpec:
    """Label-free objectives train the backbone without its classifier, unless `model_args.num_classes` asks for it."""
    info = model_info(config.model)
    args = {"num_classes": 0, **config.model_args}
    return BackboneSpec(config.model, args, config.views.size, list(info.mean), list(info.std))


def build_objective(config: PretrainConfig, spec: BackboneSpec, train: ShardSet) -> nn.Module:
    torch.manual_seed(derived_seed(config.seed, "weights"))
    backbone = create_model(spec.name, **spec.args)
    return create_objective(
        config.objective,
        backbone,
        num_samples=train.samples,
        input_size=spec.input_size,
        **config.objective_args,
    )


def make_task(
    config: PretrainConfig,
    fabric: Fabric,
    spec: BackboneSpec,
    objective: nn.Module,
    run: RunFolder,
    train: ShardSet,
    held_out: ShardSet | None,
    steps_per_epoch: int,
    report: Callable[[dict[str, float]], None] | None,
) -> Task:
    """Everything the loop needs, bound to this config."""
    views = Views(config, spec, fabric.device, fabric.global_rank, objective.views)
    probe = Probe(train, held_out, config.probe, views.evaluation)
    if probe.has_labels:
        run.status(knn_chance=1 / len(held_out.labels))

    def measure(note: Callable[[str], None]) -> dict[str, float]:
        measured = probe.measure(objective.backbone, note)
        if report:
            report(measured)
        return measured

    return Task(
        objective=objective.to(fabric.device),
        optimizer=make_optimizer(objective, config.optimizer),
        spec=spec,
        batches=partial(epoch_batches, config, fabric, train),
        prepare=views.training,
        set_lr=partial(set_lr, config=config.optimizer),
        measure=measure,
        epochs=config.epochs,
        steps_per_epoch=steps_per_epoch,
        batch_size=config.batch_size,
        seed=config.seed,
        log_every=config.log_every,
        clip_norm=config.optimizer.clip_norm,
        probe_every_epochs=config.probe.every_epochs,
        saving=config.checkpoint,
        after_measure=partial(save_filters, objective.backbone, run.path / "filters.png"),
    )


def epoch_batches(
    config: PretrainConfig, fabric: Fabric, train: ShardSet, epoch: int, start: int
) -> Iterator[dict[str, Tensor]]:
    batches = EpochBatches(
        train, config.batch_size, config.seed, epoch, config.data.shuffle_buffer, start,
        fabric.global_rank, fabric.world_size,
    )  # fmt: skip
    return load_batches(batches, config.data.workers, pin=fabric.device.type == "cuda")


class Views:
    """Random views for training and the central view for probes, on the training device."""

    def __init__(self, config: PretrainConfig, spec: BackboneSpec, device: torch.device, rank: int, count: int) -> None:
        self.config, self.size, self.device, self.rank, self.count = (
            config,
            spec.input_size,
            device,
            rank,
            count,
        )
        self.mean = torch.tensor(spec.mean, device=device)
        self.std = torch.tensor(spec.std, device=device)

    def training(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        """Add `views` (views, batch, 3, size, size); their parameters follow from (seed, step, rank)."""
        generator = torch.Generator().manual_seed(derived_seed(self.config.seed, "views", step, self.rank))
        images = batch["images"].to(self.device, non_blocking=True)
        drawn = [draw_parameters(batch["sizes"], self.config.views, generator) for _ in range(self.count)]
        views = torch.stack([make_view(images, one, self.size, self.mean, self.std) for one in drawn])
        rest = {key: batch[key].to(self.device) for key in ("index", "label") if key in batch}
        return {"views": views, **rest}

    def evaluation(self, batch: dict[str, Tensor]) -> Tensor:
        """The central view (batch, 3, size, size)."""
        images = batch["images"].to(self.device)
        return evaluation_view(images, batch["sizes"], self.size, self.mean, self.std)


def make_optimizer(objective: nn.Module, config: OptimizerConfig) -> Optimizer:
    """Plain SGD with momentum and weight decay on every parameter, as published."""
    from timm.optim import create_optimizer_v2

    # timm's "sgd" is Nesterov's; "momentum" is the plain one.
    return create_optimizer_v2(
        objective, opt="momentum", lr=config.lr, momentum=config.momentum,
        weight_decay=config.weight_decay, filter_bias_and_bn=False,
    )  # fmt: skip


def set_lr(optimizer: Optimizer, epoch: int, config: OptimizerConfig) -> float:
    """Learning rate of an epoch (counted from 0): multiplied by the decay rate at the start of each decay epoch."""
    lr = config.lr * config.decay_rate ** sum(epoch >= boundary for boundary in config.decay_epochs)
    for group in optimizer.param_groups:
        group["lr"] = lr
    return lr


def save_pictures_of_views(path: Path, config: PretrainConfig, spec: BackboneSpec, train: ShardSet) -> None:
    """A few training images, each beside random views of it, before normalisation."""
    if path.exists():
        return
    batch = next(load_batches(EpochBatches(train, batch_size=8, drop_last=False), workers=0))
    plain = BackboneSpec(spec.name, spec.args, spec.input_size, [0.0] * 3, [1.0] * 3)
    views = Views(config, plain, torch.device("cpu"), rank=0, count=5)
    save_views(views.evaluation(batch), views.training(batch, step=0)["views"], path)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)"


def announce(config: PretrainConfig, run: RunFolder, train: ShardSet, fabric: Fabric, steps_per_epoch: int) -> None:
    """Say what is about to run, and what is left out of an epoch."""
    left_out = train.samples - steps_per_epoch * config.batch_size
    rest = f", {left_out:,} others each epoch left out of the last, incomplete batch" if left_out else ""
    say(
        f"{config.model} with {config.objective}: {train.samples:,} images, {config.epochs} epochs of "
        f"{steps_per_epoch:,} steps{rest}\n{fabric.world_size} x {device_name(fabric.device)}, {config.precision}; "
        f"run folder {run.path}"
    )
