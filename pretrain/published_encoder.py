"""Published weights of whole encoding models: whose they are, and where each goes.

What comes in: an encoder, a module with children `core` and `readouts.<animal>`, `shifters.<animal>`, ..., and the dict
in a file of one of the projects below. What goes out: the tensors by the encoder's names, with an account of what was
used, renamed and ignored. The project follows from the names in the file. Animals are matched by their names or by the
numbers of their scans (`29515-10-12`), which stand in the names of the published folders; the projects that number or
letter them do it in the order of their publications. Animals that the encoder does not have are left out.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from pretrain import (
    published_dwiseneuro,
    published_dynamic_vfm,
    published_neuralpredictors,
    published_v1t,
    published_viv1t,
)
from pretrain.published import PublishedWeights
from pretrain.published_names import DATA_PARALLEL, OurWeights, require_fit

# Where the weights lie in a file's dict, and what `torch.compile` puts into names.
PLACES = ("nn_state_dict", "model", "state_dict")
COMPILED = "_orig_mod."
SCAN = re.compile(r"\d+-\d+-\d+")
# Sensorium 2023, in the order of ViV1T's letters; Sensorium 2022 and Franke 2022 in that of V1T's.
SCANS_2023 = (
    "29156-11-10", "29228-2-10", "29234-6-9", "29513-3-5", "29514-2-9", "29515-10-12", "29623-4-9", "29647-19-8",
    "29712-5-9", "29755-2-8",
)  # fmt: skip
SCANS_2022 = (
    "21067-10-18", "22846-10-16", "23343-5-17", "23656-14-22", "23964-4-22", "25311-10-26", "25340-3-19", "25704-2-12",
    "25830-10-4", "26085-6-3", "26142-2-11", "26426-18-13", "26470-4-5", "26644-6-2", "26872-21-6",
)  # fmt: skip
V1T_SCANS = dict(zip("ABCDEFGHIJKLMNO", SCANS_2022, strict=True)) | {"S0": "26872-17-20", "S1": "27204-5-13"}
# In a core, an MLP that all animals share has this name in the place of an animal's.
SHARED = "share"
# Which part of one of our names is an animal's; the core can have parts of one animal too.
OF_ANIMAL = re.compile(
    r"((?:readouts|shifters|modulators|activations)\.|core\.(?:.+\.)?(?:networks|models|shifters)\.)([^.]+)(\..+)"
)


@dataclass(frozen=True)
class Project:
    """What tells the files of a project, how its names become ours, and which scans its animals are."""

    name: str
    sign: re.Pattern[str]
    rename: Callable[[dict[str, Tensor]], OurWeights]
    scans: Mapping[str, str] = field(default_factory=dict)


def from_dwiseneuro(state: dict[str, Tensor]) -> OurWeights:
    """Readouts by their numbers in the file."""
    return published_dwiseneuro.from_published(state, animals=[str(number) for number in range(len(state))])


PROJECTS = (
    Project(
        "DwiseNeuro",
        re.compile(r"core\.stem\.0\."),
        from_dwiseneuro,
        {str(number): name for number, name in enumerate(published_dwiseneuro.ANIMALS)},
    ),
    Project(
        "ViV1T",
        re.compile(r"core\.vivit\."),
        published_viv1t.from_published,
        dict(zip("ABCDEFGHIJ", SCANS_2023, strict=True)),
    ),
    Project("V1T", re.compile(r"core\.patch_embedding\.cls_token"), published_v1t.from_published, V1T_SCANS),
    Project("Dynamic-VFM", re.compile(r"core\.transformer\."), published_dynamic_vfm.from_published),
    Project("neuralpredictors", re.compile(r"core\.features\.layer0\."), published_neuralpredictors.from_published),
)


def select_encoder_weights(
    encoder: nn.Module, state: Any, origin: str, animals: Mapping[str, str] | None = None
) -> PublishedWeights | None:
    """All of an encoder's weights out of a published file's dict; None where it is of none of the projects.

    Args:
        encoder: says which names and shapes are wanted, and of which animals.
        state: what the file holds.
        origin: the file's name, for messages.
        animals: the encoder's name of each animal in the file that is wanted, where names and scans do not say it.

    Raises:
        ValueError: an animal that the file does not have, a name that the project does not have, or a weight that is
            missing, left over or of another shape; the first is named.
    """
    place, named = tensors_of(state)
    project = project_of(named)
    if project is None:
        return None
    weights = project.rename({name: value for name, (_, value) in named.items()})
    pairs = paired_animals(weights, project, encoder, origin, animals)
    ours = of_encoder(weights, pairs, encoder)
    require_fit(ours, encoder.state_dict(), origin)
    return account(ours, named, state, place)


def published_weights(state: Any) -> OurWeights | None:
    """All weights in a file's dict by our names, animals by the file's; None where it is of none of the projects."""
    named = tensors_of(state)[1]
    project = project_of(named)
    return project.rename({name: value for name, (_, value) in named.items()}) if project else None


def project_of(names: Collection[str]) -> Project | None:
    """The project whose signs the names in a file have."""
    return next((each for each in PROJECTS if any(each.sign.match(name) for name in names)), None)


def tensors_of(state: Any) -> tuple[str, dict[str, tuple[str, Tensor]]]:
    """The place of the weights in a file's dict, and by plain names their names in the file and the tensors."""
    if not isinstance(state, Mapping):
        return "", {}
    place = next((each for each in PLACES if isinstance(state.get(each), Mapping)), "")
    named = {}
    for name, value in (state[place] if place else state).items():
        if isinstance(name, str) and isinstance(value, Tensor):
            named[name.removeprefix(DATA_PARALLEL).replace(COMPILED, "")] = name, value
    return place, named


