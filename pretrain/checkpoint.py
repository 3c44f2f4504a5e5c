"""Checkpoints: the whole state of training in one file, and the backbone in it for everyone else.

What comes in: state dicts and plain values. What goes out: `checkpoints/step-000001950.pt`, whole or absent, with its
SHA-256 beside it. Every file is read with `weights_only=True`, so that none can run code. Published files of
mouse-vision are read by `load_published`.
"""

import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.durable import checksum_path, is_intact, write_atomically
from pretrain.models import create_model
from pretrain.progress import say

FORMAT = "murine-checkpoint-1"
PUBLISHED_KEYS = ("model_state_dict", "state_dict")


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
    """Write the state as the checkpoint of `step` and remove all but the newest `keep`."""
    folder.mkdir(exist_ok=True)
    path = folder / f"step-{step:09d}.pt"
    state = {"format": FORMAT, "step": step, **state}
    write_atomically(path, lambda file: torch.save(state, file), checksum=True)
    for old in list_checkpoints(folder)[:-keep]:
        old.unlink()
        checksum_path(old).unlink(missing_ok=True)
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run from oldest to newest; files being written have other names."""
    return sorted(folder.glob("step-*.pt"))


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is intact; a damaged one is said and passed over."""
    for path in reversed(list_checkpoints(folder)):
        if is_intact(path):
            return path
        say(f"checkpoint {path} is damaged (its SHA-256 does not match); trying the one before")
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state in a checkpoint file, on the CPU; tensors are mapped from disk and read when used."""
    state = read_weights(path, mmap=True)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of `murine pretrain` (no format {FORMAT!r} in it)")
    return state


def read_weights(path: Path, mmap: bool = False) -> Any:
    """What a file of torch's holds, on the CPU, if it is nothing but data."""
    if not path.is_file():
        raise FileNotFoundError(f"file {str(path)!r} does not exist")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be read as weights: {str(error).splitlines()[0]}") from error


def load_trained_backbone(path: Path | str) -> TrainedBackbone:
    """The backbone of a run folder's newest checkpoint, or of one checkpoint file.

    Raises:
        FileNotFoundError: nothing there, or a run folder without an intact checkpoint.
        ValueError: the file is not a checkpoint of ours, or is damaged.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        newest = newest_checkpoint(path / "checkpoints")
        if newest is None:
            raise FileNotFoundError(f"no intact checkpoint in {path / 'checkpoints'}; train with `murine pretrain`")
        path = newest
    elif not path.is_file():
        raise FileNotFoundError(f"checkpoint {str(path)!r} does not exist (a run folder or a .pt file)")
    elif checksum_path(path).is_file() and not is_intact(path):
        raise ValueError(f"checkpoint {path} is damaged: its SHA-256 does not match")
    state = read_checkpoint(path)
    spec = BackboneSpec(**state["model"])
    backbone = create_model(spec.name, **spec.args)
    backbone.load_state_dict(state["backbone"])
    return TrainedBackbone(backbone.eval(), spec, state["step"], state["epoch"], path.resolve())


def training_state(objective: nn.Module, optimizer: Any, spec: BackboneSpec, epoch: int) -> dict[str, Any]:
    """What resuming needs: backbone, heads and buffers of the objective, and the optimiser's state."""
    heads = {key: value for key, value in objective.state_dict().items() if not key.startswith("backbone.")}
    return {
        "epoch": epoch,
        "model": asdict(spec),
        "backbone": objective.backbone.state_dict(),
        "heads": heads,
        "optimizer": optimizer.state_dict(),
    }


def restore_training_state(state: dict[str, Any], objective: nn.Module, optimizer: Any) -> None:
    """Put a checkpoint's state back in place."""
    backbone = {f"backbone.{key}": value for key, value in state["backbone"].items()}
    objective.load_state_dict(backbone | state["heads"])
    optimizer.load_state_dict(state["optimizer"])


def load_published(model: nn.Module, path_or_state_dict: Path | str | dict[str, Any]) -> nn.Module:
    """Load weights as mouse-vision's trainers wrote them into a model with the same state-dict keys.

    The weights lie at the top level or under `model_state_dict` or `state_dict`, with or without DDP's `module.`.

    Raises:
        ValueError: a key is missing, left over, or has another shape; the line names the first one.
    """
    state = path_or_state_dict
    if not isinstance(state, dict):
        state = read_weights(Path(state))
    if not isinstance(state, dict):
        raise ValueError(f"{path_or_state_dict} holds no weights by name, but {type(state).__name__}")
    for key in PUBLISHED_KEYS:
        if isinstance(state.get(key), dict):
            state = state[key]
            break
    state = {key.removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}
    wanted = model.state_dict()
    for key, tensor in wanted.items():
        if key not in state:
            raise ValueError(f"the file has no weights for {key!r}, shape {tuple(tensor.shape)}")
        if state[key].shape != tensor.shape:
            raise ValueError(
                f"{key!r} has shape {tuple(state[key].shape)} in the file, {tuple(tensor.shape)} in the model"
            )
    if extra := sorted(state.keys() - wanted.keys()):
        raise ValueError(f"the file has weights that the model does not: {extra[0]!r} and {len(extra) - 1} more")
    model.load_state_dict(state)
    return model
