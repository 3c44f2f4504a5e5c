"""What objectives teach the same network on the same images, beside random weights.

Comes in: `--train` and `--test`, folders of labelled shards, and `--depth`, one of shards with depth maps (what is not
given is simulated); `--objectives` that have a recipe `cifar10_<objective>`; `--epochs`, `--seeds`, and `--set` for
further keys. Goes out: a table and one line of JSON. Runs lie in `--out`, where the same command resumes.

Measured are the accuracy of weighted nearest neighbours, test images among training images, on each fit layer, the last
of which is the output; and of the output a linear probe and RankMe. The floor is the network as it is drawn, after an
epoch at learning rate 0, which sets batch norm's statistics. An objective that wants depth is trained on other images,
and measured on the same ones.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from timing import rounded
from torch import Tensor
from torch.nn.functional import normalize

from pretrain.augment import evaluation_view
from pretrain.checkpoint import TrainedBackbone, load_trained_backbone
from pretrain.config import PretrainConfig
from pretrain.linear_probe import fit_linear_probe
from pretrain.models import model_info
from pretrain.objectives import known_objective
from pretrain.probe import RANK_IMAGES, knn_accuracy, rankme
from pretrain.run import pretrain
from pretrain.shard_set import open_shards
from pretrain.shards import write_shards
from pretrain.stream import EpochBatches, load_batches
from ray_jobs.config import compose, list_recipes
from ray_jobs.verbs import simulated_source
from transfer.features import extract_features

RECIPES = "cifar10_"
FLOOR = "random weights"
SIDE = 32
BATCH = 256


def main() -> None:
    known = [name.removeprefix(RECIPES) for name in list_recipes("pretrain") if name.startswith(RECIPES)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--depth", type=Path)
    parser.add_argument("--objectives", nargs="*", default=known, choices=known, metavar="NAME", help=", ".join(known))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="over every recipe")
    parser.add_argument("--out", type=Path, help="where run folders lie (default: a temporary folder)")
    parser.add_argument("--quick", action="store_true", help="two epochs of a few images, by two objectives")
    options = parser.parse_args()
    if options.quick:
        options.objectives, options.epochs = ["autoencoding", "depth_prediction"], 2
    with tempfile.TemporaryDirectory() as scratch:
        figures = compare(options, Path(scratch))
    print(json.dumps(figures))


def compare(options: argparse.Namespace, scratch: Path) -> dict[str, dict[str, object]]:
    """Train and measure every objective with every seed, each of which is a row of the table; returns all rows."""
    images = 256 if options.quick else 5000
    train = options.train or simulated(scratch / "train", f"images={images}")
    test = options.test or simulated(scratch / "test", f"images={images}", "where=split=test")
    depth = options.depth or simulated(scratch / "depth", f"images={images}", "depth=simulated")
    print(f"{'':<36}{'kNN, output':>12}{'kNN, best layer':>24}{'linear':>8}{'RankMe':>8}{'images/s':>10}")
    figures = {}
    for objective in (FLOOR, *options.objectives):
        for seed in options.seeds:
            name = f"{objective}, seed {seed}"
            out = (options.out or scratch) / name.replace(", ", "-").replace(" ", "_")
            keys = dict(each.split("=", 1) for each in options.set)
            keys |= {"epochs": options.epochs, "seed": seed, "out": out, "probe.every_epochs": 0}
            # So few steps would leave no row.
            keys |= {"log_every": 1} if options.quick else {}
            figures[name] = measured(config_of(objective, keys, train, depth), train, test)
            print_row(name, figures[name])
    return figures


def config_of(objective: str, keys: dict[str, object], train: Path, depth: Path) -> PretrainConfig:
    """The objective's recipe with keys, on images with depth where it wants them; the floor's weights never move."""
    recipe, images = objective, train
    if objective == FLOOR:
        recipe, keys = "simclr", keys | {"epochs": 1, "optimizer.lr": 0, "optimizer.warmup_epochs": 0}
    elif known_objective(objective).wants.depth:
        images = depth
    given = {"recipe": RECIPES + recipe, "data.shards": images} | keys
    return compose("pretrain", [f"{key}={value}" for key, value in given.items()])


def simulated(folder: Path, *keys: str) -> Path:
    config = compose("shards", ["source=simulated", f"size={SIDE}", f"out={folder}", *keys])
    write_shards(simulated_source(config), config)
    return folder


def measured(config: PretrainConfig, train: Path, test: Path) -> dict[str, object]:
    """Train, unless the run folder is complete already, and measure the backbone on labelled images."""
    folder = pretrain(config)
    trained = load_trained_backbone(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained.backbone.to(device)
    layers = model_info(config.model).fit_layers
    (bank, bank_labels), (images, labels) = (features(trained, folder, layers, device) for folder in (train, test))
    vote = config.probe.k, config.probe.temperature
    accuracy = {name: knn_accuracy(bank[name], bank_labels, images[name], labels, *vote) for name in layers}
    best, output = max(accuracy, key=accuracy.get), layers[-1]
    speed = pd.read_csv(folder / "metrics.csv")["images_per_s"].median()
    return rounded(
        {
            "knn_output": accuracy[output],
            "knn_best": accuracy[best],
            "best_layer": best,
            "linear": fit_linear_probe(bank[output], bank_labels).accuracy(images[output], labels),
            "rankme": rankme(images[output][:RANK_IMAGES]),
            "images_per_s": float(speed),
            "knn": {name: round(value, 4) for name, value in accuracy.items()},
        }
    )


def features(
    trained: TrainedBackbone, shards: Path, layers: Sequence[str], device: torch.device
) -> tuple[dict[str, Tensor], Tensor]:
    """L2-normalised activations (images, d) of each layer for all images of some shards, and labels (images,)."""
    spec, parts, labels = trained.spec, [], []
    mean, std = (torch.tensor(values, device=device) for values in (spec.mean, spec.std))
    for batch in load_batches(EpochBatches(open_shards(shards), BATCH, drop_last=False), workers=0):
        seen = evaluation_view(batch["images"].to(device), batch["sizes"], spec.input_size, mean, std)
        found = extract_features(trained.backbone, seen, layers)
        parts.append({name: normalize(each.flatten(1).float(), dim=1) for name, each in found.items()})
        labels.append(batch["label"].to(device))
    return {name: torch.cat([part[name] for part in parts]) for name in layers}, torch.cat(labels)


def print_row(name: str, row: dict[str, object]) -> None:
    best = f"{row['knn_best']:.3f} ({row['best_layer']})"
    print(
        f"{name:<36}{row['knn_output']:>12.3f}{best:>24}{row['linear']:>8.3f}{row['rankme']:>8.0f}"
        f"{row['images_per_s']:>10.0f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
