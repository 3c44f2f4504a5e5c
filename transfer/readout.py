"""What every readout is: from the features of a core to the responses of one animal's neurons.

What comes in: features (batch, channels, height, width) of images or (batch, channels, frames, height, width) of video;
where the readout uses them the gaze shift (batch, 2[, frames]) in units in which the map is 2 wide and 2 high,
behaviour (batch, K[, frames]) and pupil centre (batch, 2[, frames]). What goes out: responses before the output
activation, (batch, neurons) or (batch, neurons, frames).

Frames of video are folded into the batch, as in neuralpredictors (https://github.com/sinzlab/neuralpredictors) and all
of the Sensorium 2023 entries: batch first, then time. A signal may have more frames than the features, from a core
without padding; the last ones count.
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

Chosen = Tensor | np.ndarray | None


class Readout(nn.Module):
    """Shape, bias and L1 penalty; a subclass has the weights and `forward`.

    `neuron_axis` names the axis of each parameter and buffer along which the neurons lie, for `keep_neurons`.
    `has_positions` says whether neurons look at points that a gaze shift moves; a readout without ignores the shift, as
    all of the projects do, and an encoder does not compute it.

    Args:
        in_shape: channels, height and width of the core's output.
        neurons: how many this animal has.
        bias: whether there is one per neuron.
        mean_responses: (neurons,), the bias to start from; 0 where there is none. It is copied: in neuralpredictors the
            bias is the same memory as what was given.
        feature_reg_weight: of the L1 norm of the feature weights in `regularizer`.
    """

    neuron_axis: ClassVar[Mapping[str, int]] = {}
    has_positions: ClassVar[bool] = True

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        neurons: int,
        bias: bool = True,
        mean_responses: Tensor | np.ndarray | None = None,
        feature_reg_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.in_shape = tuple(in_shape)
        self.neurons = neurons
        self.feature_reg_weight = feature_reg_weight
        self.register_parameter("bias", nn.Parameter(self.first_bias(mean_responses)) if bias else None)

    def first_bias(self, mean_responses: Tensor | np.ndarray | None) -> Tensor:
        """The bias (neurons,) to start from."""
        if mean_responses is None:
            return torch.zeros(self.neurons)
        mean_responses = torch.as_tensor(mean_responses)
        if mean_responses.shape != (self.neurons,):
            raise ValueError(
                f"mean_responses have shape {tuple(mean_responses.shape)}, expected ({self.neurons},), one per neuron"
            )
        return mean_responses.detach().to(torch.float32, copy=True)

    def frames_of(self, features: Tensor, any_size: bool = False) -> Tensor:
        """Features as (batch, channels, height, width) or (batch, frames, channels, height, width), a view.

        Raises:
            ValueError: another number of axes or channels than `in_shape` says; another height or width, unless
                `any_size`, with which positions relative to the map stay what they are.
        """
        if features.ndim not in (4, 5):
            raise ValueError(
                f"features have shape {tuple(features.shape)}, expected (batch, channels[, frames], height, width)"
            )
        frames = features.transpose(1, 2) if features.ndim == 5 else features
        found = tuple(frames.shape[-3:])
        if found[0] != self.in_shape[0] or (found != self.in_shape and not any_size):
            raise ValueError(f"features of a frame have shape {found}, the readout was built for {self.in_shape}")
        return frames

    def finish(self, sums: Tensor, features: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Responses (batch, neurons[, frames]) from sums (..., frames of all, neurons) without bias."""
        if self.bias is not None:
            bias = self.bias if chosen is None else self.bias[..., chosen]
            sums = sums + (bias[:, None] if bias.ndim == 2 else bias)
        return unfolded(sums, features)

    def effective_features(self) -> Tensor:
        """The feature weights that the penalty is about."""
        return self.features

    def regularizer(self, reduction: str = "sum") -> Tensor:
        """`feature_reg_weight` times the L1 norm of the feature weights, their "sum" or "mean"."""
        return self.feature_reg_weight * reduced(self.effective_features().abs(), reduction)

    def keep_neurons(self, chosen: Tensor | np.ndarray) -> None:
        """Drop all neurons but these, by indices or a boolean mask; parameters are replaced by shorter ones."""
        chosen = chosen_neurons(chosen, self.neurons)
        for name, axis in self.neuron_axis.items():
            if name in self._parameters and self._parameters[name] is not None:
                kept = self._parameters[name].detach().index_select(axis, chosen.to(self._parameters[name].device))
                setattr(self, name, nn.Parameter(kept, requires_grad=self._parameters[name].requires_grad))
            elif self._buffers.get(name) is not None:
                setattr(self, name, self._buffers[name].index_select(axis, chosen.to(self._buffers[name].device)))
        self.neurons = len(chosen)

    def extra_repr(self) -> str:
        """Shape in and neurons out."""
        return f"{' x '.join(map(str, self.in_shape))} -> {self.neurons}"


def unfolded(sums: Tensor, features: Tensor) -> Tensor:
    """(..., frames of all, neurons) as (..., batch, neurons), for features of video (..., batch, neurons, frames)."""
    return sums if features.ndim == 4 else sums.unflatten(-2, (features.shape[0], features.shape[2])).mT


def reduced(penalty: Tensor, reduction: str) -> Tensor:
    """The "sum" or "mean" of a tensor."""
    if reduction not in ("sum", "mean"):
        raise ValueError(f'reduction is {reduction!r}, expected "sum" or "mean"')
    return penalty.sum() if reduction == "sum" else penalty.mean()


def chosen_neurons(chosen: Chosen, neurons: int) -> Tensor | None:
    """Indices of neurons from indices or a boolean mask (neurons,), in ascending order of a mask; None for all."""
    if chosen is None:
        return None
    chosen = torch.as_tensor(chosen)
    if chosen.dtype == torch.bool:
        if chosen.shape != (neurons,):
            raise ValueError(f"a mask of neurons has shape {tuple(chosen.shape)}, expected ({neurons},)")
        return chosen.nonzero().squeeze(1)
    if len(chosen) and not -neurons <= int(chosen.min()) <= int(chosen.max()) < neurons:
        raise ValueError(f"neurons are numbered 0 to {neurons - 1}, found {int(chosen.min())} to {int(chosen.max())}")
    return chosen.long()


def of_frames(signal: Tensor, features: Tensor, name: str) -> Tensor:
    """A signal (batch, K) or (batch, K, frames) as (frames of all, K), of the last frames that the features have.

    A signal without frames beside features of video is the same for all frames.
    """
    time = features.shape[2] if features.ndim == 5 else 1
    if signal.ndim == 2:
        return signal if time == 1 else signal.repeat_interleave(time, 0)
    if signal.ndim != 3 or signal.shape[-1] < time or features.ndim == 4:
        raise ValueError(
            f"{name} has shape {tuple(signal.shape)}, expected (batch, K) for images or, for {time} frames of "
            f"features, (batch, K, frames) with as many frames or more"
        )
    return signal[..., signal.shape[-1] - time :].mT.flatten(0, 1)
