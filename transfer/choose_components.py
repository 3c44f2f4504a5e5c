"""The number of PLS components, chosen by cross-validation inside the train stimuli.

What comes in: features X (stimuli, features), responses Y (stimuli, neurons) and a grid of numbers. What goes out: the
number with the highest mean score, and predictions with it. Source: mouse-vision's `CrossValidator` (Nayebi, Kong et
al., PLOS Comput Biol 19(10):e1011506, 2023): folds of consecutive stimuli, Pearson r averaged over neurons and folds,
and a fit to all train stimuli at the end. With R^2 instead it is scikit-learn's `GridSearchCV(PLSRegression)`. One fit
per fold has the predictions for the whole grid.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.model_selection import KFold

from neural_data.reliability import pearson
from transfer.mapping import PLSMapping
from transfer.ridge import r_squared

# Those of mouse-vision's script.
GRID = (10, 20, 30, 40, 50, 100)


class PLSMappingCV:
    """PLS with the best number of components of a grid; the first of equally good ones is taken.

    Args:
        grid: numbers of components.
        folds: of consecutive stimuli.
        score: "pearson" or "r2".
        device: see `PLSMapping`.
    """

    rotation_invariant = True

    def __init__(self, grid: Sequence[int] = GRID, folds: int = 5, score: str = "pearson", device: str = "cpu") -> None:
        if not len(grid) or min(grid) < 1:
            raise ValueError(f"grid must be numbers of components, each at least 1, found {grid}")
        if folds < 2:
            raise ValueError(f"folds must be at least 2, found {folds}")
        if score not in SCORES:
            raise ValueError(f"score must be one of {', '.join(SCORES)}, found {score!r}")
        self.grid = tuple(grid)
        self.folds = folds
        self.score = score
        self.device = device

    def fit(self, X: np.ndarray, Y: np.ndarray) -> "PLSMappingCV":
        """Fit X (stimuli, features) to Y (stimuli, neurons).

        Keeps `n_components_`, `scores_` (grid,), NaN where a fold allows no such number, and `mapping_`, the
        `PLSMapping` that was fitted to all stimuli.
        """
        scores = self.cross_validate(np.asarray(X), np.asarray(Y)[None])
        self.scores_ = scores[:, 0]
        self.n_components_ = int(self.best(scores)[0])
        self.mapping_ = PLSMapping(self.n_components_, self.device).fit(X, Y)
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Predicted responses (stimuli, neurons) for X (stimuli, features)."""
        return self.mapping_.predict(X)

    def fit_predict_many(self, X: np.ndarray, Y: np.ndarray, X_test: np.ndarray) -> np.ndarray:
        """Fit X (stimuli, features) to each Y (sets, stimuli, neurons); predict X_test: (sets, tests, neurons).

        Each set has its own number. Keeps `n_components_` (sets,) and `scores_` (grid, sets).
        """
        self.scores_ = self.cross_validate(np.asarray(X), np.asarray(Y))
        self.n_components_ = self.best(self.scores_)
        chosen = np.unique(self.n_components_)
        predicted = PLSMapping(device=self.device).fit_predict_grid(X, Y, X_test, chosen)
        return predicted[np.searchsorted(chosen, self.n_components_), np.arange(len(Y))]

    def cross_validate(self, X: np.ndarray, Y: np.ndarray) -> np.ndarray:
        """Mean score (grid, sets) over the folds of X (stimuli, features) and Y (sets, stimuli, neurons)."""
        if len(X) < 2 * self.folds:
            raise ValueError(f"a score needs 2 stimuli in each fold, found {len(X)} stimuli for {self.folds} folds")
        most = min(len(X) - -(-len(X) // self.folds) - 1, X.shape[1])
        allowed = [count for count in self.grid if count <= most]
        if not allowed:
            raise ValueError(f"{self.folds} folds of {len(X)} stimuli allow {most} components, found {self.grid}")
        scores = np.full((len(self.grid), len(Y)), np.nan)
        rows = [row for row, count in enumerate(self.grid) if count <= most]
        scores[rows] = 0
        for train, test in KFold(self.folds).split(X):
            predicted = PLSMapping(device=self.device).fit_predict_grid(X[train], Y[:, train], X[test], allowed)
            scores[rows] += SCORES[self.score](Y[:, test], predicted) / self.folds
        return scores

    def best(self, scores: np.ndarray) -> np.ndarray:
        """Number of components (sets,) with the highest of scores (grid, sets)."""
        return np.array(self.grid)[np.where(np.isnan(scores), -np.inf, scores).argmax(0)]


def mean_pearson(Y: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Pearson r over stimuli, mean over the neurons of which it is defined; (sets, stimuli, neurons) -> (sets,)."""
    correlation = pearson(Y, predicted, axis=-2)
    defined = ~np.isnan(correlation)
    return np.where(defined, correlation, 0).sum(-1) / np.maximum(defined.sum(-1), 1)


def mean_r_squared(Y: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    return r_squared(Y, predicted).mean(-1)


SCORES = {"pearson": mean_pearson, "r2": mean_r_squared}
