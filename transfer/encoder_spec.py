"""What an encoding model is made of, as plain data: names of parts and their arguments, and facts about the animals.

What comes in: names and numbers, from a recipe or a checkpoint. What goes out: an `EncoderSpec`, whose dictionary
(`dataclasses.asdict`) can be written as YAML or into a checkpoint and read again, and for each animal `AnimalFacts`.
With both, `transfer.encoder_builder` makes the model; no recording is needed.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

PARTS = ("core", "readout", "shifter", "modulator", "activation")


@dataclass(frozen=True, eq=False)
class AnimalFacts:
    """What must be known of an animal to build its parts.

    Args:
        neurons: how many.
        size: (height, width) in pixels of the images or frames it saw.
        channels: of these.
        behavior_channels: values of behaviour at a time, 0 where none were recorded.
        pupil_channels: 2, horizontal and vertical place of the pupil's centre, or 0.
        coordinates: (neurons, 2 or more), places in cortex in µm; None where they are not known.
        mean_responses: (neurons,), in the units that the model is to give; None where they are not known.

    Raises:
        ValueError: an array that is not of so many neurons, or a number that cannot be.
    """

    neurons: int
    size: tuple[int, int]
    channels: int = 1
    behavior_channels: int = 0
    pupil_channels: int = 0
    coordinates: "np.ndarray | Tensor | None" = None
    mean_responses: "np.ndarray | Tensor | None" = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", tuple(self.size))
        for name, least in (("neurons", 1), ("channels", 1), ("behavior_channels", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} of an animal is {getattr(self, name)}, expected at least {least}")
        if self.pupil_channels not in (0, 2):
            raise ValueError(f"pupil_channels of an animal is {self.pupil_channels}, expected 2, or 0 for no pupil")
        for name, axes in (("coordinates", 2), ("mean_responses", 1)):
            shape = tuple(getattr(getattr(self, name), "shape", (self.neurons,) * axes))
            if len(shape) != axes or shape[0] != self.neurons:
                expected = f"({self.neurons}, 2 or more)" if axes == 2 else f"({self.neurons},)"
                raise ValueError(f"{name} of an animal have shape {shape}, expected {expected}, one row per neuron")

    def saved(self) -> dict[str, Any]:
        """Plain values and tensors for a checkpoint; `AnimalFacts(**saved)` has them back."""
        import torch

        values = {each.name: getattr(self, each.name) for each in fields(self)}
        arrays = {name: values[name] for name in ("coordinates", "mean_responses") if values[name] is not None}
        return values | {name: torch.as_tensor(value) for name, value in arrays.items()}


@dataclass(frozen=True)
class EncoderSpec:
    """Parts of an encoding model by name, with their arguments; sizes that follow from the animals need not be given.

    Args:
        core: of `pretrain.models.cores`.
        readout: of `transfer.readouts`.
        shifter: of `transfer.shifters`, or None. Animals whose readout has no positions get none, nor do those of a
            core that says that its readouts are not to be shifted (V1T's `shift_mode`).
        modulator: of `transfer.modulators`, or None.
        activation: of `transfer.activations`; one with parameters is made for each animal.
        coordinate_axes: how many columns of an animal's coordinates predict where its neurons look; 0 for free
            positions, as have animals without coordinates.
        start_from_mean: whether the readouts' biases start from the mean responses, where they are known.
        core_arguments, ...: of the parts' constructors; plain values, of which tuples become lists.

    Raises:
        ValueError: an argument that is no plain value.
    """

    core: str
    readout: str
    shifter: str | None = None
    modulator: str | None = None
    activation: str = "elu1"
    coordinate_axes: int = 2
    start_from_mean: bool = True
    core_arguments: dict[str, Any] = field(default_factory=dict)
    readout_arguments: dict[str, Any] = field(default_factory=dict)
    shifter_arguments: dict[str, Any] = field(default_factory=dict)
    modulator_arguments: dict[str, Any] = field(default_factory=dict)
    activation_arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for part in PARTS:
            name = f"{part}_arguments"
            object.__setattr__(self, name, plain(getattr(self, name) or {}, name))

    def changed(self, **changes: Any) -> "EncoderSpec":
        """Another spec: names and numbers replaced, arguments of a part put over those that are there.

        Where a part is replaced by another one, the arguments of the old one are not kept.

        Raises:
            ValueError: a field that there is not, with the nearest.
        """
        known = [each.name for each in fields(self)]
        for name in changes:
            if name not in known:
                raise ValueError(f"an encoder has no {unknown(name, known)}")
        for part in PARTS:
            name = f"{part}_arguments"
            kept = getattr(self, name) if changes.get(part, getattr(self, part)) == getattr(self, part) else {}
            changes[name] = kept | dict(changes.get(name) or {})
        return replace(self, **changes)


def plain(value: Any, name: str) -> Any:
    """A value of numbers, texts, lists and dictionaries; tuples become lists. ValueError names what is none."""
    if isinstance(value, Mapping):
        return {str(key): plain(each, f"{name}.{key}") for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each, name) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"{name} is of type {type(value).__name__}, expected numbers, texts, lists or dictionaries")


def unknown(name: str, known: Iterable[str]) -> str:
    """A name in quotes, with the nearest of those that are known."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=3) or known
    return f"{name!r}; nearest: {', '.join(near)}"
