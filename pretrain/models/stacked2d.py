"""The stacked convolutional core of Sensorium 2022, with depth-separable, attention or plain layers.

What comes in: images (batch, channels, height, width), standardised, and with `behavior_channels` behaviour (batch,
values), which fills further channels. What goes out: (batch, channels, height', width'); at the default 28 x 56 of
36 x 64 pixels. A layer is a convolution, batch norm, ELU; the first one is plain, the others are of one type. Source:
`Stacked2dCore` of neuralpredictors (https://github.com/sinzlab/neuralpredictors); the defaults are the convolutional
baseline of Sensorium 2022 (Willeke et al., https://arxiv.org/abs/2206.08666), without behaviour.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models.behavior_channels import SignalChannels, convolve_with_planes
from pretrain.models.elu import ShiftedElu
from pretrain.models.fourier_conv import LargeConv2d
from pretrain.models.regularizers import group_sparsity, input_penalty


class Stacked2d(nn.Module):
    """Layers of convolution, batch norm and ELU, one or more of which are the output.

    Args:
        image_channels: of the image itself, 1 for grey, 2 for Franke's ultraviolet and green.
        behavior_channels, pupil_channels: signals that are appended as channels; Sensorium+ has 3 values of behaviour.
        channels: of each layer, or one number for all.
        input_kernel, hidden_kernel: sides in pixels; `hidden_kernel` may have one for each hidden layer.
        layers: how many.
        hidden_conv: "separable" (1 x 1, a kernel for each channel, 1 x 1), "plain" or "attention" (`AttentionConv`).
        pad_input: zeros around the image, half a kernel; hidden layers always have them.
        hidden_padding: of hidden layers; None, as 0 in the published code, for what keeps the size.
        input_stride, hidden_stride, hidden_dilation: in pixels.
        skip: from 2 on, a layer reads that many layers before it, concatenated.
        stack: which layers are the output: None all, a number all from that one on (-1 the last), or a list.
        batch_norm: normalise after every convolution, with `momentum`.
        bias, scale: what batch norm learns.
        input_bias, hidden_bias: whether convolutions have a bias, None for where no batch norm follows. The released
            files of Sensorium 2022 have none; neuralpredictors from GitHub has none in the first (`False`, even
            without batch norm) and one in all others (`True`).
        linear: no nonlinearity at all, as in the linear-nonlinear baseline.
        final_nonlinearity: end in ELU; `elu_shift` is (x, y) of ELU(v - x) + y.
        gamma_input, gamma_hidden: weights of the roughness of the first kernels and of the others' group sparsity.
        input_regularizer: see `regularizers.INPUT_REGULARIZERS`; `laplace_padding` None is half the filter.
        average_regularizer: means in place of sums.
    """

    def __init__(
        self,
        image_channels: int = 1,
        behavior_channels: int = 0,
        pupil_channels: int = 0,
        channels: int | Sequence[int] = 64,
        input_kernel: int = 9,
        hidden_kernel: int | Sequence[int] = 7,
        layers: int = 4,
        hidden_conv: str = "separable",
        pad_input: bool = False,
        hidden_padding: int | None = None,
        input_stride: int = 1,
        hidden_stride: int = 1,
        hidden_dilation: int = 1,
        skip: int = 0,
        stack: int | Sequence[int] | None = -1,
        batch_norm: bool = True,
        momentum: float = 0.9,
        bias: bool = True,
        scale: bool = True,
        input_bias: bool | None = None,
        hidden_bias: bool | None = None,
        linear: bool = False,
        final_nonlinearity: bool = True,
        elu_shift: tuple[float, float] = (0.0, 0.0),
        gamma_input: float = 6.3831,
        gamma_hidden: float = 0.0,
        input_regularizer: str = "LaplaceL2norm",
        laplace_padding: int | None = None,
        average_regularizer: bool = False,
    ) -> None:
        super().__init__()
        self.channels = per_layer(channels, layers, "channels")
        self.kernels = [input_kernel, *per_layer(hidden_kernel, layers - 1, "hidden_kernel")]
        self.signals = SignalChannels(image_channels, behavior_channels, pupil_channels)
        self.skip, self.stacked = skip, stacked_layers(stack, layers)
        self.batch_norm, self.momentum, self.bias, self.scale = batch_norm, momentum, bias, scale
        self.linear, self.final_nonlinearity, self.elu_shift = linear, final_nonlinearity, elu_shift
        self.set_penalty(gamma_input, gamma_hidden, input_regularizer, laplace_padding, average_regularizer)
        self.hidden_conv = hidden_conv
        self.features = nn.ModuleList()
        padding = input_kernel // 2 if pad_input else 0
        with_bias = bias and not batch_norm if input_bias is None else input_bias
        conv = nn.Conv2d(self.signals.total, self.channels[0], input_kernel, input_stride, padding, bias=with_bias)
        self.features.append(self.layer("conv", conv, 0))
        with_bias = bias and not batch_norm if hidden_bias is None else hidden_bias
        for number in range(1, layers):
            name, convolution = known_convolution(hidden_conv)
            side = self.kernels[number]
            padding = hidden_padding or ((side - 1) * hidden_dilation + 1) // 2
            inputs = sum(self.channels[number - max(1, min(skip, number)) : number])
            geometry = {"stride": hidden_stride, "padding": padding, "dilation": hidden_dilation}
            conv = convolution(inputs, self.channels[number], side, bias=with_bias, **geometry)
            self.features.append(self.layer(name, conv, number))
        self.initialise()

    @property
    def out_channels(self) -> int:
        """Channels of all layers that are stacked."""
        return sum(self.channels[number] for number in self.stacked)

    def set_penalty(
        self, gamma_input: float, gamma_hidden: float, name: str, padding: int | None, average: bool
    ) -> None:
        """What `regularizer` takes, with which weights."""
        self.gamma_input, self.gamma_hidden = gamma_input, gamma_hidden
        self.input_penalty, self.laplace_padding, self.average = input_penalty(name), padding, average

    def layer(self, name: str, conv: nn.Module, number: int) -> nn.Sequential:
        """A convolution with the norm and the nonlinearity after it."""
        parts = OrderedDict([(name, conv)])
        channels = self.channels[number]
        if self.batch_norm:
            parts["norm"] = self.norm(channels)
            if self.bias and not self.scale:
                parts["bias"] = ChannelBias(channels)
            if self.scale and not self.bias:
                parts["scale"] = ChannelScale(channels)
        if not self.linear and (self.final_nonlinearity or number < len(self.channels) - 1):
            parts["nonlin"] = ShiftedElu(*self.elu_shift)
        return nn.Sequential(parts)

    def norm(self, channels: int) -> nn.Module:
        """Batch norm, which learns a bias and a scale or neither."""
        return nn.BatchNorm2d(channels, momentum=self.momentum, affine=self.bias and self.scale)

    def initialise(self) -> None:
        """Convolutions as published: Glorot's normal distribution, no bias."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def output_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(channels, height, width) of the output for an image of this size."""
        for layer in self.features:
            height, width = side_after(layer[0], height), side_after(layer[0], width)
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
        found = [first[1:](self.first_convolution(images, signals))]
        for number, layer in enumerate(self.features[1:], 1):
            before = found[-min(self.skip, number) :] if self.skip > 1 else found[-1:]
            found.append(layer(torch.cat(before, 1) if before[1:] else before[0]))
        outputs = [found[number] for number in self.stacked]
        return torch.cat(outputs, 1) if outputs[1:] else outputs[0]

    def first_convolution(self, images: Tensor, signals: Tensor | None) -> Tensor:
        return convolve_with_planes(self.features[0].conv, images, signals)

    def regularizer_terms(self) -> dict[str, Tensor]:
        """Roughness of the first layer's kernels, and group sparsity of plain hidden ones, weighted."""
        rough = self.input_penalty(self.first_kernels(), self.laplace_padding, self.average)
        hidden = [group_sparsity(weight) for weight in self.hidden_kernels()]
        sparsity = torch.stack(hidden).mean() if hidden else rough.new_zeros(())
        return {"input": self.gamma_input * rough, "hidden": self.gamma_hidden * sparsity}

    def regularizer(self) -> Tensor:
        """What training adds to the loss."""
        return sum(self.regularizer_terms().values())

    def first_kernels(self) -> Tensor:
        return self.features[0].conv.weight

    def hidden_kernels(self) -> list[Tensor]:
        """Kernels that group sparsity can count, which only plain convolutions have."""
        return [layer.conv.weight for layer in self.features[1:]] if self.hidden_conv == "plain" else []


