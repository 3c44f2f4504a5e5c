"""Weights as other projects' trainers wrote them, found and named for one of our models.

What comes in: a model and the dict in a file. What goes out: the tensors by the model's own names, with an account of
what was used, renamed and ignored. The layouts are those of mouse-vision's trainers (Nayebi, Kong et al. 2023,
https://doi.org/10.1371/journal.pcbi.1011506), bare state dicts of torchvision and timm, and our own checkpoints; those
of encoding models are in `published_encoder.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

# Where a backbone can lie, and what stands before its names: mouse-vision's trainers write `model_state_dict`, its
# supervised ones `state_dict`, and MoCo a copy within the loss; `backbone` is ours, `model` is torchvision's trainers'.
PLACES = ("backbone", "model_state_dict", "state_dict", "model", "loss_state_dict")
PREFIXES = ("", "module.", "_orig_mod.", "backbone.", "module.encoder_q.0.", "encoder_q.0.")
# What a network can carry beyond the backbone: classifiers, the second half of an hour-glass, and mouse-vision's
# second name for the convolutions of its rotation network.
HEADS = ("classifier", "fc", "head", "compress_fc", "decompress_fc", "decoder_layers", "readout_features")
READOUT_ONLY = "loss_readout_state_dict"
# A count that only batch norm without a momentum uses; files from before torch 0.4.1 do not have it.
COUNTER = "num_batches_tracked"
NAMES_SHOWN = 4


@dataclass(frozen=True)
class PublishedWeights:
    """Weights for a model, and where they come from.

    `weights` are tensors by the model's names; `used` are their names in the file, in the same order, several where a
    tensor is made of several; `renamed` maps those that differ to the model's; `ignored` are all other names in the
    file. `place` is the key under which the weights lie, empty where they lie at the top.
    """

    weights: dict[str, Tensor]
    used: tuple[str, ...]
    renamed: dict[str, str]
    ignored: tuple[str, ...]
    place: str

    def account(self, origin: str) -> Iterator[str]:
        """A few lines on what was used of `origin`, renamed and ignored."""
        where = f" from `{self.place}`" if self.place else ""
        yield f"{origin}: {len(self.used)} tensors{where}: {shortened(self.used)}"
        if self.renamed:
            yield f"  renamed: {shortened([f'{old} -> {new}' for old, new in self.renamed.items()])}"
        if self.ignored:
            yield f"  not used: {shortened(self.ignored)}"


@dataclass(frozen=True)
class Candidate:
    """One place in a file's dict and the tensors that have one prefix there, by their names without it."""

    place: str
    prefix: str
    tensors: dict[str, Tensor]

    def named(self, wanted: dict[str, Tensor]) -> list[str]:
        """Those of the wanted names that are here, in the order wanted."""
        return [name for name in wanted if name in self.tensors]

    def fitting(self, wanted: dict[str, Tensor]) -> list[str]:
        """Those of the wanted names that are here with the wanted shape."""
        return [name for name in self.named(wanted) if self.tensors[name].shape == wanted[name].shape]


def select_weights(model: nn.Module, state: Any, origin: str) -> PublishedWeights:
    """All of a model's weights out of a file's dict; an encoder's also as the projects of Sensorium published them.

    Args:
        model: says which names and shapes are wanted.
        state: what the file holds.
        origin: the file's name, for messages.

    Raises:
        ValueError: no backbone in it, or a weight that is missing, left over or of another shape; the first is named.
    """
    if is_encoder(model):
        # It takes the account from here, and is not needed for backbones.
        from pretrain.published_encoder import select_encoder_weights

        if whole := select_encoder_weights(model, state, origin):
            return whole
    wanted = model.state_dict()
    found = best_candidate(state, wanted, origin)
    require_same_shapes(found, wanted, origin)
    missing = [name for name in wanted if name not in found.tensors and not name.endswith(COUNTER)]
    if missing:
        line = f"{origin} has no weights for {missing[0]!r}, shape {tuple(wanted[missing[0]].shape)}"
        if all(is_head(name) for name in missing):
            raise ValueError(f"{line}: it was saved without that layer; build the model without it, num_classes=0")
        raise ValueError(f"{line}; of the model's {len(wanted)} it lacks {len(missing)}; is it another network's?")
    extra = [name for name in found.tensors if name not in wanted and not is_head(name)]
    if extra:
        more = f" and {len(extra) - 1} more" if extra[1:] else ""
        raise ValueError(f"{origin} has weights that the model does not: {extra[0]!r}{more}; is it another network's?")
    return accounted(state, found, found.named(wanted))


