"""The direction of features that covaries most with the responses, for many sets of responses at once.

What comes in: covariances (sets, n, m) of n features with m neurons. What goes out: the first left singular vector
(sets, n) of each, which is the next component of PLS. Numpy arrays or torch tensors, float64: the lines below mean the
same for both. On CPUs numpy is the faster: its BLAS (OpenBLAS) multiplies batches of matrices of tens of rows near the
peak of the core, torch's (MKL) at a quarter to a half of that (measured on an AMD EPYC).
"""

from typing import TypeVar

import numpy as np
import torch
from scipy.sparse.linalg import svds

Array = TypeVar("Array", np.ndarray, torch.Tensor)

# Where a share of 0.99 of the trace is in one eigenvalue, the square is rank one to 3e-5, and its cube to 2e-14.
ALMOST_ALL = 0.99
# 2^16-fold powers separate eigenvalues that differ by 1e-4.
MOST_SQUARINGS = 16
# The trace becomes 1 again before the 2^4-th power of 1 / n can leave the range of float64.
SQUARINGS_IN_RANGE = 4
# Above this size, the tens of products with a vector that Lanczos' method takes cost less than squarings.
LARGE = 200


def leading_directions(covariance: Array) -> Array:
    """First left singular vector (sets, n) of each matrix (sets, n, m); zero where the matrix is."""
    if isinstance(covariance, np.ndarray) and min(covariance.shape[1:]) > LARGE:
        return np.stack([by_lanczos(matrix) for matrix in covariance])
    if covariance.shape[1] <= covariance.shape[2]:
        return leading_eigenvectors(covariance @ covariance.mT)
    vectors = leading_eigenvectors(covariance.mT @ covariance)
    return unit_length((covariance @ vectors[:, :, None])[:, :, 0])


def leading_eigenvectors(matrices: Array) -> Array:
    """Leading eigenvector (sets, n) of each symmetric positive matrix (sets, n, n), of length 1; zero where it is zero.

    Repeated squaring turns a matrix into the projector on its leading eigenvector. With eigenvalues a, the trace of the
    square over the square of the trace, sum a^2 / (sum a)^2, says for the price of the diagonals how near it is to
    that. A matrix that is there is put aside; one whose first two eigenvalues are too close for it is decomposed.
    """
    projectors = matrices * inverse(traces(matrices))[:, None, None]
    powers, trace, left = projectors, traces(projectors), lib(matrices).arange(len(matrices))
    for squaring in range(1, MOST_SQUARINGS + 1):
        powers, before = powers @ powers, trace
        trace = traces(powers)
        done = trace >= ALMOST_ALL * before**2
        if done.any():
            projectors[left[done]] = powers[done]
            left, powers, trace = left[~done], powers[~done], trace[~done]
        if len(left) == 0:
            break
        if squaring % SQUARINGS_IN_RANGE == 0:
            powers *= inverse(trace)[:, None, None]
            trace = trace * inverse(trace)
    vectors = polished(projectors)
    if len(left):
        vectors[left] = lib(matrices).linalg.eigh(matrices[left])[1][:, :, -1]
    return vectors


def polished(powers: Array) -> Array:
    """Leading eigenvectors (sets, n) of matrices (sets, n, n) that are almost projectors on them."""
    strongest = powers.diagonal(0, 1, 2).argmax(1)
    vectors = unit_length(powers[lib(powers).arange(len(powers)), strongest])
    for _ in range(2):
        vectors = unit_length((powers @ vectors[:, :, None])[:, :, 0])
    return vectors


def by_lanczos(matrix: np.ndarray) -> np.ndarray:
    """First left singular vector (n,) of one large matrix (n, m), by ARPACK; zero where the matrix is."""
    if not matrix.any():
        return matrix[:, 0]
    return svds(matrix, k=1, return_singular_vectors="u", rng=np.random.default_rng(0))[0][:, 0]


def traces(matrices: Array) -> Array:
    return matrices.diagonal(0, 1, 2).sum(1)


def unit_length(vectors: Array) -> Array:
    """Vectors (sets, n) of length 1, or zero."""
    return vectors * inverse((vectors * vectors).sum(1) ** 0.5)[:, None]


def inverse(values: Array) -> Array:
    """1 / values, and 0 where there is nothing to divide by."""
    something = values > np.finfo(np.float64).tiny
    return lib(values).where(something, 1 / lib(values).where(something, values, 1.0), 0.0)


def lib(array: Array):
    """The library that the array belongs to."""
    return np if isinstance(array, np.ndarray) else torch
