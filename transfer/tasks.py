"""What a model's layers tell beside neurons: textures, and objects with their position, pose and size.

What comes in: a checkpoint and the images of a task. What goes out: a run folder with `tasks.csv` and `.parquet`, one
row per model, layer, target, variable and split: accuracy or R², correlation, and the chosen C. Images pass the model's
evaluation transform; a layer with more than 1000 features is reduced to principal components of the train images. The
tasks are those of mouse-vision (Nayebi, Kong et al. 2023, https://doi.org/10.1371/journal.pcbi.1011506).
"""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from pretrain.checkpoint import BackboneSpec, TrainedBackbone, load_trained_backbone
from pretrain.durable import write_atomically
from pretrain.models import create_model, model_info
from pretrain.models.multi_stream import MultiStream
from pretrain.progress import progress, say
from pretrain.run_folder import RunFolder, open_run
from transfer.config import TasksConfig
from transfer.features import BATCH, extract_features, known_layer, prepare_stimuli
from transfer.linear_readout import Search, fit_readout
from transfer.objects import open_objects
from transfer.predictivity import pick_accelerator, require_same_inputs
from transfer.principal_components import component_scores, image_products
from transfer.task_data import Target, TaskData
from transfer.textures import open_textures

# Of MouseNet's 22 layers the features of some thousand images do not fit into memory at once; then the images are read
# again for the next layers.
FEATURE_BYTES = 4e9
# Batches that are decoded while the model computes another.
AHEAD = 1


def tasks(config: TasksConfig) -> Path:
    """Read every layer on every split of a task; the same config resumes the same run folder.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: one line on what is wrong with the config or the data.
    """
    for key in ("checkpoint", "data"):
        if getattr(config, key) is None:
            raise ValueError(f"{key} is not set; see `murine tasks --help`")
    data = open_task(config)
    splits = wanted_splits(data, config)
    trained = load_trained_backbone(config.checkpoint, config.model)
    layers = config.layers or task_layers(trained)
    models = {"trained": trained.backbone}
    for layer in layers:
        known_layer(dict(trained.backbone.named_modules(remove_duplicate=False)), layer)
    if config.baselines:
        torch.manual_seed(config.seed)
        models["random"] = create_model(trained.spec.name, **trained.spec.args)
    run = open_run(config, "tasks", f"tasks-{config.task}")
    inputs = {"checkpoint": str(trained.path), "data_sha256": data.digest}
    require_same_inputs(run, inputs)
    device = pick_accelerator(config.accelerator)
    run.status(**inputs, checkpoint_epoch=trained.epoch, checkpoint_step=trained.step, images=data.count, device=device)
    say(f"{config.task}: {data.count:,} images, {len(data.targets)} targets, {len(splits)} splits")
    work = Work(run, data, splits, layers, trained.spec, config)
    table = pd.concat([work.scores(name, backbone.to(device)) for name, backbone in models.items()], ignore_index=True)
    write_atomically(run.path / "tasks.parquet", table.to_parquet)
    write_atomically(run.path / "tasks.csv", lambda file: table.to_csv(file, index=False))
    if unconverged := int((~table["converged"]).sum()):
        say(f"{unconverged} of {len(table)} readouts did not converge with the C that was chosen for them")
    run.status(state="finished", readouts=len(table))
    return run.path


def open_task(config: TasksConfig) -> TaskData:
    """The images, targets and splits that the config names."""
    path = Path(config.data).expanduser()
    if config.task == "hvm":
        return open_objects(
            path, config.targets, config.split_file, config.own_splits, config.train_fraction, config.seed
        )
    for key in ("targets", "split_file"):
        if getattr(config, key):
            raise ValueError(f"{key} is a key of task=hvm; DTD has one target and comes with its splits")
    return open_textures(path)


def wanted_splits(data: TaskData, config: TasksConfig) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    for number in config.splits:
        if number not in data.splits:
            raise ValueError(f"there is no split {number}; there are {', '.join(map(str, data.splits))}")
    return {number: data.splits[number] for number in config.splits or data.splits}


def task_layers(trained: TrainedBackbone) -> list[str]:
    """The fit layers, and the pooled output areas of a multi-stream network, as published."""
    pooled = ["avgpool"] if isinstance(trained.backbone, MultiStream) else []
    return [*model_info(trained.spec.name).fit_layers, *pooled]


