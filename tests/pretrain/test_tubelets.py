"""Tubelets as tokens: the same numbers and gradients as cutting every one out, for any size, stride and padding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from pretrain.models.token_norms import NORMS, DynamicTanh, make_norm
from pretrain.models.tubelets import TubeletTokens


def cut_out(tokenizer: TubeletTokens, video: Tensor, signals: Tensor | None) -> Tensor:
    """Tokens as published: every tubelet (channel, frame, row, column) copied, normalised and projected."""
    channels = video
    if signals is not None:
        channels = torch.cat((video, signals[..., None, None].expand(-1, -1, -1, *video.shape[3:])), 1)
    channels = F.pad(channels, [count for padding in reversed(tokenizer.padding) for count in padding])
    for axis, (size, stride) in enumerate(zip(tokenizer.size, tokenizer.stride, strict=True)):
        channels = channels.unfold(2 + axis, size, stride)
    tubelets = channels.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4)
    if tokenizer.normalized:
        return tokenizer.out_norm(tokenizer.linear(tokenizer.norm(tubelets)))
    weight = tokenizer.convolution.weight.flatten(1)
    return tokenizer.out_norm(F.linear(tubelets, weight, tokenizer.convolution.bias))


def made(norm: str, normalized: bool, signals: int, **sizes) -> TubeletTokens:
    torch.manual_seed(0)
    tokenizer = TubeletTokens(2, signals, 6, norm=norm, normalized=normalized, **sizes)
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return tokenizer


PADDINGS = (((0, 0),) * 3, ((2, 0), (1, 2), (0, 1)), ((0, 0), (0, 0), (2, 1)))


@settings(deadline=None, max_examples=40)
@given(
    norm=st.sampled_from(list(NORMS)),
    normalized=st.booleans(),
    signals=st.sampled_from([0, 3]),
    size=st.tuples(*[st.integers(2, 4)] * 3),
    stride=st.tuples(*[st.integers(1, 3)] * 3),
    padding=st.sampled_from(PADDINGS),
)
def test_tokens_and_gradients_are_those_of_tubelets_cut_out(norm, normalized, signals, size, stride, padding):
    tokenizer = made(norm, normalized, signals, size=size, stride=stride, padding=padding)
    video = torch.randn(2, 2, 7, 6, 8, requires_grad=True)
    signal = torch.randn(2, signals, 7, requires_grad=True) if signals else None
    found, expected = tokenizer(video, signal), cut_out(tokenizer, video, signal)
    assert found.shape[1:4] == tokenizer.output_shape(7, 6, 8)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    wanted = [video, *tokenizer.parameters(), *([signal] if signals else [])]
    weighting = torch.randn_like(found)
    gradients = [torch.autograd.grad((tokens * weighting).sum(), wanted) for tokens in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm() + 1e-5


@pytest.mark.parametrize("norm", NORMS)
def test_in_double_precision_the_two_are_the_same(norm):
    tokenizer = made(norm, True, 2, size=(3, 4, 4), stride=(1, 2, 2), padding=PADDINGS[1]).double()
    video, signals = torch.randn(1, 2, 9, 8, 10).double(), torch.randn(1, 2, 9).double()
    torch.testing.assert_close(tokenizer(video, signals), cut_out(tokenizer, video, signals), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mean", [0.0, 1.0, 10.0])
def test_values_far_from_zero_cost_little_precision(mean):
    tokenizer = made("layernorm", True, 2, size=(5, 7, 7), stride=(1, 2, 2))
    video, signals = torch.randn(1, 2, 9, 15, 15) + mean, torch.randn(1, 2, 9)
    exact = cut_out(tokenizer.double(), video.double(), signals.double())
    found = tokenizer.float()(video, signals)
    assert (found - exact).norm() <= 2e-6 * (1 + mean) * exact.norm()


def test_a_blank_clip_gives_finite_tokens_and_gradients():
    tokenizer = made("layernorm", True, 0, size=(3, 3, 3), stride=(1, 1, 1))
    video = torch.full((1, 2, 5, 5, 5), 0.7, requires_grad=True)
    tokens = tokenizer(video)
    tokens.sum().backward()
    torch.testing.assert_close(tokens, cut_out(tokenizer, video, None), rtol=1e-2, atol=1e-2)
    assert video.grad.isfinite().all()


def test_dynamic_tanh_is_its_formula():
    norm, tokens = DynamicTanh(3), torch.randn(4, 3)
    torch.testing.assert_close(norm(tokens), torch.tanh(0.5 * tokens))
    assert {name: tuple(value.shape) for name, value in norm.state_dict().items()} == {
        "alpha": (1,), "weight": (3,), "bias": (3,),
    }  # fmt: skip


def test_an_unknown_norm_is_one_line():
    with pytest.raises(ValueError, match="norm must be one of layernorm, rmsnorm, dyt, found 'batch'"):
        make_norm("batch", 3)
