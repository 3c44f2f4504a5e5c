"""The models that a run compares: checkpoints, the same networks with random weights, Gabor energies and pixels.

Comes in: checkpoints and the stimuli. Goes out: one `ComparedModel` after the other, whose features are computed when
they are asked for, a batch of stimuli at a time, and lie on disk where they do not fit into memory.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pretrain.checkpoint import BackboneSpec, TrainedBackbone, load_trained_backbone, untrained_backbone
from pretrain.models import create_model, model_info
from transfer.config import PredictivityConfig
from transfer.features import BATCH, extract_features, known_layer, prepare_stimuli
from transfer.gabor_bank import gabor_energy

UNTRAINED = "untrained_"
TRAINED, RANDOM, GABOR, PIXELS = "trained", "random", "gabor", "pixels"

Features = dict[str, np.ndarray]


@dataclass(frozen=True)
class ComparedModel:
    """A name, its layers in the order of the network, and `activations(images)` of a batch of prepared stimuli.

    `checkpoint`: the file that the weights are from; None for what is not trained.
    """

    label: str
    layers: tuple[str, ...]
    spec: BackboneSpec
    activations: Callable[[torch.Tensor, Sequence[str]], dict[str, torch.Tensor]]
    checkpoint: TrainedBackbone | None = None


def checkpoints_of(config: PredictivityConfig) -> list[TrainedBackbone]:
    """The checkpoints named by `checkpoint` or `checkpoints`. Raises ValueError where neither or both are set."""
    if bool(config.checkpoint) == bool(config.checkpoints):
        found = "both" if config.checkpoint else "neither"
        raise ValueError(f"found {found} of checkpoint and checkpoints; set checkpoint=<one> or checkpoints=[a,b,c]")
    paths = config.checkpoints or [config.checkpoint]
    return [opened(path, config) for path in paths]


def opened(path: str, config: PredictivityConfig) -> TrainedBackbone:
    """A checkpoint, or, as mouse-vision names it, `untrained_<model>`: its random weights, from the config's seed."""
    if path.startswith(UNTRAINED) and not Path(path).exists():
        return untrained_backbone(path.removeprefix(UNTRAINED), config.seed)
    return load_trained_backbone(path, config.model)


def compared_models(trained: Sequence[TrainedBackbone], config: PredictivityConfig) -> Iterator[ComparedModel]:
    """Every model of the run: the checkpoints in order, then what they are compared with, each kind once."""
    device = torch.device(pick_accelerator(config.accelerator))
    for label, checkpoint in zip(labels(trained), trained, strict=True):
        yield network(label, checkpoint.backbone.to(device), checkpoint.spec, config, checkpoint)
    if not config.baselines:
        return
    of_trained = [item for item in trained if not str(item.path).startswith(UNTRAINED)]
    specs = {(item.spec.name, str(sorted(item.spec.args.items()))): item.spec for item in of_trained}
    for spec in specs.values():
        torch.manual_seed(config.seed)
        untrained = create_model(spec.name, **spec.args).to(device)
        yield network(RANDOM if len(specs) == 1 else f"{RANDOM} {spec.name}", untrained, spec, config, None)
    inputs = {view_of(item.spec): item.spec for item in reversed(trained)}
    for (side, *_), spec in reversed(inputs.items()):
        suffix = f" {side}" if len(inputs) > 1 else ""
        yield baseline(GABOR, suffix, spec, lambda images: gabor_energy(images.to(device)))
        yield baseline(PIXELS, suffix, spec, lambda images: images.flatten(1))


def view_of(spec: BackboneSpec) -> tuple[Any, ...]:
    """What decides how stimuli look to a network; networks of one view share the baselines of images."""
    info = model_info(spec.name)
    return spec.input_size, info.resize, info.crop, tuple(spec.mean), tuple(spec.std)


def labels(trained: Sequence[TrainedBackbone]) -> list[str]:
    """`trained` for one checkpoint; for several the names of their run folders or files, told apart where equal."""
    if len(trained) == 1 and not str(trained[0].path).startswith(UNTRAINED):
        return [TRAINED]
    names = [
        path.parent.parent.name if path.parent.name == "checkpoints" else path.stem
        for path in (Path(item.path).resolve() for item in trained)
    ]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})" for i, name in enumerate(names)
    ]


def network(
    label: str, model: torch.nn.Module, spec: BackboneSpec, config: PredictivityConfig, source: TrainedBackbone | None
) -> ComparedModel:
    """A network and its fit layers, or those that the config names; ValueError for one that it does not have."""
    layers = tuple(config.layers or model_info(spec.name).fit_layers)
    modules = dict(model.named_modules())
    for layer in layers:
        known_layer(modules, layer)
    return ComparedModel(label, layers, spec, lambda images, names: extract_features(model, images, names), source)


def baseline(
    kind: str, suffix: str, spec: BackboneSpec, features: Callable[[torch.Tensor], torch.Tensor]
) -> ComparedModel:
    return ComparedModel(kind + suffix, (kind,), spec, lambda images, _: {kind: features(images)})


def stimulus_features(
    model: ComparedModel, stimuli: Any, rows: np.ndarray, layers: Sequence[str], store: Path, config: PredictivityConfig
) -> Features:
    """Flattened activations float32 (rows, features) of each layer.

    `stimuli` is array-like as in a `Recording`; only `rows` of it are read, a batch at a time. `store`: a folder that
    receives the features of layers that together exceed the config's `memory_gb`, as memory maps.
    """
    features: Features = {}
    for first in range(0, len(rows), BATCH):
        part = rows[first : first + BATCH]
        inputs = prepare_stimuli(np.asarray(stimuli[part]), model.spec, config.stimulus_view)
        found = {layer: values.flatten(1).float() for layer, values in model.activations(inputs, layers).items()}
        if not features:
            sizes = {layer: (len(rows), values.shape[1]) for layer, values in found.items()}
            features = allocate(sizes, store, config.memory_gb)
        for layer, values in found.items():
            features[layer][first : first + len(part)] = values.cpu().numpy()
    return features


def allocate(sizes: dict[str, tuple[int, int]], store: Path, memory_gb: float) -> Features:
    """Empty float32 arrays, in memory if they fit, else files in the folder `store`."""
    total_gb = sum(4 * rows * columns for rows, columns in sizes.values()) / 1e9
    if total_gb <= memory_gb:
        return {layer: np.empty(size, np.float32) for layer, size in sizes.items()}
    shutil.rmtree(store, ignore_errors=True)
    store.mkdir(parents=True)
    return {
        layer: np.lib.format.open_memmap(store / f"{number}.npy", mode="w+", dtype=np.float32, shape=size)
        for number, (layer, size) in enumerate(sizes.items())
    }


def pick_accelerator(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
