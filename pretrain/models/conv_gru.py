"""A gated recurrent unit whose products are convolutions.

What comes in: maps (batch, time, channels, height, width). What goes out: states (batch, channels, time, height,
width), from a state of zeros; a frame depends on no later one. Source: `GRU_Module` of neuralpredictors
(https://github.com/sinzlab/neuralpredictors), of Sinz et al., NeurIPS 2018 (https://github.com/sinzlab/Sinz2018_NIPS).

The gradient keeps states and gates alone. Those of the kernels are made of many frames at once, not frame by frame.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pretrain.models.fourier_conv import convolve_large, gradient_of_large

# Of which maps for all three gates are in memory at a time.
FRAMES_AT_ONCE = 32


class ConvGru(nn.Module):
    """The unit, over all frames of clips.

    reset, update = sigmoid(from input + from state); candidate = tanh(from input + from (reset x state)); state =
    (1 - update) state + update candidate.

    What comes from the input is convolved for many frames and for the three gates at once, and what comes from the
    state for two gates at once; the published cell has six convolutions a frame. `from_input` has reset, update and
    candidate in this order, `from_state` reset and update.
    """

    def __init__(self, inputs: int, channels: int, input_kernel: int, state_kernel: int) -> None:
        super().__init__()
        for name, side in (("input_kernel", input_kernel), ("state_kernel", state_kernel)):
            if side % 2 == 0:
                raise ValueError(f"{name} must be odd, so that maps keep their size, found {side}")
        self.from_input = nn.Conv2d(inputs, 3 * channels, input_kernel, padding=input_kernel // 2)
        self.from_state = nn.Conv2d(channels, 2 * channels, state_kernel, padding=state_kernel // 2)
        self.from_reset_state = nn.Conv2d(channels, channels, state_kernel, padding=state_kernel // 2)
        self.initialise(channels)

    def initialise(self, channels: int) -> None:
        """Glorot's normal distribution for each gate alone, no bias, as published."""
        for conv in (self.from_input, self.from_state, self.from_reset_state):
            nn.init.zeros_(conv.bias)
            for gate in conv.weight.split(channels):
                nn.init.xavier_normal_(gate)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (batch, time, channels, height, width) to states (batch, channels, time, height, width)."""
        # What each convolution adds on its own is added once.
        bias = self.from_input.bias + torch.cat((self.from_state.bias, self.from_reset_state.bias))
        state, states = None, []
        for clip in maps.split(FRAMES_AT_ONCE, 1):
            driven = convolve_large(clip.flatten(0, 1), self.from_input.weight, bias, self.from_input.padding)
            weights = (conv.weight.to(driven.dtype) for conv in (self.from_state, self.from_reset_state))
            if state is None:
                shape = len(maps), self.from_reset_state.out_channels, *maps.shape[3:]
                # States are summed up over the whole clip, which half precision does not bear.
                state = driven.new_zeros(shape, dtype=torch.promote_types(driven.dtype, torch.float32))
            states.append(GatedFrames.apply(driven.unflatten(0, clip.shape[:2]), state, *weights))
            state = states[-1][:, -1]
        return torch.cat(states, 1).transpose(1, 2)


class GatedFrames(torch.autograd.Function):
    """States (batch, frames, channels, height, width) of some frames.

    Takes what the input adds to the three gates, (batch, frames, 3 x channels, height, width), the state before the
    first frame, and the kernels to reset and update, and to the candidate, in the precision of the gates.
    """

    @staticmethod
    def forward(ctx, driven: Tensor, state: Tensor, to_gates: Tensor, to_candidate: Tensor) -> Tensor:
        gates, states = torch.empty_like(driven), state.new_empty(*driven.shape[:2], *state.shape[1:])
        channels, padding = state.shape[1], to_gates.shape[-1] // 2
        before = state
        for from_input, gate, after in zip(driven.unbind(1), gates.unbind(1), states.unbind(1), strict=True):
            opened, candidate = gate.split((2 * channels, channels), 1)
            of_gates, of_candidate = from_input.split((2 * channels, channels), 1)
            opened.copy_(F.conv2d(before.to(gate.dtype), to_gates, padding=padding).add_(of_gates).sigmoid_())
            reset, update = opened.chunk(2, 1)
            remembered = (reset * before).to(gate.dtype)
            candidate.copy_(F.conv2d(remembered, to_candidate, padding=padding).add_(of_candidate).tanh_())
            after.copy_(torch.lerp(before, candidate.to(before.dtype), update.to(before.dtype)))
            before = after
        ctx.save_for_backward(state, states, gates, to_gates, to_candidate)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        state, states, gates, to_gates, to_candidate = ctx.saved_tensors
        befores = torch.cat((state[:, None], states[:, :-1]), 1)
        of_driven, of_state = through_frames(gradient, befores, gates, to_gates, to_candidate)
        of_gates = of_candidate = None
        channels, kept = state.shape[1], befores.to(gates.dtype)
        if ctx.needs_input_grad[2]:
            of_gates = of_kernels(kept, of_driven[:, :, : 2 * channels], to_gates)
        if ctx.needs_input_grad[3]:
            kept = kept * gates[:, :, :channels]
            of_candidate = of_kernels(kept, of_driven[:, :, 2 * channels :], to_candidate)
        return of_driven, of_state, of_gates, of_candidate


def through_frames(
    gradient: Tensor, befores: Tensor, gates: Tensor, to_gates: Tensor, to_candidate: Tensor
) -> tuple[Tensor, Tensor]:
    """From the gradient of the states, last frame first, that of what the gates were given and of the first state."""
    channels, padding = befores.shape[2], to_gates.shape[-1] // 2
    of_driven, carried = torch.empty_like(gates), torch.zeros_like(befores[:, 0])
    frames = zip(*(tensor.unbind(1) for tensor in (gradient, befores, gates, of_driven)), strict=True)
    for towards, before, gate, of_gate in reversed(list(frames)):
        reset, update, candidate = gate.chunk(3, 1)
        of_reset, of_update, of_candidate = of_gate.chunk(3, 1)
        carried = carried + towards
        of_update.copy_(carried * (candidate - before) * update * (1 - update))
        of_candidate.copy_(carried * update * (1 - candidate.square()))
        of_remembered = nn.grad.conv2d_input(before.shape, to_candidate, of_candidate, padding=padding)
        of_reset.copy_(of_remembered * before * reset * (1 - reset))
        of_opened = nn.grad.conv2d_input(before.shape, to_gates, of_gate[:, : 2 * channels], padding=padding)
        carried = torch.addcmul(carried + of_opened - carried * update, of_remembered, reset)
    return of_driven, carried


def of_kernels(maps: Tensor, gradient: Tensor, kernels: Tensor) -> Tensor:
    """The gradient of kernels that all frames share."""
    padding = kernels.shape[-1] // 2
    return gradient_of_large(maps.flatten(0, 1), gradient.flatten(0, 1), kernels, (padding, padding))
