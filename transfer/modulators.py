"""Responses modulated by the animal's state, after the readout and before the output activation.

What comes in: responses (batch, neurons[, frames]), behaviour (batch, K[, frames]) and for some pupil centre (batch, 2,
frames); signals may have more frames, of which the last ones count. What goes out: responses of the same shape.
Sources: the gain of neuralpredictors, and the modulators 1 to 4 of ViV1T (https://github.com/bryanlimy/ViV1T), whose
state-dict keys these are but for the recurrent one's (`transfer.published_parts`). ViV1T was published without.

Same numbers, less work than there: what neurons share is computed once and added, and the recurrent network sees all
frames in one call.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def last_frames(signal: Tensor, responses: Tensor) -> Tensor:
    """A signal (batch, K, frames) of as many frames as the responses (batch, neurons, frames) have, the last ones."""
    return signal[..., signal.shape[-1] - responses.shape[-1] :]


def states_of(behavior: Tensor | None, pupil_center: Tensor | None, responses: Tensor) -> Tensor:
    """Behaviour and pupil centre (batch, frames, 4) of the responses' frames; ValueError where one is missing."""
    if behavior is None or pupil_center is None:
        raise ValueError("this modulator takes the animal's state: behavior and pupil_center must be given")
    return last_frames(torch.cat((behavior, pupil_center), 1), responses).mT


class GainModulator(nn.Module):
    """Responses times elu(relu(MLP(behaviour))) + 1, at least 1 (neuralpredictors' `MLPModulator`).

    Args:
        neurons: outputs of the network.
        behavior_inputs, hidden, layers, bias: of the network, with ReLU after each layer.
        parameters: networks, for readouts that give (parameters, batch, neurons); 1 for others.
        gamma: of the penalty, the mean of the absolute weights of the last layers.
    """

    def __init__(
        self,
        neurons: int,
        behavior_inputs: int = 3,
        hidden: int = 5,
        layers: int = 2,
        bias: bool = True,
        parameters: int = 1,
        gamma: float = 0.0,
    ) -> None:
        super().__init__()
        self.gamma = gamma
        sizes = [behavior_inputs, *[hidden] * (layers - 1), neurons]
        self.modulator_networks = nn.ModuleList()
        for _ in range(parameters):
            pairs = pairwise(sizes)
            parts = (part for i, o in pairs for part in (nn.Linear(i, o, bias=bias), nn.ReLU()))
            self.modulator_networks.append(nn.Sequential(*parts))

    def forward(self, responses: Tensor, behavior: Tensor | None = None, pupil_center: Tensor | None = None) -> Tensor:
        """Responses times their gains; the pupil centre is not used."""
        if behavior is None:
            raise ValueError("this modulator takes behavior, which is not given")
        of_frames = behavior.ndim == 3
        if of_frames:
            behavior = last_frames(behavior, responses).mT
        gains = [F.elu(network(behavior)) + 1 for network in self.modulator_networks]
        gains = [gain.mT for gain in gains] if of_frames else gains
        return responses * (gains[0] if len(gains) == 1 else torch.stack(gains))

    def regularizer(self) -> Tensor:
        """`gamma` times the mean absolute weight of the last layers."""
        return self.gamma * sum(network[-2].weight.abs().mean() for network in self.modulator_networks)


