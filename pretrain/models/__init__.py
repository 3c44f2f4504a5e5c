"""Backbones by name.

What comes in: a name, and constructor arguments. What goes out: an `nn.Module` that maps float images
(batch, 3, height, width) to (batch, features), and the facts about it that other rooms need (`ModelInfo`).
Any timm model is `timm/<name>`.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from pretrain.models import alexnet

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
TIMM_PREFIX = "timm/"


@dataclass(frozen=True)
class ModelInfo:
    """What a user of a backbone must know.

    `mean` and `std` normalise images in 0..1. The evaluation transform resizes the short side to `resize`, crops the
    central `crop` and resizes that to `input_size`, all in pixels. `fit_layers` are ordered from input to output.
    """

    name: str
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit_layers: tuple[str, ...]
    source: str
    resize: int = 256
    crop: int = 224


MOUSE_VISION = "Nayebi, Kong et al. 2023, PLOS Comput Biol 19(10):e1011506"

MODELS: dict[str, tuple[Callable[..., nn.Module], ModelInfo]] = {
    "alexnet": (
        alexnet.AlexNet,
        ModelInfo("alexnet", 64, IMAGENET_MEAN, IMAGENET_STD, alexnet.FIT_LAYERS, MOUSE_VISION),
    ),
    "alexnet_bn": (
        partial(alexnet.AlexNet, batch_norm=True),
        ModelInfo("alexnet_bn", 64, IMAGENET_MEAN, IMAGENET_STD, alexnet.FIT_LAYERS_BN, MOUSE_VISION),
    ),
}


def list_models() -> list[str]:
    """Names of our own backbones; timm's are `timm/<name>`, listed by `timm.list_models()`."""
    return sorted(MODELS)


def create_model(name: str, **kwargs) -> nn.Module:
    """The named backbone with fresh weights from torch's global generator.

    Args:
        name: one of `list_models()` or `timm/<name>`.
        kwargs: arguments of its constructor; `num_classes=0` leaves out the classifier's last layer.

    Raises:
        ValueError: unknown name (the nearest ones are listed) or unknown argument.
    """
    if name.startswith(TIMM_PREFIX):
        import timm

        build = partial(timm.create_model, known_timm_name(name))
    else:
        build = known_entry(name)[0]
    try:
        return build(**kwargs)
    except TypeError as error:
        raise ValueError(f"model {name!r} does not take these arguments {sorted(kwargs)}: {error}") from error


def model_info(name: str) -> ModelInfo:
    """Input size, normalisation, fit layers and source of a backbone; raises ValueError for an unknown name."""
    return timm_info(name) if name.startswith(TIMM_PREFIX) else known_entry(name)[1]


def feature_size(backbone: nn.Module, input_size: int) -> int:
    """Length of the feature vector that a backbone gives for one `input_size` x `input_size` image."""
    training = backbone.training
    parameter = next(backbone.parameters())
    with torch.no_grad():
        features = backbone.eval()(torch.zeros(1, 3, input_size, input_size, device=parameter.device))
    backbone.train(training)
    if features.ndim != 2:
        raise ValueError(f"the backbone gives features of shape {tuple(features.shape)}, not (batch, features)")
    return features.shape[1]


def known_entry(name: str) -> tuple[Callable[..., nn.Module], ModelInfo]:
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=3, cutoff=0.4) or list_models()
        raise ValueError(f"unknown model {name!r}; nearest: {', '.join(near)}; or timm/<name> for any of timm's")
    return MODELS[name]


def known_timm_name(name: str) -> str:
    import timm

    timm_name = name.removeprefix(TIMM_PREFIX)
    if not timm.is_model(timm_name):
        near = difflib.get_close_matches(timm_name.split(".")[0], timm.list_models(), n=3, cutoff=0.4)
        raise ValueError(f"unknown model {name!r}; nearest in timm: {', '.join(TIMM_PREFIX + n for n in near)}")
    return timm_name


def timm_info(name: str) -> ModelInfo:
    """Facts that timm keeps about its model; the fit layers are its feature stages."""
    import timm

    timm_name = known_timm_name(name)
    config = timm.get_pretrained_cfg(timm_name)
    with torch.device("meta"):
        model = timm.create_model(timm_name)
    stages = tuple(stage["module"] for stage in model.feature_info)
    size = config.input_size[-1] if config else 224
    return ModelInfo(
        name=name,
        input_size=size,
        mean=tuple(config.mean) if config else IMAGENET_MEAN,
        std=tuple(config.std) if config else IMAGENET_STD,
        fit_layers=stages,
        source=f"timm {timm.__version__}",
        resize=round(size / (config.crop_pct if config else 0.875)),
        crop=size,
    )
