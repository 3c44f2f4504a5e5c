"""Activations of named layers, and stimuli made ready for a model.

What comes in: a backbone and images. What goes out: activations (batch, ...) by layer. Stimuli go through the
evaluation transform of the model's source: for mouse-vision (Nayebi, Kong et al. 2023) resize the short side to 256,
crop the central 224, resize to 64, as torchvision does on uint8 images.
"""

import difflib
from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from pretrain.checkpoint import BackboneSpec
from pretrain.models import model_info

BATCH = 256


class EveryLayerFound(Exception):
    """Ends a forward pass from which nothing more is wanted."""


def extract_features(model: nn.Module, inputs: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """Activations of any named layers in one forward pass, without gradients, in evaluation mode.

    The pass ends with the last layer that is asked for. Of a layer that runs several times the first run counts, and
    of one that gives several tensors the first tensor.

    Args:
        model: any module; `layers` are names of its `named_modules()`, of the model itself where it is wrapped for
            several devices or compiled.
        inputs: (batch, channels, height, width), on any device.
        layers: names, in the order in which they are returned.

    Raises:
        ValueError: a layer that the model does not have (the nearest name is given), that its forward pass skips, or
            that gives no tensor.
    """
    model = unwrapped(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    wanted = [known_layer(modules, name) for name in layers]
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            if name not in found:
                # A copy, because a later in-place ReLU would change it.
                found[name] = first_tensor(output, name).detach().clone()
            if len(found) == len(set(layers)):
                raise EveryLayerFound

        return hook

    training = [(module, module.training) for module in model.modules()]
    handles = [module.register_forward_hook(keep(name)) for name, module in zip(layers, wanted, strict=True)]
    try:
        with torch.no_grad():
            model.eval()(inputs.to(device_of(model, inputs.device)))
    except EveryLayerFound:
        pass
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training:
            module.training = mode
    for name in layers:
        if name not in found:
            raise ValueError(f"layer {name!r} takes no part in the model's forward pass")
    return {name: found[name] for name in layers}


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside the wrappers for several devices and of the compiler, whose layers have its own names."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def device_of(model: nn.Module, otherwise: torch.device | str = "cpu") -> torch.device:
    """Where a model's weights and buffers lie; `otherwise` for a model that has none."""
    tensor = next(chain(model.parameters(), model.buffers()), None)
    return torch.device(otherwise) if tensor is None else tensor.device


def first_tensor(output: object, name: str) -> Tensor:
    if isinstance(output, tuple | list) and output:
        output = output[0]
    if isinstance(output, Tensor):
        return output
    kind = f"a dictionary of {', '.join(map(str, output))}" if isinstance(output, dict) else type(output).__name__
    raise ValueError(f"layer {name!r} gives no tensor but {kind}; name a layer inside it")


def known_layer(modules: dict[str, nn.Module], name: str) -> nn.Module:
    if name not in modules or not name:
        near = difflib.get_close_matches(name, [key for key in modules if key], n=3, cutoff=0.4)
        raise ValueError(
            f"the model has no layer {name!r}; nearest: {', '.join(near) or ', '.join(list(modules)[1:6])}"
        )
    return modules[name]


def prepare_stimuli(stimuli: np.ndarray, spec: BackboneSpec, view: str = "evaluation") -> Tensor:
    """Stimuli as a model sees them.

    Args:
        stimuli: (stimuli, height, width) grey, (stimuli, height, width, 3), or (..., 2), of UV and green, which become
            grey as their mean; values 0 to 255.
        spec: the model's input size, mean and std.
        view: "evaluation", the model's published transform with its central crop; or "whole", which keeps everything
            and squeezes it to a square.

    Returns: float (stimuli, 3, input_size, input_size), normalised.
    """
    if stimuli.ndim == 4 and stimuli.shape[3] == 2:
        stimuli = np.asarray(stimuli).mean(3, dtype=np.float32)
    images = torch.from_numpy(np.array(stimuli, order="C")).round().clamp(0, 255).to(torch.uint8)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
    if view == "evaluation":
        resize, crop = evaluation_crop(spec.name)
        images = F.center_crop(F.resize(images, [resize], antialias=True), [crop, crop])
    images = F.resize(images, [spec.input_size, spec.input_size], antialias=True).expand(-1, 3, -1, -1)
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    return (images.to(torch.float32) / 255 - mean) / std


@cache
def evaluation_crop(name: str) -> tuple[int, int]:
    """Pixels that a model's evaluation transform resizes the short side to, and then crops.

    Kept, because the facts about some models take as long to find out as an image to prepare.
    """
    info = model_info(name)
    return info.resize, info.crop
