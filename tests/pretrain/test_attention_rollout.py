"""Attention rollout against the full product of all blocks, and cases with known answers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pretrain.models.attention_rollout import attention_rollout


@given(st.integers(1, 4), st.integers(1, 3), st.tuples(st.integers(1, 4), st.integers(2, 4)), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_rollout_is_the_class_tokens_row_of_the_product(blocks, heads, grid, seed) -> None:
    tokens = 1 + grid[0] * grid[1]
    scores = torch.randn(2, blocks, heads, tokens, tokens, generator=torch.Generator().manual_seed(seed))
    maps = scores.double().softmax(-1)
    product = torch.eye(tokens, dtype=torch.float64)
    for block in range(blocks):
        passed = maps[:, block].max(1).values + torch.eye(tokens)
        product = passed / passed.sum(-1, keepdim=True) @ product
    rows = product[:, 0, 1:].reshape(2, *grid)
    low, high = rows.amin((1, 2), keepdim=True), rows.amax((1, 2), keepdim=True)
    expected = F.interpolate(((rows - low) / (high - low))[:, None], (6, 7), mode="bilinear")[:, 0]
    torch.testing.assert_close(attention_rollout(maps, grid, (6, 7)), expected)


def test_the_place_that_the_class_token_attends_to() -> None:
    maps = torch.eye(7).expand(1, 2, 1, 7, 7).clone()
    maps[0, 1, 0, 0] = F.one_hot(torch.tensor(5), 7).float()
    assert attention_rollout(maps, (2, 3), (2, 3))[0].tolist() == [[0, 0, 0], [0, 1, 0]]


def test_attention_that_is_everywhere_alike() -> None:
    assert not attention_rollout(torch.full((1, 2, 2, 5, 5), 0.2), (2, 2), (4, 4)).any()


def test_maps_of_another_grid() -> None:
    with pytest.raises(ValueError, match=r"must be \(batch, block, head, 7, 7\) for a grid of 2 x 3"):
        attention_rollout(torch.rand(1, 2, 2, 6, 6), (2, 3), (4, 4))
