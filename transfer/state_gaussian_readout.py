"""The Gaussian readout of ViV1T's competition version: the animal's state is added to what each neuron sees.

What comes in: as for `GaussianReadout`, and behaviour (batch, 2, frames) and pupil centre (batch, 2, frames). What goes
out: responses (batch, neurons, frames) before the output activation,

    y_i = bias_i + sum_c f_ci (F_c(p_i) + s_c),  s = tanh(W2 dropout(gelu(layernorm(W1 (behaviour, pupil centre))))),

with one state s per frame. Source: ViV1T's `gaussian2d` (https://github.com/bryanlimy/ViV1T); the closed-loop version
has no state and is `GaussianReadout`. The state is multiplied with the weights once, not added to every sample.
"""

from typing import Any

import torch
from torch import Tensor, nn

from transfer.gaussian_readout import GaussianReadout
from transfer.readout import chosen_neurons, of_frames, unfolded


class StateGaussianReadout(GaussianReadout):
    """`GaussianReadout`, with its arguments, and a state encoder.

    Args:
        state_inputs: behaviour and pupil values per frame.
        state_dropout: in the state encoder.
        init_mu_range: 0.2 as in ViV1T.
    """

    def __init__(
        self,
        *args: Any,
        state_inputs: int = 4,
        state_dropout: float = 0.0,
        init_mu_range: float = 0.2,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, init_mu_range=init_mu_range, **kwargs)
        channels = self.in_shape[0]
        self.state_encoder = nn.Sequential(
            nn.Linear(state_inputs, channels),
            nn.LayerNorm(channels),
            nn.GELU(),
            nn.Dropout(state_dropout),
            nn.Linear(channels, channels),
            nn.Tanh(),
        )

    def forward(
        self,
        features: Tensor,
        shift: Tensor | None = None,
        behavior: Tensor | None = None,
        pupil_center: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """Responses (batch, neurons[, frames]); `options` are those of `GaussianReadout.forward`."""
        if behavior is None or pupil_center is None:
            raise ValueError("this readout adds the animal's state: behavior and pupil_center must be given")
        responses = super().forward(features, shift, **options)
        state = torch.cat([of_frames(behavior, features, "behavior"), of_frames(pupil_center, features, "pupil")], 1)
        weights = self.effective_features()[0, :, 0]
        chosen = chosen_neurons(options.get("neurons"), self.neurons)
        of_state = self.state_encoder(state) @ (weights if chosen is None else weights[:, chosen])
        return responses + unfolded(of_state, features)
