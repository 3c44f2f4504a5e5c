"""The models that a run compares: checkpoints, the same networks with random weights, Gabor energies and pixels.

Comes in: checkpoints and the stimuli. Goes out: one model after the other, whose features are computed when they are
asked for, a batch of stimuli or a clip at a time, and lie on disk where they do not fit into memory. An image backbone
sees the frames of a video one by one, and its features of a bin are their mean; a video core sees whole clips.
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
from transfer.video_bins import BinnedClips
from transfer.video_cores import (
    TrainedCore,
    VideoModel,
    clip_features,
    core_model,
    frame_model,
    is_video_core,
    open_core,
    pretrained_core,
)

UNTRAINED = "untrained_"
TRAINED, RANDOM, GABOR, PIXELS = "trained", "random", "gabor", "pixels"

Features = dict[str, np.ndarray]
Trained = TrainedBackbone | TrainedCore


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


AnyModel = ComparedModel | VideoModel


def checkpoints_of(config: PredictivityConfig) -> list[Trained]:
    """The checkpoints named by `checkpoint` or `checkpoints`. Raises ValueError where neither or both are set."""
    if bool(config.checkpoint) == bool(config.checkpoints):
        found = "both" if config.checkpoint else "neither"
        raise ValueError(f"found {found} of checkpoint and checkpoints; set checkpoint=<one> or checkpoints=[a,b,c]")
    paths = config.checkpoints or [config.checkpoint]
    return [opened(path, config) for path in paths]


def opened(path: str, config: PredictivityConfig) -> Trained:
    """A checkpoint, or, as mouse-vision names it, `untrained_<model>`: its random weights, from the config's seed.

    Where `model`, or the name of a file, is that of a video core, it is one.
    """
    untrained = path.startswith(UNTRAINED) and not Path(path).exists()
    of_file = Path(path).stem if Path(path).is_file() else None
    name = path.removeprefix(UNTRAINED) if untrained else config.model or of_file
    if is_video_core(name):
        return open_core(name, path, config.seed)
    if path.startswith(UNTRAINED) and not Path(path).exists():
        return untrained_backbone(path.removeprefix(UNTRAINED), config.seed)
    found = load_trained_backbone(path, config.model)
    return pretrained_core(found) if is_video_core(found.spec.name) else found


def compared_models(trained: Sequence[Trained], config: PredictivityConfig) -> Iterator[AnyModel]:
    """Every model of the run: the checkpoints in order, then what they are compared with, each kind once."""
    device = torch.device(pick_accelerator(config.accelerator))
    if config.layers and all(isinstance(item, TrainedCore) for item in trained):
        raise ValueError(f"layers are of backbones, found {config.layers}; a video core has one, its output")
    for label, item in zip(labels(trained), trained, strict=True):
        if isinstance(item, TrainedCore):
            yield core_model(label, item.core.to(device), item)
        else:
            yield network(label, item.backbone.to(device), item.spec, config, item)
    if config.baselines:
        yield from random_networks(trained, config, device)
        yield from baselines(trained, device)


def random_networks(trained: Sequence[Trained], config: PredictivityConfig, device: torch.device) -> Iterator[AnyModel]:
    """The networks of the checkpoints with random weights, without those that are random anyway."""
    found: dict[tuple[str, str], Trained] = {}
    for item in trained:
        if not str(item.path).startswith(UNTRAINED):
            name, args = built_by(item)
            found.setdefault((name, str(sorted(args.items()))), item)
    for (name, _), item in found.items():
        torch.manual_seed(config.seed)
        label = RANDOM if len(found) == 1 else f"{RANDOM} {name}"
        if isinstance(item, TrainedCore):
            yield core_model(label, item.untrained().to(device), item)
        else:
            yield network(label, create_model(name, **item.spec.args).to(device), item.spec, config, None)


def built_by(item: Trained) -> tuple[str, dict[str, Any]]:
    """The name of a network, and the arguments of its constructor."""
    return (item.info.name, item.args) if isinstance(item, TrainedCore) else (item.spec.name, item.spec.args)


def baselines(trained: Sequence[Trained], device: torch.device) -> Iterator[AnyModel]:
    """Gabor energies and pixels of each input that a checkpoint sees; cores share theirs where backbones are there."""
    backbones = [item for item in trained if isinstance(item, TrainedBackbone)]
    if not backbones:
        yield frame_model(GABOR, GABOR, trained[0], lambda images: gabor_energy(images.to(device)))
        yield frame_model(PIXELS, PIXELS, trained[0], lambda images: images.flatten(1))
    inputs = {view_of(item.spec): item.spec for item in reversed(backbones)}
    for (side, *_), spec in reversed(inputs.items()):
        suffix = f" {side}" if len(inputs) > 1 else ""
        yield baseline(GABOR, suffix, spec, lambda images: gabor_energy(images.to(device)))
        yield baseline(PIXELS, suffix, spec, lambda images: images.flatten(1))


def view_of(spec: BackboneSpec) -> tuple[Any, ...]:
    """What decides how stimuli look to a network; networks of one view share the baselines of images."""
    info = model_info(spec.name)
    return spec.input_size, info.resize, info.crop, tuple(spec.mean), tuple(spec.std)


def labels(trained: Sequence[Trained]) -> list[str]:
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
    model: AnyModel,
    stimuli: Any,
    rows: np.ndarray,
    layers: Sequence[str],
    store: Path,
    config: PredictivityConfig,
) -> Features:
    """Flattened activations float32 (rows, features) of each layer.

    `stimuli` is array-like as in a `Recording`, or `BinnedClips`; only `rows` of it are read, a batch or a clip at a
    time. `store`: a folder that receives the features of layers that together exceed the config's `memory_gb`, as
    memory maps. Raises ValueError for a video core where stimuli are images.
    """
    if isinstance(model, VideoModel):
        if not isinstance(stimuli, BinnedClips):
            raise ValueError(f"{model.label} takes videos, and the recording's stimuli are images; choose a backbone")
        device = torch.device(pick_accelerator(config.accelerator))
        clips = clip_features(model, stimuli, rows, device)
        parts = ((places, {model.layers[0]: values}) for places, values in clips)
    else:
        parts = in_batches(model, stimuli, rows, layers, config)
    features: Features = {}
    for places, found in parts:
        if not features:
            sizes = {layer: (len(rows), values.shape[1]) for layer, values in found.items()}
            features = allocate(sizes, store, config.memory_gb)
        for layer, values in found.items():
            features[layer][places] = values
    return features


def in_batches(
    model: ComparedModel, stimuli: Any, rows: np.ndarray, layers: Sequence[str], config: PredictivityConfig
) -> Iterator[tuple[slice, Features]]:
    """Activations of a backbone, a batch of pictures at a time: stimuli, or all frames of some bins, then averaged."""
    each = stimuli.timing.frames if isinstance(stimuli, BinnedClips) else 1
    step = max(1, BATCH // each)
    for first in range(0, len(rows), step):
        part = rows[first : first + step]
        if isinstance(stimuli, BinnedClips):
            pictures = stimuli.frames(part).reshape(-1, *stimuli.shape[1:])
        else:
            pictures = np.asarray(stimuli[part])
        found = model.activations(prepare_stimuli(pictures, model.spec, config.stimulus_view), layers)
        flat = {layer: values.flatten(1).float() for layer, values in found.items()}
        if each > 1:
            flat = {layer: values.unflatten(0, (len(part), each)).mean(1) for layer, values in flat.items()}
        yield slice(first, first + len(part)), {layer: values.cpu().numpy() for layer, values in flat.items()}


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
