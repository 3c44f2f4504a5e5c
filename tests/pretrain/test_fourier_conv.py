"""Convolution through the Fourier transform: conv2d's values and gradients, and where it is conv2d itself."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from pretrain.models.fourier_conv import (
    BLOCK,
    FourierConv,
    LargeConv2d,
    Waves,
    convolve_large,
    fast_length,
    worth_transforming,
)
from pretrain.models.recompute import in_turn, without_keeping


@settings(deadline=None, max_examples=25)
@given(
    batch=st.sampled_from([1, 3, BLOCK + 1]),
    outputs=st.sampled_from([1, 5, 67]),
    size=st.tuples(st.integers(9, 14), st.integers(9, 17)),
    side=st.sampled_from([3, 4, 7, 9]),
    padding=st.integers(0, 5),
    seed=st.integers(0, 99),
)
def test_values_and_gradients_are_those_of_conv2d(batch, outputs, size, side, padding, seed):
    torch.manual_seed(seed)
    pictures = torch.randn(batch, 3, *size, requires_grad=True)
    weight = torch.randn(outputs, 3, side, side, requires_grad=True)
    expected, found = (
        F.conv2d(pictures, weight, padding=padding),
        FourierConv.apply(pictures, weight, (padding, padding)),
    )
    towards = torch.randn_like(expected)
    of_expected = torch.autograd.grad(expected, (pictures, weight), towards)
    of_found = torch.autograd.grad(found, (pictures, weight), towards)
    for values, reference in zip((found, *of_found), (expected, *of_expected), strict=True):
        torch.testing.assert_close(values, reference, rtol=0, atol=1e-5 * float(reference.detach().abs().max()))


def test_gradients_that_are_not_wanted_are_not_made():
    pictures, weight = torch.randn(2, 3, 9, 9), torch.randn(4, 3, 7, 7, requires_grad=True)
    FourierConv.apply(pictures, weight, (3, 3)).sum().backward()
    assert pictures.grad is None
    assert weight.grad.shape == weight.shape


@pytest.mark.parametrize(
    ("batch", "channels", "side", "dtype", "worth"),
    [
        (8, 16, 7, torch.float32, True),
        (1, 16, 7, torch.float32, False),
        (8, 3, 7, torch.float32, False),
        (8, 16, 5, torch.float32, False),
        (8, 16, 7, torch.float64, False),
    ],
)
def test_few_pictures_and_small_kernels_go_the_short_way(batch, channels, side, dtype, worth):
    pictures = torch.randn(batch, channels, 12, 12, dtype=dtype)
    weight = torch.randn(16, channels, side, side, dtype=dtype)
    assert worth_transforming(pictures, weight) is worth
    with torch.autocast("cpu", torch.bfloat16):
        assert not worth_transforming(pictures, weight)
        assert convolve_large(pictures.float(), weight.float(), None, (3, 3)).dtype is torch.bfloat16


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"dilation": 2}, {"groups": 2}, {"bias": False}])
def test_the_layer_is_conv2d(options):
    torch.manual_seed(0)
    large = LargeConv2d(16, 16, 7, padding=3, **options)
    plain = nn.Conv2d(16, 16, 7, padding=3, **options)
    plain.load_state_dict(large.state_dict())
    pictures = torch.randn(8, 16, 14, 15)
    torch.testing.assert_close(large(pictures), plain(pictures), rtol=1e-5, atol=1e-5)


def test_grids_have_small_factors():
    assert [fast_length(length) for length in (1, 7, 11, 31, 59, 61, 64, 97)] == [1, 8, 12, 32, 60, 64, 64, 100]


def test_a_convolution_that_ends_a_step_is_computed_once(monkeypatch):
    """Where a step's input alone is kept, the transforms back to pictures are as many as where all is kept."""
    counts = []
    whole = Waves.to_pictures
    monkeypatch.setattr(Waves, "to_pictures", lambda *inputs: counts.append(1) or whole(*inputs))
    pictures, conv = torch.randn(8, 16, 12, 13, requires_grad=True), LargeConv2d(16, 16, 7, padding=3)
    norm, results = nn.BatchNorm2d(16), []
    for keep in (True, False):
        counts.clear()
        step = in_turn(norm, conv)
        maps = step(pictures) if keep else without_keeping(step, norm, pictures)
        gradients = torch.autograd.grad(maps.square().sum(), (pictures, conv.weight))
        results.append([torch.tensor(len(counts)), maps, *gradients])
    assert counts
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
