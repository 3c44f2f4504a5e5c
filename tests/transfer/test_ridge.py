"""Ridge: scikit-learn's fixed penalty, its leave-one-out and its grid search, for many sets at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV

from transfer.ridge import RidgeMapping, r_squared

ALPHAS = (0.01, 0.3, 10.0, 400.0)


def job(stimuli: int, features: int, neurons: int, seed: int = 0, rank: int | None = None) -> tuple:
    """Features of a rank, responses with more and less noise, and features of 6 other stimuli."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(rank or features, features))
    X, X_test = (rng.normal(size=(rows, len(mixing))) @ mixing + 2 for rows in (stimuli, 6))
    noise = rng.normal(size=(stimuli, neurons)) * np.geomspace(0.1, 30, neurons)
    return X, X @ rng.normal(size=(features, neurons)) / features + noise + 1, X_test


shapes = {"stimuli": st.integers(4, 25), "features": st.integers(1, 50), "neurons": st.integers(2, 8)}


@settings(deadline=None, max_examples=40)
@given(**shapes, alpha=st.sampled_from([1e-3, 1.0, 1e4]), seed=st.integers(0, 99))
def test_fixed_penalty(stimuli, features, neurons, alpha, seed):
    X, Y, X_test = job(stimuli, features, neurons, seed)
    found = RidgeMapping(alpha).fit(X, Y)
    expected = Ridge(alpha, solver="svd").fit(X, Y)
    np.testing.assert_allclose(found.predict(X_test), expected.predict(X_test), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(found.coef_, expected.coef_.T, rtol=1e-7, atol=1e-9)
    assert np.isnan(found.best_score_).all()


@settings(deadline=None, max_examples=60)
@given(**shapes, seed=st.integers(0, 99))
def test_leave_one_out(stimuli, features, neurons, seed):
    X, Y, X_test = job(stimuli, features, neurons, seed)
    found = RidgeMapping(ALPHAS).fit(X, Y)
    expected = RidgeCV(ALPHAS, alpha_per_target=True).fit(X, Y)
    np.testing.assert_array_equal(found.alpha_, expected.alpha_)
    np.testing.assert_allclose(found.best_score_, expected.best_score_, rtol=1e-6)
    np.testing.assert_allclose(found.predict(X_test), expected.predict(X_test), rtol=1e-7, atol=1e-8)


def test_leave_one_out_is_leaving_one_out():
    """With fewer directions than stimuli, and with so small a penalty that the fit goes through all responses."""
    for rank, alphas in ((5, ALPHAS), (40, (1e-9, 1e-8))):
        X, Y, _ = job(20, 40, 3, rank=rank)
        found = RidgeMapping(alphas).fit(X, Y)
        for neuron, alpha in enumerate(found.alpha_):
            errors = [
                Y[out, neuron]
                - Ridge(alpha, solver="svd")
                .fit(np.delete(X, out, 0), np.delete(Y[:, neuron], out))
                .predict(X[[out]])[0]
                for out in range(20)
            ]
            assert found.best_score_[neuron] == pytest.approx(-np.mean(np.square(errors)), rel=1e-6)


@settings(deadline=None, max_examples=8)
@given(**shapes | {"stimuli": st.integers(6, 25)}, folds=st.integers(2, 3), seed=st.integers(0, 99))
def test_folds_are_scikit_learns_grid_search(stimuli, features, neurons, folds, seed):
    X, Y, X_test = job(stimuli, features, neurons, seed)
    found = RidgeMapping(ALPHAS, folds=folds).fit(X, Y)
    for neuron in range(neurons):
        search = GridSearchCV(Ridge(solver="svd"), {"alpha": ALPHAS}, cv=folds).fit(X, Y[:, neuron])
        assert found.alpha_[neuron] == search.best_params_["alpha"]
        assert found.best_score_[neuron] == pytest.approx(search.best_score_, rel=1e-7, abs=1e-9)
        np.testing.assert_allclose(found.predict(X_test)[:, neuron], search.predict(X_test), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("mapping", [RidgeMapping(3.0), RidgeMapping(), RidgeMapping(folds=4)])
@pytest.mark.parametrize("features", [5, 300])
def test_many_sets_at_once_are_each_set_alone(mapping, features):
    X, Y, X_test = job(24, features, 12)
    sets = Y.reshape(24, 3, 4).transpose(1, 0, 2)
    together = mapping.fit_predict_many(X, sets, X_test)
    alpha = mapping.alpha_
    for number, one in enumerate(sets):
        np.testing.assert_allclose(together[number], mapping.fit(X, one).predict(X_test), rtol=1e-8, atol=1e-8)
        np.testing.assert_array_equal(alpha[number], mapping.alpha_)


def test_published_predictions(mouse_vision):
    """Their map `corr` at percentile 0 is a ridge on all features."""
    values = np.load(mouse_vision / "neural" / "mappers.npz")
    found = RidgeMapping(1.0).fit(values["X"], values["Y"]).predict(values["Xt"])
    np.testing.assert_allclose(found, values["pred_corr_ridge_p0"], rtol=0, atol=1e-8)


@settings(deadline=None)
@given(seed=st.integers(0, 99), constant=st.booleans(), exact=st.booleans())
def test_r_squared_is_scikit_learns(seed, constant, exact):
    rng = np.random.default_rng(seed)
    Y = np.full((7, 3), 2.5) if constant else rng.normal(size=(7, 3))
    predicted = Y.copy() if exact else rng.normal(size=(7, 3))
    expected = r2_score(Y, predicted, multioutput="raw_values")
    np.testing.assert_allclose(r_squared(Y, predicted), expected, rtol=1e-12)


def test_what_does_not_vary_predicts_the_mean():
    Y = np.random.default_rng(0).normal(size=(10, 3))
    found = RidgeMapping().fit(np.ones((10, 4)), Y).predict(np.ones((2, 4)))
    np.testing.assert_allclose(found, np.tile(Y.mean(0), (2, 1)))
    X = np.random.default_rng(1).normal(size=(10, 4))
    np.testing.assert_allclose(RidgeMapping().fit(X, np.full((10, 3), 2.5)).predict(X), 2.5)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"alphas": 0}, "alphas must be one or more numbers above 0, found 0"),
        ({"alphas": []}, "alphas must be one or more numbers above 0"),
        ({"alphas": [1, np.nan]}, "alphas must be one or more numbers above 0"),
        ({"folds": 1}, "folds must be None .* or at least 2, found 1"),
    ],
)
def test_wrong_keys_are_one_line(keys, line):
    with pytest.raises(ValueError, match=line):
        RidgeMapping(**keys)


def test_what_cannot_be_fitted_is_one_line():
    X, Y, X_test = job(7, 4, 2)
    with pytest.raises(ValueError, match="needs 2 stimuli in each fold, found 7 stimuli for 4 folds"):
        RidgeMapping(folds=4).fit(X, Y)
    with pytest.raises(ValueError, match="NaN or infinite"):
        RidgeMapping().fit_predict_many(X, np.full((1, 7, 2), np.nan), X_test)
    with pytest.raises(ValueError, match=r"found \(7, 4\) and \(6, 2\)"):
        RidgeMapping().fit(X, Y[:6])
