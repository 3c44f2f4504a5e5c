"""Linear readouts of features without space: DwiseNeuro's grouped one, and the pooled one of ViV1T's later version.

What comes in: features (batch, channels, frames), (batch, channels, height, width) or (batch, channels, frames, height,
width); maps are averaged. What goes out: responses (batch, neurons[, frames]) before the output activation, from a
1-wide convolution over channels with a dropout of whole channels before. Source: readout of DwiseNeuro
(https://github.com/lRomul/sensorium), whose state-dict keys these are, with 2 groups and a dropout of 0.4, after the
cortex of 4096 channels; its Softplus(beta 0.07) is the activation "softplus" of `transfer.activations`.

Kept, because published weights need it: with a number of neurons that the groups do not divide, the convolution has
surplus outputs, which are cut off.
"""

import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from transfer.readout import Readout


class GroupedLinearReadout(Readout):
    """Each group of neurons reads its own group of channels.

    Args:
        in_shape: channels, height and width; (channels, 1, 1) for features without space.
        neurons, mean_responses, feature_reg_weight: see `Readout`; the bias is the convolution's.
        groups: of channels and neurons; weights start from N(0, sqrt(2 / outputs of a group)), as in DwiseNeuro.
        dropout: of channels.
    """

    has_positions: ClassVar = False

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        neurons: int,
        mean_responses: Tensor | np.ndarray | None = None,
        groups: int = 2,
        dropout: float = 0.4,
        feature_reg_weight: float = 1.0,
    ) -> None:
        super().__init__(in_shape, neurons, False, None, feature_reg_weight)
        if self.in_shape[0] % groups:
            raise ValueError(f"{self.in_shape[0]} channels cannot be divided into {groups} groups")
        outputs = groups * math.ceil(neurons / groups)
        self.layer = nn.Sequential(nn.Dropout1d(dropout), nn.Conv1d(self.in_shape[0], outputs, 1, groups=groups))
        nn.init.normal_(self.layer[1].weight, 0, math.sqrt(2 * groups / outputs))
        nn.init.zeros_(self.layer[1].bias)
        with torch.no_grad():
            self.layer[1].bias[:neurons] = self.first_bias(mean_responses)

    def effective_features(self) -> Tensor:
        """Weights (outputs, channels of a group, 1)."""
        return self.layer[1].weight

    def forward(
        self,
        features: Tensor,
        shift: Tensor | None = None,
        behavior: Tensor | None = None,
        pupil_center: Tensor | None = None,
    ) -> Tensor:
        """Responses (batch, neurons[, frames]); there is no space in which a gaze shift could move anything."""
        if features.ndim != 3:
            self.frames_of(features, any_size=True)
            features = features.mean((-2, -1))
        elif features.shape[1] != self.in_shape[0]:
            raise ValueError(
                f"features have {features.shape[1]} channels, the readout was built for {self.in_shape[0]}"
            )
        responses = self.layer(features if features.ndim == 3 else features[..., None])[:, : self.neurons]
        return responses if features.ndim == 3 else responses[..., 0]

    def keep_neurons(self, chosen: Tensor | np.ndarray) -> None:
        """Refused: which channels a neuron reads follows from its number."""
        raise ValueError("a grouped readout cannot drop neurons: choose among its responses instead")
