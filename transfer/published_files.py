"""Encoders of published files: their weights, and the facts about their animals.

What comes in: a file of one of the projects in `pretrain.published_encoder`. What goes out: facts with which
`transfer.published_encoders` builds the encoder, no recording needed, and the encoder with the file's weights. Where
animals have the same names, `pretrain.checkpoint.load_published` does the latter.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pretrain.checkpoint import opened, put_in_place
from pretrain.published_encoder import PROJECTS, published_weights, select_encoder_weights
from transfer.encoder import Encoder
from transfer.encoder_spec import AnimalFacts


def load_published_encoder(
    encoder: Encoder, source: Path | str | dict[str, Any], animals: Mapping[str, str] | None = None
) -> Encoder:
    """Load all weights of an encoder from a published file, and say which were used, renamed and ignored.

    Args:
        encoder: as the file's, on any device; animals of the file that it does not have are ignored.
        source: the file, or what `torch.load` gave for it.
        animals: the encoder's name of each of the file's animals that is wanted (`{"A": "my_mouse"}`); None where they
            have the same names, or those of the published recordings.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of none of the projects, or one of which a weight does not fit; the first is named.
    """
    state, origin = opened(source)
    found = select_encoder_weights(encoder, state, origin, animals)
    if found is None:
        raise ValueError(not_of_a_project(origin))
    put_in_place(encoder, found, origin)
    return encoder


def published_facts(
    source: Path | str | dict[str, Any],
    size: tuple[int, int] = (36, 64),
    channels: int = 1,
    behavior_channels: int = 2,
    pupil_channels: int = 2,
) -> dict[str, AnimalFacts]:
    """Facts about the animals of a published file, by their names there, to build an encoder without recordings.

    Neurons and where they lie come from the file; the scale of the coordinates is lost, which positions do not depend
    on. DwiseNeuro's files have an even number of neurons for each animal: the last one is surplus where it had an odd
    number.

    Args:
        source: the file, or what `torch.load` gave for it.
        size, channels, behavior_channels, pupil_channels: of what the model is to be given, see `AnimalFacts`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of none of the projects.
    """
    state, origin = opened(source)
    weights = published_weights(state)
    if weights is None:
        raise ValueError(not_of_a_project(origin))
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in weights.items():
        kind, animal, rest = [*name.split(".", 2), "", ""][:3]
        if kind == "readouts":
            found.setdefault(animal, {})[rest] = value
    shown = {"channels": channels, "behavior_channels": behavior_channels, "pupil_channels": pupil_channels}
    return {
        animal: AnimalFacts(neurons_of(part), size, **shown, coordinates=part.get("source_grid"))
        for animal, part in found.items()
    }


def neurons_of(readout: Mapping[str, Tensor]) -> int:
    """How many neurons a readout's weights are of."""
    named = next(name for name in ("bias", "spatial", "layer.1.bias", "_features", "features") if name in readout)
    return readout[named].shape[-1 if named.endswith("features") else 0]


def not_of_a_project(origin: str) -> str:
    return f"{origin} is no encoding model of {', '.join(project.name for project in PROJECTS)}"
