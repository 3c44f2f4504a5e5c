"""Where the animal looks: from the pupil's centre, on the eye camera, to a shift of all points of its readout.

What comes in: pupil centre (batch, 2) or (batch, 2, frames), standardised, and for some behaviour (batch, K[, frames]).
What goes out: shift x and y (batch, 2[, frames]), between -1 and 1, in units in which the map is 2 wide and 2 high.
Source: neuralpredictors (https://github.com/sinzlab/neuralpredictors; Walker et al. 2019,
https://doi.org/10.1038/s41593-019-0517-x), whose state-dict keys these are; ViV1T's shifter is the same network.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn


class MLPShifter(nn.Module):
    """Linear layers, each with a tanh.

    The initial weights are torch's: neuralpredictors' and ViV1T's Xavier initialisation reaches no layer.

    Args:
        hidden: features of the hidden layers; 5 in the Sensorium baselines and ViV1T, 16 in Dynamic-VFM.
        layers: of all; 1 is a linear map and a tanh.
        behavior_inputs: behaviour values that come before the pupil centre (ViV1T's shifter mode 2); 0 for none.
        trial_input: the number of the trial, standardised, comes last (neuralpredictors).
    """

    def __init__(self, hidden: int = 5, layers: int = 3, behavior_inputs: int = 0, trial_input: bool = False) -> None:
        super().__init__()
        self.behavior_inputs, self.trial_input = behavior_inputs, trial_input
        sizes = [behavior_inputs + 2 + trial_input, *[hidden] * (layers - 1), 2]
        pairs = pairwise(sizes)
        self.mlp = nn.Sequential(
            *(part for inputs, outputs in pairs for part in (nn.Linear(inputs, outputs), nn.Tanh()))
        )

    def forward(self, pupil_center: Tensor, behavior: Tensor | None = None, trial: Tensor | None = None) -> Tensor:
        """Shift (batch, 2[, frames]); `trial` is (batch, 1[, frames])."""
        parts = [pupil_center]
        if self.behavior_inputs:
            parts.insert(0, wanted(behavior, "behavior", self.behavior_inputs))
        if self.trial_input:
            parts.append(wanted(trial, "trial", 1))
        return self.mlp(torch.cat(parts, 1).movedim(1, -1)).movedim(-1, 1)

    def regularizer(self) -> Tensor:
        """0, as published."""
        return self.mlp[0].weight.new_zeros(())


class AffineShifter(nn.Linear):
    """tanh of an affine map of the pupil centre, from N(0, 1e-6).

    Args:
        gamma: of the penalty, the mean of the squared weights.
    """

    def __init__(self, gamma: float = 0.0, bias: bool = True) -> None:
        super().__init__(2, 2, bias)
        self.gamma = gamma
        for parameter in self.parameters():
            nn.init.normal_(parameter, 0, 1e-6)

    def forward(self, pupil_center: Tensor, behavior: Tensor | None = None, trial: Tensor | None = None) -> Tensor:
        """Shift (batch, 2[, frames]); behaviour and trial are not used."""
        return super().forward(pupil_center.movedim(1, -1)).tanh().movedim(-1, 1)

    def regularizer(self) -> Tensor:
        """`gamma` times the mean of the squared weights."""
        return self.gamma * self.weight.square().mean()


def wanted(signal: Tensor | None, name: str, values: int) -> Tensor:
    """A signal that the shifter takes; ValueError where it is missing or has another number of values."""
    if signal is None:
        raise ValueError(f"this shifter takes {name}, which is not given")
    if signal.shape[1] != values:
        raise ValueError(f"{name} has {signal.shape[1]} values, the shifter was built for {values}")
    return signal


SHIFTERS: dict[str, type[nn.Module]] = {"mlp": MLPShifter, "affine": AffineShifter}
