"""The GRU baseline in plain operations, as its authors compute it: the peer in `encoder_step.py`.

What comes in and goes out: as of `pretrain.models.gru_baseline.gru_rotation_equivariant`, at the published settings.
Behaviour is copied into planes, Hermite functions are rotated and sampled at every step, and the GRU has six
convolutions for every frame. State-dict keys are the published ones, the core's below `core.`. Written from the
description of `RotationEquivariant2dCore` and `GRU_Module` of https://github.com/sinzlab/neuralpredictors.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models.rotation_equivariant import hermite_functions, rotation_of_coefficients


def published_gru_rotation_equivariant(**sizes) -> nn.Module:
    """The model at its published size, or with other `sizes`."""
    return PlainGruBaseline(**sizes)


class PlainGruBaseline(nn.Module):
    """Hermite convolutions for every frame, then a GRU frame by frame."""

    def __init__(
        self,
        inputs: int = 3,
        features: int = 8,
        layers: int = 4,
        rotations: int = 8,
        kernels: tuple[int, int] = (9, 7),
        state_channels: int = 64,
        gru_kernels: tuple[int, int] = (9, 9),
        momentum: float = 0.9,
    ) -> None:
        super().__init__()
        self.core = nn.Module()
        self.core.features = nn.Sequential()
        for number in range(layers):
            conv = PlainHermiteConv(inputs, features, kernels[number > 0], rotations, number == 0)
            layer = OrderedDict(hermite_conv=conv, norm=PlainSharedNorm(features, rotations, momentum))
            if number < layers - 1:
                layer["nonlin"] = nn.ELU(inplace=True)
            self.core.features.add_module(f"layer{number}", nn.Sequential(layer))
            inputs = rotations * features
        self.gru_module, self.out_channels = nn.Module(), state_channels
        self.gru_module.gru = PlainConvGru(inputs, state_channels, *gru_kernels)

    def forward(self, video: Tensor, behavior: Tensor, pupil_center: Tensor | None = None) -> Tensor:
        planes = behavior[..., None, None].expand(-1, -1, -1, *video.shape[3:])
        frames = torch.cat([video, planes], 1).transpose(1, 2).flatten(0, 1)
        maps = self.core.features(frames).unflatten(0, (video.shape[0], -1))
        state = maps.new_zeros(len(maps), self.gru_module.gru.channels, *maps.shape[3:])
        states = []
        for frame in maps.unbind(1):
            state = self.gru_module.gru(frame, state)
            states.append(state)
        return torch.stack(states, 2)


class PlainHermiteConv(nn.Module):
    """Coefficients are rotated, multiplied with finely sampled functions, and the samples of a pixel summed."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, rotations: int, first: bool, upsampling: int = 2
    ) -> None:
        super().__init__()
        self.first, self.kernel, self.upsampling = first, kernel, upsampling
        self.coeffs = nn.Parameter(0.1 * torch.randn(kernel * (kernel + 1) // 2, inputs, outputs))
        self.rotate_hermite = nn.Module()
        self.rotate_hermite.H = nn.Parameter(hermite_functions(kernel, upsampling).float(), requires_grad=False)
        turns = (rotation_of_coefficients(kernel, 2 * torch.pi * turn / rotations) for turn in range(rotations))
        self.rotate_hermite.Rs = nn.ParameterList([nn.Parameter(turn.float(), requires_grad=False) for turn in turns])

    def forward(self, maps: Tensor) -> Tensor:
        functions, by_turn = self.rotate_hermite.H, []
        for turn, mixture in enumerate(self.rotate_hermite.Rs):
            rotated = torch.tensordot(mixture, self.coeffs, ([1], [0]))
            if not self.first:
                rotated = rotated.roll(turn * rotated.shape[1] // len(self.rotate_hermite.Rs), 1)
            by_turn.append(torch.tensordot(functions, rotated, ([0], [0])))
        fine = torch.cat(by_turn, 3).permute(3, 2, 0, 1)
        step = range(self.upsampling)
        kernels = sum(fine[:, :, row :: self.upsampling, column :: self.upsampling] for row in step for column in step)
        return F.conv2d(maps, kernels, padding=0 if self.first else self.kernel // 2)


class PlainSharedNorm(nn.Module):
    """Batch norm over the batch and all orientations of a feature."""

    def __init__(self, features: int, rotations: int, momentum: float) -> None:
        super().__init__()
        self.rotations, self.batch_norm = rotations, nn.BatchNorm2d(features, momentum=momentum)

    def forward(self, maps: Tensor) -> Tensor:
        batch, _, height, width = maps.shape
        normed = self.batch_norm(maps.reshape(batch * self.rotations, -1, height, width))
        return normed.reshape(batch, -1, height, width)


class PlainConvGru(nn.Module):
    """One step of the GRU, with six convolutions."""

    def __init__(self, inputs: int, channels: int, input_kernel: int, state_kernel: int) -> None:
        super().__init__()
        self.channels = channels
        for gate in ("reset", "update", "out"):
            of_input = nn.Conv2d(inputs, channels, input_kernel, padding=input_kernel // 2)
            of_state = nn.Conv2d(channels, channels, state_kernel, padding=state_kernel // 2)
            self.add_module(f"{gate}_gate_input", of_input)
            self.add_module(f"{gate}_gate_hidden", of_state)

    def forward(self, frame: Tensor, state: Tensor) -> Tensor:
        update = torch.sigmoid(self.update_gate_input(frame) + self.update_gate_hidden(state))
        reset = torch.sigmoid(self.reset_gate_input(frame) + self.reset_gate_hidden(state))
        candidate = torch.tanh(self.out_gate_input(frame) + self.out_gate_hidden(state * reset))
        return state * (1 - update) + candidate * update
