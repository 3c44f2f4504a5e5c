"""Features at points of a map, weighted and summed: what every point readout computes, without the sampled features.

What comes in: feature maps of many frames, one point per neuron in normalised coordinates ((-1, -1) is the upper left,
x along the width), feature weights per neuron. What goes out: one number per frame and neuron,

    y[f, n] = sum_c weights[c, n] * features[f, c](points[f, n]),

bilinear, zero outside the map: the values and gradients of `torch.nn.functional.grid_sample` followed by a product
(Lurz et al. 2021, https://openreview.net/forum?id=Tp7kI90Htd), which holds (frames, channels, neurons) several times.

On a CPU the four corners are gathered here instead. Where the points are the same in all frames, the neurons that share
a corner are multiplied with it at once, and nothing of size (frames, channels, neurons) exists; where they differ, one
frame is gathered at a time, and the backward pass gathers again rather than keep it. Forward and backward of 80 frames
of 128 x 18 x 46 for 8,000 neurons, one thread of an AMD EPYC (`benchmarks/readout_step.py`), are 22 times faster than
with `grid_sample` and a product, in an eighth of the memory, where points are the same; 3.6 times, in a fifth, where
they differ. Other devices use `grid_sample`.
"""

import torch
from torch import Tensor
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CORNERS = 4
# With fewer frames x neurons for each pixel that is a corner, a matrix product costs more than gathering: 19 are too
# few, 77 make products three times faster (80 frames, 8,000 neurons and 18 x 46 pixels are 770).
PRODUCTS_PAY = 25


def weighted_points(features: Tensor, points: Tensor, weights: Tensor, align_corners: bool = True) -> Tensor:
    """Weighted sums (frames, neurons) of the features at the points; float32 at least.

    Args:
        features: (..., channels, height, width); the leading axes are the frames.
        points: x and y (frames, neurons, 2), or (1, neurons, 2) for the same points in all frames.
        weights: (channels, neurons).
        align_corners: whether -1 and 1 are the centres of the outermost pixels, or their outer edges.
    """
    dtype = torch.promote_types(features.dtype, torch.float32)
    features, points, weights = features.to(dtype), points.to(dtype), weights.to(dtype)
    with torch.autocast(features.device.type, enabled=False):
        if features.device.type != "cpu":
            return by_grid_sample(features.flatten(0, -4), points, weights, align_corners)
        index, share = bilinear_corners(points, features.shape[-2], features.shape[-1], align_corners)
        frames = features.shape[:-3].numel()
        corner_pixels = min(pixels(features), CORNERS * points.shape[1])
        if len(points) == 1 and frames * points.shape[1] >= PRODUCTS_PAY * corner_pixels:
            corner_first = features.flatten(-2).movedim(-1, 0).reshape(pixels(features), frames, -1)
            return SamePoints.apply(corner_first, index[0], share[0], weights.mT.contiguous()).mT
        frame_first = features.flatten(-2).mT.reshape(frames, pixels(features), -1)
        index, share = index.expand(frames, -1, -1), share.expand(frames, -1, -1)
        return PointsOfFrames.apply(frame_first, index, share, weights.mT.contiguous())


def by_grid_sample(features: Tensor, points: Tensor, weights: Tensor, align_corners: bool) -> Tensor:
    """`weighted_points` in torch's own operations, of features (frames, channels, height, width)."""
    grid = points[:, :, None].expand(len(features), -1, -1, -1)
    return (F.grid_sample(features, grid, align_corners=align_corners).squeeze(-1) * weights).sum(1)


def bilinear_corners(points: Tensor, height: int, width: int, align_corners: bool) -> tuple[Tensor, Tensor]:
    """The four pixels around each point and their shares, both (frames, neurons, 4).

    Pixels are numbered row by row. One that lies outside the map has share 0 and, so that it can be read, number 0.
    """
    column, row = (
        (place + 1) / 2 * (size - 1) if align_corners else ((place + 1) * size - 1) / 2
        for place, size in zip(points.unbind(-1), (width, height), strict=True)
    )
    left, above = column.detach().floor(), row.detach().floor()
    right_share, lower_share = column - left, row - above
    columns = torch.stack((left, left + 1, left, left + 1), -1)
    rows = torch.stack((above, above, above + 1, above + 1), -1)
    across = torch.stack((1 - right_share, right_share), -1)
    down = torch.stack((1 - lower_share, lower_share), -1)
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    share = (down[..., :, None] * across[..., None, :]).flatten(-2)
    return torch.where(inside, rows * width + columns, 0).long(), share * inside


def pixels(features: Tensor) -> int:
    """How many pixels a map has."""
    return features.shape[-2] * features.shape[-1]


