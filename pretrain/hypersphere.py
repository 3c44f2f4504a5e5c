"""How well features are aligned and spread on the unit sphere (Wang & Isola 2020, https://arxiv.org/abs/2005.10242).

What comes in: L2-normalised features (n, d). What goes out: alignment, the mean squared distance between the features
of two random views of an image (0 to 4; the smaller the better), and uniformity, the logarithm of the mean over pairs
of images of exp(-2 times their squared distance) (the smaller the better: 0 where all are equal, about -4 + 8 / d on a
uniform sphere of many dimensions d).
"""

import math

import torch
from torch import Tensor

STEEPNESS = 2.0
BLOCK = 1024


def alignment(first: Tensor, second: Tensor) -> float:
    """Mean squared distance between the rows of two views' features (n, d)."""
    return float((first - second).square().sum(1).mean())


def uniformity(features: Tensor) -> float:
    """Log of the mean over pairs of rows of exp(-2 |x - y|²), in blocks so that memory does not grow with n².

    Raises:
        ValueError: there is no pair.
    """
    count = len(features)
    if count < 2:
        raise ValueError(f"uniformity is of pairs of images, and there is {count}; use a larger probe.test_images")
    total = 0.0
    for start in range(0, count, BLOCK):
        rows = features[start : start + BLOCK]
        # Each pair once: a block with the rows behind it, and within itself above the diagonal.
        total += float(closeness(rows, features[start + BLOCK :]).sum())
        total += float(closeness(rows, rows).triu(diagonal=1).sum())
    return math.log(total / (count * (count - 1) / 2))


def closeness(rows: Tensor, others: Tensor) -> Tensor:
    """exp(-2 |x - y|²) (n, m) of unit vectors (n, d) and (m, d)."""
    return torch.exp(-STEEPNESS * (2 - 2 * rows @ others.T).clamp(min=0))
