"""From features to neurons: ridge regression, with a penalty for each neuron.

What comes in: features X (stimuli, features) and responses Y (stimuli, neurons). What goes out: predicted responses.
Equal to scikit-learn: a fixed penalty is `Ridge(alpha)`, leave-one-out is `RidgeCV(alphas, alpha_per_target=True)` and
folds are `GridSearchCV(Ridge(), {"alpha": alphas}, cv=folds)` for each neuron alone. One decomposition of the features
serves all penalties, neurons and sets of responses, and leaving a stimulus out has a closed form (Rifkin and Lippert
2007, https://www.mit.edu/~9.520/spring07/Classes/rlsslides.pdf).
"""

from collections.abc import Sequence

import numpy as np
from sklearn.model_selection import KFold

from transfer.mapping import check_shapes
from transfer.sample_space import check_finite, train_basis, train_space

# Penalties are in the unit of squared features, summed over stimuli and features: what fits is not known beforehand.
ALPHAS = tuple(10.0 ** np.arange(-2, 8.5, 0.5))


class RidgeMapping:
    """Ridge regression with an intercept that is not penalised.

    Args:
        alphas: one penalty, or several to choose from for each neuron; the first of equally good ones is taken.
        folds: None chooses by the smallest mean squared error of the stimuli left out one by one; a number by the
            largest mean R^2 over so many folds of consecutive stimuli.
    """

    rotation_invariant = True

    def __init__(self, alphas: float | Sequence[float] = ALPHAS, folds: int | None = None) -> None:
        grid = np.atleast_1d(np.asarray(alphas, np.float64))
        if grid.ndim != 1 or not len(grid) or not (np.isfinite(grid) & (grid > 0)).all():
            raise ValueError(f"alphas must be one or more numbers above 0, found {alphas}")
        if folds is not None and folds < 2:
            raise ValueError(f"folds must be None (leave one out) or at least 2, found {folds}")
        self.alphas = alphas
        self.folds = folds

    def fit(self, X: np.ndarray, Y: np.ndarray) -> "RidgeMapping":
        """Fit X (stimuli, features) to Y (stimuli, neurons).

        Keeps `coef_` (features, neurons), `intercept_`, `alpha_` (neurons,), and `best_score_` (neurons,): minus the
        mean squared error, or R^2, of what was left out; NaN where there was nothing to choose.
        """
        X, Y = np.asarray(X, np.float64), np.asarray(Y, np.float64)
        check_shapes(X, Y)
        check_finite(X, Y)
        basis, coordinates = train_basis(X)
        self.alpha_, self.best_score_ = self.choose(coordinates, Y)
        self.coef_ = basis @ coefficients(coordinates, Y - Y.mean(0), self.alpha_)
        self.intercept_ = Y.mean(0) - X.mean(0) @ self.coef_
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Predicted responses (stimuli, neurons) for X (stimuli, features)."""
        return np.asarray(X, np.float64) @ self.coef_ + self.intercept_

    def fit_predict_many(self, X: np.ndarray, Y: np.ndarray, X_test: np.ndarray) -> np.ndarray:
        """Fit X (stimuli, features) to each Y (sets, stimuli, neurons); predict X_test: (sets, tests, neurons).

        Keeps `alpha_` (sets, neurons) and `best_score_` (sets, neurons).
        """
        X, Y, X_test = (np.asarray(array, np.float64) for array in (X, Y, X_test))
        check_shapes(X, Y, X_test)
        check_finite(X, Y, X_test)
        train, test = train_space(X, X_test)
        sets, stimuli, neurons = Y.shape
        # Nothing ties the neurons of a set together: every neuron of every set is a column.
        columns = Y.transpose(1, 0, 2).reshape(stimuli, sets * neurons)
        alpha, score = self.choose(train, columns)
        self.alpha_, self.best_score_ = alpha.reshape(sets, neurons), score.reshape(sets, neurons)
        mean = columns.mean(0)
        predicted = test @ coefficients(train, columns - mean, alpha) + mean
        return predicted.reshape(len(test), sets, neurons).transpose(1, 0, 2)

    def choose(self, X: np.ndarray, Y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The penalty of each neuron and its score, both (neurons,), for X (stimuli, r) and Y (stimuli, neurons)."""
        alphas = np.atleast_1d(np.asarray(self.alphas, np.float64))
        if len(alphas) == 1:
            return np.full(Y.shape[1], alphas[0]), np.full(Y.shape[1], np.nan)
        scores = leave_one_out(X, Y, alphas) if self.folds is None else k_fold(X, Y, alphas, self.folds)
        best = scores.argmax(0)
        return alphas[best], scores.max(0)


def coefficients(X: np.ndarray, Y: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Weights (r, neurons) of centred X (stimuli, r), as `train_basis` gives it, for Y with penalties (neurons,)."""
    # Its columns are orthogonal: each has a regression of its own.
    squares = np.square(X).sum(0)[:, None]
    return (X.T @ Y) / (squares + alpha)


def leave_one_out(X: np.ndarray, Y: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    """Minus the mean squared error (alphas, neurons) of each stimulus predicted from all others.

    With the hat matrix H of the ridge with its intercept, the error of a stimulus left out is that of the fit with all,
    over 1 - H_ii.
    """
    stimuli, rank = X.shape
    squares = np.square(X).sum(0)
    left = X / np.sqrt(squares)
    centred = Y - Y.mean(0)
    inside = left.T @ centred
    # What no feature can follow: nothing, where features span all directions, and then not even rounding.
    outside, freedom = np.zeros_like(Y), np.zeros(stimuli)
    if rank < stimuli - 1:
        outside = centred - left @ inside
        freedom = 1 - 1 / stimuli - np.square(left).sum(1)
    scores = np.empty((len(alphas), Y.shape[1]))
    for row, alpha in enumerate(alphas):
        kept = alpha / (squares + alpha)
        error = outside + left @ (kept[:, None] * inside)
        error /= (freedom + np.square(left) @ kept)[:, None]
        scores[row] = -np.square(error).mean(0)
    return scores


def k_fold(X: np.ndarray, Y: np.ndarray, alphas: np.ndarray, folds: int) -> np.ndarray:
    """Mean R^2 (alphas, neurons) over folds of consecutive stimuli."""
    if len(X) < 2 * folds:
        raise ValueError(f"R^2 needs 2 stimuli in each fold, found {len(X)} stimuli for {folds} folds")
    scores = np.zeros((len(alphas), Y.shape[1]))
    for train, test in KFold(folds).split(X):
        coordinates, test_coordinates = train_space(X[train], X[test])
        mean = Y[train].mean(0)
        for row, alpha in enumerate(alphas):
            weights = coefficients(coordinates, Y[train] - mean, np.full(Y.shape[1], alpha))
            scores[row] += r_squared(Y[test], test_coordinates @ weights + mean) / folds
    return scores


def r_squared(Y: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """R^2 over stimuli, the last axis but one; scikit-learn's: of constant responses 1 if predicted exactly, else 0."""
    error = np.square(Y - predicted).sum(-2)
    variation = np.square(Y - Y.mean(-2, keepdims=True)).sum(-2)
    constant = (error == 0).astype(np.float64)
    return np.where(variation > 0, 1 - error / np.where(variation > 0, variation, 1), constant)
