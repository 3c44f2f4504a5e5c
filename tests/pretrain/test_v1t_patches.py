"""V1T's patch embeddings against patches that are cut out one by one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from pretrain.models.v1t_patches import CONVOLUTION, DUAL_NORM, LINEAR, SHIFTED, PatchEmbedding, with_diagonal_shifts


def cut(images: Tensor, size: int, stride: int) -> Tensor:
    """Patches (batch, patch, channel x size x size), row by row."""
    height, width = images.shape[-2:]
    corners = [(y, x) for y in range(0, height - size + 1, stride) for x in range(0, width - size + 1, stride)]
    return torch.stack([images[..., y : y + size, x : x + size].flatten(1) for y, x in corners], dim=1)


@given(
    mode=st.sampled_from((LINEAR, CONVOLUTION, SHIFTED, DUAL_NORM)),
    channels=st.integers(1, 3),
    size=st.tuples(st.integers(5, 12), st.integers(5, 12)),
    patch=st.integers(1, 5),
    stride=st.integers(1, 5),
)
@settings(max_examples=40, deadline=None)
def test_tokens_are_projected_patches(mode, channels, size, patch, stride) -> None:
    stride = min(stride, patch)
    embedding = PatchEmbedding(channels, size, 6, mode, patch, stride)
    images = torch.randn(2, channels, *size)
    patches = cut(with_diagonal_shifts(images, patch // 2) if mode == SHIFTED else images, patch, stride)
    expected = patches if embedding.norm is None else embedding.norm(patches)
    expected = F.linear(expected, embedding.projection.weight.flatten(1), embedding.projection.bias)
    if mode == DUAL_NORM:
        expected = embedding.projection_norm(expected)
    tokens = embedding(images)
    assert tokens.shape == (2, 1 + embedding.grid[0] * embedding.grid[1], 6)
    torch.testing.assert_close(tokens[:, 1:], expected + embedding.positions[1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokens[:, 0], (embedding.class_token[0] + embedding.positions[:1]).expand(2, -1))


def test_diagonal_shifts_move_the_content() -> None:
    images = torch.zeros(1, 1, 7, 9)
    images[0, 0, 3, 4] = 1
    places = [each.nonzero().tolist() for each in with_diagonal_shifts(images, 2)[0]]
    assert places == [[[3, 4]], [[5, 6]], [[5, 2]], [[1, 6]], [[1, 2]]]
    at_the_edge = torch.zeros(1, 1, 7, 9)
    at_the_edge[0, 0, 6, 8] = 1
    assert [each.sum().item() for each in with_diagonal_shifts(at_the_edge, 2)[0]] == [1, 0, 0, 0, 1]


def test_dropout_of_tokens() -> None:
    torch.manual_seed(0)
    embedding = PatchEmbedding(1, (20, 20), 16, dropout=0.25)
    share = (embedding(torch.randn(4, 1, 20, 20)) == 0).float().mean().item()
    assert share == pytest.approx(0.25, abs=0.03)
    assert (embedding.eval()(torch.randn(4, 1, 20, 20)) != 0).all()
