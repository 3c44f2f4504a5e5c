"""Images per second of whole training steps, beside the forward and backward pass alone.

Comes in: `--models`, `--objectives`, `--precision`, `--batch-size`; `--shards`, a folder of shards (without it, images
of 96 pixels are simulated); `--quick` takes fewer steps. Goes out: a table and one line of JSON.

Both sides are the same objective on the same device in one process, in turn. "Training" is the loop as `murine
pretrain` runs it: images out of memory, views, forward, backward, optimiser, bank or queue, progress, metrics.csv.
"Model only" is forward, backward and the objective's own step (bank, queue, teacher) on one batch of views that lies on
the device already; "with optimiser" adds the optimiser. What limits training is named by the milliseconds of each of
its parts. `--bank` is the number of images that instance recognition has a row for; on a GPU it is ImageNet's, and so
are the hours of the paper's 200 epochs.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from timing import median_seconds, rounded
from torch import Tensor

from pretrain.config import PretrainConfig, ShardsConfig
from pretrain.execution import set_up_execution
from pretrain.log import Log
from pretrain.loop import Training
from pretrain.models import create_model
from pretrain.objectives import create_objective
from pretrain.objectives.instance_recognition import IMAGENET_IMAGES
from pretrain.optimizer import make_optimizer
from pretrain.progress import progress
from pretrain.run import backbone_spec, make_fabric, make_task
from pretrain.run_folder import RunFolder
from pretrain.shard_set import ShardSet, open_shards
from pretrain.shards import write_shards
from pretrain.stop_signal import StopSignal
from ray_jobs.config import compose_mapping
from ray_jobs.verbs import simulated_source

EPOCHS = 200
STEPS_PER_EPOCH = 10**6
PUBLISHED = {"instance_recognition": "alexnet_bn_ir", "simclr": "alexnet_bn_simclr"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["alexnet_bn"])
    parser.add_argument("--objectives", nargs="+", default=list(PUBLISHED))
    parser.add_argument("--precision", nargs="+", default=["32-true"])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--shards", type=Path)
    parser.add_argument("--recipes", help="take the recipe of that beginning and the objective's name, as `cifar10_`")
    parser.add_argument("--bank", type=int, help="rows of instance recognition's bank (default: ImageNet's on a GPU)")
    parser.add_argument("--seconds", type=float, default=5.0, help="about how long a round of one job takes")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--quick", action="store_true", help="few steps, small batches and 3 rounds instead of 5")
    options = parser.parse_args()
    if options.quick:
        options.batch_size = min(options.batch_size, 64)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.shards or simulated_shards(Path(scratch) / "shards", 8 * options.batch_size)
        shards = open_shards(folder)
        figures = {}
        for model in options.models:
            for objective in options.objectives:
                for precision in options.precision:
                    home = Path(scratch) / f"{model}-{objective}-{precision}"
                    name = f"{model}, {objective}, {precision}"
                    figures[name] = measure(
                        name, config_of(model, objective, precision, options, folder), shards, home, options
                    )
    print(json.dumps({name: rounded(values) for name, values in figures.items()}))


def simulated_shards(folder: Path, images: int) -> Path:
    config = ShardsConfig(source="simulated", out=str(folder), size=96, images=images)
    write_shards(simulated_source(config), config)
    return folder


def config_of(model: str, objective: str, precision: str, options: argparse.Namespace, shards: Path) -> PretrainConfig:
    """The published recipe of the objective, with another backbone and batch."""
    recipe = f"{options.recipes}{objective}" if options.recipes else PUBLISHED.get(objective, PUBLISHED["simclr"])
    return compose_mapping(
        "pretrain",
        {
            "recipe": recipe,
            "model": model,
            "objective": objective,
            "data.shards": str(shards),
            "batch_size": options.batch_size,
            "precision": precision,
            "compile": options.compile,
            "channels_last": options.channels_last,
            "probe.every_epochs": 0,
            "checkpoint.every_minutes": 1e6,
            # Never reached: rounds take as many steps as they take.
            "epochs": 100_000,
        },
    )


def measure(
    name: str, config: PretrainConfig, shards: ShardSet, home: Path, options: argparse.Namespace
) -> dict[str, float]:
    """Time a training and its model alone, and print a row."""
    training, stream = start(config, shards, home, options.bank)
    steps = steps_of_a_round(training, next(stream), 0 if options.quick else options.seconds)
    fixed = next(stream)
    jobs = {
        "training": lambda: train(training, stream, steps),
        "model only": lambda: model_only(training, fixed, steps),
        "with optimiser": lambda: with_optimiser(training, fixed, steps),
    }
    seconds = median_seconds(jobs, 3 if options.quick else 5)
    speed = {job: steps * config.batch_size / each for job, each in seconds.items()}
    device = training.fabric.device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    hours = EPOCHS * IMAGENET_IMAGES / speed["training"] / 3600
    share = speed["training"] / speed["model only"]
    print(
        f"{name} ({where}, batch {config.batch_size}): training {speed['training']:,.0f} images/s, model only "
        f"{speed['model only']:,.0f} ({share:.1%}), with optimiser {speed['with optimiser']:,.0f} "
        f"({speed['training'] / speed['with optimiser']:.1%}); {EPOCHS} epochs of ImageNet {hours:,.1f} h"
    )
    print(
        "    " + ", ".join(f"{part.removesuffix('_ms')} {each:.2f} ms" for part, each in parts(training, stream, steps))
    )
    return {
        "share_of_model_only": share,
        "share_of_model_and_optimizer": speed["training"] / speed["with optimiser"],
        "images_per_s": speed["training"],
        "model_only_images_per_s": speed["model only"],
        "imagenet_200_epochs_h": hours,
    }


def start(
    config: PretrainConfig, shards: ShardSet, home: Path, bank: int | None
) -> tuple[Training, Iterator[dict[str, Tensor]]]:
    """A training that is ready to go, and its prepared batches."""
    fabric = make_fabric(config)
    spec = backbone_spec(config)
    rows = bank or (IMAGENET_IMAGES if fabric.device.type == "cuda" else shards.samples)
    objective = create_objective(
        config.objective,
        create_model(spec.name, **spec.args),
        num_samples=rows,
        input_size=spec.input_size,
        classes=shards.classes,
        **config.objective_args,
    ).to(fabric.device)
    set_up_execution(objective, config)
    optimizer = make_optimizer(objective, config.optimizer)
    home.mkdir()
    run = RunFolder(home, "pretrain")
    training = Training(make_task(config, fabric, spec, objective, optimizer, run, shards, None, None), fabric, run)
    training.log = Log(home, 0, [], training.task.samples)
    # A small set has short epochs; their checkpoints are not what is measured.
    training.task.steps_per_epoch = STEPS_PER_EPOCH
    return training, training.task.prepared(0, training.timer)


def steps_of_a_round(training: Training, batch: dict[str, Tensor], seconds: float) -> int:
    """Steps that take about so many seconds, a multiple of those between two rows of the log; 2 for 0 seconds."""
    if not seconds:
        return 2
    step = median_seconds({"step": lambda: model_only(training, batch, 2)}, 3)["step"] / 2
    every = training.task.log_every
    return max(every, round(seconds / step / every) * every)


def train(training: Training, stream: Iterator[dict[str, Tensor]], steps: int) -> None:
    stop = StopSignal()
    with progress("training", steps * training.task.batch_size) as meter:
        for _ in range(steps):
            training.train_step(next(stream))
            training.after_step(meter, stop)
    wait(training)


def model_only(training: Training, batch: dict[str, Tensor], steps: int) -> None:
    for _ in range(steps):
        training.gradients(batch)
        # Takes away what the forward pass has left for the step: rows of a bank, keys of a queue.
        training.task.objective.after_step()
    wait(training)


def with_optimiser(training: Training, batch: dict[str, Tensor], steps: int) -> None:
    for _ in range(steps):
        training.gradients(batch)
        training.optimizer.step()
        training.task.objective.after_step()
    wait(training)


def wait(training: Training) -> None:
    if training.fabric.device.type == "cuda":
        torch.cuda.synchronize()


def parts(training: Training, stream: Iterator[dict[str, Tensor]], steps: int) -> list[tuple[str, float]]:
    """Milliseconds per step of each part of training."""
    training.timer.reset()
    for _ in range(steps):
        training.train_step(next(stream))
    return [(part, each) for part, each in training.timer.read(steps).items() if part.endswith("_ms")]


if __name__ == "__main__":
    main()
