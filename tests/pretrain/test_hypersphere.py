"""Alignment and uniformity: closed forms, and the authors' own few lines."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import gammaln, iv
from torch.nn import functional as F

from pretrain import hypersphere
from pretrain.hypersphere import alignment, uniformity


def unit(rows: int, columns: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)), dim=1)


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(2, 40), columns=st.integers(1, 20), block=st.integers(1, 50), seed=st.integers(0, 99))
def test_both_equal_the_authors_lines_for_blocks_of_any_size(rows, columns, block, seed):
    """`align_loss` and `uniform_loss` as printed in figure 5 of the paper."""
    x, y = unit(rows, columns, seed), unit(rows, columns, seed + 1)
    assert alignment(x, y) == pytest.approx(float((x - y).norm(dim=1).pow(2).mean()), abs=1e-5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hypersphere, "BLOCK", block)
        expected = float(torch.pdist(x.double(), p=2).pow(2).mul(-2).exp().mean().log())
        assert uniformity(x) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("dimension", [2, 3, 16, 128])
def test_uniformity_of_a_uniform_sphere(dimension):
    """The mean of exp(-4 + 4 cos) over a sphere is exp(-4) times a Bessel function."""
    half = dimension / 2
    expected = -4 + gammaln(half) + (half - 1) * math.log(2 / 4) + math.log(iv(half - 1, 4.0))
    assert uniformity(unit(4000, dimension, 0)) == pytest.approx(expected, abs=0.02)


def test_equal_features_have_uniformity_zero():
    assert uniformity(unit(1, 8, 0).expand(30, -1)) == pytest.approx(0, abs=1e-5)


def test_alignment_of_identical_opposite_and_perpendicular_views():
    views = unit(50, 8, 0)
    assert alignment(views, views) == 0
    assert alignment(views, -views) == pytest.approx(4)
    axes = torch.eye(8)
    assert alignment(axes, axes.roll(1, 0)) == pytest.approx(2)


def test_one_image_has_no_pairs():
    with pytest.raises(ValueError, match=r"uniformity is of pairs of images, and there is 1; use a larger probe\."):
        uniformity(unit(1, 4, 0))
