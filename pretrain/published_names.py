"""The weights of an encoding model that another project published, by our names.

What comes in: a state dict as it was published, and how its names turn into ours. What goes out: the same tensors by
our names, with the published names that each is made of. Names are those of `Encoder`: `core.`, `readouts.<animal>.`,
`shifters.<animal>.`.
"""

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

DATA_PARALLEL = "module."


class OurWeights(dict[str, Tensor]):
    """Tensors by our names; `sources` has for each the published names of what it is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: dict[str, tuple[str, ...]] = {}

    def put(self, name: str, value: Tensor, *published: str) -> None:
        """A tensor by our name, and its published names. ValueError where another tensor has our name already."""
        if name in self:
            raise ValueError(f"{self.sources[name][0]!r} and {published[0]!r} would both be {name!r} here; keep one")
        self[name] = value
        self.sources[name] = published


def renamed(state: Mapping[str, Tensor], rename: Callable[[str], str | None], origin: str) -> OurWeights:
    """The tensors of a published state dict by our names.

    Args:
        state: tensors by their published names, before which `module.` may stand.
        rename: our name of a published one, None for what follows from the architecture, "" for a name that the
            published model does not have.
        origin: the file's name, for messages.

    Raises:
        ValueError: a name that the published model does not have.
    """
    weights = OurWeights()
    for name, value in state.items():
        ours = rename(name.removeprefix(DATA_PARALLEL))
        if ours == "":
            raise ValueError(f"{origin} has {name!r}, shape {shape_of(value)}, which the published model does not have")
        if ours is not None:
            weights.put(ours, value, name)
    return weights


def require_fit(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], origin: str) -> None:
    """Refuse weights of which one is not the model's, has another shape than there, or is missing; the first is named.

    Raises:
        ValueError: there is such a weight.
    """
    for line in misfits(weights, wanted, origin):
        raise ValueError(line)


def misfits(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], origin: str) -> Iterator[str]:
    """A line on each weight that does not fit, with its published name where that is another one."""
    for name, value in weights.items():
        there = ", ".join(getattr(weights, "sources", {}).get(name, (name,)))
        known = repr(name) if there == name else f"{there!r} ({name!r} here)"
        if name not in wanted:
            yield f"{origin} has {known}, shape {shape_of(value)}, which the model does not have"
        elif shape_of(value) != shape_of(wanted[name]):
            yield f"{known} has shape {shape_of(value)} in {origin}, {shape_of(wanted[name])} in the model"
    for name, value in wanted.items():
        if name not in weights:
            yield f"{origin} has no {name!r}, shape {shape_of(value)}"


def shape_of(value: Tensor) -> tuple[int, ...]:
    return tuple(value.shape)
