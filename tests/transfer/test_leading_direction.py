"""The leading direction: of matrices with known ones, however close the second, in numpy and in torch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer.leading_direction import LARGE, leading_directions, leading_eigenvectors


def require_same_line(found: np.ndarray, expected: np.ndarray) -> None:
    """Unit vectors (sets, n) are equal up to their sign. A cosine would hide errors up to 1e-5."""
    sign = np.sign((found * expected).sum(1, keepdims=True))
    np.testing.assert_allclose(found * sign, expected, rtol=0, atol=1e-9)


GAPS = [0.0, 1e-12, 1e-6, 1e-4, 1e-3, 5e-3, 0.1, 0.9]


@settings(deadline=None, max_examples=100)
@given(size=st.integers(1, 30), gap=st.sampled_from(GAPS), torchs=st.booleans(), seed=st.integers(0, 99))
def test_leading_eigenvectors_however_close_the_second(size, gap, torchs, seed):
    rng = np.random.default_rng(seed)
    vectors = np.linalg.qr(rng.normal(size=(4, size, size)))[0]
    values = np.sort(rng.uniform(0, 1 - gap, (4, size)))[:, ::-1].copy()
    values[:, 0], values[:, 1:2] = 1.0, 1 - gap
    # The last has a single direction, and leaves long before the others.
    values[3, 1:] = 0
    matrices = np.einsum("sij,sj,skj->sik", vectors, values, vectors) * np.array([1e-8, 1.0, 1e8, 1.0])[:, None, None]
    found = np.asarray(leading_eigenvectors(torch.from_numpy(matrices) if torchs else matrices))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-12)
    # An eigenvector of the largest value, up to what lies within rounding of it.
    strength = np.einsum("si,sij,sj->s", found, matrices, found) * np.array([1e8, 1.0, 1e-8, 1.0])
    np.testing.assert_allclose(strength, 1.0, rtol=0, atol=1e-9)
    sharp = slice(None) if gap >= 1e-3 or size == 1 else slice(3, 4)
    require_same_line(found[sharp], vectors[sharp, :, 0])


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 30), m=st.integers(1, 30), seed=st.integers(0, 999))
def test_leading_directions_are_first_left_singular_vectors(n, m, seed):
    matrices = np.random.default_rng(seed).normal(size=(3, n, m))
    found = leading_directions(matrices)
    left, singular, _ = np.linalg.svd(matrices)
    apart = singular[:, 0] > 1.001 * (singular[:, 1] if min(n, m) > 1 else 0)
    require_same_line(found[apart], left[apart, :, 0])


@pytest.mark.parametrize("shape", [(1, LARGE + 40, LARGE + 10), (1, LARGE + 10, LARGE + 40)])
def test_large_ones(shape):
    matrices = np.random.default_rng(0).normal(size=shape)
    found = leading_directions(matrices)
    left = np.linalg.svd(matrices[0])[0][:, 0]
    require_same_line(found, left[None])
    np.testing.assert_array_equal(leading_directions(matrices), found)


@pytest.mark.parametrize("shape", [(2, 4, 3), (2, 3, 4), (2, 1, 1), (1, LARGE + 1, LARGE + 1)])
def test_nothing_leads_nowhere(shape):
    np.testing.assert_array_equal(leading_directions(np.zeros(shape)), np.zeros(shape[:2]))


def test_a_zero_matrix_does_not_disturb_its_neighbour():
    matrices = np.zeros((2, 5, 4))
    matrices[1, 2, 1] = 1e-30
    np.testing.assert_allclose(np.abs(leading_directions(matrices)), [[0] * 5, [0, 0, 1, 0, 0]], atol=1e-12)


def test_many_neurons_do_not_leave_the_range_of_floats():
    """Equal eigenvalues make the powers of a matrix as small as they get: n^-16 of its trace, squared again."""
    matrices = np.stack([np.eye(150), np.diag(np.r_[1.0001, np.ones(149)])])
    found = leading_eigenvectors(matrices)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-12)
    require_same_line(found[1:], np.eye(150)[:1])
