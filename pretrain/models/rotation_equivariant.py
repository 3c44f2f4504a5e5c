"""The rotation-equivariant core: every feature is seen at several orientations, with the same parameters.

What comes in: images (batch, channels, height, width), and behaviour (batch, values) where the core takes it. What goes
out: (batch, rotations x features, height', width'), the features of one orientation side by side. A kernel is a sum of
two-dimensional Hermite functions, whose rotations are exact mixtures of themselves. Source: Ecker et al. 2019
(https://openreview.net/forum?id=H1fU8iAqKX), in the form of `RotationEquivariant2dCore` of neuralpredictors
(https://github.com/sinzlab/neuralpredictors); the defaults are the core of the GRU baseline of Sensorium 2023. What
batch norm and ELU give between layers is not kept for the gradient, but computed again.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from math import gamma

import torch
from torch import Tensor, nn

from pretrain.models.behavior_channels import SignalChannels, convolve_with_planes
from pretrain.models.elu import ShiftedElu
from pretrain.models.fourier_conv import convolve_large
from pretrain.models.recompute import in_turn, without_keeping
from pretrain.models.regularizers import group_sparsity, input_penalty
from pretrain.models.stacked2d import per_layer, side_after, stacked_layers


class RotationEquivariant2d(nn.Module):
    """Layers of Hermite convolution, batch norm shared by all orientations of a feature, and ELU.

    Args:
        image_channels, behavior_channels, pupil_channels: of the image, and signals that are appended as channels.
        features: of each layer, or one number for all; there are `rotations` times as many maps.
        input_kernel, hidden_kernel: sides in pixels; `hidden_kernel` may have one for each hidden layer.
        layers: how many.
        rotations: orientations over the full circle.
        upsampling: samples per pixel and axis at which the Hermite functions are taken.
        stride: of every layer, in pixels.
        pad_input: zeros around the image, half a kernel; hidden layers always have them.
        stack: which layers are the output: None all, a number all from that one on (-1 the last), or a list.
        momentum: of batch norm.
        final_nonlinearity: end in ELU.
        gamma_input, gamma_hidden: weights of the roughness of the first kernels and of the others' group sparsity.
        input_regularizer: see `regularizers.INPUT_REGULARIZERS`; `laplace_padding` None is half the filter.
        average_regularizer: means in place of sums.
        init_std: standard deviation of the first coefficients.
    """

    def __init__(
        self,
        image_channels: int = 1,
        behavior_channels: int = 2,
        pupil_channels: int = 0,
        features: int | Sequence[int] = 8,
        input_kernel: int = 9,
        hidden_kernel: int | Sequence[int] = 7,
        layers: int = 4,
        rotations: int = 8,
        upsampling: int = 2,
        stride: int = 1,
        pad_input: bool = False,
        stack: int | Sequence[int] | None = -1,
        momentum: float = 0.9,
        final_nonlinearity: bool = False,
        gamma_input: float = 500.0,
        gamma_hidden: float = 500_000.0,
        input_regularizer: str = "LaplaceL2norm",
        laplace_padding: int | None = None,
        average_regularizer: bool = False,
        init_std: float = 0.1,
    ) -> None:
        super().__init__()
        counts = per_layer(features, layers, "features")
        kernels = [input_kernel, *per_layer(hidden_kernel, layers - 1, "hidden_kernel")]
        self.signals = SignalChannels(image_channels, behavior_channels, pupil_channels)
        self.stacked = stacked_layers(stack, layers)
        self.out_channels = rotations * sum(counts[number] for number in self.stacked)
        self.gamma_input, self.gamma_hidden = gamma_input, gamma_hidden
        self.input_penalty = input_penalty(input_regularizer)
        self.laplace_padding, self.average = laplace_padding, average_regularizer
        self.features = nn.ModuleList()
        inputs = self.signals.total
        for number, (outputs, kernel) in enumerate(zip(counts, kernels, strict=True)):
            padding = kernel // 2 if number or pad_input else 0
            conv = HermiteConv(inputs, outputs, kernel, rotations, upsampling, stride, padding, number == 0, init_std)
            parts = OrderedDict(hermite_conv=conv, norm=SharedNorm(outputs, rotations, momentum))
            if final_nonlinearity or number < layers - 1:
                parts["nonlin"] = ShiftedElu()
            self.features.append(nn.Sequential(parts))
            inputs = rotations * outputs

    def output_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(channels, height, width) of the output for an image of this size."""
        for layer in self.features:
            height, width = side_after(layer.hermite_conv, height), side_after(layer.hermite_conv, width)
        return self.out_channels, height, width

    def forward(
        self,
        images: Tensor,
        behavior: Tensor | None = None,
        pupil_center: Tensor | None = None,
        animal: str | None = None,
    ) -> Tensor:
        """(batch, channels, height', width'); behaviour and pupil centre are used as built, the animal never."""
        signals = self.signals.signals(images, behavior, pupil_center)
        first = self.features[0]
        maps = convolve_with_planes(first.hermite_conv, images, signals, first.hermite_conv.kernels())
        found = {}
        for number, (layer, following) in enumerate(zip_longest(self.features, self.features[1:])):
            activated = layer[1:]
            if following is None or number in self.stacked:
                found[number] = activated(maps)
                maps = following.hermite_conv(found[number]) if following else None
            else:
                maps = without_keeping(in_turn(activated, following.hermite_conv), layer.norm, maps)
        outputs = [found[number] for number in self.stacked]
        return torch.cat(outputs, 1) if outputs[1:] else outputs[0]

    def regularizer_terms(self) -> dict[str, Tensor]:
        """Roughness of the first layer's kernels and group sparsity of the others', over all orientations."""
        first, *hidden = (layer.hermite_conv.kernels() for layer in self.features)
        rough = self.input_penalty(first, self.laplace_padding, self.average)
        sparsity = (
            torch.stack([group_sparsity(kernels) for kernels in hidden]).mean() if hidden else rough.new_zeros(())
        )
        return {"input": self.gamma_input * rough, "hidden": self.gamma_hidden * sparsity}

    def regularizer(self) -> Tensor:
        """What training adds to the loss."""
        return sum(self.regularizer_terms().values())


