"""How many images a device can train on at a time.

What comes in: the config of a pretraining, and the device. What goes out: the largest batch of one device with which
whole steps fit into its memory: images, the views of as many steps as are made at once, forward, backward, the
optimiser and the average of the weights. A set that lives on the device comes on top.
"""

from dataclasses import replace

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim import Optimizer

from pretrain.accumulate import split_batch
from pretrain.average import make_average
from pretrain.checkpoint import BackboneSpec
from pretrain.config import PretrainConfig
from pretrain.core_backbone import create_backbone
from pretrain.execution import set_up_execution
from pretrain.largest_batch import largest_batch
from pretrain.objectives import create_objective, known_objective
from pretrain.objectives.objective import Objective
from pretrain.optimizer import make_optimizer
from pretrain.shard_set import ShardSet
from pretrain.stream import EpochBatches, load_batches
from pretrain.views import ViewMaker

FIRST_TRY = 64
# Views are made for several steps at a time, and those of one time are still there while the next are made.
TIMES = 2
# Of each time: optimisers allocate in their first step; further ones see memory that has been cut into pieces.
STEPS = 2


def fitting_batch_size(config: PretrainConfig, spec: BackboneSpec, train: ShardSet, fabric: Fabric, most: int) -> int:
    """A multiple of 8, and at most `most`, for one device.

    Raises:
        ValueError: the device is no GPU, or not even 8 images fit.
    """
    device = fabric.device
    require_gpu(device)
    few = first_batch(config, spec, train)

    def try_step(images: int) -> None:
        backbone = create_backbone(spec.name, **spec.args)
        objective = create_objective(
            config.objective,
            backbone,
            num_samples=train.samples,
            input_size=spec.input_size,
            classes=train.classes,
            **config.objective_args,
        ).to(device)
        set_up_execution(objective, replace(config, compile=False))
        optimizer = make_optimizer(objective, config.optimizer, fused=config.precision != "16-mixed")
        average = make_average(objective.backbone, config.average, optimizer)
        views = ViewMaker(config.views, spec, objective.wants, config.seed, device)
        batches = [repeated(few, images)] * views.at_once
        for _ in range(TIMES):
            made = views.of_steps(batches, step=0)
            for number in range(STEPS):
                train_step(objective, optimizer, fabric, made[number % len(made)], config.accumulate)
                if average:
                    average.update(objective.backbone, step=1)

    return largest_batch(try_step, FIRST_TRY, most)


def first_batch(config: PretrainConfig, spec: BackboneSpec, train: ShardSet) -> dict[str, Tensor]:
    """A few images or clips, as training reads them."""
    wants = known_objective(config.objective).wants
    times = ViewMaker(config.views, spec, wants, config.seed, torch.device("cpu")).times(step=0)
    wanted = EpochBatches(train, min(FIRST_TRY, train.samples), drop_last=False, times=times)
    return next(load_batches(wanted, workers=0))


def train_step(objective: Objective, optimizer: Optimizer, fabric: Fabric, made: dict[str, Tensor], parts: int) -> None:
    """One step with a batch that goes through in so many parts."""
    optimizer.zero_grad()
    for part in split_batch(made | {"epoch": torch.tensor(0.0), "progress": torch.tensor(0.0)}, parts):
        with fabric.autocast():
            loss = objective(part)["loss"]
        loss.backward()
    optimizer.step()
    objective.after_step()


def require_gpu(device: torch.device) -> None:
    """One line where there is no GPU whose memory could be filled."""
    if device.type != "cuda":
        raise ValueError(
            f"batch_size=auto looks for what fits on a GPU, and this run is on {device.type}; set a number"
        )


def repeated(batch: dict[str, Tensor], images: int) -> dict[str, Tensor]:
    """A batch of so many images, the same few again and again."""
    rows = torch.arange(images) % len(batch["index"])
    return {key: value[rows] for key, value in batch.items()}
