"""From features to neurons: partial least squares regression.

What comes in: features X (stimuli, features) and responses Y (stimuli, neurons). What goes out: predicted responses.
PLS2 (Wold et al. 2001) with the components of scikit-learn's `PLSRegression(scale=False)`. It is invariant to
rotations of the features, so they are first expressed in the at most `stimuli - 1` directions that the training
stimuli span; there, many sets of responses to the same stimuli are fitted at once.
"""

import numpy as np
import torch
from torch import Tensor

# 2^12 = 4096-fold powers separate eigenvalues that differ by half a per cent to eight digits.
SQUARINGS = 12
RANK_ONE_TOLERANCE = 1e-12
# Squared, relative to features and responses of size 1: float32 features know no direction smaller than this.
NO_VARIANCE = 1e-16


class PLSMapping:
    """Partial least squares with `n_components`, or as many as the training stimuli allow.

    Follows scikit-learn: `fit(X, Y)`, `predict(X)`; `fit_predict_many` does many Y at once.
    """

    def __init__(self, n_components: int = 25) -> None:
        if n_components < 1:
            raise ValueError(f"n_components must be at least 1, found {n_components}")
        self.n_components = n_components

    def fit(self, X: np.ndarray, Y: np.ndarray) -> "PLSMapping":
        """Fit X (stimuli, features) to Y (stimuli, neurons); keeps `coef_` (features, neurons), `intercept_`."""
        X, Y = np.asarray(X, np.float64), np.asarray(Y, np.float64)
        check_shapes(X, Y)
        check_finite(X, Y)
        basis, coordinates = sample_space(X)
        # The model is linear in the coordinates: its predictions for the axes are its coefficients. Steps along them
        # are as long as the features, so that predictions do not drown in the mean that is subtracted.
        unit, rank = largest(coordinates), basis.shape[1]
        probe = np.concatenate([np.zeros((1, rank)), unit * np.eye(rank)])
        answers = self.regress(coordinates, Y[None], probe)[0]
        self.coef_ = basis @ (answers[1:] - answers[0]) / unit
        self.intercept_ = answers[0] - X.mean(0) @ self.coef_
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Predicted responses (stimuli, neurons) for X (stimuli, features)."""
        return np.asarray(X, np.float64) @ self.coef_ + self.intercept_

    def fit_predict_many(self, X: np.ndarray, Y: np.ndarray, X_test: np.ndarray) -> np.ndarray:
        """Fit X (stimuli, features) to each Y (sets, stimuli, neurons); predict X_test: (sets, tests, neurons)."""
        X, Y, X_test = (np.asarray(array, np.float64) for array in (X, Y, X_test))
        check_shapes(X, Y[0])
        check_finite(X, Y, X_test)
        basis, coordinates = sample_space(X)
        return self.regress(coordinates, Y, (X_test - X.mean(0)) @ basis)

    def regress(self, X: np.ndarray, Y: np.ndarray, X_test: np.ndarray) -> np.ndarray:
        """PLS in sample space: X (stimuli, r) centred, Y (sets, stimuli, neurons), X_test (tests, r)."""
        components = min(self.n_components, len(X) - 1, X.shape[1])
        sets = len(Y)
        mean = Y.mean(1, keepdims=True)
        # Tolerances are relative to 1; predictions do not depend on the features' unit and follow the responses'.
        feature_unit, response_unit = largest(X), largest(Y - mean)
        responses = torch.from_numpy((Y - mean) / response_unit)
        train = torch.from_numpy(X / feature_unit).expand(sets, -1, -1).clone()
        test = torch.from_numpy(X_test / feature_unit).expand(sets, -1, -1).clone()
        predicted = torch.zeros(sets, len(X_test), Y.shape[2], dtype=torch.float64)
        covariance = train.mT @ responses
        for _ in range(components):
            weights = leading_directions(covariance)
            scores, test_scores = train @ weights, test @ weights
            # Where nothing is left to explain, scores are zero and the component adds nothing.
            length = scores.square().sum(1, keepdim=True)
            inverse = torch.where(length > NO_VARIANCE, 1 / length, 0)
            loadings = train.mT @ scores * inverse
            answers = scores.mT @ responses * inverse
            predicted += test_scores @ answers
            train -= scores @ loadings.mT
            test -= test_scores @ loadings.mT
            covariance -= loadings @ (scores.mT @ responses)
        return predicted.numpy() * response_unit + mean


def largest(values: np.ndarray) -> float:
    """The largest absolute value; 1 where there is none above 0."""
    return float(np.abs(values).max(initial=0)) or 1.0


def check_shapes(X: np.ndarray, Y: np.ndarray) -> None:
    if X.ndim != 2 or Y.ndim != 2 or len(X) != len(Y) or len(X) < 2:
        raise ValueError(
            f"a mapping needs X (stimuli, features) and Y (stimuli, neurons) for the same 2 or more stimuli, "
            f"found {X.shape} and {Y.shape}"
        )


def check_finite(*arrays: np.ndarray) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("a mapping cannot be fitted on NaN or infinite values; leave out those stimuli or neurons")


def sample_space(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An orthonormal basis (features, r) of the centred rows of X, and their coordinates (stimuli, r) in it."""
    left, singular, right = np.linalg.svd(X - X.mean(0), full_matrices=False)
    kept = singular > singular[0] * max(X.shape) * np.finfo(np.float64).eps if singular[0] > 0 else singular < 0
    return right[kept].T, left[:, kept] * singular[kept]


def leading_directions(covariance: Tensor) -> Tensor:
    """First left singular vector (sets, r, 1) of each matrix (sets, r, m)."""
    wide = covariance.shape[1] <= covariance.shape[2]
    gram = covariance @ covariance.mT if wide else covariance.mT @ covariance
    vectors = leading_eigenvectors(gram)
    if not wide:
        vectors = covariance @ vectors
    return vectors / vectors.norm(dim=1, keepdim=True).clamp(min=NO_VARIANCE)


def leading_eigenvectors(matrices: Tensor) -> Tensor:
    """Leading eigenvector (sets, n, 1) of each symmetric positive matrix (sets, n, n).

    Repeated squaring turns a matrix into the projector on its leading eigenvector, several times faster than a full
    decomposition; the few matrices whose first two eigenvalues are too close for that are decomposed.
    """
    powers = matrices
    for _ in range(SQUARINGS):
        powers = powers / powers.diagonal(dim1=1, dim2=2).sum(1)[:, None, None].clamp(min=torch.finfo().tiny)
        powers = powers @ powers
    square_sum = powers.square().sum((1, 2))
    trace = powers.diagonal(dim1=1, dim2=2).sum(1)
    strongest = powers.diagonal(dim1=1, dim2=2).argmax(1)
    vectors = powers.gather(2, strongest[:, None, None].expand(-1, powers.shape[1], 1))
    close = (trace.square() - square_sum).abs() > RANK_ONE_TOLERANCE * square_sum
    if close.any():
        vectors[close] = torch.linalg.eigh(matrices[close]).eigenvectors[:, :, -1:]
    return vectors
