"""Any image backbone, cut at a named layer, as the core of an encoding model.

What comes in: images (batch, channels, height, width), or video (batch, channels, time, height, width), standardised as
the recording's are; one channel is repeated where the backbone takes three. What goes out: maps (batch, channels,
height', width'), or (batch, channels, time, height', width'). A video is seen frame by frame, or its first convolutions
are inflated in time: kernels are repeated over frames and divided by their number, so that a still video gives what the
image gave (Carreira & Zisserman 2017, https://arxiv.org/abs/1705.07750). They reach back in time only, so that no frame
depends on a later one. Cutting, freezing and the norm at the end follow `TransferLearningCore` of neuralpredictors
(https://github.com/sinzlab/neuralpredictors).
"""

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LayerReached(Exception):
    """Ends a forward pass at the layer whose activation is wanted, which it carries."""

    def __init__(self, activation: object) -> None:
        super().__init__()
        self.activation = activation


class BackboneCore(nn.Module):
    """The maps of one layer of a backbone, normalised.

    Args:
        backbone: takes images (batch, channels, height, width); it is changed: what lies beyond the layer is dropped.
        layer: name of one of its `named_modules()` that gives maps, or the tokens of patches.
        input_size: height and width of the images; only `out_channels` and what is dropped are found out with it.
        trained: whether the backbone learns. If not, its norms keep their statistics too, which in the published core
            they do not.
        final_norm, final_nonlinearity: batch norm, ReLU after the layer.
        momentum: of that batch norm.
        inflate: how many of the first convolutions, in the order in which they run, see several frames; videos only.
        inflated_frames: how many frames those see, their own and the ones before it.

    Raises:
        ValueError: no such layer, one that gives no maps, or a convolution that cannot be inflated.
    """

    def __init__(
        self,
        backbone: nn.Module,
        layer: str,
        input_size: tuple[int, int] = (36, 64),
        trained: bool = True,
        final_norm: bool = True,
        final_nonlinearity: bool = True,
        momentum: float = 0.1,
        inflate: int = 0,
        inflated_frames: int = 5,
    ) -> None:
        super().__init__()
        self.backbone, self.layer = backbone, known_layer(backbone, layer)
        self.in_channels = input_channels(backbone)
        ran = drop_unused(backbone, layer, self.probe(input_size))
        inflate_first(backbone, ran, inflate, inflated_frames)
        self.inflate = inflate
        self.trained = trained
        if not trained:
            backbone.requires_grad_(False)
        self.out_channels = self.maps(self.probe(input_size)).shape[1]
        self.norm = nn.BatchNorm2d(self.out_channels, momentum=momentum) if final_norm else nn.Identity()
        self.nonlinearity = nn.ReLU(inplace=True) if final_nonlinearity else nn.Identity()

    def train(self, mode: bool = True) -> "BackboneCore":
        """As of any module, but a backbone that does not learn stays in evaluation mode."""
        super().train(mode)
        if not self.trained:
            self.backbone.eval()
        return self

    def probe(self, size: tuple[int, int]) -> Tensor:
        """An image of this size on the backbone's device."""
        parameter = next(self.backbone.parameters())
        return torch.zeros(1, self.in_channels, *size, device=parameter.device, dtype=parameter.dtype)

    def output_shape(self, *size: int) -> tuple[int, ...]:
        """(channels[, time], height, width) of the output for ([time,] height, width), by trying an image."""
        maps = self.maps(self.probe((size[-2], size[-1])))
        return self.out_channels, *size[:-2], *maps.shape[2:]

    @torch.no_grad()
    def maps(self, images: Tensor) -> Tensor:
        """The layer's maps in evaluation mode, without gradients."""
        with evaluated(self.backbone):
            return self.activation(images)

    def activation(self, images: Tensor) -> Tensor:
        """The layer's maps (batch, channels, height, width) of images."""
        return as_maps(run_to(self.backbone, self.layer, images), self.backbone, self.layer, images.shape[2:])

    def forward(
        self,
        video: Tensor,
        behavior: Tensor | None = None,
        pupil_center: Tensor | None = None,
        animal: str | None = None,
    ) -> Tensor:
        """Maps of images or of a video; signals of the animal are not used."""
        frames, time = video, 1
        if video.ndim == 5:
            time = video.shape[2]
            frames = video.transpose(1, 2).flatten(0, 1)
        elif self.inflate:
            raise ValueError(f"a core with inflated convolutions takes videos, found shape {tuple(video.shape)}")
        if frames.shape[1] == 1 < self.in_channels:
            frames = frames.expand(-1, self.in_channels, -1, -1)
        with clip_length(self.backbone, time):
            maps = self.nonlinearity(self.norm(self.activation(frames)))
        return maps.unflatten(0, (-1, time)).transpose(1, 2) if video.ndim == 5 else maps

    def regularizer(self) -> Tensor:
        """Nothing is added to the loss."""
        return next(self.backbone.parameters()).new_zeros(())


