"""Support vector machines: scikit-learn's weights where that converges, the optimum's own conditions everywhere."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.svm import LinearSVC

from transfer import linear_machine as module
from transfer.config import C_VALUES
from transfer.linear_machine import fit_machines


def clouds(images: int, features: int, classes: int, distance: float) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping clouds of images whose features shrink in length, as principal components do."""
    rng = np.random.default_rng(images + features + classes)
    numbers = np.arange(images) % classes
    made = rng.normal(size=(classes, features))[numbers] * distance + rng.normal(size=(images, features))
    return made * np.geomspace(10, 0.1, features), numbers


def objectives(features: np.ndarray, numbers: np.ndarray, c: float, weights: np.ndarray, of: range) -> np.ndarray:
    """Value of each machine's objective at weights (features + 1, machines)."""
    outputs = features @ weights[:-1] + weights[-1]
    y = np.stack([np.where(numbers == number, 1, -1) for number in of], 1)
    return (weights**2).sum(0) / 2 + c * (np.maximum(1 - y * outputs, 0) ** 2).sum(0)


@pytest.mark.parametrize(("images", "features", "classes"), [(300, 10, 3), (120, 40, 2), (40, 90, 4)])
def test_weights_and_predictions_are_those_of_scikit_learn(images, features, classes):
    """Above C = 10 its solver is slow, or stops before its minimum."""
    made, numbers = clouds(images, features, classes, 0.3)
    c_values = [c for c in C_VALUES if c <= 10]
    machines = fit_machines(made, numbers, c_values, jobs=1)
    assert machines.converged.all()
    predicted = machines.predict(made)
    for number, c in enumerate(c_values):
        plain = LinearSVC(C=c, dual=False, tol=1e-12, max_iter=100_000).fit(made, numbers)
        expected = np.column_stack([plain.coef_, plain.intercept_]).T
        np.testing.assert_allclose(machines.weights[number], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        assert np.array_equal(predicted[number], plain.predict(made))


@pytest.mark.filterwarnings("ignore:Liblinear failed to converge")
@pytest.mark.parametrize(("images", "features", "distance"), [(200, 30, 0.1), (60, 100, 0.3), (200, 5, 0.0)])
def test_no_other_weights_are_better_at_any_published_c(images, features, distance):
    """Small changes in any direction, and scikit-learn's own solution, are no lower."""
    made, numbers = clouds(images, features, 3, distance)
    machines = fit_machines(made, numbers, C_VALUES, jobs=1)
    assert machines.converged.all()
    rng = np.random.default_rng(0)
    for c, weights in zip(C_VALUES, machines.weights, strict=True):
        lowest = objectives(made, numbers, c, weights, range(3))
        for size in (1e-5, 1e-3, 1e-1):
            direction = rng.normal(size=weights.shape) * size * np.abs(weights).max(0)
            for other in (weights + direction, weights - direction, weights * (1 + size), weights * (1 - size)):
                assert (objectives(made, numbers, c, other, range(3)) >= lowest * (1 - 1e-9)).all(), c
        plain = LinearSVC(C=c, dual=False, max_iter=100).fit(made, numbers)
        found = np.column_stack([plain.coef_, plain.intercept_]).T
        assert (objectives(made, numbers, c, found, range(3)) >= lowest * (1 - 1e-9)).all(), c


@settings(max_examples=40, deadline=None)
@given(
    images=st.integers(3, 40),
    features=st.integers(1, 30),
    classes=st.integers(2, 4),
    repeated=st.booleans(),
    seed=st.integers(0, 100),
)
def test_the_gradient_is_zero_and_c_can_be_in_any_order(images, features, classes, repeated, seed):
    """Also where images or features repeat, so that the products are singular."""
    rng = np.random.default_rng(seed)
    made = rng.normal(size=(images, features))
    if repeated:
        made = np.column_stack([made, made[:, :1]])[rng.integers(0, images, images)]
    numbers = np.r_[np.arange(min(classes, images)), rng.integers(0, classes, max(images - classes, 0))]
    c_values = [1e2, 1e-6, 1.0, 1e-2]
    machines = fit_machines(made, numbers, c_values, jobs=1)
    assert machines.converged.all()
    x = np.column_stack([made, np.ones(images)])
    of = [1] if numbers.max() == 1 else range(numbers.max() + 1)
    for c, weights in zip(c_values, machines.weights, strict=True):
        for column, number in zip(weights.T, of, strict=True):
            y = np.where(numbers == number, 1, -1)
            pull = 2 * c * (x.T @ (y * np.maximum(1 - y * (x @ column), 0)))
            np.testing.assert_allclose(column, pull, rtol=0, atol=1e-7 * np.abs(column).max() + 1e-9 * c)


def test_separable_images_end_at_the_widest_margin():
    """Two images of each class on a line, at distance 1 and 3 from the middle: |w|² / 2 is least at w = 1, bias 0."""
    features = np.array([[-3.0], [-1.0], [1.0], [3.0]])
    machines = fit_machines(features, np.array([0, 0, 1, 1]), C_VALUES)
    np.testing.assert_allclose(machines.weights[-1, :, 0], [1, 0], atol=1e-6)
    assert machines.predict(np.array([[-0.1], [0.1]]))[-1].tolist() == [0, 1]
    tiny = 2 * C_VALUES[0] * np.array([8.0, 0.0])
    np.testing.assert_allclose(machines.weights[0, :, 0], tiny, rtol=1e-5, atol=1e-12)


def test_two_classes_need_one_machine_and_more_need_one_each():
    for classes, machines in ((2, 1), (3, 3), (5, 5)):
        features, numbers = clouds(60, 6, classes, 1.0)
        found = fit_machines(features, numbers, [0.1, 1.0])
        assert found.weights.shape == (2, 7, machines)
        assert found.predict(features).shape == (2, 60)
        assert (found.predict(features) == numbers).mean() > 0.7


def test_threads_do_not_change_the_answer():
    features, numbers = clouds(90, 20, 6, 0.3)
    one, many = (fit_machines(features, numbers, C_VALUES, jobs) for jobs in (1, 4))
    assert np.array_equal(one.weights, many.weights)


def test_a_descent_that_is_cut_short_is_not_called_converged(monkeypatch):
    features, numbers = clouds(200, 30, 3, 0.1)
    monkeypatch.setattr(module, "MOST_STEPS", 1)
    converged = fit_machines(features, numbers, [1e-12, 1e3]).converged
    assert converged.tolist() == [True, False]
