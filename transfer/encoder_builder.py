"""Encoding models built from a spec: a core for all animals, and for each the parts that it says.

What comes in: an `EncoderSpec`, and facts about each animal. What goes out: an `Encoder` with fresh weights from
torch's global generator, or one more animal in an encoder that is there. Sizes that follow from the animals (channels,
size of the frames, values of behaviour, what the core makes of them) are worked out here, unless the spec has them.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from pretrain.models.cores import CORES
from transfer.activations import create_activation
from transfer.attention_readout import QueryAttentionReadout
from transfer.encoder import Encoder
from transfer.encoder_spec import AnimalFacts, EncoderSpec, unknown
from transfer.gaussian_readout import GaussianReadout
from transfer.modulators import MODULATORS
from transfer.readout import Readout
from transfer.readouts import create_readout, readout_class
from transfer.shifters import SHIFTERS


def build_encoder(spec: EncoderSpec, animals: Mapping[str, AnimalFacts]) -> Encoder:
    """The encoder of a spec for some animals, which share the core and so must have been shown alike.

    Raises:
        ValueError: no animals, animals of different channels, sizes or behaviour, or a part, an argument or a size that
            does not fit.
    """
    if not animals:
        raise ValueError("an encoder is built for at least one animal, found none")
    (first_name, first), *others = animals.items()
    for name, facts in others:
        for fact in ("channels", "size", "behavior_channels", "pupil_channels"):
            if getattr(facts, fact) != getattr(first, fact):
                raise ValueError(
                    f"animals share a core, but {fact} is {getattr(first, fact)} of {first_name!r} and "
                    f"{getattr(facts, fact)} of {name!r}"
                )
    activation = made_activation(spec)
    per_animal = any(True for _ in activation.parameters())
    encoder = Encoder(made_core(spec, first, tuple(animals)), None if per_animal else activation)
    for name, facts in animals.items():
        add_animal_from(spec, encoder, name, facts)
    return encoder


def add_animal_from(spec: EncoderSpec, encoder: Encoder, name: str, facts: AnimalFacts) -> None:
    """Give an encoder of this spec one more animal, with fresh weights, those of its own in the core too.

    Raises:
        ValueError: an animal that is there, or a part, an argument or a size that does not fit.
    """
    if name in encoder.readouts:
        raise ValueError(f"animal {name!r} is there already; there are {', '.join(encoder.animals)}")
    readout = made_readout(spec, encoder, name, facts)
    shifter = made_shifter(spec, name, facts) if readout.has_positions and shifted_by(encoder.core) else None
    activation = made_activation(spec)
    own = any(True for _ in activation.parameters())
    encoder.add_animal(name, readout, shifter, made_modulator(spec, facts), activation if own else None)
    if hasattr(encoder.core, "add_animal"):
        encoder.core.add_animal(name)


def made_core(spec: EncoderSpec, facts: AnimalFacts, animals: tuple[str, ...]) -> nn.Module:
    """The core of a spec; one that can be given animals later has none yet."""
    if spec.core not in CORES:
        raise ValueError(f"there is no core {unknown(spec.core, CORES)}")
    arguments = of_stimuli(spec.core, facts) | spec.core_arguments
    if arguments.get("behavior") == "animal_mlp":
        arguments.setdefault("animals", animals)
    return built(f"core {spec.core!r}", CORES[spec.core].build, arguments)


def of_stimuli(core: str, facts: AnimalFacts) -> dict[str, Any]:
    """Arguments of a core that follow from what is shown to the animals and recorded beside it."""
    values = facts.behavior_channels + facts.pupil_channels
    if core.startswith("dwiseneuro"):
        return {"in_channels": facts.channels + values}
    if core.startswith("viv1t"):
        signals = {"behavior_channels": facts.behavior_channels, "pupil_channels": facts.pupil_channels}
        return {"input_size": facts.size, "channels": facts.channels} | signals
    if core == "dynamic_vfm":
        if values != 4:
            raise ValueError(f"core 'dynamic_vfm' takes 4 values of behaviour and pupil, the animals have {values}")
        return {"in_channels": facts.channels}
    if core == "backbone":
        return {"input_size": facts.size}
    # V1T resizes images of any size to the one that it was published for.
    name = {"v1t": "in_channels", "factorized3d": "video_channels", "full3d": "video_channels"}
    return {name.get(core, "image_channels"): facts.channels, "behavior_channels": facts.behavior_channels}


def features_shape(spec: EncoderSpec, core: nn.Module, facts: AnimalFacts) -> tuple[int, int, int]:
    """Channels, height and width of the core's output for an animal's stimuli."""
    info = CORES[spec.core]
    shape = core.output_shape(*info.input[1:2], *facts.size) if info.video else core.output_shape(*facts.size)
    channels, height, width = shape[0], *shape[-2:]
    if min(height, width) < 1:
        size = " x ".join(map(str, facts.size))
        raise ValueError(
            f"core {spec.core!r} makes {height} x {width} maps of frames of {size} pixels; give larger ones"
        )
    return channels, height, width


def made_readout(spec: EncoderSpec, encoder: Encoder, name: str, facts: AnimalFacts) -> Readout:
    """An animal's readout of the core's features."""
    kind = readout_class(spec.readout)
    arguments: dict[str, Any] = {}
    if spec.start_from_mean and facts.mean_responses is not None:
        arguments["mean_responses"] = facts.mean_responses
    if issubclass(kind, GaussianReadout) and spec.coordinate_axes and facts.coordinates is not None:
        arguments["coordinates"] = first_axes(facts, spec.coordinate_axes, name)
    if spec.readout == "state_gaussian":
        arguments["state_inputs"] = facts.behavior_channels + facts.pupil_channels
    if kind is QueryAttentionReadout and encoder.animals:
        arguments["keys_values"] = encoder.readout_of(encoder.animals[0]).keys_values
    shape = features_shape(spec, encoder.core, facts)
    arguments |= spec.readout_arguments
    build = partial(create_readout, spec.readout, shape, facts.neurons)
    return built(f"readout {spec.readout!r}", build, arguments)


def first_axes(facts: AnimalFacts, axes: int, name: str) -> Any:
    """The first columns of an animal's coordinates; ValueError where there are fewer."""
    if facts.coordinates.shape[1] < axes:
        raise ValueError(
            f"coordinates of animal {name!r} have {facts.coordinates.shape[1]} columns, coordinate_axes asks for {axes}"
        )
    return facts.coordinates[:, :axes]


