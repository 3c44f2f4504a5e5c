"""Principal components from products: those of scikit-learn's full SVD, also where there are fewer than asked for."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from transfer import principal_components as module
from transfer.principal_components import component_scores, image_products


def random_features(images: int, features: int, rank: int, offset: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(images + features)
    made = rng.normal(size=(images, rank)) @ (rng.normal(size=(rank, features)) * np.geomspace(10, 0.1, rank)[:, None])
    return (made + offset).astype(np.float32)


@pytest.mark.parametrize("components", [3, 20, 29])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_scores_are_those_of_a_full_svd(components, offset, monkeypatch):
    """Signs are free; a common offset of all features costs no digits."""
    monkeypatch.setattr(module, "COLUMNS", 17)
    features = random_features(50, 200, 60, offset)
    rows = np.random.default_rng(0).permutation(50)
    train, test = rows[:30], rows[30:]
    found = component_scores(image_products(features), train, test, components)
    plain = PCA(components, svd_solver="full").fit(features[train].astype(np.float64))
    for ours, side in zip(found, (train, test), strict=True):
        expected = plain.transform(features[side].astype(np.float64))
        assert ours.shape == expected.shape
        signs = np.sign((ours * expected).sum(0))
        np.testing.assert_allclose(ours * signs, expected, rtol=0, atol=1e-7 * np.abs(expected).max())


@pytest.mark.parametrize("components", [5, 29, 30, 1000])
def test_components_without_variance_are_left_out(components):
    """A centred set of 30 images has 29 directions; these features have 4."""
    features = random_features(40, 100, 4)
    train, test = component_scores(image_products(features), np.arange(30), np.arange(30, 40), components)
    assert train.shape[1] >= 4
    np.testing.assert_allclose(train[:, 4:], 0, atol=1e-3)
    distances = np.linalg.norm(features[30:, None] - features[None, :30], axis=2)
    of_scores = np.linalg.norm(test[:, None] - train[None], axis=2)
    np.testing.assert_allclose(of_scores, distances, rtol=1e-3, atol=1e-2)
    more = component_scores(image_products(random_features(40, 100, 60)), np.arange(30), np.arange(30, 40), 1000)
    assert more[0].shape == (30, 29)


def test_features_that_never_vary_have_no_components():
    train, test = component_scores(image_products(np.ones((9, 20), np.float32)), np.arange(6), np.arange(6, 9), 5)
    assert (train.shape, test.shape) == ((6, 0), (3, 0))