class Work:
    """The readouts of one run: layer by layer, each target and split; those that are finished are read back."""

    def __init__(
        self,
        run: RunFolder,
        data: TaskData,
        splits: dict[int, tuple[np.ndarray, np.ndarray]],
        layers: list[str],
        spec: BackboneSpec,
        config: TasksConfig,
    ) -> None:
        self.data, self.splits, self.layers, self.spec, self.config = data, splits, layers, spec, config
        self.pieces = run.path / "pieces"
        self.pieces.mkdir(exist_ok=True)
        self.search = Search(config.c_values, config.folds, config.jobs)

    def piece(self, model: str, layer: str, target: Target, split: int) -> Path:
        """File of one readout's rows."""
        name = f"{model}-{layer}-{target.name}-{target.variables[0]}-{split}"
        return self.pieces / f"{name.replace('/', '_')}.parquet"

    def layer_pieces(self, model: str, layer: str) -> list[Path]:
        return [self.piece(model, layer, target, split) for target in self.data.targets for split in self.splits]

    def scores(self, model: str, backbone: nn.Module) -> pd.DataFrame:
        """Rows of all readouts of one model."""
        per_layer = len(self.data.targets) * len(self.splits)
        left = [layer for layer in self.layers if not all(path.exists() for path in self.layer_pieces(model, layer))]
        done = len(self.layers) - len(left)
        for group in fitting_groups(backbone, self.data, self.spec, left):
            features = task_features(backbone, self.data, self.spec, group, self.config.jobs)
            with progress(f"readouts, {model}", len(self.layers) * per_layer, done * per_layer) as meter:
                for layer in group:
                    for note in self.score_layer(model, layer, features.pop(layer)):
                        meter.advance(1, note)
            done += len(group)
        return pd.concat(
            [pd.read_parquet(path) for layer in self.layers for path in self.layer_pieces(model, layer)],
            ignore_index=True,
        )

    def score_layer(self, model: str, layer: str, features: np.ndarray) -> Iterator[str]:
        """Write the rows of each target and split of features (images, features), and yield what was done."""
        products = image_products(features) if features.shape[1] > self.config.components else None
        for target in self.data.targets:
            for split in self.splits:
                path = self.piece(model, layer, target, split)
                if not path.exists():
                    rows = self.read_out(features, products, target, split)
                    rows.insert(0, "model", model)
                    rows.insert(1, "layer", layer)
                    write_atomically(path, rows.to_parquet)
                yield f"{layer}, {target.name}, split {split}"

    def read_out(self, features: np.ndarray, products: np.ndarray | None, target: Target, split: int) -> pd.DataFrame:
        """One row per variable of a target: what a readout of features (images, features) achieves on a split.

        `products` between the images are given where the features are many, and then stand for them.
        """
        train, test = (rows[np.isin(rows, target.rows)] for rows in self.splits[split])
        if products is None:
            of_train, of_test = (features[rows].astype(np.float64) for rows in (train, test))
        else:
            of_train, of_test = component_scores(products, train, test, self.config.components)
        found = fit_readout(of_train, target.values[train], of_test, target.values[test], self.search)
        return pd.DataFrame(
            {
                "features": features.shape[1],
                "components": of_train.shape[1],
                "target": target.name,
                "variable": target.variables,
                "split": split,
                "train_images": len(train),
                "test_images": len(test),
                "classes": target.classes,
                "train_acc": found.train_acc,
                "test_acc": found.test_acc,
                "train_r": found.train_r,
                "test_r": found.test_r,
                "C": found.c,
                "validation": found.validation,
                "converged": found.converged,
            }
        )


def fitting_groups(backbone: nn.Module, data: TaskData, spec: BackboneSpec, layers: list[str]) -> Iterator[list[str]]:
    """The layers in order, as many at a time as have their features of all images in memory; each at least alone."""
    if not layers:
        return
    image = prepare_stimuli(data.read(0)[None], spec)
    bytes_left, group = FEATURE_BYTES, []
    for layer, activation in extract_features(backbone, image, layers).items():
        needed = 4 * activation.numel() * data.count
        if group and needed > bytes_left:
            yield group
            bytes_left, group = FEATURE_BYTES, []
        group.append(layer)
        bytes_left -= needed
    yield group


def task_features(
    backbone: nn.Module, data: TaskData, spec: BackboneSpec, layers: list[str], jobs: int
) -> dict[str, np.ndarray]:
    """Features float32 (images, features) of each layer, from images that are decoded a batch at a time."""
    features: dict[str, np.ndarray] = {}
    first = 0
    with progress("images", data.count) as meter:
        for inputs in image_batches(data, spec, jobs or os.cpu_count() or 1):
            for layer, activations in extract_features(backbone, inputs, layers).items():
                values = activations.flatten(1).float().cpu().numpy()
                if not np.isfinite(values).all():
                    raise ValueError(f"layer {layer!r} gives values that are not finite; are the weights damaged?")
                if layer not in features:
                    features[layer] = np.empty((data.count, values.shape[1]), np.float32)
                features[layer][first : first + len(values)] = values
            first += len(inputs)
            meter.advance(len(inputs))
    return features


def image_batches(data: TaskData, spec: BackboneSpec, threads: int) -> Iterator[Tensor]:
    """Batches (batch, 3, size, size) of all images under the evaluation transform; threads work one batch ahead."""

    def load(row: int) -> Tensor:
        return prepare_stimuli(data.read(row)[None], spec)

    rows = iter(range(data.count))
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque()
        while True:
            while len(waiting) <= AHEAD and (block := list(islice(rows, BATCH))):
                waiting.append([pool.submit(load, row) for row in block])
            if not waiting:
                return
            yield torch.cat([image.result() for image in waiting.popleft()])
