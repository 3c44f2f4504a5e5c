"""Linear support vector machines, solved exactly, for all values of C in one go.

What comes in: features of images and their classes. What goes out: for every C the weights of one machine per class,
each against the rest: with y = 1 for the class and -1 for the rest, the minimum of
|w|² / 2 + C Σ max(0, 1 - y w·x)², where x has a last feature 1 (so the bias is in w, and in its length). That is the
problem of scikit-learn's `LinearSVC`, whose solver takes hours where features are many and C is large. Here it is
solved by the finite Newton method (Keerthi & DeCoste 2005, JMLR 6:341): while the same images lie inside the margin,
the objective is a quadratic, whose minimum is computed directly, in as many dimensions as there are such images or
features, whichever are fewer. The solution for one C is the start for the next.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular
from threadpoolctl import threadpool_limits

MOST_STEPS = 200
# Share of the objective by which a step must lower it.
SMALLEST_FALL = 1e-12
HALVINGS = 60
PRECISION = np.finfo(np.float64).eps


@dataclass(frozen=True)
class Machines:
    """Weights (values of C, features + 1, machines), the last feature being the bias, and which C converged.

    Of two classes there is one machine, for the second; else there is one for each.
    """

    weights: np.ndarray
    converged: np.ndarray

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Numbers (values of C, images) of the classes with the largest output."""
        outputs = features @ self.weights[:, :-1] + self.weights[:, None, -1]
        return (outputs[..., 0] > 0).astype(int) if outputs.shape[2] == 1 else outputs.argmax(2)


@dataclass(frozen=True)
class Images:
    """Features with a last one of 1 (images, features), and their products between images and between features."""

    features: np.ndarray
    between_images: np.ndarray
    between_features: np.ndarray


def fit_machines(features: np.ndarray, classes: np.ndarray, c_values: Sequence[float], jobs: int = 0) -> Machines:
    """Fit the machines of all classes.

    Args:
        features: (images, features).
        classes: (images,) numbers from 0 to the number of classes - 1.
        c_values: in any order.
        jobs: threads that fit a class each; 0: one per core.
    """
    features = np.column_stack([features, np.ones(len(features))]).astype(np.float64)
    images = Images(features, features @ features.T, features.T @ features)
    count = int(classes.max()) + 1
    order = np.argsort(c_values, kind="stable")
    rising = np.asarray(c_values, np.float64)[order]

    def fit(number: int) -> tuple[np.ndarray, np.ndarray]:
        return fit_one(images, np.where(classes == number, 1.0, -1.0), rising)

    # Each thread computes alone, else threads of the libraries would compete with them.
    with threadpool_limits(1), ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
        fitted = list(pool.map(fit, [1] if count == 2 else range(count)))
    weights = np.empty((len(rising), features.shape[1], len(fitted)))
    converged = np.empty(len(rising), bool)
    weights[order] = np.stack([weights for weights, _ in fitted], 2)
    converged[order] = np.all([converged for _, converged in fitted], axis=0)
    return Machines(weights, converged)


def fit_one(images: Images, y: np.ndarray, rising: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (values of C, features) of one machine for rising C, and which of them converged."""
    found, converged = np.zeros((len(rising), images.features.shape[1])), np.zeros(len(rising), bool)
    weights = np.zeros(images.features.shape[1])
    for number, c in enumerate(rising):
        weights, converged[number] = descend(images, y, c, weights)
        found[number] = weights
    return found, converged


def descend(images: Images, y: np.ndarray, c: float, weights: np.ndarray) -> tuple[np.ndarray, bool]:
    """The minimum, reached from `weights`, and whether it was reached."""
    outputs = images.features @ weights
    lowest = np.inf
    for _ in range(MOST_STEPS):
        inside = y * outputs < 1
        target = quadratic_minimum(images, y, c, inside)
        at_target = images.features @ target
        if np.array_equal(y * at_target < 1, inside):
            return target, True
        share = line_minimum(weights, target - weights, outputs, at_target - outputs, y, c)
        weights = weights + share * (target - weights)
        outputs = outputs + share * (at_target - outputs)
        objective = weights @ weights / 2 + c * (np.maximum(1 - y * outputs, 0) ** 2).sum()
        # Images exactly on the margin go in and out with the last digit.
        if objective >= lowest * (1 - SMALLEST_FALL):
            return weights, True
        lowest = objective
    return weights, False


def quadratic_minimum(images: Images, y: np.ndarray, c: float, inside: np.ndarray) -> np.ndarray:
    """Weights that minimise |w|² / 2 + C Σ (y - w·x)² over the images inside the margin."""
    rows = np.flatnonzero(inside)
    features, targets = images.features[rows], y[rows]
    if not len(rows):
        return np.zeros(features.shape[1])
    if len(rows) <= features.shape[1]:
        system = images.between_images[np.ix_(rows, rows)]
        return features.T @ solve(system, c, targets)
    outside = images.features[~inside]
    system = images.between_features - outside.T @ outside if len(outside) < len(rows) else features.T @ features
    return solve(system, c, features.T @ targets)


def solve(system: np.ndarray, c: float, right: np.ndarray) -> np.ndarray:
    """(system + 1 / 2C)⁻¹ right, for a matrix of products; a C too large to be told from infinity counts as less."""
    system[np.diag_indices_from(system)] += max(1 / (2 * c), 10 * PRECISION * system.trace())
    # SciPy's own factorisation would keep the other threads waiting.
    factor = np.linalg.cholesky(system)
    half = solve_triangular(factor, right, lower=True, check_finite=False)
    return solve_triangular(factor, half, lower=True, trans="T", check_finite=False)


def line_minimum(
    weights: np.ndarray, step: np.ndarray, outputs: np.ndarray, change: np.ndarray, y: np.ndarray, c: float
) -> float:
    """The share of a step, from 0 to 1, at which the objective is lowest; its slope rises along the step."""

    def slope(share: float) -> float:
        slack = np.maximum(1 - y * (outputs + share * change), 0)
        return weights @ step + share * (step @ step) - 2 * c * ((y * slack) @ change)

    if slope(1) <= 0:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
        if high - low <= PRECISION * high:
            break
    return high if low == 0 else low
