"""How well a linear readout of features tells a class or a number, with its penalty chosen by cross-validation.

What comes in: features of train and test images, and a target. What goes out: accuracies or R² on both, correlations,
and the strength of the penalty, of equals the first. Classes are told by linear support vector machines, numbers by
ridge regression, folds are scikit-learn's, unshuffled and stratified for classes: all as in the transfer tasks of
mouse-vision (Nayebi, Kong et al. 2023, https://doi.org/10.1371/journal.pcbi.1011506).
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgWarning
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from neural_data.reliability import pearson
from transfer.linear_machine import fit_machines


@dataclass(frozen=True)
class Search:
    """How C is chosen: from which values, on how many folds, and with how many cores; 0 for all."""

    c_values: Sequence[float]
    folds: int
    jobs: int


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
    classes, numbers = np.unique(train_values, return_inverse=True)
    fewest = np.bincount(numbers).min()
    if fewest < search.folds:
        raise ValueError(f"a class has {fewest} train images, fewer than folds={search.folds}; lower folds")
    shares = []
    for fitted, left_out in StratifiedKFold(search.folds).split(train, numbers):
        machines = fit_machines(train[fitted], numbers[fitted], search.c_values, search.jobs)
        shares.append((machines.predict(train[left_out]) == numbers[left_out]).mean(1))
    validation = np.mean(shares, axis=0)
    best = int(np.argmax(validation))
    machines = fit_machines(train, numbers, [search.c_values[best]], search.jobs)
    right = [classes[machines.predict(x)[0]] == y for x, y in ((train, train_values), (test, test_values))]
    return Readout(
        train_acc=np.array([right[0].mean()]),
        test_acc=np.array([right[1].mean()]),
        train_r=np.array([np.nan]),
        test_r=np.array([np.nan]),
        c=search.c_values[best],
        validation=float(validation[best]),
        converged=bool(machines.converged[0]),
    )


def fit_regression(
    train: np.ndarray, train_values: np.ndarray, test: np.ndarray, test_values: np.ndarray, search: Search
) -> Readout:
    alphas = [1 / c for c in search.c_values]
    found = GridSearchCV(Ridge(), {"alpha": alphas}, cv=search.folds, n_jobs=search.jobs or -1)
    with warnings.catch_warnings():
        # The smallest alphas can be too small for the arithmetic; the folds decide on them too.
        warnings.simplefilter("ignore", LinAlgWarning)
        found.fit(train, train_values)
    predicted = [found.predict(features).reshape(len(features), -1) for features in (train, test)]
    pairs = list(zip((train_values, test_values), predicted, strict=True))
    train_acc, test_acc = (r2_score(*pair, multioutput="raw_values") for pair in pairs)
    train_r, test_r = (pearson(*pair) for pair in pairs)
    c = search.c_values[alphas.index(found.best_params_["alpha"])]
    return Readout(train_acc, test_acc, train_r, test_r, c, float(found.best_score_), converged=True)
