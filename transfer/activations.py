"""Output activations: from what readout and modulator give to a firing rate, at least 0 but for the identity.

What comes in: any tensor. What goes out: a tensor of the same shape. Every project numbers or names its own;
`published_activation` translates. ViV1T's number 1 is an exponential in the competition version and ELU plus 1 in the
closed-loop version.
"""

import difflib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ELUPlusOne(nn.Module):
    """elu(z + offset) + 1 (neuralpredictors' `FiringRateEncoder` with `elu_offset`); an offset of 0 is the usual one.

    Args:
        offset: added before.
        floor: added after; `AdaptiveELU(xshift, yshift)` of neuralpredictors is offset -xshift, floor yshift.
    """

    def __init__(self, offset: float = 0.0, floor: float = 1.0) -> None:
        super().__init__()
        self.offset, self.floor = offset, floor

    def forward(self, z: Tensor) -> Tensor:
        """Rates."""
        return F.elu(z + self.offset if self.offset else z) + self.floor

    def extra_repr(self) -> str:
        """Both numbers."""
        return f"offset={self.offset}, floor={self.floor}"


class Exponential(nn.Module):
    """exp(z)."""

    def forward(self, z: Tensor) -> Tensor:
        """Rates."""
        return z.exp()


class LearnedSoftplus(nn.Module):
    """log(1 + exp(beta z)) / beta with a learned beta, kept as its logarithm; linear above the threshold of beta z.

    ViV1T's closed-loop version; beta starts from 1.
    """

    def __init__(self, threshold: float = 20.0) -> None:
        super().__init__()
        self.threshold = threshold
        self.log_beta = nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor) -> Tensor:
        """Rates."""
        beta = self.log_beta.exp()
        scaled = beta * z
        return torch.where(scaled > self.threshold, z, F.softplus(scaled, threshold=self.threshold) / beta)


ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    "identity": nn.Identity,
    "elu1": ELUPlusOne,
    "exp": Exponential,
    "softplus": nn.Softplus,
    "learned_softplus": LearnedSoftplus,
    "sigmoid": nn.Sigmoid,
}

# (project, its number or name): ours and its arguments.
PUBLISHED = {
    ("neuralpredictors", "elu"): ("elu1", {}),
    ("neuralpredictors", "identity"): ("identity", {}),
    ("neuralpredictors", "Elu1"): ("elu1", {}),
    ("neuralpredictors", "Log1Exp"): ("softplus", {}),
    ("neuralpredictors", "SoftThreshold"): ("softplus", {}),
    ("v1t", "elu1"): ("elu1", {}),
    ("viv1t", 0): ("elu1", {}),
    ("viv1t", 1): ("exp", {}),
    ("viv1t", 2): ("softplus", {}),
    ("viv1t_closed_loop", 0): ("identity", {}),
    ("viv1t_closed_loop", 1): ("elu1", {}),
    ("viv1t_closed_loop", 2): ("exp", {}),
    ("viv1t_closed_loop", 3): ("learned_softplus", {}),
    ("viv1t_closed_loop", 4): ("sigmoid", {}),
    ("dwiseneuro", "softplus"): ("softplus", {"beta": 0.07, "threshold": 20.0}),
    ("dynamic_vfm", "elu1"): ("elu1", {}),
}


def create_activation(name: str, **arguments: float) -> nn.Module:
    """An output activation by name: `elu1(offset)`, `softplus(beta, threshold)`, ...; unknown ones list the closest."""
    if name not in ACTIVATIONS:
        near = difflib.get_close_matches(name, ACTIVATIONS, n=1) or list(ACTIVATIONS)
        raise ValueError(f"there is no activation {name!r}; nearest: {', '.join(near)}")
    return ACTIVATIONS[name](**arguments)


def published_activation(project: str, mode: int | str) -> nn.Module:
    """The activation that a project means by its number or name.

    Raises:
        ValueError: a project or mode that is not known.
    """
    if (project, mode) not in PUBLISHED:
        known = ", ".join(str(each) for of, each in PUBLISHED if of == project)
        raise ValueError(f"{project} has no output mode {mode!r}; known: {known or 'no mode of this project'}")
    name, arguments = PUBLISHED[project, mode]
    return create_activation(name, **arguments)
