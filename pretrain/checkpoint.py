"""Checkpoints: the whole state of training in one file, and the backbone in it for everyone else.

What comes in: state dicts and plain values. What goes out: `checkpoints/step-000001950.pt`, whole or absent, with its
SHA-256 beside it; backbones with their weights, from our own checkpoints and from published files.
"""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pretrain.average import Average
from pretrain.best import BEST
from pretrain.core_backbone import create_backbone
from pretrain.durable import checksum_path, is_intact, write_atomically
from pretrain.models import create_model, model_info
from pretrain.progress import say
from pretrain.published import PublishedWeights, select_matching, select_weights, shortened
from pretrain.weights_file import read_weights

FORMAT = "murine-checkpoint-1"
DAMAGED = ".damaged"


@dataclass(frozen=True)
class BackboneSpec:
    """How to build a backbone again and what its input must look like."""

    name: str
    args: dict[str, Any]
    input_size: int
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class TrainedBackbone:
    """A backbone in evaluation mode, with its description, the step and the epoch it was saved at."""

    backbone: nn.Module
    spec: BackboneSpec
    step: int
    epoch: int
    path: Path


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write the state as the checkpoint of `step` and remove all but the newest `keep` up to it.

    Those of later steps are not this training's, and are neither counted nor removed.
    """
    folder.mkdir(exist_ok=True)
    path = folder / f"step-{step:09d}.pt"
    state = {"format": FORMAT, "step": step, **state}
    write_atomically(path, lambda file: torch.save(state, file), checksum=True)
    for old in [one for one in list_checkpoints(folder) if one.name <= path.name][:-keep]:
        old.unlink()
        checksum_path(old).unlink(missing_ok=True)
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run from oldest to newest; files being written have other names."""
    return sorted(folder.glob("step-*.pt"))


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is intact, or else that of the best epoch; a damaged one is said and passed over."""
    return sort_by_damage(folder)[0]


def checkpoint_to_resume(folder: Path) -> tuple[Path | None, list[Path]]:
    """The newest intact checkpoint, and all that are damaged where there is none.

    Damaged ones that are newer are renamed to `<name>.damaged`, so that they count no more.
    """
    found, damaged = sort_by_damage(folder)
    if found is None:
        return None, damaged + sorted(folder.glob(f"*{DAMAGED}"))
    for path in damaged:
        set_aside(path)
    return found, []


def sort_by_damage(folder: Path) -> tuple[Path | None, list[Path]]:
    """The newest checkpoint that is intact, if any, and the damaged ones that were passed over."""
    damaged: list[Path] = []
    best = [path for path in (folder / BEST,) if path.exists()]
    for path in [*reversed(list_checkpoints(folder)), *best]:
        if is_intact(path):
            return path, damaged
        say(f"checkpoint {path} is damaged (its SHA-256 does not match); trying the one before")
        damaged.append(path)
    return None, damaged


def set_aside(path: Path) -> None:
    """Rename a damaged checkpoint to `<name>.damaged`."""
    checksum_path(path).unlink(missing_ok=True)
    kept = path.with_name(path.name + DAMAGED)
    os.replace(path, kept)
    say(f"renamed {path} to {kept.name}, which nothing reads")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state in a checkpoint file, on the CPU; tensors are mapped from disk and read when used."""
    state = read_weights(path)
    if not is_ours(state):
        raise ValueError(f"{path} is not a checkpoint of `murine pretrain` (no format {FORMAT!r} in it)")
    return state


def is_ours(state: Any) -> bool:
    return isinstance(state, dict) and state.get("format") == FORMAT


