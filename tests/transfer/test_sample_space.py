"""Coordinates have the distances of the features, from memory or disk, down to the weakest direction of float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer.sample_space import BLOCK_FEATURES, coordinates_of_each, sample_coordinates, train_basis, train_space


def products(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean(0)
    return centred @ centred.T


@settings(deadline=None, max_examples=60)
@given(
    stimuli=st.integers(1, 12),
    features=st.integers(1, 40),
    offset=st.sampled_from([0.0, 100.0]),
    seed=st.integers(0, 99),
)
def test_products_between_stimuli_are_kept(stimuli, features, offset, seed):
    values = np.random.default_rng(seed).normal(size=(stimuli, features)) + offset
    found = sample_coordinates(values)
    assert found.shape == (stimuli, min(stimuli, features))
    np.testing.assert_allclose(found @ found.T, products(values), atol=1e-10)


def test_blocks_from_a_memory_map(tmp_path):
    features = 2 * BLOCK_FEATURES + 37
    values = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (30, features))
    values[:] = np.random.default_rng(0).normal(size=values.shape)
    found = sample_coordinates(np.load(tmp_path / "x.npy", mmap_mode="r"))
    assert found.shape == (30, 30)
    np.testing.assert_allclose(found @ found.T, products(np.asarray(values, np.float64)), rtol=1e-12, atol=1e-9)


def test_weak_directions_are_not_lost():
    """Products between stimuli would know nothing of the second direction, of strength 1e-10."""
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.normal(size=(5000, 2)))[0]
    coefficients = np.linalg.qr(np.column_stack([np.ones(20), rng.normal(size=(20, 2))]))[0][:, 1:] * [1.0, 1e-10]
    singular = np.linalg.svd(sample_coordinates(coefficients @ directions.T), compute_uv=False)
    np.testing.assert_allclose(singular[:2], [1, 1e-10], rtol=1e-4)
    assert singular[2] < 1e-14


@settings(deadline=None, max_examples=200)
@given(stimuli=st.integers(2, 12), features=st.integers(1, 60), rank=st.integers(1, 12), seed=st.integers(0, 99))
def test_train_space_is_the_span_of_the_train_stimuli(stimuli, features, rank, seed):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(rank, features))
    X, X_test = rng.normal(size=(stimuli, rank)) @ mixing + 5, rng.normal(size=(7, rank)) @ mixing + 5
    train, test = train_space(X, X_test)
    assert train.shape[1] == test.shape[1] == min(stimuli - 1, features, rank)
    np.testing.assert_allclose(train.mean(0), 0, atol=1e-10)
    np.testing.assert_allclose(train @ train.T, products(X), atol=1e-9)
    np.testing.assert_allclose(test @ train.T, (X_test - X.mean(0)) @ (X - X.mean(0)).T, atol=1e-8)
    basis, coordinates = train_basis(X)
    np.testing.assert_allclose(basis.T @ basis, np.eye(len(basis.T)), atol=1e-12)
    np.testing.assert_allclose(coordinates @ basis.T, X - X.mean(0), atol=1e-10)


def test_features_that_do_not_vary_span_nothing():
    # 0.1 has no exact mean, so that rounding leaves something.
    train, test = train_space(np.full((6, 3), 0.1), np.ones((2, 3)))
    assert train.shape == (6, 0)
    assert test.shape == (2, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_one_line(bad):
    values = np.ones((4, BLOCK_FEATURES + 5))
    values[2, -1] = bad
    with pytest.raises(ValueError, match="NaN or infinite values; leave out"):
        sample_coordinates(values)


@pytest.mark.parametrize("features", [5, 30])
def test_coordinates_of_each_set_keep_its_products(features):
    values = np.random.default_rng(0).normal(size=(2, 3, 12, features))
    found = coordinates_of_each(values)
    assert found.shape == (2, 3, 12, min(features, 12))
    found, values = (array - array.mean(-2, keepdims=True) for array in (found, values))
    np.testing.assert_allclose(found @ found.mT, values @ values.mT, atol=1e-12)
