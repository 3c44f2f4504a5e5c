"""Activations of named layers, and stimuli made ready for a model.

What comes in: a backbone and images. What goes out: activations (batch, ...) by layer, or flattened float32 features
(stimuli, features). Stimuli go through the evaluation transform of the model's source: for mouse-vision (Nayebi, Kong
et al. 2023) resize the short side to 256, crop the central 224, resize to 64, as torchvision does on uint8 images.
"""

import difflib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from pretrain.checkpoint import BackboneSpec
from pretrain.models import model_info

BATCH = 256


def extract_features(model: nn.Module, inputs: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """Activations of any named layers in one forward pass, without gradients, in evaluation mode.

    Args:
        model: any module; `layers` are names of its `named_modules()`.
        inputs: (batch, channels, height, width), on the model's device.
        layers: names, in the order in which they are returned.

    Raises:
        ValueError: a layer that the model does not have (the nearest name is given) or that its forward pass skips.
    """
    modules = dict(model.named_modules())
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: Tensor) -> None:
            # A copy, because a later in-place ReLU would change it.
            found[name] = output.detach().clone()

        return hook

    handles = []
    training = model.training
    try:
        for name in layers:
            handles.append(known_layer(modules, name).register_forward_hook(keep(name)))
        with torch.no_grad():
            model.eval()(inputs)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    for name in layers:
        if name not in found:
            raise ValueError(f"layer {name!r} takes no part in the model's forward pass")
    return {name: found[name] for name in layers}


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
        stimuli: (stimuli, height, width) grey or (stimuli, height, width, 3), values 0 to 255.
        spec: the model's input size, mean and std.
        view: "evaluation", the model's published transform with its central crop; or "whole", which keeps everything
            and squeezes it to a square.

    Returns: float (stimuli, 3, input_size, input_size), normalised.
    """
    images = torch.from_numpy(np.array(stimuli, order="C")).round().clamp(0, 255).to(torch.uint8)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
    if view == "evaluation":
        info = model_info(spec.name)
        images = F.center_crop(F.resize(images, [info.resize], antialias=True), [info.crop, info.crop])
    images = F.resize(images, [spec.input_size, spec.input_size], antialias=True).expand(-1, 3, -1, -1)
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    return (images.to(torch.float32) / 255 - mean) / std


def stimulus_features(model: nn.Module, inputs: Tensor, layers: Sequence[str]) -> dict[str, np.ndarray]:
    """Flattened activations float32 (stimuli, features) of each layer, a batch at a time on the model's device."""
    device = next(model.parameters()).device
    parts: dict[str, list[np.ndarray]] = {layer: [] for layer in layers}
    for block in inputs.split(BATCH):
        for layer, activations in extract_features(model, block.to(device), layers).items():
            parts[layer].append(activations.flatten(1).float().cpu().numpy())
    return {layer: np.concatenate(blocks) for layer, blocks in parts.items()}
