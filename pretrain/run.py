"""Pretraining from a config to a run folder.

What comes in: a `PretrainConfig`. What goes out: the run folder with `config.yaml`, `metrics.csv`, `checkpoints/`,
`tensorboard/`, and pictures of the views (`views.png`) and of the first layer's filters (`filters.png`).
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from pretrain.accumulate import accumulation_warning
from pretrain.average import make_average
from pretrain.batch_size import fitting_batch_size, require_gpu
from pretrain.checkpoint import BackboneSpec, load_matching
from pretrain.clip_times import ShownTimes
from pretrain.config import AUTO, PretrainConfig
from pretrain.core_backbone import CoreBackbone, create_backbone
from pretrain.execution import set_up_execution
from pretrain.largest_batch import memory_before_training
from pretrain.loop import Training
from pretrain.models import IMAGENET_MEAN, IMAGENET_STD, TIMM_PREFIX, core_names, model_info
from pretrain.models.sync_norm import convert_sync_batch_norm
from pretrain.objectives import create_objective, known_objective
from pretrain.objectives.objective import Objective, Wants
from pretrain.optimizer import make_optimizer, require_known_optimizer
from pretrain.pictures import save_contact_sheet, save_filters
from pretrain.probe import Probe, probe_is_due
from pretrain.progress import say
from pretrain.randomness import derived_seed
from pretrain.resident import ESTIMATE_MARGIN, bytes_on_device, open_resident
from pretrain.run_folder import RunFolder, open_run
from pretrain.schedule import require_possible_schedule, set_learning_rate
from pretrain.shard_cache import ShardCache, cache_folder
from pretrain.shard_set import CLIPS, IMAGES, Damage, ShardSet, open_shards
from pretrain.step_timer import StepTimer
from pretrain.stream import EpochBatches, load_batches
from pretrain.task import Task
from pretrain.trackers import open_trackers, require_installed
from pretrain.views import ViewMaker, require_possible

MOST_READERS = 8
SHEET_IMAGES = 8


@memory_before_training()
def pretrain(config: PretrainConfig, report: Callable[[dict[str, float]], None] | None = None) -> Path:
    """Train a backbone without labels and return its run folder; the same config resumes the same folder.

    Args:
        config: see `murine pretrain --help`.
        report: called with each probe's measurements.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: one line on what is wrong with the config or the data.
        pretrain.loop.TrainingStopped: the loss is not finite, or memory or disk are full.
        MemoryError: memory ended before the first step.
        KeyboardInterrupt: a signal asked to stop; the state is saved.
    """
    require_consistent(config)
    train = opened_set(config, "data.shards")
    held_out = opened_set(config, "data.labelled") if config.data.labelled else None
    require_one_batch(config, train)
    if held_out:
        require_same_classes(train, held_out)
    spec = backbone_spec(config)
    # Made before the folder is, so that a wrong argument leaves no folder behind.
    objective = build_objective(config, spec, train)
    optimizer = make_optimizer(objective, config.optimizer, fused=config.precision != "16-mixed")
    fabric = make_fabric(config, unused=bool(getattr(objective.backbone, "unused_parameters", ())))
    if config.sync_batch_norm and fabric.world_size > 1:
        objective = convert_sync_batch_norm(objective)
    set_up_execution(objective.to(fabric.device), config)
    if config.batch_size == AUTO:
        require_gpu(fabric.device)
    # One process makes the folder; the others would find it half made.
    with fabric.rank_zero_first():
        run = open_run(config, "pretrain", f"{config.model}-{config.objective}")
    if config.batch_size == AUTO:
        config = replace(config, batch_size=found_batch_size(config, fabric, spec, train, run))
    run.status(
        device=device_name(fabric.device), shards=str(train.folder), images=train.samples, batch_size=config.batch_size
    )
    task = make_task(config, fabric, spec, objective, optimizer, run, train, held_out, report)
    training = Training(task, fabric, run)
    if fabric.is_global_zero:
        announce(config, run, train, fabric, task.steps_per_epoch)
        draw_views(config, run.path / "views.png")
    if not training.finished:
        training.train()
    else:
        say(f"{run.path} is complete already")
    if fabric.is_global_zero:
        run.status(state="finished")
    return run.path


def opened_set(config: PretrainConfig, key: str) -> ShardSet:
    """The shards that `data.shards` or `data.labelled` names, those of URLs through the cache on the local disk."""
    data = config.data
    folder = getattr(data, key.removeprefix("data."))
    cache = ShardCache(Path(data.cache_folder or cache_folder()).expanduser(), int(data.cache_gib * 2**30))
    return open_shards(folder, key, data.damaged_share, cache)


def require_consistent(config: PretrainConfig) -> None:
    """Fail on a wrong name or on keys that contradict each other before anything is read."""
    if config.model not in core_names():
        model_info(config.model)
    known_objective(config.objective)
    views = config.views
    for low, high in (
        ("crop_area_min", "crop_area_max"),
        ("local_crop_area_min", "local_crop_area_max"),
        ("blur_sigma_min", "blur_sigma_max"),
    ):
        if getattr(views, low) > getattr(views, high):
            raise ValueError(f"views.{low}={getattr(views, low)} is larger than views.{high}={getattr(views, high)}")
    require_possible_schedule(config.epochs, config.optimizer)
    require_known_optimizer(config.optimizer.name)
    require_installed(config.logging.trackers)


def require_one_batch(config: PretrainConfig, train: ShardSet) -> None:
    """Fail where the images do not fill a batch, or a batch cannot be cut as the config says."""
    if config.batch_size == AUTO:
        return
    if config.batch_size > sum(train.readable):
        raise ValueError(
            f"batch_size={config.batch_size} is larger than the {train.samples:,} {train.kind} in {train.folder}"
        )
    if config.batch_size % (config.devices * config.accumulate):
        raise ValueError(
            f"batch_size={config.batch_size} cannot be cut into equal parts for devices={config.devices} and "
            f"accumulate={config.accumulate}"
        )


def require_same_classes(train: ShardSet, held_out: ShardSet) -> None:
    """Fail where a class has one number in the training shards and another in the held-out ones."""
    numbers = {name: number for number, name in enumerate(train.class_names)}
    for number, name in enumerate(held_out.class_names):
        if numbers.get(name, number) != number:
            raise ValueError(
                f"class {name!r} has number {numbers[name]} in data.shards={train.folder} and {number} in "
                f"data.labelled={held_out.folder}; write one of them again with the other's numbers, by "
                "`murine shards labels=<list of names and numbers>`"
            )


def wanted(config: PretrainConfig) -> Wants:
    """What the objective wants of each image; the number of local views is an argument of some."""
    wants = known_objective(config.objective).wants
    return replace(wants, local_views=config.objective_args.get("local_views", wants.local_views))


def require_wanted(config: PretrainConfig, wants: Wants, train: ShardSet) -> None:
    """Fail where the objective wants of each image what the shards, or the keys of its views, do not give."""
    require_possible(config.views, wants)
    takes_clips = config.model in core_names() and core_names()[config.model].video
    if (train.kind == CLIPS) != takes_clips:
        raise ValueError(
            f"{train.folder} holds {train.kind}, and model={config.model} takes {CLIPS if takes_clips else IMAGES}; "
            "write shards of those, or choose another model"
        )
    if takes_clips and (wants.patches or wants.depth or wants.local_views):
        raise ValueError(
            f"objective={config.objective} wants patches, depth maps or local views, which there are of images only; "
            "of clips there are views, as instance_recognition or simclr want them"
        )
    if wants.label and not train.labels:
        raise ValueError(
            f"objective={config.objective} wants a class of each image, and {train.folder} has none; write shards from "
            "class folders or from a Parquet file with label_column="
        )
    if wants.depth and not train.depth:
        raise ValueError(
            f"objective={config.objective} wants a depth map of each image, and {train.folder} has none; write shards "
            "with depth=<folder of depth images of the same names>"
        )


def require_device(accelerator: str) -> None:
    """One line where a kind of device is asked for that is not here."""
    here = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if accelerator in here and not here[accelerator]():
        raise ValueError(f"accelerator={accelerator}, and no such device is found here; set accelerator=auto or cpu")


def make_fabric(config: PretrainConfig, unused: bool = False) -> Fabric:
    """The devices of a run; `unused` says that some parameters of the backbone take no part in its output."""
    require_device(config.accelerator)
    # Buffers follow from the data that all processes gather (the bank) or differ little (batch norm's statistics);
    # sending them at every step would cost more than the step.
    strategy = DDPStrategy(broadcast_buffers=False, find_unused_parameters=unused) if config.devices > 1 else "auto"
    fabric = Fabric(
        accelerator=config.accelerator, strategy=strategy, devices=config.devices, precision=config.precision
    )
    fabric.launch()
    return fabric


def backbone_spec(config: PretrainConfig) -> BackboneSpec:
    """Objectives bring their own heads, so the backbone has no classifier, unless `model_args.num_classes` is set.

    Cores of encoding models see grey levels with the mean and standard deviation that colours have on average.
    """
    if config.model in core_names():
        mean, std = ([sum(each) / 3] * 3 for each in (IMAGENET_MEAN, IMAGENET_STD))
        return BackboneSpec(config.model, config.model_args, config.views.size, mean, std)
    info = model_info(config.model)
    args = {"num_classes": 0} if info.classifier else {}
    if config.model.startswith(TIMM_PREFIX):
        args["input_size"] = config.views.size
    args |= config.model_args
    return BackboneSpec(config.model, args, config.views.size, list(info.mean), list(info.std))


def build_objective(config: PretrainConfig, spec: BackboneSpec, train: ShardSet) -> Objective:
    """The backbone, with its initial weights, inside the objective."""
    require_wanted(config, wanted(config), train)
    torch.manual_seed(derived_seed(config.seed, "weights"))
    backbone = create_backbone(spec.name, **spec.args)
    if isinstance(backbone, CoreBackbone):
        backbone.require_clips_of(config.views.clip_frames, config.views.size)
    # Before the objective is made, because some copy the backbone as their teacher.
    if config.initial_weights:
        load_matching(backbone, config.initial_weights)
    elif config.objective == "linear_readout":
        say("WARNING: initial_weights is not set, so the readout is of a backbone with random weights")
    return create_objective(
        config.objective,
        backbone,
        num_samples=train.samples,
        input_size=spec.input_size,
        classes=train.classes,
        **config.objective_args,
    )


def make_task(
    config: PretrainConfig,
    fabric: Fabric,
    spec: BackboneSpec,
    objective: Objective,
    optimizer: Optimizer,
    run: RunFolder,
    train: ShardSet,
    held_out: ShardSet | None,
    report: Callable[[dict[str, float]], None] | None,
) -> Task:
    """Everything the loop needs, bound to this config."""
    steps_per_epoch = sum(train.readable) // config.batch_size
    views = ViewMaker(
        config.views, spec, objective.wants, config.seed, fabric.device, fabric.global_rank, fabric.world_size
    )
    damage = Damage(train)
    probe = Probe(train, held_out, config.probe, views.evaluation, views.pair, views.probe_times())
    if probe.has_labels and fabric.is_global_zero:
        run.status(knn_chance=1 / len(held_out.labels))
    if warning := accumulation_warning(objective, config.objective, config.accumulate):
        say(warning)

    def prepared(step: int, timer: StepTimer) -> Iterator[dict[str, Tensor]]:
        batches = training_batches(config, fabric, train, damage, views.times(step), *divmod(step, steps_per_epoch))
        if fabric.world_size > 1:
            batches = told_of_damage(batches, damage, step, steps_per_epoch)
        for number, made in enumerate(views.stream(batches, step, timer), step):
            # A tensor would be moved to the GPU by DDP, and waited for where a schedule reads it.
            epoch = np.float64(number / steps_per_epoch)
            yield {**made, "epoch": epoch, "progress": epoch / config.epochs}

    def measure(backbone: nn.Module, note: Callable[[str], None]) -> dict[str, float]:
        measured = probe.measure(backbone, note)
        if hasattr(objective, "logits") and held_out and held_out.labels:
            measured |= probe.classification(objective, note)
        if fabric.is_global_zero:
            save_filters(backbone, run.path / "filters.png")
        if report:
            report(measured)
        return measured

    return Task(
        objective=objective,
        optimizer=optimizer,
        spec=spec,
        prepared=prepared,
        set_lr=partial(
            set_learning_rate, steps_per_epoch=steps_per_epoch, epochs=config.epochs, config=config.optimizer
        ),
        measure=measure,
        measure_due=partial(probe_is_due, config.probe, steps_per_epoch=steps_per_epoch),
        epochs=config.epochs,
        steps_per_epoch=steps_per_epoch,
        batch_size=config.batch_size,
        seed=config.seed,
        log_every=config.log_every,
        clip_norm=config.optimizer.clip_norm,
        saving=config.checkpoint,
        open_trackers=partial(open_trackers, config.logging.trackers, run.path, config),
        accumulate=config.accumulate,
        average=make_average(objective.backbone, config.average, optimizer),
        remember={"probe": probe, "damage": damage},
        profile=config.profile,
        activation_checkpointing=config.activation_checkpointing,
        at_end=probe.time.tell_at_end,
    )


def training_batches(
    config: PretrainConfig, fabric: Fabric, train: ShardSet, damage: Damage, times: ShownTimes, epoch: int, start: int
) -> Iterator[dict[str, Tensor]]:
    """This device's part of all batches from number `start` of an epoch on, from memory where the set fits in it.

    Of clips that do not, only the frames at the times that views show are decoded.
    """
    epochs = config.epochs - epoch
    wanted = EpochBatches(
        train, config.batch_size, config.seed, epoch, config.data.shuffle_buffer, start,
        fabric.global_rank, fabric.world_size, epochs=epochs, times=times,
    )  # fmt: skip
    readers = reader_processes(config, fabric)
    # Decoding everything first pays where images are seen again.
    if epochs > 1:
        shares = config.data.device_share, config.data.memory_share
        if held := open_resident(train, fabric.device, *shares, readers, damage, config.devices):
            return held.batches(wanted)
    return load_batches(wanted, readers, fabric.device.type == "cuda", damage)


def told_of_damage(
    batches: Iterator[dict[str, Tensor]], damage: Damage, step: int, steps_per_epoch: int
) -> Iterator[dict[str, Tensor]]:
    """The same batches, from that of `step` on; at the end of each epoch each process hears what the others could not
    read, so that the allowed share is that of all together."""
    for number, batch in enumerate(batches, step + 1):
        if number % steps_per_epoch == 0:
            named: list[list[str]] = [[] for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather_object(named, list(damage.named))
            damage.note([problem for each in named for problem in each])
        yield batch


def reader_processes(config: PretrainConfig, fabric: Fabric) -> int:
    """How many processes read for each device; a CPU that trains has little to spare."""
    if config.data.workers != AUTO:
        return config.data.workers
    if fabric.device.type == "cpu":
        return 1
    return max(1, min(MOST_READERS, (os.cpu_count() or 1) // config.devices - 1))


def found_batch_size(
    config: PretrainConfig, fabric: Fabric, spec: BackboneSpec, train: ShardSet, run: RunFolder
) -> int:
    """The largest batch over all devices that fits, which a run keeps once it has been found."""
    if "batch_size" in run.facts:
        return run.facts["batch_size"]
    most = sum(train.readable) // fabric.world_size
    # The room of a set that will live on the device is not for batches.
    held = bytes_on_device(train, fabric.device, config.data.device_share) if config.epochs > 1 else 0
    room = torch.empty(int(held * ESTIMATE_MARGIN), dtype=torch.uint8, device=fabric.device)
    found = torch.tensor(fitting_batch_size(config, spec, train, fabric, most), device=fabric.device)
    del room
    torch.cuda.empty_cache()
    # All devices take equal parts, so the one with the least memory decides.
    size = -int(fabric.all_reduce(-found, reduce_op="max")) * fabric.world_size
    say(f"batch_size=auto: {size:,}")
    return size


def draw_views(config: PretrainConfig, path: Path) -> Path:
    """A contact sheet of what a pretraining with this config sees of a few images; returns its path."""
    require_consistent(config)
    train = opened_set(config, "data.shards")
    wants = wanted(config)
    require_wanted(config, wants, train)
    batch = next(load_batches(EpochBatches(train, batch_size=SHEET_IMAGES, drop_last=False), workers=0))
    plain = BackboneSpec(config.model, {}, config.views.size, [0.0] * 3, [1.0] * 3)
    save_contact_sheet(batch, ViewMaker(config.views, plain, wants, config.seed, torch.device("cpu")), path)
    return path


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)"


def announce(config: PretrainConfig, run: RunFolder, train: ShardSet, fabric: Fabric, steps_per_epoch: int) -> None:
    """Say what is about to run, and what is left out of an epoch."""
    left_out = train.samples - steps_per_epoch * config.batch_size
    rest = f", {left_out:,} others each epoch left out of the last, incomplete batch" if left_out else ""
    say(
        f"{config.model} with {config.objective}: {train.samples:,} {train.kind}, {config.epochs} epochs of "
        f"{steps_per_epoch:,} steps{rest}\n{fabric.world_size} x {device_name(fabric.device)}, {config.precision}; "
        f"run folder {run.path}"
    )
