"""Features as coordinates in the few directions that the stimuli span.

What comes in: features (stimuli, features), an array or a memory map, as many features as there may be. What goes out:
coordinates float64 (stimuli, at most stimuli). Distances and angles between stimuli are those of the features, and PLS,
ridge and CKA depend on nothing else: they are fitted in the coordinates, once per layer, for every split and animal.

The coordinates are the R of a QR decomposition that goes through the features in blocks (Demmel et al. 2012, SIAM J.
Sci. Comput. 34(1), https://doi.org/10.1137/080731992, sequential TSQR). The products between stimuli would be computed
in half the time, but squares know no direction below 1e-8 of the largest; R knows all that float64 does.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import numpy as np
from threadpoolctl import ThreadpoolController

# Features of a block, at least; it also has twice as many as there are stimuli, as the part done before joins each.
BLOCK_FEATURES = 2048
FEW_STIMULI = 1000


def sample_coordinates(features: np.ndarray) -> np.ndarray:
    """Coordinates float64 (stimuli, r) of features (stimuli, features), r the smaller of the two numbers.

    Their origin is the mean of the stimuli. Only a block of the features is in memory at a time.

    Raises ValueError where a feature is NaN or infinite.
    """
    stimuli = len(features)
    triangle = np.zeros((0, stimuli))
    # Of few stimuli it is a chain of small steps, in which threads wait for one another longer than they work.
    with one_blas_thread() if stimuli < FEW_STIMULI else nullcontext():
        for block in feature_blocks(features, max(BLOCK_FEATURES, 2 * stimuli)):
            centred = (block - block.mean(0)).T
            triangle = np.linalg.qr(np.concatenate([triangle, centred]), mode="r")
    return np.ascontiguousarray(triangle.T)


def train_space(X: np.ndarray, X_test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (stimuli, r) and (tests, r) in the r < stimuli directions in which the train stimuli vary.

    Those of X (stimuli, features) have mean 0; what of X_test (tests, features) lies in no train direction is left
    out, because no mapping can know of it.
    """
    if X.shape[1] > len(X) + len(X_test):
        together = sample_coordinates(np.concatenate([X, X_test]))
        X, X_test = together[: len(X)], together[len(X) :]
    basis, coordinates = train_basis(X)
    return coordinates, (X_test - X.mean(0)) @ basis


def train_basis(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An orthonormal basis (features, r) of the centred rows of X, and their coordinates (stimuli, r) in it."""
    # Transposed, because the decomposition of a tall matrix takes less time than that of a wide one.
    left, singular, right = np.linalg.svd((X - X.mean(0)).T, full_matrices=False)
    # Subtracting the mean leaves rounding errors of the size of X, not of what is left of it.
    kept = singular > np.linalg.norm(X) * max(X.shape) * np.finfo(np.float64).eps
    return left[:, kept], right[kept].T * singular[kept]


def feature_blocks(features: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Blocks float64 (..., stimuli, size) of features (..., stimuli, features). ValueError where one is not finite."""
    for first in range(0, features.shape[-1], size):
        block = np.asarray(features[..., first : first + size], np.float64)
        check_finite(block)
        yield block


def one_blas_thread() -> AbstractContextManager:
    """BLAS works in the thread that calls it, and starts no others."""
    return blas().limit(limits=1, user_api="blas")


@cache
def blas() -> ThreadpoolController:
    """The BLAS libraries; looking for them takes longer than many a fit."""
    return ThreadpoolController()


def check_finite(*arrays: np.ndarray) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("features or responses hold NaN or infinite values; leave out those stimuli or neurons")