def checkpoint_file(path: Path | str) -> Path:
    """The file that a user means: a run folder's newest intact checkpoint, or the file itself.

    Raises:
        FileNotFoundError: nothing there, or a run folder without an intact checkpoint.
        ValueError: the file is not what its SHA-256 says.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        newest = newest_checkpoint(path / "checkpoints")
        if newest is None:
            raise FileNotFoundError(f"no intact checkpoint in {path / 'checkpoints'}; train with `murine pretrain`")
        return newest
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {str(path)!r} does not exist (a run folder or a .pt file)")
    if checksum_path(path).is_file() and not is_intact(path):
        raise ValueError(f"checkpoint {path} is damaged: its SHA-256 does not match")
    return path


def load_trained_backbone(path: Path | str, model: str | None = None, averaged: bool = False) -> TrainedBackbone:
    """The backbone of a run folder's newest checkpoint, of one checkpoint file, or of a published file.

    Args:
        path: run folder or file.
        model: network of a published file, where the file's name (`alexnet_bn_ir.pt`) does not say it. The last linear
            layer of a published network, if it has one, is left out.
        averaged: take the moving average of the weights, which a training with `average.decay` has.

    Raises:
        FileNotFoundError: nothing there, or a run folder without an intact checkpoint.
        ValueError: the file is damaged, its network is not known, or its weights are another network's.
    """
    path = checkpoint_file(path)
    state = read_weights(path)
    if not is_ours(state):
        return load_published_backbone(path, state, model)
    if state["model"].get("kind"):
        raise ValueError(f"{path} holds an encoder of `murine fit`, expected a backbone of `murine pretrain`")
    spec = BackboneSpec(**state["model"])
    if model not in (None, spec.name):
        raise ValueError(f"{path} says itself that it is {spec.name}, not model={model}; leave model out")
    backbone = create_backbone(spec.name, **spec.args)
    if averaged and not state.get("average"):
        raise ValueError(f"{path} holds no average of weights; train with average.decay, or leave averaged out")
    backbone.load_state_dict(state["average" if averaged else "backbone"])
    return TrainedBackbone(backbone.eval(), spec, state["step"], state["epoch"], path.resolve())


def load_published_backbone(path: Path, state: Any, model: str | None) -> TrainedBackbone:
    """A published backbone under the evaluation transform that its model was published with."""
    try:
        info = model_info(model or path.stem)
    except ValueError as error:
        if model:
            raise
        raise ValueError(
            f"{path} is not a checkpoint of `murine pretrain`; if it is a published one, name its network, which the "
            f"file's name does not, with model=<name> ({error})"
        ) from error
    name, args = model or path.stem, {"num_classes": 0} if info.classifier else {}
    backbone = create_model(name, **args)
    put_in_place(backbone, select_weights(backbone, state, str(path)), str(path))
    spec = BackboneSpec(name, args, info.input_size, list(info.mean), list(info.std))
    epoch = state.get("epoch")
    return TrainedBackbone(backbone.eval(), spec, 0, epoch if isinstance(epoch, int) else 0, path.resolve())


def untrained_backbone(model: str, seed: int) -> TrainedBackbone:
    """A network as it is before training: weights drawn from the seed, the evaluation transform of its model."""
    info = model_info(model)
    args = {"num_classes": 0} if info.classifier else {}
    torch.manual_seed(seed)
    backbone = create_model(model, **args)
    spec = BackboneSpec(model, args, info.input_size, list(info.mean), list(info.std))
    return TrainedBackbone(backbone.eval(), spec, 0, 0, Path(f"untrained_{model}"))


def training_state(
    objective: nn.Module, optimizer: Any, spec: BackboneSpec, epoch: int, average: Average | None = None
) -> dict[str, Any]:
    """What resuming needs: backbone, heads and buffers of the objective, the optimiser's state, and the average's."""
    heads = {key: value for key, value in objective.state_dict().items() if not key.startswith("backbone.")}
    return {
        "epoch": epoch,
        "model": asdict(spec),
        "backbone": objective.backbone.state_dict(),
        "heads": heads,
        "optimizer": optimizer.state_dict(),
        "average": average.state_dict() if average else None,
    }


def restore_training_state(
    state: dict[str, Any], objective: nn.Module, optimizer: Any, average: Average | None = None
) -> None:
    """Put a checkpoint's state back in place."""
    backbone = {f"backbone.{key}": value for key, value in state["backbone"].items()}
    objective.load_state_dict(backbone | state["heads"])
    optimizer.load_state_dict(state["optimizer"])
    if average:
        average.load_state_dict(state["average"])


def load_published(model: nn.Module, source: Path | str | dict[str, Any]) -> nn.Module:
    """Load all weights of a model from a published file, and say which were used, renamed and ignored.

    Args:
        model: a model with the file's layer names, on any device; or an encoder, whose file is read as DwiseNeuro,
            ViV1T, V1T, Dynamic-VFM or neuralpredictors published it (see `published_encoder.py`).
        source: the file, a run folder, or what `torch.load` gave for a file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no backbone in it, or a weight that is missing, left over or of another shape; the first is named.
    """
    state, origin = opened(source)
    put_in_place(model, select_weights(model, state, origin), origin)
    return model


def read_published(model: nn.Module, source: Path | str | dict[str, Any]) -> PublishedWeights:
    """The weights that `load_published` would load, and the names of all that it would use, rename and ignore."""
    return select_weights(model, *opened(source))


def load_matching(model: nn.Module, source: Path | str | dict[str, Any]) -> PublishedWeights:
    """Load what fits a model by name and shape, leave the rest of the model as it is, and say both.

    Raises:
        FileNotFoundError: no such file.
        ValueError: nothing fits; the first weight of another shape is named.
    """
    state, origin = opened(source)
    found = select_matching(model, state, origin)
    put_in_place(model, found, origin)
    if left := [name for name in model.state_dict() if name not in found.weights]:
        say(f"  stay as they were: {shortened(left)}")
    return found


def opened(source: Path | str | dict[str, Any]) -> tuple[Any, str]:
    """What a file holds, and its name for messages."""
    if isinstance(source, Path | str):
        path = checkpoint_file(source)
        return read_weights(path), str(path)
    return source, "the state dict"


def put_in_place(model: nn.Module, found: PublishedWeights, origin: str) -> None:
    """Load weights that are known to fit, and say where each part of the file went."""
    model.load_state_dict(found.weights, strict=False)
    for line in found.account(origin):
        say(line)
