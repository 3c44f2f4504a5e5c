"""Mappings by correlation: the published predictions, a plain loop, ties, constants, and features on disk."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import ElasticNet, Lasso, Ridge

import transfer.one_to_one
from transfer.one_to_one import BestFeaturesMapping, IdentityMapping, OneToOneMapping


@pytest.fixture
def published(mouse_vision):
    return np.load(mouse_vision / "neural" / "mappers.npz")


def test_published_features(published):
    found = OneToOneMapping().fit(published["X"], published["Y"])
    np.testing.assert_array_equal(found.feature_, published["corr_identity_idx"])
    np.testing.assert_array_equal(found.predict(published["Xt"]), published["pred_corr_identity"])


@pytest.mark.parametrize(
    ("name", "percentile", "regression"),
    [
        ("ridge_p100", 100, None),
        ("ridge_p80", 80, Ridge()),
        ("ridge_p0", 0, None),
        ("lasso_p0", 0, Lasso()),
        ("enet_p0", 0, ElasticNet()),
    ],
)
def test_published_regressions(published, name, percentile, regression):
    found = BestFeaturesMapping(percentile, regression).fit(published["X"], published["Y"]).predict(published["Xt"])
    np.testing.assert_allclose(found, published[f"pred_corr_{name}"], rtol=0, atol=1e-8)


@settings(deadline=None, max_examples=40)
@given(
    stimuli=st.integers(3, 12), features=st.integers(1, 30), neurons=st.integers(1, 6), block=st.integers(1, 5000),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_a_plain_loop_over_pairs(stimuli, features, neurons, block, seed):
    rng = np.random.default_rng(seed)
    X, Y = rng.normal(size=(stimuli, features)), rng.normal(size=(stimuli, neurons))
    expected = [np.argmax([np.corrcoef(x, y)[0, 1] for x in X.T]) for y in Y.T]
    before = transfer.one_to_one.BLOCK_BYTES
    try:
        transfer.one_to_one.BLOCK_BYTES = block
        np.testing.assert_array_equal(OneToOneMapping().fit(X, Y).feature_, expected)
    finally:
        transfer.one_to_one.BLOCK_BYTES = before


def test_opposite_ties_constants_and_the_silent():
    rise = np.arange(6.0)
    X = np.column_stack([np.full(6, 0.1), -rise, rise**2, rise, rise, np.zeros(6)])
    Y = np.column_stack([2 * rise + 1, -rise, np.full(6, 0.3)])
    # A falling feature is no match for a rising neuron; of equal ones the first; a silent neuron has the last.
    np.testing.assert_array_equal(OneToOneMapping().fit(X, Y).feature_, [3, 1, 5])
    chosen = BestFeaturesMapping(0).fit(X, Y).features_
    np.testing.assert_array_equal(chosen[0], [False, True, True, True, True, False])
    np.testing.assert_array_equal(chosen[2], [True] * 6)
    np.testing.assert_array_equal(BestFeaturesMapping(100).fit(X, Y).features_[2], [False] * 5 + [True])


@pytest.mark.parametrize("mapping", [OneToOneMapping(), BestFeaturesMapping(70), IdentityMapping()])
def test_many_sets_at_once_are_each_set_alone(mapping):
    rng = np.random.default_rng(0)
    X, X_test, Y = rng.normal(size=(15, 40)), rng.normal(size=(5, 40)), rng.normal(size=(3, 15, 4))
    together = mapping.fit_predict_many(X, Y, X_test)
    for found, one in zip(together, Y, strict=True):
        np.testing.assert_allclose(found, mapping.fit(X, one).predict(X_test), rtol=1e-12)


def test_features_on_disk(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(20, 500)).astype(np.float32)
    np.save(tmp_path / "x.npy", values)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    Y = values[None, :12, [17, 333, 499]] + 0.01 * rng.normal(size=(2, 12, 3))
    monkeypatch.setattr(transfer.one_to_one, "BLOCK_BYTES", 8 * 12 * 100)
    found = OneToOneMapping().fit_predict_many(mapped[:12], Y, mapped[12:])
    np.testing.assert_array_equal(found, np.tile(values[12:, [17, 333, 499]], (2, 1, 1)))


@pytest.mark.parametrize("mapping", [OneToOneMapping(), BestFeaturesMapping()])
def test_what_cannot_be_fitted_is_one_line(mapping):
    X, Y = np.random.default_rng(0).normal(size=(5, 4)), np.ones((5, 2))
    with pytest.raises(ValueError, match=r"found \(5, 4\) and \(4, 2\)"):
        mapping.fit(X, Y[:4])
    for bad_X, bad_Y in ((np.full((5, 4), np.nan), Y), (X, np.full((5, 2), np.inf))):
        with pytest.raises(ValueError, match="NaN or infinite"):
            mapping.fit(bad_X, bad_Y)
        with pytest.raises(ValueError, match="NaN or infinite"):
            mapping.fit_predict_many(bad_X, bad_Y[None], X)
    with pytest.raises(ValueError, match=r"X_test must be \(tests, 4 features\)"):
        mapping.fit_predict_many(X, Y[None], X[:, :3])


def test_percentile_must_be_one():
    with pytest.raises(ValueError, match="percentile must be from 0 to 100, found 101"):
        BestFeaturesMapping(101)
