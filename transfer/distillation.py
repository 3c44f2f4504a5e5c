"""Distillation over animals: a teacher says how the animals that did not see a clip would have responded to it.

What comes in: a trained encoder with the same animals, the teacher. What goes out: its responses to the clips of the
other animals, and the weight that each of them has in the loss. With the ratio rho all of them together weigh rho of
the whole batch, and each rho / (1 - rho) * (weight of all recorded samples) / (number of filled ones). Source: the
winner of Sensorium 2023, https://github.com/lRomul/sensorium, where rho is 0.36 (its README says 0.36 %).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from transfer.encoder import Encoder

PUBLISHED_RATIO = 0.36


@dataclass
class Distillation:
    """A teacher in evaluation mode, which is not trained and belongs to no checkpoint.

    Args:
        teacher: whose animals are those that are filled.
        ratio: share of the loss's weight that filled responses have, above 0 and below 1.

    Raises:
        ValueError: the ratio is not between 0 and 1.
    """

    teacher: Encoder
    ratio: float = PUBLISHED_RATIO

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ValueError(f"the ratio of distillation is {self.ratio}; it must be above 0 and below 1")
        self.teacher.eval().requires_grad_(False)

    def weight(self, recorded: Tensor, filled: int) -> Tensor:
        """Weight of one filled sample, beside recorded ones that weigh `recorded` together; 0 where none is filled."""
        return self.ratio / (1 - self.ratio) * recorded / max(filled, 1)

    @torch.no_grad()
    def features(
        self, stimuli: Tensor, animals: list[str], behavior: Tensor | None, pupil_center: Tensor | None
    ) -> Tensor:
        """What the teacher's core makes of a batch, on the batch's device."""
        self.teacher.to(stimuli.device)
        return self.teacher.core(stimuli, behavior=behavior, pupil_center=pupil_center, animal=animals)

    @torch.no_grad()
    def responses(self, features: Tensor, animal: str, behavior: Tensor | None, pupil_center: Tensor | None) -> Tensor:
        """The teacher's responses of an animal (batch, neurons[, frames])."""
        return self.teacher.respond(features, animal, behavior, pupil_center)
