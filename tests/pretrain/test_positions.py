"""Positions: published tables, rotations that keep angles between tokens, scales that do not depend on the clip."""

import math

import numpy as np
import pytest
import torch

from pretrain.models.positions import RotaryPositions, grid_positions, rotated, sinusoidal_positions


@pytest.fixture(scope="module")
def values(shared):
    return shared / "reference" / "values" / "video" / "viv1t_closed_loop"


def test_the_published_rotation_of_a_short_clip_with_a_table_of_ten_tokens(values):
    with np.load(values / "rope_dim8_n10.npz") as archive:
        given = {name: torch.tensor(archive[name]) for name in archive}
    positions = RotaryPositions(8, 10)
    for name in "qk":
        found = rotated(given[name].transpose(1, 2), positions(6)).transpose(1, 2)
        torch.testing.assert_close(found, given[f"{name}_rot"], rtol=1e-5, atol=1e-6)
    cosines, sines = positions(10)
    for found, table in ((cosines, "emb_cos"), (sines, "emb_sin")):
        expected = (given[table] * given["emb_scale"])[:, :4]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_published_grid(values):
    with np.load(values / "sincos_8_3x5.npz") as archive:
        expected = torch.tensor(archive["pos_emb"])
    torch.testing.assert_close(grid_positions(3, 5, 8), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("width", [1, 6, 7])
def test_sinusoids_are_the_formula(width):
    found = sinusoidal_positions(5, width)
    assert found.shape == (5, width)
    for token in range(5):
        for column in range(width):
            angle = token / 10_000 ** (2 * (column // 2) / width)
            expected = math.cos(angle) if column % 2 else math.sin(angle)
            assert found[token, column].item() == pytest.approx(expected, abs=1e-6)


def test_products_of_rotated_vectors_depend_on_the_distance_of_tokens_and_on_their_scale():
    positions, vectors = RotaryPositions(2, 40), torch.randn(2, 1, 1, 2)
    q, k = (rotated(vector.expand(1, 40, 1, 2), positions(40))[0, :, 0] for vector in vectors)
    products = q @ k.T
    # With one frequency, the scale of a pair is that of the sum of both positions.
    scale = (0.4 * 2 / (1.4 * 2)) ** ((torch.arange(40) - 20) / 512)
    unscaled = products / (scale[:, None] * scale[None, :])
    for distance in range(-10, 11):
        diagonal = unscaled.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("first", [False, True])
def test_registers_are_not_rotated(first):
    vectors = torch.randn(2, 9, 3, 4)
    found = rotated(vectors, RotaryPositions(4, 20, 3, first)(6))
    unmoved = slice(0, 3) if first else slice(6, 9)
    moved = slice(3, 9) if first else slice(0, 6)
    assert torch.equal(found[:, unmoved], vectors[:, unmoved])
    torch.testing.assert_close(found[:, moved], rotated(vectors[:, moved], RotaryPositions(4, 20)(6)))


def test_only_a_recentred_rotation_remembers_longer_clips():
    for recentre in (False, True):
        positions = RotaryPositions(4, 10, recentre=recentre)
        before = positions(5)
        assert torch.equal(positions(10)[0][:5], before[0])
        longer = positions(30)
        assert torch.equal(longer[0][:5], before[0]) != recentre
        assert torch.equal(positions(5)[0], before[0]) != recentre
        fresh = RotaryPositions(4, 30)(5)
        assert torch.equal(positions(5)[0], fresh[0]) == recentre


def test_widths_that_do_not_divide_are_one_line():
    with pytest.raises(ValueError, match="a width that is a multiple of 4, found 6"):
        grid_positions(2, 2, 6)
    with pytest.raises(ValueError, match="an even head_dim, found 3"):
        RotaryPositions(3, 10)
