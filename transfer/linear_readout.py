"""How well a linear readout of features tells a class or a number, with its penalty chosen by cross-validation.

What comes in: features of train and test images, and a target. What goes out: accuracies or R² on both, correlations,
and the strength of the penalty. Classes are told by a linear support vector machine, numbers by ridge regression,
both scikit-learn's, as in the transfer tasks of mouse-vision (Nayebi, Kong et al. 2023,
https://doi.org/10.1371/journal.pcbi.1011506).
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgWarning
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV
from sklearn.svm import LinearSVC

from neural_data.reliability import pearson


@dataclass(frozen=True)
class Search:
    """How C is chosen: from which values, on how many folds, by how many processes at a time, and with which seed."""

    c_values: Sequence[float]
    folds: int
    jobs: int
    seed: int


@dataclass(frozen=True)
class Readout:
    """What a readout achieves.

    `train_acc`, `test_acc` are accuracies (1,) of a classifier, or R² (variables,) of a regression; `train_r`, `test_r`
    Pearson's r (variables,), NaN for a classifier. `c` is the chosen C, of a regression 1 / alpha; `validation` is the
    mean score with it on the left-out folds; `converged` says whether the classifier's optimisation ended before its
    limit.
    """

    train_acc: np.ndarray
    test_acc: np.ndarray
    train_r: np.ndarray
    test_r: np.ndarray
    c: float
    validation: float
    converged: bool


def fit_readout(
    train: np.ndarray, train_values: np.ndarray, test: np.ndarray, test_values: np.ndarray, search: Search
) -> Readout:
    """Choose C on the train images, fit all of them with it, and score both.

    Args:
        train, test: features (images, features).
        train_values, test_values: classes (images,), or numbers (images, variables) that share one C.
        search: how C is chosen.

    Raises:
        ValueError: a class has fewer train images than there are folds.
    """
    if train_values.ndim == 1:
        return fit_classifier(train, train_values, test, test_values, search)
    return fit_regression(train, train_values, test, test_values, search)


def fit_classifier(
    train: np.ndarray, train_values: np.ndarray, test: np.ndarray, test_values: np.ndarray, search: Search
) -> Readout:
    fewest = np.unique(train_values, return_counts=True)[1].min()
    if fewest < search.folds:
        raise ValueError(f"a class has {fewest} train images, fewer than folds={search.folds}; lower folds")
    machine = LinearSVC(dual="auto", random_state=search.seed)
    found = chosen(machine, {"C": list(search.c_values)}, train, train_values, search)
    accuracies = [np.array([np.mean(found.predict(x) == y)]) for x, y in ((train, train_values), (test, test_values))]
    undefined = np.array([np.nan])
    converged = bool(np.max(found.best_estimator_.n_iter_) < machine.max_iter)
    return Readout(*accuracies, undefined, undefined, found.best_params_["C"], float(found.best_score_), converged)


def fit_regression(
    train: np.ndarray, train_values: np.ndarray, test: np.ndarray, test_values: np.ndarray, search: Search
) -> Readout:
    alphas = [1 / c for c in search.c_values]
    found = chosen(Ridge(), {"alpha": alphas}, train, train_values, search)
    predicted = [found.predict(features).reshape(len(features), -1) for features in (train, test)]
    pairs = list(zip((train_values, test_values), predicted, strict=True))
    explained = [r2_score(*pair, multioutput="raw_values") for pair in pairs]
    correlations = [pearson(*pair) for pair in pairs]
    c = search.c_values[alphas.index(found.best_params_["alpha"])]
    return Readout(*explained, *correlations, c, float(found.best_score_), True)


def chosen(
    estimator: LinearSVC | Ridge, grid: dict[str, list[float]], features: np.ndarray, values: np.ndarray, search: Search
) -> GridSearchCV:
    """The estimator with the value of the grid that scores best on the left-out folds; the first of equals."""
    grid_search = GridSearchCV(estimator, grid, cv=search.folds, n_jobs=search.jobs or -1)
    with warnings.catch_warnings():
        # Of many values some are useless: the largest C does not converge, the smallest alpha is singular. Whether the
        # chosen one converged is in the table.
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", LinAlgWarning)
        return grid_search.fit(features, values)