class SeparableConv(nn.Sequential):
    """1 x 1 convolution, one kernel for each channel, 1 x 1 convolution, with nothing in between."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        bias: bool = True,
    ) -> None:
        of_channels = nn.Conv2d(outputs, outputs, kernel, stride, padding, dilation, groups=outputs, bias=bias)
        super().__init__(
            OrderedDict(
                in_depth_conv=nn.Conv2d(inputs, outputs, 1, bias=bias),
                spatial_conv=of_channels,
                out_depth_conv=nn.Conv2d(outputs, outputs, 1, bias=bias),
            )
        )


class AttentionConv(nn.Module):
    """Each channel attends to the neighbourhood of a pixel (Ramachandran et al. 2019, https://arxiv.org/abs/1906.05909).

    For every channel and pixel, a softmax over kernel x kernel neighbours of query x key weighs their values; keys have
    learned offsets, of the row for the first half of the channels and of the column for the others. As published, the
    image is padded with zeros before keys and values are made, and `dilation` has no effect.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if outputs % 2:
            raise ValueError(f"attention needs an even number of channels, found {outputs}")
        self.kernel, self.stride, self.padding = kernel, stride, padding
        self.rel_h = nn.Parameter(torch.randn(outputs // 2, 1, 1, kernel, 1))
        self.rel_w = nn.Parameter(torch.randn(outputs // 2, 1, 1, 1, kernel))
        self.key_conv, self.query_conv, self.value_conv = (nn.Conv2d(inputs, outputs, 1, bias=bias) for _ in range(3))

    def forward(self, maps: Tensor) -> Tensor:
        padded = F.pad(maps, [self.padding] * 4)
        queries = self.query_conv(maps)[..., :: self.stride, :: self.stride]
        keys, values = self.neighbours(self.key_conv(padded)), self.neighbours(self.value_conv(padded))
        by_row, by_column = keys.chunk(2, 1)
        keys = torch.cat([by_row + self.rel_h, by_column + self.rel_w], 1).flatten(-2)
        weights = (queries[..., None] * keys).softmax(-1)
        return (weights * values.flatten(-2)).sum(-1)

    def neighbours(self, maps: Tensor) -> Tensor:
        """(batch, channels, height, width, kernel, kernel)."""
        return maps.unfold(2, self.kernel, self.stride).unfold(3, self.kernel, self.stride)


class ChannelBias(nn.Module):
    """A number added to each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.bias


class ChannelScale(nn.Module):
    """A number that each channel is multiplied by."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, maps: Tensor) -> Tensor:
        return maps * self.scale


# The name that the convolution has in a state dict, and what makes it.
CONVOLUTIONS = {
    "plain": ("conv", LargeConv2d),
    "separable": ("ds_conv", SeparableConv),
    "attention": ("attention_conv", AttentionConv),
}


def known_convolution(kind: str) -> tuple[str, type[nn.Module]]:
    if kind not in CONVOLUTIONS:
        raise ValueError(f"hidden_conv must be one of {', '.join(CONVOLUTIONS)}, found {kind!r}")
    return CONVOLUTIONS[kind]


def side_after(conv: nn.Module, side: int) -> int:
    """Height or width after a convolution, of any kind that a layer has, with a square kernel."""
    if isinstance(conv, AttentionConv):
        return (side + 2 * conv.padding - conv.kernel) // conv.stride + 1
    if isinstance(conv, SeparableConv):
        conv = conv.spatial_conv
    reach = (conv.kernel_size[0] - 1) * conv.dilation[0] + 1
    return (side + 2 * conv.padding[0] - reach) // conv.stride[0] + 1


def per_layer(value: int | Sequence[int], layers: int, name: str) -> list[int]:
    """One value for each layer."""
    values = [value] * layers if isinstance(value, int) else list(value)
    if len(values) != layers:
        raise ValueError(f"{name} must be one number or {layers}, one for each layer, found {len(values)}")
    return values


def stacked_layers(stack: int | Sequence[int] | None, layers: int) -> list[int]:
    """Numbers of the layers that are the output."""
    if stack is None:
        return list(range(layers))
    if isinstance(stack, int):
        return list(range(layers))[stack:]
    return [range(layers)[number] for number in stack]