def small_mlp(inputs: int, hidden: int, outputs: int, dropout: float) -> nn.Sequential:
    """Linear, GELU, dropout, linear: parameters at places 0 and 3."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, outputs))


def histories(traces: Tensor, window: int) -> Tensor:
    """The last frames of each trace (batch, traces, frames, window), the present one last, zeros before the first."""
    return F.pad(traces, (window - 1, 0)).unfold(-1, window, 1)


class HistoryModulator(nn.Module):
    """ViV1T's modulator 1: times sigmoid(MLP(the neuron's previous responses)), plus tanh(MLP(state)).

    Args:
        neurons: of the animal.
        history: frames before the present one; 0 leaves this part out.
        behavior: "both", behaviour and pupil centre (4 inputs); "behavior", 2 inputs; "none" leaves this part out.
        history_dropout, behavior_dropout: in the networks.
    """

    def __init__(
        self,
        neurons: int,
        history: int = 5,
        behavior: str = "both",
        history_dropout: float = 0.0,
        behavior_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        inputs = {"none": 0, "behavior": 2, "both": 4}.get(behavior)
        if inputs is None:
            raise ValueError(f'behavior is {behavior!r}, expected "none", "behavior" or "both"')
        self.history_encoder = small_mlp(history, history, 1, history_dropout) if history else None
        self.behavior_encoder = small_mlp(inputs, inputs, neurons, behavior_dropout) if inputs else None

    def forward(self, responses: Tensor, behavior: Tensor | None = None, pupil_center: Tensor | None = None) -> Tensor:
        """Responses (batch, neurons, frames), modulated."""
        modulated = responses
        if self.history_encoder is not None:
            modulated = modulated * self.history_gain(responses)
        if self.behavior_encoder is not None:
            inputs = self.behavior_encoder[0].in_features
            states = (
                last_frames(behavior, responses).mT if inputs == 2 else states_of(behavior, pupil_center, responses)
            )
            modulated = modulated + self.behavior_encoder(states).tanh().mT
        return modulated

    def history_gain(self, responses: Tensor) -> Tensor:
        """Gains (batch, neurons, frames) between 0 and 1, which follow from the frames before."""
        before = histories(F.pad(responses[..., :-1], (1, 0)), self.history_encoder[0].in_features)
        return self.history_encoder(before).squeeze(-1).sigmoid()


class SharedHistoryModulator(nn.Module):
    """ViV1T's modulator 3 ("MLP v2"): plus tanh of an MLP, the same for all neurons, on the last frames.

    It sees the neuron's own responses and the four states in the present frame and those before.

    Args:
        history: frames before the present one.
        dropout: in the network.
    """

    def __init__(self, neurons: int, history: int = 5, dropout: float = 0.0) -> None:
        super().__init__()
        self.window = history + 1
        inputs = self.window * 5
        self.encoder = small_mlp(inputs, inputs // 2, 1, dropout)

    def forward(self, responses: Tensor, behavior: Tensor | None = None, pupil_center: Tensor | None = None) -> Tensor:
        """Responses (batch, neurons, frames), modulated."""
        first, *rest = self.encoder
        of_own, of_states = first.weight.split((self.window, first.in_features - self.window), 1)
        states = histories(states_of(behavior, pupil_center, responses).mT, self.window).transpose(1, 2).flatten(2)
        shared = F.linear(states, of_states, first.bias)
        hidden = F.linear(histories(responses, self.window), of_own) + shared[:, None]
        for layer in rest:
            hidden = layer(hidden)
        return responses + hidden.squeeze(-1).tanh()


class StateModulator(nn.Module):
    """ViV1T's modulator 4 ("MLP v3"): plus the activation of a linear map of the state.

    Args:
        neurons: of the animal.
        activation: "tanh", "sigmoid" or "identity".
    """

    def __init__(self, neurons: int, activation: str = "tanh") -> None:
        super().__init__()
        activations = {"tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "identity": nn.Identity}
        if activation not in activations:
            raise ValueError(f"activation is {activation!r}, expected one of {', '.join(activations)}")
        self.modulator = nn.Sequential(nn.Linear(4, neurons, bias=False), activations[activation]())

    def forward(self, responses: Tensor, behavior: Tensor | None = None, pupil_center: Tensor | None = None) -> Tensor:
        """Responses (batch, neurons, frames), modulated."""
        return responses + self.modulator(states_of(behavior, pupil_center, responses)).mT


class RecurrentModulator(nn.Module):
    """ViV1T's modulator 2: plus tanh of a linear map of a GRU's hidden state, which starts from 0.

    The GRU sees, frame by frame, the responses plus tanh of a linear map of the state.

    Args:
        neurons: of the animal.
        hidden: size of the GRU's state.
        dropout: of what the state adds.
    """

    def __init__(self, neurons: int, hidden: int = 16, dropout: float = 0.0) -> None:
        super().__init__()
        self.state_encoder = nn.Sequential(nn.Linear(4, neurons), nn.Tanh(), nn.Dropout(dropout))
        self.gru = nn.GRU(neurons, hidden, batch_first=True)
        self.decoder = nn.Sequential(nn.Linear(hidden, neurons), nn.Tanh())

    def forward(self, responses: Tensor, behavior: Tensor | None = None, pupil_center: Tensor | None = None) -> Tensor:
        """Responses (batch, neurons, frames), modulated."""
        seen = responses.mT + self.state_encoder(states_of(behavior, pupil_center, responses))
        return responses + self.decoder(self.gru(seen)[0]).mT


MODULATORS: dict[str, type[nn.Module]] = {
    "gain": GainModulator,
    "history": HistoryModulator,
    "recurrent": RecurrentModulator,
    "shared_history": SharedHistoryModulator,
    "state": StateModulator,
}

# Numbers of ViV1T's option `modulator_mode`; 0 is none.
VIV1T_MODES = {1: "history", 2: "recurrent", 3: "shared_history", 4: "state"}