class InflatedConv(nn.Module):
    """A two-dimensional convolution that sees several frames: each frame and those before it.

    Frames of a batch of clips lie one after another, `time` of each. Before the first frame its copies stand, so that
    a still video gives at every frame what the image gave.
    """

    def __init__(self, conv: nn.Conv2d, frames: int) -> None:
        super().__init__()
        self.frames, self.time = frames, 1
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups
        repeated = conv.weight.detach()[:, :, None].repeat(1, 1, frames, 1, 1) / frames
        self.weight, self.bias = nn.Parameter(repeated), conv.bias

    def forward(self, frames: Tensor) -> Tensor:
        clips = frames.unflatten(0, (-1, self.time)).transpose(1, 2)
        before = clips[:, :, :1].expand(-1, -1, self.frames - 1, -1, -1)
        clips = torch.cat([before, clips], 2)
        geometry = ((1, *self.stride), (0, *self.padding), (1, *self.dilation), self.groups)
        return F.conv3d(clips, self.weight, self.bias, *geometry).transpose(1, 2).flatten(0, 1)


def backbone_core(model: str, layer: str, model_args: dict[str, object] | None = None, **options) -> BackboneCore:
    """The core made of a backbone by name, `pretrain.models.create_model(model, **model_args)`."""
    # The list of models knows this file.
    from pretrain.models import create_model

    return BackboneCore(create_model(model, **(model_args or {})), layer, **options)


def run_to(backbone: nn.Module, layer: str, images: Tensor) -> object:
    """What the layer gives; the pass ends there."""

    def stop(module: nn.Module, args: object, output: object) -> None:
        raise LayerReached(output)

    handle = backbone.get_submodule(layer).register_forward_hook(stop)
    try:
        backbone(images)
    except LayerReached as reached:
        return reached.activation
    finally:
        handle.remove()
    raise ValueError(f"layer {layer!r} takes no part in the backbone's forward pass")


def as_maps(activation: object, backbone: nn.Module, layer: str, image_size: tuple[int, int]) -> Tensor:
    """A layer's activation as (batch, channels, height, width): maps as they are, tokens on their patches' grid."""
    if isinstance(activation, Tensor) and activation.ndim == 4:
        return activation.permute(0, 3, 1, 2) if channels_come_last(backbone, layer) else activation
    if isinstance(activation, Tensor) and activation.ndim == 3:
        rows, columns = token_grid(activation.shape[1], backbone, layer, image_size)
        # Class and register tokens come first.
        return activation[:, -rows * columns :].transpose(1, 2).unflatten(2, (rows, columns))
    found = f"shape {tuple(activation.shape)}" if isinstance(activation, Tensor) else type(activation).__name__
    raise ValueError(f"layer {layer!r} gives no maps (batch, channels, height, width) but {found}; name an earlier one")


def channels_come_last(backbone: nn.Module, layer: str) -> bool:
    """Whether a layer gives (batch, height, width, channels), as timm says of it or of the whole backbone."""
    module = backbone.get_submodule(layer)
    if isinstance(module, nn.Conv2d | InflatedConv):
        return False
    return getattr(module, "output_fmt", getattr(backbone, "output_fmt", "NCHW")) == "NHWC"


