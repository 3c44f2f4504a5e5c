"""Signals as channels: the same numbers and gradients as planes that are really there."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pretrain.models.behavior_channels import SignalChannels, convolve_with_planes


@settings(deadline=None, max_examples=25)
@given(
    padding=st.integers(0, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    signals=st.integers(1, 4),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_planes_need_not_be_there(padding, stride, dilation, signals, bias, seed):
    torch.manual_seed(seed)
    conv = nn.Conv2d(2 + signals, 3, 3, stride, padding, dilation, bias=bias).double()
    pictures = torch.randn(2, 2, 9, 11, dtype=torch.float64, requires_grad=True)
    values = torch.randn(2, signals, dtype=torch.float64, requires_grad=True)
    planes = values[..., None, None].expand(-1, -1, 9, 11)
    everything = [pictures, values, *conv.parameters()]
    expected, found = conv(torch.cat([pictures, planes], 1)), convolve_with_planes(conv, pictures, values)
    torch.testing.assert_close(found, expected)
    towards = torch.randn_like(expected)
    of_expected = torch.autograd.grad((expected * towards).sum(), everything)
    of_found = torch.autograd.grad((found * towards).sum(), everything)
    for gradient, reference in zip(of_found, of_expected, strict=True):
        torch.testing.assert_close(gradient, reference)


def test_signals_come_in_the_order_of_the_channels():
    channels = SignalChannels(1, 3, 2)
    behavior, pupil = torch.randn(4, 3), torch.randn(4, 2)
    found = channels.signals(torch.zeros(4, 1, 5, 5), behavior, pupil)
    assert torch.equal(found, torch.cat([behavior, pupil], 1))
    assert channels.total == 6
    assert SignalChannels(1).signals(torch.zeros(4, 1, 5, 5), behavior, pupil) is None


@pytest.mark.parametrize(
    ("stimulus", "behavior", "message"),
    [
        ((4, 2, 5, 5), (4, 3), "takes 1 channels of picture, found 2"),
        ((4, 1, 5, 5), None, r"behavior of shape \(4, 3\) as channels, found none"),
        ((4, 1, 7, 5, 5), (4, 3, 6), r"behavior of shape \(4, 3, 7\) as channels, found shape \(4, 3, 6\)"),
    ],
)
def test_what_does_not_fit_is_said(stimulus, behavior, message):
    with pytest.raises(ValueError, match=message):
        SignalChannels(1, 3).signals(torch.zeros(stimulus), None if behavior is None else torch.zeros(behavior), None)
    with pytest.raises(ValueError, match="0 or 2"):
        SignalChannels(1, 0, 1)