def is_encoder(model: nn.Module) -> bool:
    """Whether a model has a core, and readouts by animal."""
    return isinstance(getattr(model, "core", None), nn.Module) and isinstance(
        getattr(model, "readouts", None), nn.ModuleDict
    )


def select_matching(model: nn.Module, state: Any, origin: str) -> PublishedWeights:
    """Those of a model's weights that a file's dict has by name and shape; ValueError where it has none."""
    wanted = model.state_dict()
    found = best_candidate(state, wanted, origin)
    fitting = found.fitting(wanted)
    if all(name.endswith(COUNTER) for name in fitting):
        require_same_shapes(found, wanted, origin)
        raise ValueError(
            f"{origin} has no weights of this network, only counters of its batch norms; name the right file or model"
        )
    return accounted(state, found, fitting)


def best_candidate(state: Any, wanted: dict[str, Tensor], origin: str) -> Candidate:
    """The place and prefix under which a dict has most of the wanted weights by name and shape, then by name."""
    if not isinstance(state, dict):
        raise ValueError(f"{origin} holds no weights by name, but {type(state).__name__}")
    found = list(candidates(state))
    best = max(found, key=lambda each: (len(each.fitting(wanted)), len(each.named(wanted))), default=None)
    if best is None or not best.named(wanted):
        raise ValueError(no_backbone(state, found, wanted, origin))
    return best


def candidates(state: dict[Any, Any]) -> Iterator[Candidate]:
    """Every place and prefix under which tensors lie."""
    for place in (*PLACES, ""):
        below = state.get(place) if place else state
        named = below.items() if isinstance(below, dict) else ()
        held = {name: value for name, value in named if isinstance(name, str) and isinstance(value, Tensor)}
        for prefix in PREFIXES:
            tensors = {name.removeprefix(prefix): value for name, value in held.items() if name.startswith(prefix)}
            if tensors:
                yield Candidate(place, prefix, tensors)


def accounted(state: dict[Any, Any], found: Candidate, names: list[str]) -> PublishedWeights:
    """The weights of these names, with everything else in the file as ignored."""
    used = tuple(found.prefix + name for name in names)
    renamed = {found.prefix + name: name for name in names} if found.prefix else {}
    beside = [key for key in (state[found.place] if found.place else state) if key not in set(used)]
    others = [key for key in state if key != found.place] if found.place else []
    weights = {name: found.tensors[name] for name in names}
    return PublishedWeights(weights, used, renamed, tuple(map(str, beside + others)), found.place)


def require_same_shapes(found: Candidate, wanted: dict[str, Tensor], origin: str) -> None:
    for name in found.named(wanted):
        here, there = tuple(found.tensors[name].shape), tuple(wanted[name].shape)
        if here != there:
            raise ValueError(f"{name!r} has shape {here} in {origin}, {there} in the model; is it another network's?")


def is_head(name: str) -> bool:
    return name.split(".")[0] in HEADS


def no_backbone(state: dict[Any, Any], found: list[Candidate], wanted: dict[str, Tensor], origin: str) -> str:
    """Why a file has not one of the wanted weights."""
    keys = shortened([str(key) for key in state], 8) or "nothing"
    if READOUT_ONLY in state:
        return (
            f"{origin} is a linear readout, saved without the backbone that it reads (found: {keys}); "
            "load the checkpoint that the readout was trained on"
        )
    if not found:
        return f"{origin} holds no weights by name (found: {keys})"
    if not wanted:
        return "the model has no weights"
    first = next(iter(wanted))
    return (
        f"{origin} has no weights for {first!r}, shape {tuple(wanted[first].shape)}, nor for any other of the model's; "
        f"it has {shortened(list(found[0].tensors))}"
    )


def shortened(names: Sequence[str], shown: int = NAMES_SHOWN) -> str:
    """The first names, and how many more there are."""
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest
