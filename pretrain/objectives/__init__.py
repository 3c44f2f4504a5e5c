"""Objectives by name: what a backbone is trained on.

An objective is an `nn.Module` that owns its backbone and heads. Its attribute `views` says how many random views of
an image it wants; `forward(batch)` maps `{"views": (views, batch, 3, H, W), "index": (batch,)[, "label"]}` to
`{"loss": scalar, ...logged scalars}`; `after_step()` is called after each step of the optimiser.
"""

import difflib
import inspect

from torch import nn

from pretrain.objectives.instance_recognition import InstanceRecognition

OBJECTIVES: dict[str, type[nn.Module]] = {
    "instance_recognition": InstanceRecognition,
}

# These follow from the data and the views; a user does not set them.
GIVEN_BY_THE_RUN = ("self", "backbone", "num_samples", "input_size")


def list_objectives() -> list[str]:
    """Names that `create_objective` knows."""
    return sorted(OBJECTIVES)


def create_objective(name: str, backbone: nn.Module, **kwargs) -> nn.Module:
    """The named objective around a backbone.

    Args:
        name: one of `list_objectives()`.
        backbone: maps images (batch, 3, H, W) to features (batch, d).
        kwargs: arguments of the objective's constructor.

    Raises:
        ValueError: unknown name or argument; the line says what is allowed and what is nearest.
    """
    kind = known_objective(name)
    allowed = list(inspect.signature(kind.__init__).parameters)[2:]
    for key in kwargs:
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=1, cutoff=0.4)
            hint = f"; nearest: {near[0]}" if near else ""
            settable = ", ".join(a for a in allowed if a not in GIVEN_BY_THE_RUN)
            raise ValueError(f"unknown key 'objective_args.{key}' for {name}{hint} (allowed: {settable})")
    return kind(backbone, **kwargs)


def known_objective(name: str) -> type[nn.Module]:
    """The class behind a name; raises ValueError with the nearest names."""
    if name not in OBJECTIVES:
        near = difflib.get_close_matches(name, OBJECTIVES, n=3, cutoff=0.4) or list_objectives()
        raise ValueError(
            f"unknown objective {name!r}; nearest: {', '.join(near)} (allowed: {', '.join(list_objectives())})"
        )
    return OBJECTIVES[name]
