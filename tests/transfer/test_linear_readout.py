"""Linear readouts: the same C and scores as scikit-learn's parts put together by hand, and known answers."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.svm import LinearSVC

from transfer.config import C_VALUES
from transfer.linear_readout import Search, fit_readout

GRID = [1e-6, 1e-4, 1e-2, 1.0, 1e2]


def search(**keys: object) -> Search:
    return Search(**({"c_values": GRID, "folds": 5, "jobs": 1} | keys))


def clouds(classes: int, images: int, distance: float) -> tuple[np.ndarray, np.ndarray]:
    """Features of images in overlapping clouds, one per class."""
    rng = np.random.default_rng(classes)
    values = np.arange(images) % classes
    return rng.normal(size=(classes, 8))[values] * distance + rng.normal(size=(images, 8)), values


def test_the_classifier_is_a_plain_search_over_folds():
    features, values = clouds(3, 150, 0.5)
    train, test = np.arange(100), np.arange(100, 150)
    found = fit_readout(features[train], values[train], features[test], values[test], search())

    def machine(c: float) -> LinearSVC:
        return LinearSVC(C=c, dual=False, tol=1e-10, max_iter=100_000)

    means = []
    for c in GRID:
        folds = StratifiedKFold(5).split(features[train], values[train])
        means.append(np.mean([machine(c).fit(features[a], values[a]).score(features[b], values[b]) for a, b in folds]))
    best = int(np.argmax(means))
    assert best > 0, "the choice is not the first by default"
    plain = machine(GRID[best]).fit(features[train], values[train])
    assert found.c == GRID[best]
    assert found.validation == pytest.approx(means[best], abs=1e-12)
    for accuracy, side in ((found.train_acc, train), (found.test_acc, test)):
        assert accuracy == pytest.approx([plain.score(features[side], values[side])], abs=1e-12)
    assert 0.4 < found.test_acc[0] < 0.95
    assert found.converged
    assert np.isnan([found.train_r, found.test_r]).all()


def test_the_regression_is_a_plain_search_over_folds():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(90, 40))
    values = features[:, :2] + 1.5 * rng.normal(size=(90, 2))
    train, test = np.arange(60), np.arange(60, 90)
    found = fit_readout(features[train], values[train], features[test], values[test], search())
    means = []
    for c in GRID:
        folds = KFold(5).split(train)
        means.append(
            np.mean([Ridge(alpha=1 / c).fit(features[a], values[a]).score(features[b], values[b]) for a, b in folds])
        )
    best = int(np.argmax(means))
    assert 0 < best < len(GRID) - 1
    predicted = Ridge(alpha=1 / GRID[best]).fit(features[train], values[train]).predict(features[test])
    residual = ((values[test] - predicted) ** 2).sum(0) / ((values[test] - values[test].mean(0)) ** 2).sum(0)
    assert found.c == GRID[best]
    np.testing.assert_allclose(found.test_acc, 1 - residual, rtol=1e-9)
    expected = [np.corrcoef(values[test, n], predicted[:, n])[0, 1] for n in range(2)]
    np.testing.assert_allclose(found.test_r, expected, rtol=1e-9)
    assert (found.train_acc > found.test_acc).all()


@pytest.mark.parametrize("variables", [1, 3])
def test_numbers_that_are_linear_in_the_features_are_told_exactly(variables):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 10))
    values = features @ rng.normal(size=(10, variables)) + 3
    found = fit_readout(features[:40], values[:40], features[40:], values[40:], search(c_values=[1e-4, 1e4]))
    assert found.c == 1e4
    assert found.test_acc.shape == found.test_r.shape == (variables,)
    assert (found.test_acc > 0.9999).all()
    assert (found.test_r > 0.9999).all()


def test_classes_that_have_nothing_to_do_with_the_features_are_told_by_chance():
    rng = np.random.default_rng(0)
    features, values = rng.normal(size=(400, 5)), rng.integers(0, 4, 400)
    found = fit_readout(features[:200], values[:200], features[200:], values[200:], search())
    assert abs(found.test_acc[0] - 0.25) < 0.1


def test_classes_can_have_any_numbers_and_be_absent_from_the_test():
    features, values = clouds(3, 90, 1.0)
    test = values[60:] < 2
    plain = fit_readout(features[:60], values[:60], features[60:][test], values[60:][test], search())
    other = fit_readout(features[:60], 7 * values[:60] + 3, features[60:][test], 7 * values[60:][test] + 3, search())
    assert plain.test_acc[0] > 0.7
    assert (plain.c, plain.train_acc[0], plain.test_acc[0]) == (other.c, other.train_acc[0], other.test_acc[0])


def test_a_class_with_fewer_images_than_folds_is_one_line():
    features, values = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) // 17
    with pytest.raises(ValueError, match="a class has 3 train images, fewer than folds=5; lower folds"):
        fit_readout(features, values, features, values, search())


def test_the_published_values_of_c():
    assert len(C_VALUES) == 33
    assert (C_VALUES[0], C_VALUES[-1]) == (1e-8, 5e8)
    assert sorted(C_VALUES) == C_VALUES
    assert {5e-1, 1.0, 1e1, 5e1, 1e8} <= set(C_VALUES)