def token_grid(tokens: int, backbone: nn.Module, layer: str, image_size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of patches among so many tokens: as the backbone says, else in the image's proportions."""
    patches, before = getattr(backbone, "patch_embed", None), getattr(backbone, "num_prefix_tokens", 0)
    grids = [getattr(patches, "grid_size", None)]
    if patch := getattr(patches, "patch_size", None):
        grids.append((image_size[0] // patch[0], image_size[1] // patch[1]))
    rows = max(1, round(((tokens - before) * image_size[0] / image_size[1]) ** 0.5))
    grids.append((rows, (tokens - before) // rows))
    for grid in grids:
        if grid and tokens - grid[0] * grid[1] in (0, before):
            return grid
    raise ValueError(f"layer {layer!r} gives {tokens} tokens, which are no grid of an image of {image_size}")


def drop_unused(backbone: nn.Module, layer: str, image: Tensor) -> list[str]:
    """Names of the modules that ran up to the layer, in order; those that have no part in it are replaced by nothing.

    A module goes if neither it nor any inside it ran, and the layer does not depend on a parameter of it, which another
    module may use without running it.
    """
    ran: list[str] = []
    handles = [module.register_forward_pre_hook(noting(name, ran)) for name, module in backbone.named_modules()]
    try:
        needed = parameters_needed(backbone, layer, image)
    finally:
        for handle in handles:
            handle.remove()
    kept = {parent for name in {*ran, *needed} for parent in with_parents(name)}
    for name, module in list(backbone.named_modules()):
        if name and name not in kept and any(True for _ in module.parameters()):
            backbone.set_submodule(name, nn.Identity())
    return list(dict.fromkeys(ran))


def noting(name: str, ran: list[str]) -> Callable[..., None]:
    """A hook that appends the name."""
    return lambda module, args: ran.append(name)


def parameters_needed(backbone: nn.Module, layer: str, image: Tensor) -> set[str]:
    """Names of the parameters that a layer depends on, by its gradient."""
    parameters = {name: value for name, value in backbone.named_parameters() if value.is_floating_point()}
    learned = {name: value.requires_grad for name, value in parameters.items()}
    for value in parameters.values():
        value.requires_grad_(True)
    try:
        with evaluated(backbone), torch.enable_grad():
            reached = as_maps(run_to(backbone, layer, image), backbone, layer, image.shape[2:])
            gradients = torch.autograd.grad(reached.sum(), list(parameters.values()), allow_unused=True)
    finally:
        for name, value in parameters.items():
            value.requires_grad_(learned[name])
    return {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}


def with_parents(name: str) -> list[str]:
    """A dotted name and those of all that it lies in."""
    parts = name.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def inflate_first(backbone: nn.Module, ran: list[str], count: int, frames: int) -> None:
    """Replace the first convolutions by inflated ones."""
    convolutions = [name for name in ran if name and isinstance(backbone.get_submodule(name), nn.Conv2d)]
    if count > len(convolutions):
        raise ValueError(f"inflate is {count}, but up to the layer only {len(convolutions)} convolutions run")
    for name in convolutions[:count]:
        conv = backbone.get_submodule(name)
        if type(conv) is not nn.Conv2d or isinstance(conv.padding, str) or conv.padding_mode != "zeros":
            raise ValueError(f"convolution {name!r} cannot be inflated: it is no plain Conv2d but {conv}")
        backbone.set_submodule(name, InflatedConv(conv, frames))


@contextmanager
def clip_length(backbone: nn.Module, time: int) -> Iterator[None]:
    """Tells inflated convolutions how many frames of a clip follow one another."""
    inflated = [module for module in backbone.modules() if isinstance(module, InflatedConv)]
    for module in inflated:
        module.time = time
    try:
        yield
    finally:
        for module in inflated:
            module.time = 1


@contextmanager
def evaluated(backbone: nn.Module) -> Iterator[None]:
    """The backbone in evaluation mode, and each of its modules as it was afterwards."""
    modes = [(module, module.training) for module in backbone.modules()]
    backbone.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def input_channels(backbone: nn.Module) -> int:
    """Channels of the images that a backbone takes: those of its first convolution."""
    first = next((module for module in backbone.modules() if isinstance(module, nn.Conv2d)), None)
    return 3 if first is None else first.in_channels


def known_layer(backbone: nn.Module, name: str) -> str:
    names = [found for found, _ in backbone.named_modules() if found]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:5]
        raise ValueError(f"the backbone has no layer {name!r}; nearest: {', '.join(near)}")
    return name
