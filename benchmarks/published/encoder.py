"""The readouts and shifters around a core in plain operations, as their authors compute them.

What comes in: stimuli (batch, channels[, frames], height, width), behavior (batch, K[, frames]), pupil_center
(batch, 2[, frames]). What goes out: responses of one animal, (batch, neurons[, frames]). A position is made for every
frame and neuron, `grid_sample` gives every neuron's features, which are then multiplied and summed. Written from the
descriptions of `FullGaussian2d` and `MLPShifter` of https://github.com/sinzlab/neuralpredictors, and of the readout of
https://github.com/bryanlimy/ViV1T, which adds the animal's state to the features of every neuron.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Neurons of the ten animals of Sensorium 2023, in the order of DwiseNeuro's readouts.
NEURONS = (7863, 7908, 8202, 7939, 8122, 7440, 7928, 8285, 7671, 7495)


class PlainEncoder(nn.Module):
    """A core, the readout and the shifter of one animal, and an exponential or ELU plus 1."""

    def __init__(self, core: nn.Module, animal: str, readout: "PlainGaussian", exponential: bool = False) -> None:
        super().__init__()
        self.core, self.animal, self.exponential = core, animal, exponential
        self.readouts = nn.ModuleDict({animal: readout})
        self.shifters = nn.ModuleDict({animal: PlainShifter(5)})

    def forward(self, stimuli: Tensor, behavior: Tensor, pupil_center: Tensor) -> Tensor:
        features = self.core(stimuli, behavior, pupil_center)
        of_frames, video = features.shape[2], features.ndim == 5
        if video:
            features = features.transpose(1, 2).flatten(0, 1)
            behavior, pupil_center = (
                signal[..., -of_frames:].transpose(1, 2).flatten(0, 1) for signal in (behavior, pupil_center)
            )
        shift = self.shifters[self.animal](pupil_center)
        responses = self.readouts[self.animal](features, shift, torch.cat((behavior, pupil_center), 1))
        responses = responses.exp() if self.exponential else F.elu(responses) + 1
        return responses.unflatten(0, (len(stimuli), -1)).transpose(1, 2) if video else responses


class PlainShifter(nn.Module):
    """Three linear layers with a tanh each."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        sizes = ((2, hidden), (hidden, hidden), (hidden, 2))
        self.mlp = nn.Sequential(*(part for size in sizes for part in (nn.Linear(*size), nn.Tanh())))

    def forward(self, pupil_center: Tensor) -> Tensor:
        return self.mlp(pupil_center)


class PlainGaussian(nn.Module):
    """A point per neuron and frame, around positions predicted from cortex; `state` is whether the state is added."""

    def __init__(
        self, channels: int, neurons: int, predictor: int = 30, init_sigma: float = 1.0, state: bool = False
    ) -> None:
        super().__init__()
        self.neurons = neurons
        self.register_buffer("source_grid", torch.rand(neurons, 2) * 2 - 1)
        self.mu_transform = nn.Sequential(nn.Linear(2, predictor), nn.ELU(), nn.Linear(predictor, 2), nn.Tanh())
        self.sigma = nn.Parameter(torch.empty(1, neurons, 2, 2).uniform_(-init_sigma, init_sigma))
        self._features = nn.Parameter(torch.full((1, channels, 1, neurons), 1 / channels))
        self.bias = nn.Parameter(torch.zeros(neurons))
        if state:
            layers = (nn.Linear(4, channels), nn.LayerNorm(channels), nn.GELU(), nn.Dropout(0.0))
            self.state_encoder = nn.Sequential(*layers, nn.Linear(channels, channels), nn.Tanh())

    def positions(self, count: int) -> Tensor:
        mean = self.mu_transform(self.source_grid).view(1, self.neurons, 1, 2)
        noise = self.sigma.new_zeros(count, self.neurons, 1, 2)
        if self.training:
            noise.normal_()
        return (torch.einsum("ancd,bnid->bnic", self.sigma, noise) + mean).clamp(-1, 1)

    def forward(self, maps: Tensor, shift: Tensor, states: Tensor) -> Tensor:
        sampled = F.grid_sample(maps, self.positions(len(maps)) + shift[:, None, None], align_corners=True)
        sampled = sampled.squeeze(-1)
        if hasattr(self, "state_encoder"):
            sampled = sampled + self.state_encoder(states)[:, :, None]
        return (sampled * self._features.squeeze(2)).sum(1) + self.bias
