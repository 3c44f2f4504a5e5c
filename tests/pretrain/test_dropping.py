"""Dropout and drop path: the right shares, numbers of masks written out, nothing computed for what is dropped."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pretrain.models import dropping
from pretrain.models.dropping import Dropout, add_branch, dropped_attention, dropped_linear, keep_mask

CPU = torch.device("cpu")


@settings(deadline=None, max_examples=20)
@given(st.floats(0.001, 0.999), st.integers(0, 1000))
def test_masks_keep_the_share_that_they_say(keep, seed):
    torch.manual_seed(seed)
    mask, share = keep_mask(torch.Size((7, 11, 999)), keep, CPU)
    assert mask.dtype == torch.bool
    assert abs(share - keep) <= 1 / 65536
    deviation = (share * (1 - share) / mask.numel()) ** 0.5
    assert abs(mask.double().mean().item() - share) < 5.5 * deviation


def test_values_of_a_mask_are_independent():
    torch.manual_seed(0)
    mask, share = keep_mask(torch.Size((1_000_000,)), 0.3, CPU)
    centred = mask.double() - share
    for lag in range(1, 9):
        correlation = (centred[lag:] * centred[:-lag]).mean() / (share * (1 - share))
        assert abs(correlation) < 0.005
    # Each of the four draws of a random word has the same share.
    assert ((mask.view(-1, 4).double().mean(0) - share).abs() < 0.005).all()


def test_masks_follow_the_seed():
    masks = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        masks.append(keep_mask(torch.Size((5, 13)), 0.5, CPU)[0])
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("drop", [0.0, 0.3])
@pytest.mark.parametrize("activation", [None, F.gelu])
@pytest.mark.parametrize("biased", [False, True])
def test_a_dropped_linear_layer_and_its_gradients_are_those_written_out(drop, activation, biased):
    inputs = torch.randn(4, 5, 6, requires_grad=True)
    weight, bias = torch.randn(3, 6, requires_grad=True), torch.randn(3, requires_grad=True)
    torch.manual_seed(1)
    found = dropped_linear(inputs, weight, bias if biased else None, drop, activation)
    torch.manual_seed(1)
    mask, share = keep_mask(torch.Size((4, 5, 6)), 1 - drop, CPU) if drop else (torch.ones(4, 5, 6), 1.0)
    values = activation(inputs) if activation else inputs
    expected = F.linear(values * mask / share, weight, bias if biased else None)
    torch.testing.assert_close(found, expected)
    wanted = [inputs, weight, *([bias] if biased else [])]
    weighting = torch.randn_like(found)
    gradients = [torch.autograd.grad((y * weighting).sum(), wanted) for y in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_the_dropped_linear_layer_keeps_no_copy_of_its_input():
    inputs, weight = torch.randn(100, 64, requires_grad=True), torch.randn(8, 64, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        dropped_linear(inputs, weight, drop=0.5, activation=F.gelu)
    others = [tensor for tensor in kept if tensor.data_ptr() != inputs.data_ptr() and tensor.is_floating_point()]
    assert sum(tensor.numel() for tensor in others) <= weight.numel()


def test_only_rows_that_are_kept_are_computed():
    tokens, computed = torch.randn(200, 3, 4, requires_grad=True), []

    def branch(rows):
        computed.append(len(rows))
        return 2 * rows

    torch.manual_seed(2)
    found = add_branch(tokens, tokens, branch, 0.4)
    torch.manual_seed(2)
    kept = torch.rand(200) >= 0.4
    expected = tokens + 2 * tokens * kept[:, None, None] / 0.6
    assert computed == [int(kept.sum())]
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(y.square().sum(), tokens)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_a_branch_of_which_no_row_is_kept_adds_nothing():
    tokens = torch.randn(1, 3, 4)
    torch.manual_seed(0)
    found = [add_branch(tokens, tokens, lambda rows: rows, 0.9) for _ in range(30)]
    assert any(torch.equal(each, tokens) for each in found)
    assert any(not torch.equal(each, tokens) for each in found)


def test_in_evaluation_every_row_is_computed():
    tokens = torch.randn(5, 3, 4)
    torch.testing.assert_close(add_branch(tokens, tokens, torch.tanh), tokens + torch.tanh(tokens))


@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_rows_computed_after_each_other_give_what_all_at_once_give(drop, monkeypatch):
    tokens, weight = torch.randn(11, 3, 4, requires_grad=True), torch.randn(4, 4, requires_grad=True)
    results, sizes = [], []
    for at_once in (10_000, 6, 1):
        monkeypatch.setattr(dropping, "CPU_TOKENS", at_once)
        torch.manual_seed(0)
        found = add_branch(tokens, tokens, lambda rows: sizes.append(len(rows)) or rows @ weight, drop)
        results.append([found, *torch.autograd.grad(found.square().sum(), (tokens, weight))])
    assert set(sizes[1:]) <= {1, 2}
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            torch.testing.assert_close(one, two)


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("at_once", [1, 100, 10**6])
@pytest.mark.parametrize("kept", [0, 10**6])
def test_dropped_attention_is_attention_with_the_masks_that_were_drawn(monkeypatch, lower, at_once, kept):
    """Outputs and gradients: some or all tokens at a time, weights kept or not, tokens that see all or earlier ones."""
    drawn = []

    def noted(shape, keep, device):
        drawn.append(keep_mask(shape, keep, device))
        return drawn[-1]

    monkeypatch.setattr(dropping, "keep_mask", noted)
    monkeypatch.setattr(dropping, "CPU_WEIGHTS", at_once)
    monkeypatch.setattr(dropping, "KEPT_WEIGHTS", kept)
    torch.manual_seed(0)
    queries, shared = torch.randn(2, 3, 7, 4, requires_grad=True), torch.randn(2, 7, 4, requires_grad=True)
    seen = torch.ones(7, 7, dtype=torch.bool).tril() if lower else None
    found = dropped_attention(queries, shared, seen, 0.4, 0.5)
    # Rows of a mask are the heads of one token after those of the other.
    mask = torch.cat([mask for mask, _ in drawn], 1).unflatten(1, (7, 3)).transpose(1, 2)
    assert len(drawn) == {1: 7, 100: 4, 10**6: 1}[at_once]
    scores = 0.5 * queries @ shared[:, None].mT
    scores = scores if seen is None else scores.masked_fill(~seen, -torch.inf)
    expected = (scores.softmax(-1) * mask / drawn[0][1]) @ shared[:, None]
    torch.testing.assert_close(found, expected)
    towards = torch.randn_like(expected)
    inputs = queries, shared
    for one, other in zip(*(torch.autograd.grad(out, inputs, towards) for out in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)


def test_attention_drops_nothing_in_evaluation():
    queries, shared = torch.randn(2, 3, 7, 4), torch.randn(2, 7, 4)
    expected = (0.5 * queries @ shared[:, None].mT).softmax(-1) @ shared[:, None]
    torch.testing.assert_close(dropped_attention(queries, shared, None, 0.0, 0.5), expected)


@pytest.mark.parametrize(("limit", "times"), [(0, 0), (10**6, 1)])
def test_attention_keeps_its_weights_once_where_they_are_few(monkeypatch, limit, times):
    monkeypatch.setattr(dropping, "KEPT_WEIGHTS", limit)
    queries, shared = torch.randn(1, 2, 40, 4, requires_grad=True), torch.randn(1, 40, 4, requires_grad=True)
    kept = {}
    hooks = lambda tensor: kept.setdefault((tensor.data_ptr(), tensor.dtype), tensor), lambda tensor: tensor
    with torch.autograd.graph.saved_tensors_hooks(*hooks):
        dropped_attention(queries, shared, None, 0.4, 0.5)
    sizes = [tensor.numel() for tensor in kept.values() if tensor.is_floating_point()]
    assert sum(size == 2 * 40 * 40 for size in sizes) == times
    assert sum(sizes) < times * 2 * 40 * 40 + 5 * queries.numel()


def test_dropout_is_torchs_but_for_its_draws():
    dropout, values = Dropout(0.25), torch.rand(300, 400) + 1
    values.requires_grad_()
    found = dropout(values)
    kept = found != 0
    assert abs(kept.double().mean().item() - 0.75) < 0.01
    torch.testing.assert_close(found[kept], values[kept] / 0.75, rtol=2e-5, atol=0)
    found.sum().backward()
    torch.testing.assert_close(values.grad, kept / 0.75, rtol=2e-5, atol=0)
    assert dropout.eval()(values) is values
    assert torch.equal(Dropout(0.0)(values), values)