def shifted_by(core: nn.Module) -> bool:
    """Whether a core wants its readouts shifted; only V1T says so itself."""
    return getattr(core, "shifts_readout", True)


def made_shifter(spec: EncoderSpec, name: str, facts: AnimalFacts) -> nn.Module | None:
    """An animal's shifter, if the spec has one."""
    if spec.shifter is None:
        return None
    if spec.shifter not in SHIFTERS:
        raise ValueError(f"there is no shifter {unknown(spec.shifter, SHIFTERS)}")
    if not facts.pupil_channels:
        raise ValueError(f"animal {name!r} has no pupil centre, from which a shifter takes the shift; set shifter=null")
    return built(f"shifter {spec.shifter!r}", SHIFTERS[spec.shifter], spec.shifter_arguments)


def made_modulator(spec: EncoderSpec, facts: AnimalFacts) -> nn.Module | None:
    """An animal's modulator, if the spec has one."""
    if spec.modulator is None:
        return None
    if spec.modulator not in MODULATORS:
        raise ValueError(f"there is no modulator {unknown(spec.modulator, MODULATORS)}")
    arguments: dict[str, Any] = {"behavior_inputs": facts.behavior_channels} if spec.modulator == "gain" else {}
    arguments |= spec.modulator_arguments
    build = partial(MODULATORS[spec.modulator], facts.neurons)
    return built(f"modulator {spec.modulator!r}", build, arguments)


def made_activation(spec: EncoderSpec) -> nn.Module:
    """The output activation."""
    build = partial(create_activation, spec.activation)
    return built(f"activation {spec.activation!r}", build, spec.activation_arguments)


def built(what: str, build: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> Any:
    """A part from its arguments; ValueError where it does not take them."""
    try:
        return build(**arguments)
    except TypeError as error:
        given = ", ".join(arguments) or "none"
        raise ValueError(f"{what} does not take these arguments ({given}): {error}") from error