class PointsOfFrames(torch.autograd.Function):
    """Points that differ between frames: one frame at a time, whose map and samples stay in a core's cache.

    A bag of `embedding_bag` is a neuron with four corners; in the backward pass it is a pixel with its neurons.
    """

    @staticmethod
    @custom_fwd(device_type="cpu")
    def forward(ctx, features: Tensor, index: Tensor, share: Tensor, weights: Tensor) -> Tensor:
        """Sums (frames, neurons); features (frames, pixels, channels), corners (frames, neurons, 4), weights (n, c)."""
        ctx.save_for_backward(features, index, share, weights)
        sums = features.new_empty(index.shape[:2])
        for frame, corners, shares, out in zip(features, index, share, sums, strict=True):
            out.copy_(torch.linalg.vecdot(sampled(frame, corners, shares), weights))
        return sums

    @staticmethod
    @once_differentiable
    @custom_bwd(device_type="cpu")
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of features, shares and weights, as far as they are wanted."""
        features, index, share, weights = ctx.saved_tensors
        of_features = torch.empty_like(features) if ctx.needs_input_grad[0] else None
        of_share = torch.empty_like(share) if ctx.needs_input_grad[2] else None
        of_weights = torch.zeros_like(weights) if ctx.needs_input_grad[3] else None
        for frame, (map_, corners, shares, upstream) in enumerate(zip(features, index, share, gradient, strict=True)):
            upstream = upstream[:, None]
            if of_features is not None:
                of_features[frame] = scattered(corners, shares * upstream, weights, len(map_))
            if of_share is not None:
                of_share[frame] = share_gradient(map_, corners, shares, weights * upstream)
            if of_weights is not None:
                of_weights.addcmul_(sampled(map_, corners, shares), upstream)
        return of_features, None, of_share, of_weights


def sampled(frame: Tensor, corners: Tensor, shares: Tensor) -> Tensor:
    """Features (neurons, channels) at points of one frame (pixels, channels)."""
    return F.embedding_bag(corners, frame, per_sample_weights=shares, mode="sum")


def scattered(corners: Tensor, amounts: Tensor, weights: Tensor, pixel_count: int) -> Tensor:
    """The transpose of `sampled`: rows of weights (neurons, channels) added to the pixels (pixels, channels)."""
    corners = corners.flatten()
    order = corners.argsort()
    ends = corners.bincount(minlength=pixel_count).cumsum(0)
    starts = F.pad(ends[:-1], (1, 0))
    return F.embedding_bag(order // CORNERS, weights, starts, per_sample_weights=amounts.flatten()[order], mode="sum")


def share_gradient(frame: Tensor, corners: Tensor, shares: Tensor, upstream: Tensor) -> Tensor:
    """Gradient (neurons, 4) of the shares, from that of the sampled features (neurons, channels)."""
    with torch.enable_grad():
        shares = shares.detach().requires_grad_()
        return torch.autograd.grad(sampled(frame, corners, shares), shares, upstream)[0]


class SamePoints(torch.autograd.Function):
    """The same points in all frames: a matrix product for each pixel, of its frames with its neurons' weights.

    What is kept of size (frames, neurons) are the four products of each neuron.
    """

    @staticmethod
    @custom_fwd(device_type="cpu")
    def forward(ctx, features: Tensor, index: Tensor, share: Tensor, weights: Tensor) -> Tensor:
        """Sums (neurons, frames); features (pixels, frames, channels), corners (neurons, 4), weights (n, c)."""
        order = index.flatten().argsort()
        segments = pixel_segments(index, len(features))
        weights_in_order = weights[order // CORNERS]
        products = features.new_empty(len(order), features.shape[1])
        for pixel, neurons in segments:
            torch.mm(weights_in_order[neurons], features[pixel].mT, out=products[neurons])
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        ctx.save_for_backward(features, share, weights, order, place, products)
        ctx.segments = segments
        return F.embedding_bag(place.view(-1, CORNERS), products, per_sample_weights=share, mode="sum")

    @staticmethod
    @once_differentiable
    @custom_bwd(device_type="cpu")
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of features, shares and weights, as far as they are wanted."""
        features, share, weights, order, place, products = ctx.saved_tensors
        of_features = torch.zeros_like(features) if ctx.needs_input_grad[0] else None
        upstream = gradient.contiguous()[order // CORNERS]
        of_share = torch.linalg.vecdot(upstream, products)[place].view_as(share) if ctx.needs_input_grad[2] else None
        upstream *= share.flatten()[order, None]
        weights_in_order = weights[order // CORNERS]
        of_weights = torch.empty_like(weights_in_order) if ctx.needs_input_grad[3] else None
        for pixel, neurons in ctx.segments:
            if of_features is not None:
                torch.mm(upstream[neurons].mT, weights_in_order[neurons], out=of_features[pixel])
            if of_weights is not None:
                torch.mm(upstream[neurons], features[pixel], out=of_weights[neurons])
        if of_weights is not None:
            of_weights = F.embedding_bag(place.view(-1, CORNERS), of_weights, mode="sum")
        return of_features, None, of_share, of_weights


def pixel_segments(index: Tensor, pixel_count: int) -> list[tuple[int, slice]]:
    """Each pixel that is a corner, and where its neurons lie among the corners in order of their pixels."""
    ends = index.flatten().bincount(minlength=pixel_count).cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    return [
        (pixel, slice(start, end)) for pixel, (start, end) in enumerate(zip(starts, ends, strict=True)) if end > start
    ]