def paired_animals(
    weights: OurWeights, project: Project, encoder: nn.Module, origin: str, given: Mapping[str, str] | None
) -> dict[str, str]:
    """The encoder's name of each animal in the file that it has."""
    found = list(dict.fromkeys(name.split(".")[1] for name in weights if name.startswith("readouts.")))
    known = given if given is not None else {name: match for name in found if (match := same(name, project, encoder))}
    for animal in encoder.readouts:
        if animal not in known.values():
            raise ValueError(
                f"{origin} ({project.name}) has no animal {animal!r}, but {', '.join(found) or 'none'}; name the "
                "encoder's animals as the file's, or their scans, or say which is which with animals={file's: ours}"
            )
    for theirs in known:
        if theirs not in found:
            raise ValueError(f"{origin} ({project.name}) has no animal {theirs!r}; it has {', '.join(found) or 'none'}")
    return dict(known)


def same(name: str, project: Project, encoder: nn.Module) -> str | None:
    """The encoder's animal of this name in a file, or of the same scan."""
    if name in encoder.readouts:
        return name
    scan = scan_of(project.scans.get(name, name))
    return next((animal for animal in encoder.readouts if scan and scan_of(animal) == scan), None)


def scan_of(name: str) -> str | None:
    """Animal, session and scan in the name of an animal or a folder."""
    found = SCAN.search(name)
    return found[0] if found else None


def of_encoder(weights: OurWeights, animals: Mapping[str, str], encoder: nn.Module) -> OurWeights:
    """The weights of the core and of the encoder's animals, by the names that those have there.

    A shifter of an animal whose readout has no position is of no use, and left out where the encoder has none.
    """
    ours = OurWeights()
    for published_name, value in weights.items():
        name, found = published_name, OF_ANIMAL.fullmatch(published_name)
        if found and found[2] != SHARED:
            if found[2] not in animals or unused_shifter(found[1], animals[found[2]], encoder):
                continue
            name = found[1] + animals[found[2]] + found[3]
        ours.put(name, value, *weights.sources[published_name])
    return ours


def unused_shifter(kind: str, animal: str, encoder: nn.Module) -> bool:
    """Whether this is a shifter that no readout would use."""
    without = animal not in getattr(encoder, "shifters", {})
    return kind == "shifters." and without and not getattr(encoder.readouts[animal], "has_positions", True)


def account(
    weights: OurWeights, named: Mapping[str, tuple[str, Tensor]], state: Mapping[str, Any], place: str
) -> PublishedWeights:
    """The weights, and the file's names of those that were used, renamed and ignored."""
    made_of = {named[source][0]: name for name in weights for source in weights.sources[name]}
    renamed = {old: new for old, new in made_of.items() if old != new}
    beside = [str(key) for key in (state[place] if place else state) if key not in made_of]
    others = [str(key) for key in state if key != place] if place else []
    return PublishedWeights(dict(weights), tuple(made_of), renamed, tuple(beside + others), place)