class HermiteConv(nn.Module):
    """A convolution whose kernels are mixtures of Hermite functions, at several orientations.

    `coeffs` (functions, inputs, outputs) is all it learns. Beyond the first layer the inputs are maps at the same
    orientations, which take turns with the kernel. Functions at all orientations, summed over the samples of a pixel,
    are made once: (rotations, functions, kernel, kernel), where the published code rotates and samples at every step.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        rotations: int,
        upsampling: int,
        stride: int,
        padding: int,
        first: bool,
        init_std: float,
    ) -> None:
        super().__init__()
        self.rotations, self.first = rotations, first
        self.kernel_size, self.bias = (kernel, kernel), None
        self.stride, self.padding, self.dilation = (stride, stride), (padding, padding), (1, 1)
        functions = len(list(orders(kernel)))
        self.coeffs = nn.Parameter(init_std * torch.randn(functions, inputs, outputs))
        self.register_buffer("functions", rotated_functions(kernel, rotations, upsampling), persistent=False)

    def kernels(self) -> Tensor:
        """(rotations x outputs, inputs, kernel, kernel)."""
        if self.first:
            return torch.einsum("fio,rfhw->roihw", self.coeffs, self.functions).flatten(0, 1)
        by_orientation = self.coeffs.unflatten(1, (self.rotations, -1))
        turned = torch.stack([by_orientation.roll(turn, 1).flatten(1, 2) for turn in range(self.rotations)])
        return torch.einsum("rfio,rfhw->roihw", turned, self.functions).flatten(0, 1)

    def forward(self, maps: Tensor) -> Tensor:
        if self.stride == (1, 1):
            return convolve_large(maps, self.kernels(), None, self.padding)
        return nn.functional.conv2d(maps, self.kernels(), None, self.stride, self.padding)


class SharedNorm(nn.BatchNorm2d):
    """Batch norm with one mean, variance, scale and bias for all orientations of a feature."""

    def __init__(self, features: int, rotations: int, momentum: float) -> None:
        super().__init__(features, momentum=momentum)
        self.rotations = rotations

    def forward(self, maps: Tensor) -> Tensor:
        by_orientation = maps.unflatten(1, (self.rotations, -1)).flatten(0, 1)
        return super().forward(by_orientation).unflatten(0, (-1, self.rotations)).flatten(1, 2)


def orders(kernel: int) -> Iterator[tuple[int, int, str]]:
    """(rank, angular order, part) of each function of a kernel: "real" and "imaginary" in turn, order 0 only "real"."""
    for rank in range(kernel):
        for angular in range(rank % 2, rank + 1, 2):
            yield rank, angular, "real"
            if angular:
                yield rank, angular, "imaginary"


def hermite_functions(kernel: int, upsampling: int) -> Tensor:
    """Two-dimensional Hermite functions in polar form, (functions, side, side) in float64, each of unit norm.

    exp(-rho^2 / 4) rho^m P(rho^2) exp(i m theta) on `kernel x upsampling` samples a side that reach to about
    2 sqrt(kernel); P is a generalised Laguerre polynomial. Ecker et al. 2019, appendix; Victor & Knight 2003.
    """
    side = kernel * upsampling
    reach = 2 * kernel**0.5 * (1 - 1 / side)
    axis = torch.linspace(-reach, reach, side, dtype=torch.float64)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    squared, theta = rows.square() + columns.square(), torch.atan2(rows, columns)
    made = []
    for rank, angular, part in orders(kernel):
        radial = (
            squared.sqrt() ** angular * torch.exp(-squared / 4) * polynomial(squared, angular, (rank - angular) // 2)
        )
        wave = torch.cos(angular * theta) if part == "real" else torch.sin(angular * theta)
        made.append(radial * wave / (radial * wave).norm())
    return torch.stack(made)


def polynomial(squared: Tensor, angular: int, radial: int) -> Tensor:
    """The polynomial of rho^2 for an angular and a radial order."""
    return sum(
        gamma(angular + radial + 1)
        * gamma(radial + 1)
        * (-2.0) ** (radial - power)
        / (gamma(angular + 1 + power) * gamma(1 + power) * gamma(radial + 1 - power))
        * squared**power
        for power in range(radial + 1)
    )


def rotation_of_coefficients(kernel: int, angle: float) -> Tensor:
    """What rotating by `angle` (radians) does to coefficients of the functions, (functions, functions) in float64."""
    order = list(orders(kernel))
    turned = torch.zeros(len(order), len(order), dtype=torch.float64)
    for place, (_, angular, part) in enumerate(order):
        phase = torch.tensor(angular * angle, dtype=torch.float64)
        turned[place, place] = torch.cos(phase)
        if part == "imaginary":
            turned[place - 1, place] = torch.sin(phase)
            turned[place, place - 1] = -torch.sin(phase)
    return turned


def rotated_functions(kernel: int, rotations: int, upsampling: int) -> Tensor:
    """The functions at each orientation, summed over a pixel's samples: (rotations, functions, kernel, kernel)."""
    functions = hermite_functions(kernel, upsampling)
    pixels = functions.unflatten(2, (kernel, upsampling)).unflatten(1, (kernel, upsampling)).sum((2, 4))
    turns = [rotation_of_coefficients(kernel, 2 * torch.pi * turn / rotations) for turn in range(rotations)]
    # A turn maps coefficients to coefficients, and so its transpose maps the functions that they multiply.
    return torch.stack([torch.einsum("gf,ghw->fhw", turn, pixels) for turn in turns]).float()
