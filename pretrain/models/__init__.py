"""Backbones by name.

What comes in: a name, and constructor arguments. What goes out: an `nn.Module` that maps float images
(batch, 3, height, width) to (batch, features), and the facts about it that other rooms need (`ModelInfo`). A name is
one of ours, one that mouse-vision uses for the same network (see `aliases.py`), or `timm/<name>`.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pretrain.models import alexnet, comparison, mousenet, multi_stream
from pretrain.models.aliases import ALIASES
from pretrain.models.hour_glass import hour_glass

if TYPE_CHECKING:
    from pretrain.models.cores import CoreInfo

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
TIMM_PREFIX = "timm/"


@dataclass(frozen=True)
class ModelInfo:
    """What a user of a backbone must know.

    `mean` and `std` normalise images in 0..1. The evaluation transform resizes the short side to `resize`, crops the
    central `crop` and resizes that to `input_size`, all in pixels. `fit_layers` are ordered from input to output;
    `areas` names the visual area that a layer models, where it models one. `classifier` says whether the argument
    `num_classes` sets, or with 0 leaves out, a last linear layer.
    """

    name: str
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit_layers: tuple[str, ...]
    paper: str
    areas: Mapping[str, str] = field(default_factory=dict)
    resize: int = 256
    crop: int = 224
    classifier: bool = True


MOUSE_VISION = "Nayebi 2023, https://doi.org/10.1371/journal.pcbi.1011506"
MOUSENET = "Shi 2022, https://doi.org/10.1371/journal.pcbi.1010427"
RESNET = "He 2016, https://arxiv.org/abs/1512.03385"
VGG = "Simonyan 2015, https://arxiv.org/abs/1409.1556"


def published(
    name: str,
    build: Callable[..., nn.Module],
    fit_layers: tuple[str, ...],
    paper: str = MOUSE_VISION,
    areas: Mapping[str, str] | None = None,
    input_size: int = 64,
    classifier: bool = True,
) -> dict[str, tuple[Callable[..., nn.Module], ModelInfo]]:
    """An entry of `MODELS` for a network of mouse-vision, which normalises as ImageNet's do."""
    of_fit_layers = {layer: area for layer, area in (areas or {}).items() if layer in fit_layers}
    info = ModelInfo(
        name, input_size, IMAGENET_MEAN, IMAGENET_STD, fit_layers, paper, of_fit_layers, classifier=classifier
    )
    return {name: (build, info)}


def with_mirrors(
    name: str, build: Callable[..., nn.Module], fit_layers: tuple[str, ...]
) -> dict[str, tuple[Callable[..., nn.Module], ModelInfo]]:
    """A multi-stream network, and the hour-glasses made of it."""
    areas = multi_stream.AREAS
    return (
        published(name, build, fit_layers, areas=areas)
        | published(f"{name}_autoencoder", partial(hour_glass, name), fit_layers, areas=areas, classifier=False)
        | published(f"{name}_depth", partial(hour_glass, name, compressed=0), fit_layers, areas=areas, classifier=False)
    )


MODELS: dict[str, tuple[Callable[..., nn.Module], ModelInfo]] = {
    **published("alexnet", alexnet.AlexNet, alexnet.FIT_LAYERS),
    **published("alexnet_bn", partial(alexnet.AlexNet, batch_norm=True), alexnet.FIT_LAYERS_BN),
    **published("alexnet_edges", alexnet.AlexNetEdges, alexnet.EDGES_FIT_LAYERS),
    **published("alexnet_rotnet", alexnet.RotNetAlexNet, alexnet.ROTNET_FIT_LAYERS, input_size=224, classifier=False),
    **with_mirrors("single_stream", multi_stream.single_stream, multi_stream.SINGLE_FIT_LAYERS),
    **with_mirrors("dual_stream", multi_stream.dual_stream, multi_stream.DUAL_FIT_LAYERS),
    **with_mirrors("six_stream", multi_stream.six_stream, multi_stream.SIX_FIT_LAYERS),
    **published("mousenet", mousenet.MouseNet, mousenet.FIT_LAYERS, MOUSENET, mousenet.AREAS),
    **published("mousenet_vispor5", mousenet.mousenet_vispor5, mousenet.FIT_LAYERS, MOUSENET, mousenet.AREAS),
    **{
        name: entry
        for depth in comparison.RESNET_BLOCKS
        for name, entry in published(
            f"resnet{depth}", partial(comparison.resnet, depth), comparison.resnet_fit_layers(depth), RESNET
        ).items()
    },
    **published("vgg16", comparison.vgg16, comparison.VGG_FIT_LAYERS, VGG),
    **published("vgg16_bn", partial(comparison.vgg16, batch_norm=True), comparison.VGG_BN_FIT_LAYERS, VGG),
}


