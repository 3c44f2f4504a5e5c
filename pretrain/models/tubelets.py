"""Overlapping pieces of video as tokens, without copying a pixel for every piece that it is in.

What comes in: a video (batch, channels, time, height, width) and signals (batch, signals, time) that count as channels
which are constant in space. What goes out: tokens (batch, time', height', width', width of a token), each a projection
of one tubelet of `frames` x `patch` x `patch` pixels.

Projecting normalised tubelets is a convolution. With tubelet x, weights W, and a layer norm's g and b,

    W ((x - mean) / std * g + b) + c  =  (W g - its mean over x) * x / std  +  W b + c,

because a kernel that sums to zero does not see the mean. The variance follows from running sums of the pixels and of
their squares. RMS norm is the same without a mean; a dynamic tanh is applied to the pixels. Signals need no
convolution in space: their kernels are summed over those places that lie within the frame. Like any sum of large
values, this needs inputs whose mean is not many times their deviation: standardised ones, as the models are made for.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models.token_norms import DynamicTanh, make_norm


class TubeletTokens(nn.Module):
    """Projects tubelets, normalised (`normalized=True`) or not, and normalises the tokens.

    Args:
        channels, signals: numbers of those of the video, and of signals.
        width: of a token.
        size, stride: of a tubelet in frames, rows and columns.
        padding: zeros (before, after) in time, rows and columns; signals are padded as the video is.
        norm: "layernorm", "rmsnorm" or "dyt", of tubelets and of tokens.
    """

    def __init__(
        self,
        channels: int,
        signals: int,
        width: int,
        size: tuple[int, int, int],
        stride: tuple[int, int, int],
        padding: tuple[tuple[int, int], ...] = ((0, 0),) * 3,
        norm: str = "layernorm",
        normalized: bool = True,
    ) -> None:
        super().__init__()
        self.channels, self.signals = channels, signals
        self.size, self.stride, self.padding = size, stride, padding
        self.normalized = normalized
        shape = (channels + signals, *size)
        if normalized:
            values = torch.Size(shape).numel()
            self.norm = make_norm(norm, values)
            self.linear = nn.Linear(values, width)
        else:
            self.convolution = nn.Conv3d(shape[0], width, size, stride)
        self.out_norm = make_norm(norm, width)

    def output_shape(self, *lengths: int) -> tuple[int, ...]:
        """Tokens in time, rows and columns of a video with these frames, rows and columns."""
        padded = (length + sum(padding) for length, padding in zip(lengths, self.padding, strict=True))
        axes = zip(padded, self.size, self.stride, strict=True)
        return tuple((length - size) // stride + 1 for length, size, stride in axes)

    def forward(self, video: Tensor, signals: Tensor | None = None) -> Tensor:
        kernel, offset = self.kernel()
        if self.normalized and isinstance(self.norm, DynamicTanh):
            video = torch.tanh(self.norm.alpha * video)
            signals = None if signals is None else torch.tanh(self.norm.alpha * signals)
        projected = F.conv3d(self.padded(video), kernel[:, : self.channels], stride=self.stride)
        projected = projected.permute(0, 2, 3, 4, 1)
        if signals is not None:
            projected = projected + self.projected_signals(signals, kernel[:, self.channels :], *video.shape[3:])
        if self.normalized and not isinstance(self.norm, DynamicTanh):
            projected = projected * self.inverse_deviation(video, signals)[..., None]
        return self.out_norm(projected + offset)

    def kernel(self) -> tuple[Tensor, Tensor]:
        """The convolution's kernel (width, channels + signals, *size) and what is added (width,)."""
        if not self.normalized:
            return self.convolution.weight, self.convolution.bias
        weight, offset = self.linear.weight * self.norm.weight, self.linear.bias
        if isinstance(self.norm, nn.LayerNorm):
            weight = weight - weight.mean(1, keepdim=True)
        if getattr(self.norm, "bias", None) is not None:
            offset = offset + (self.linear.weight * self.norm.bias).sum(1)
        return weight.view(-1, self.channels + self.signals, *self.size), offset

    def projected_signals(self, signals: Tensor, kernel: Tensor, *frame: int) -> Tensor:
        """(batch, time', 1 or height', 1 or width', width)."""
        rows, columns = (
            within_frame(length, padding, size, stride, signals)
            for length, padding, size, stride in zip(
                frame, self.padding[1:], self.size[1:], self.stride[1:], strict=True
            )
        )
        summed = torch.einsum("dstij,ri,cj->strcd", kernel, rows, columns)
        windows = F.pad(signals, self.padding[0]).unfold(2, self.size[0], self.stride[0])
        return torch.einsum("bsft,strcd->bfrcd", windows, summed)

    def inverse_deviation(self, video: Tensor, signals: Tensor | None) -> Tensor:
        """1 / deviation (RMS norm: 1 / root mean square) of each tubelet (batch, time', height', width')."""
        # In float64, because the mean square minus the squared mean loses digits; there are few values.
        video = video.double()
        sums, squares = video.sum(1), video.square().sum(1)
        if signals is not None:
            signals = signals.double()[..., None, None]
            sums, squares = sums + signals.sum(1), squares + signals.square().sum(1)
        means = self.box_means(self.padded(torch.stack((sums, squares), 1))) / (self.channels + self.signals)
        if isinstance(self.norm, nn.RMSNorm):
            eps = self.norm.eps or torch.finfo(self.norm.weight.dtype).eps
            variance = means[:, 1]
        else:
            eps, variance = self.norm.eps, (means[:, 1] - means[:, 0].square()).clamp_min(0)
        return torch.rsqrt(variance + eps).to(self.norm.weight.dtype)

    def box_means(self, values: Tensor) -> Tensor:
        """Means over every tubelet, first in space and then in time."""
        (frames, *patch), (hop, *step) = self.size, self.stride
        return F.avg_pool3d(F.avg_pool3d(values, (1, *patch), (1, *step)), (frames, 1, 1), (hop, 1, 1))

    def padded(self, values: Tensor) -> Tensor:
        """Values (..., time, height, width) with zeros around them."""
        return F.pad(values, [count for padding in reversed(self.padding) for count in padding])


def within_frame(length: int, padding: tuple[int, int], size: int, stride: int, like: Tensor) -> Tensor:
    """1 where a place of a patch (patches, size) lies within the frame; one patch stands for all without padding."""
    if not any(padding):
        return like.new_ones(1, size)
    return F.pad(like.new_ones(length), padding).unfold(0, size, stride)
