"""A core of an encoding model as a backbone: pretrained without labels before any neuron has been seen.

What comes in: views as objectives make them, images (batch, 3, height, width) or clips (batch, 3, frames, height,
width). What goes out: features (batch, channels), the mean of the core's maps over places and frames, as
self-supervised learning from video pools its networks (Feichtenhofer et al. 2021, https://arxiv.org/abs/2104.14558).

A view becomes what recordings will show the core: grey where it takes one channel, and the middle rows and columns of
its input size. Behaviour and gaze are 0, which is their mean once they are normalised: their weights exist, so that an
encoder takes over the core as it is, and stay as they were drawn.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from pretrain.models import core_names, create_model

# Grey is the luma of ITU-R BT.601, as Pillow converts colour; a picture in grey stays what it is.
LUMA = (0.299, 0.587, 0.114)
# Values of recordings of video: dilation and speed, and where the pupil is.
BEHAVIOR, PUPIL = 2, 2
SIZE_ARGUMENTS = ("input_size", "image_size")


class CoreBackbone(nn.Module):
    """Pooled features of a core.

    Args:
        core: as `pretrain.models.cores` makes them.
        channels: of the pictures that it takes, 1 or 3.
        input_size: height and width of what it sees of a view; smaller views are seen whole.
        video: whether it takes clips.
        behavior_values: values of behaviour that it takes, where it takes any.
    """

    def __init__(
        self, core: nn.Module, channels: int, input_size: tuple[int, int], video: bool, behavior_values: int
    ) -> None:
        super().__init__()
        self.core = core
        self.channels, self.input_size, self.video = channels, tuple(input_size), video
        self.behavior_values = behavior_values

    @property
    def feature_count(self) -> int:
        """Length of the features of one view."""
        return self.core.out_channels

    @property
    def unused_parameters(self) -> tuple[str, ...]:
        """Parameters that the features do not depend on."""
        return tuple(f"core.{name}" for name in getattr(self.core, "unused_parameters", ()))

    def forward(self, views: Tensor) -> Tensor:
        """Images (batch, 3, height, width) or clips (batch, 3, frames, height, width) to features (batch, channels)."""
        seen = self.seen(views)
        time = seen.shape[2:3] if self.video else ()
        behavior = seen.new_zeros(len(seen), self.behavior_values, *time)
        maps = self.core(seen, behavior=behavior, pupil_center=seen.new_zeros(len(seen), PUPIL, *time))
        return maps.flatten(2).mean(2)

    def seen(self, views: Tensor) -> Tensor:
        """What the core sees of views: the middle of each, in grey where it takes grey."""
        rows, columns = (
            slice((have - min(have, want)) // 2, (have + min(have, want)) // 2)
            for have, want in zip(views.shape[-2:], self.input_size, strict=True)
        )
        middle = views[..., rows, columns]
        if self.channels != 1:
            return middle
        luma = middle.new_tensor(LUMA).view(3, *[1] * (middle.ndim - 2))
        return (middle * luma).sum(1, keepdim=True)

    def require_clips_of(self, frames: int, view: int) -> None:
        """Fail where clips of so many frames, or views of this side, are too small for the core.

        Raises:
            ValueError: one line with what comes out of the core.
        """
        height, width = (min(view, side) for side in self.input_size)
        sizes = (frames, height, width) if self.video else (height, width)
        found = self.core.output_shape(*sizes)
        if min(found) < 1:
            raise ValueError(
                f"{type(self.core).__name__} makes maps of shape {tuple(found)} of {' x '.join(map(str, sizes))} "
                f"{'frames, rows and columns' if self.video else 'rows and columns'}; set views.size"
                f"{' and views.clip_frames' if self.video else ''} larger"
            )


def create_backbone(name: str, **args: Any) -> nn.Module:
    """A backbone as `pretrain.models.create_model` makes it, or a core with its features pooled.

    Raises:
        ValueError: unknown name or argument.
    """
    # "backbone" cuts one of the others at a layer, which is pretrained whole.
    if name == "backbone" or name not in core_names():
        return create_model(name, **args)
    facts = core_names()[name]
    sized = [args[key] for key in SIZE_ARGUMENTS if key in args]
    return CoreBackbone(
        create_model(name, **args),
        channels=facts.input[0],
        input_size=sized[0] if sized else facts.input[-2:],
        video=facts.video,
        behavior_values=args.get("behavior_channels", default_of(facts.build, "behavior_channels", BEHAVIOR)),
    )


def default_of(build: Callable[..., nn.Module], argument: str, otherwise: Any) -> Any:
    """What an argument of a constructor is where it is not given; `otherwise` where it is not among the named ones."""
    parameters = inspect.signature(build).parameters
    return parameters[argument].default if argument in parameters else otherwise


def core_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the core alone, from those of a `CoreBackbone`."""
    return {key.removeprefix("core."): value for key, value in state.items() if key.startswith("core.")}