def list_models() -> list[str]:
    """Names of our own backbones; timm's are `timm/<name>`, listed by `timm.list_models()`."""
    return sorted(MODELS)


def list_aliases() -> list[str]:
    """Further names of the same networks: mouse-vision's constructors and published files."""
    return sorted(ALIASES)


def create_model(name: str, **kwargs) -> nn.Module:
    """The named backbone with fresh weights from torch's global generator.

    Args:
        name: one of `list_models()` or `list_aliases()`, `timm/<name>`, or a core of `cores.list_cores()`.
        kwargs: arguments of its constructor, over those that an alias stands for; `num_classes=0` leaves out the
            classifier's last layer. `input_size` makes a timm model for images of that side.

    Raises:
        ValueError: unknown name (the nearest ones are listed) or unknown argument.
    """
    try:
        if name.startswith(TIMM_PREFIX):
            return create_timm_model(known_timm_name(name), **kwargs)
        if name in core_names():
            return core_names()[name].build(**kwargs)
        known_entry(name)
        if name in ALIASES:
            kwargs = ALIASES[name].args | kwargs
        return known_entry(name)[0](**kwargs)
    except TypeError as error:
        raise ValueError(f"model {name!r} does not take these arguments {sorted(kwargs)}: {error}") from error


@cache
def model_info(name: str) -> ModelInfo:
    """Input size, normalisation, fit layers, areas and paper; raises ValueError for an unknown name.

    An alias of a shortened network has the fit layers that it has left.
    """
    if name.startswith(TIMM_PREFIX):
        return timm_info(name)
    info = known_entry(name)[1]
    if name not in ALIASES:
        return info
    with torch.device("meta"):
        left = dict(create_model(name).named_modules())
    layers = tuple(layer for layer in info.fit_layers if layer in left)
    alias = ALIASES[name]
    views = {"input_size": alias.input_size, "resize": alias.resize, "crop": alias.crop}
    return replace(info, name=name, fit_layers=layers, **views)


@cache
def core_names() -> Mapping[str, "CoreInfo"]:
    """Cores of encoding models; looked up late, because some of them are made of backbones."""
    from pretrain.models.cores import CORES

    return CORES


def feature_size(backbone: nn.Module, input_size: int) -> int:
    """Length of the feature vector that a backbone gives for one `input_size` x `input_size` image.

    One that says it itself in `feature_count` is asked, since it may take clips.
    """
    if hasattr(backbone, "feature_count"):
        return backbone.feature_count
    training = backbone.training
    parameter = next(backbone.parameters())
    with torch.no_grad():
        features = backbone.eval()(torch.zeros(1, 3, input_size, input_size, device=parameter.device))
    backbone.train(training)
    return flat_features(features).shape[1]


def flat_features(output: Tensor | dict[str, Tensor]) -> Tensor:
    """What a backbone gives for a batch as (batch, features): maps are flattened, an hour-glass gives its code."""
    if isinstance(output, dict):
        output = output["encoder_output"]
    return output.flatten(1)


def known_entry(name: str) -> tuple[Callable[..., nn.Module], ModelInfo]:
    """Constructor and facts of a model of ours, by its name or an alias."""
    canonical = ALIASES[name].model if name in ALIASES else name
    if canonical not in MODELS:
        near = difflib.get_close_matches(name, [*MODELS, *ALIASES, *core_names()], n=3, cutoff=0.4) or list_models()
        raise ValueError(f"unknown model {name!r}; nearest: {', '.join(near)}; or timm/<name> for any of timm's")
    return MODELS[canonical]


def create_timm_model(timm_name: str, input_size: int | None = None, **kwargs) -> nn.Module:
    """A timm model; those that are made for one size of images are made for `input_size`."""
    import timm

    config = timm.get_pretrained_cfg(timm_name)
    if input_size and config and config.fixed_input_size:
        kwargs = {"img_size": input_size, **kwargs}
    return timm.create_model(timm_name, **kwargs)


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
        paper=f"timm {timm.__version__}",
        resize=round(size / (config.crop_pct if config else 0.875)),
        crop=size,
    )
