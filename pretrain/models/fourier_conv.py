"""Convolutions with large kernels of many pictures, through the Fourier transform where that takes less time: on a CPU.

What comes in: pictures (batch, inputs, height, width), kernels (outputs, inputs, side, side). What goes out: what
`conv2d` gives, to 1e-6 of its scale. A 9 x 9 kernel costs 81 products for each pair of channels and pixel; between
transforms it costs about two. Source: the convolution theorem, as in Mathieu et al. 2014
(https://arxiv.org/abs/1312.5851). On other devices, in other precisions and for few pictures it is `conv2d` itself.
"""

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pretrain.models.recompute import making_again

SMALLEST_KERNEL = 7
SMALLEST_BATCH = 8
SMALLEST_CHANNELS = 16
# Pictures and outputs whose transforms are in memory at a time.
BLOCK, OUTPUTS = 16, 32


class LargeConv2d(nn.Conv2d):
    """`nn.Conv2d` that takes the faster way."""

    def forward(self, pictures: Tensor) -> Tensor:
        if self.dilation != (1, 1) or self.groups != 1 or self.stride != (1, 1):
            return super().forward(pictures)
        return convolve_large(pictures, self.weight, self.bias, self.padding)


def convolve_large(pictures: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    """`conv2d` with stride 1, by the faster way."""
    if worth_transforming(pictures, weight):
        maps = FourierConv.apply(pictures, weight, padding)
        return maps if bias is None else maps.add_(bias[:, None, None])
    return F.conv2d(pictures, weight, bias, padding=padding)


def worth_transforming(pictures: Tensor, weight: Tensor) -> bool:
    plain = pictures.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    large = min(weight.shape[2:]) >= SMALLEST_KERNEL and min(weight.shape[:2]) >= SMALLEST_CHANNELS
    return pictures.device.type == "cpu" and plain and large and len(pictures) >= SMALLEST_BATCH


def gradient_of_large(pictures: Tensor, gradient: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
    """The kernels' gradient from that of `convolve_large`'s maps, by the faster way."""
    if worth_transforming(pictures, weight):
        waves = Waves(pictures.shape[2:], weight.shape[2:], padding, weight)
        return gradient_of_weight(waves, pictures, gradient, weight)
    return nn.grad.conv2d_weight(pictures, weight.shape, gradient, padding=padding)


class FourierConv(torch.autograd.Function):
    """Keeps pictures and kernels, not their transforms, which are larger and soon made again."""

    @staticmethod
    def forward(ctx, pictures: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
        ctx.waves = waves = Waves(pictures.shape[2:], weight.shape[2:], padding, weight)
        ctx.save_for_backward(pictures, weight)
        maps = pictures.new_empty(len(pictures), len(weight), *waves.out_size)
        if making_again.get():
            return maps
        for some, of_some in zip(weight.split(OUTPUTS), maps.split(OUTPUTS, 1), strict=True):
            kernels = waves.of_kernels(some)
            for block, out in blocks(pictures, of_some):
                out.copy_(waves.to_pictures(torch.bmm(waves.of_pictures(block), kernels), waves.out_size))
        return maps

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        pictures, weight = ctx.saved_tensors
        of_pictures, of_weight = ctx.needs_input_grad[:2]
        towards = torch.zeros_like(pictures) if of_pictures else None
        for start in range(0, len(weight), OUTPUTS) if of_pictures else ():
            some = slice(start, start + OUTPUTS)
            add_gradient_of_pictures(towards, ctx.waves, weight[some], gradient[:, some])
        return towards, gradient_of_weight(ctx.waves, pictures, gradient, weight) if of_weight else None, None


def add_gradient_of_pictures(towards: Tensor, waves: "Waves", weight: Tensor, gradient: Tensor) -> None:
    """What these outputs say about the pictures, added to `towards`."""
    against = waves.of_kernels(weight).mH.resolve_conj().contiguous()
    for error, out in blocks(gradient, towards):
        out.add_(waves.to_pictures(torch.bmm(waves.of_pictures(error), against), towards.shape[2:]))


def gradient_of_weight(waves: "Waves", pictures: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    """The kernels' gradient, a few outputs after the others."""
    of_weight = torch.empty_like(weight)
    for out, of_some in zip(of_weight.split(OUTPUTS), gradient.split(OUTPUTS, 1), strict=True):
        shape = (len(waves.cosine), pictures.shape[1], len(out))
        products = torch.zeros(shape, dtype=torch.complex64, device=pictures.device)
        for block, error in blocks(pictures, of_some):
            products.baddbmm_(waves.of_pictures(block).mH.resolve_conj(), waves.of_pictures(error))
        out.copy_(waves.to_kernels(products))
    return of_weight


class Waves:
    """The frequencies at which pictures and kernels of some sizes are multiplied.

    A grid of (height + padding, width + padding), or a little more, keeps what lies beyond one border from coming in at
    the other. Transforms have the frequency first, (frequencies, batch, channels), which is what products of matrices
    want. `cosine` and `sine` (frequencies, pixels of the kernel) transform kernels, which are too small for a fast one.
    """

    def __init__(self, size: tuple[int, int], kernel: tuple[int, int], padding: tuple[int, int], like: Tensor) -> None:
        self.kernel = kernel
        self.out_size = tuple(
            side + 2 * pad - reach + 1 for side, pad, reach in zip(size, padding, kernel, strict=True)
        )
        self.grid = tuple(
            fast_length(max(side + pad, out)) for side, pad, out in zip(size, padding, self.out_size, strict=True)
        )
        rows, columns = (
            torch.outer(torch.arange(count), torch.arange(reach) - pad).double() / side
            for count, side, reach, pad in zip(
                (self.grid[0], self.grid[1] // 2 + 1), self.grid, kernel, padding, strict=True
            )
        )
        phase = 2 * torch.pi * (rows[:, None, :, None] + columns[None, :, None, :]).flatten(2).flatten(0, 1)
        self.cosine, self.sine = phase.cos().to(like), phase.sin().to(like)

    def of_pictures(self, pictures: Tensor) -> Tensor:
        """(frequencies, batch, channels)."""
        return torch.fft.rfft2(pictures, self.grid).permute(2, 3, 0, 1).flatten(0, 1).contiguous()

    def to_pictures(self, transforms: Tensor, size: tuple[int, int]) -> Tensor:
        """(batch, channels, height, width), the first `size` pixels of the grid."""
        transforms = transforms.unflatten(0, (self.grid[0], -1)).permute(2, 3, 0, 1).contiguous()
        return torch.fft.irfft2(transforms, self.grid)[..., : size[0], : size[1]]

    def of_kernels(self, weight: Tensor) -> Tensor:
        """(frequencies, inputs, outputs): the kernel turned round, moved by the padding."""
        flat = weight.permute(2, 3, 1, 0).reshape(prod(self.kernel), -1)
        made = torch.complex(self.cosine @ flat, self.sine @ flat)
        return made.view(-1, weight.shape[1], weight.shape[0])

    def to_kernels(self, products: Tensor) -> Tensor:
        """(outputs, inputs, side, side) of conjugate products of pictures and errors (frequencies, inputs, outputs)."""
        # Of a real picture half the columns are known from the others, all but the first and, if even, the last.
        twice = torch.full((self.grid[1] // 2 + 1,), 2.0)
        twice[0] = 1
        if self.grid[1] % 2 == 0:
            twice[-1] = 1
        share = twice.repeat(self.grid[0])[:, None].to(self.cosine) / prod(self.grid)
        flat = products.flatten(1)
        kernels = (self.cosine * share).T @ flat.real + (self.sine * share).T @ flat.imag
        return kernels.view(*self.kernel, *products.shape[1:]).permute(3, 2, 0, 1)


def blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same few pictures of each."""
    return zip(*(tensor.split(BLOCK) for tensor in tensors), strict=True)


def fast_length(length: int) -> int:
    """The next number that has no prime factor but 2, 3 and 5."""
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += 1
