"""PLS: scikit-learn's predictions for any shapes, the published ones, and the corners."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cross_decomposition import PLSRegression

from transfer import mapping as mapping_module
from transfer.mapping import PLSMapping, even_blocks, fit_predict_sets, predict_splits
from transfer.one_to_one import OneToOneMapping
from transfer.ridge import RidgeMapping
from transfer.sample_space import sample_coordinates

# Its squared change per iteration. At the default, 1e-6, scikit-learn itself is only right to about 1e-3.
TIGHT = 1e-24


def scikit_learn(X: np.ndarray, Y: np.ndarray, X_test: np.ndarray, components: int) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PLSRegression(components, scale=False, tol=TIGHT, max_iter=20_000).fit(X, Y)
        return model.predict(X_test).reshape(len(X_test), Y.shape[1])


def most_components(X: np.ndarray, components: int) -> int:
    return min(components, len(X) - 1, np.linalg.matrix_rank(X - X.mean(0)))


def require_close(found: np.ndarray, expected: np.ndarray, relative: float = 1e-6) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= relative * max(np.abs(expected).max(), 1e-300)


def correlated(rng: np.random.Generator, stimuli: int, features: int, neurons: int, rank: int) -> tuple:
    """Features of a rank, responses that depend on them with noise, and features of 5 other stimuli."""
    mixing = rng.normal(size=(rank, features)) * np.linspace(1, 3, rank)[:, None]
    X, X_test = rng.normal(size=(stimuli, rank)) @ mixing, rng.normal(size=(5, rank)) @ mixing
    readout = rng.normal(size=(features, neurons)) / features
    return X + 3, X @ readout + 0.5 * rng.normal(size=(stimuli, neurons)) - 1, X_test + 3


@settings(deadline=None, max_examples=80)
@given(
    stimuli=st.integers(2, 30),
    features=st.integers(1, 60),
    neurons=st.integers(1, 40),
    components=st.integers(1, 25),
    rank=st.integers(1, 60),
    seed=st.integers(0, 10_000),
)
def test_predictions_are_scikit_learns(stimuli, features, neurons, components, rank, seed):
    rng = np.random.default_rng(seed)
    X, Y, X_test = correlated(rng, stimuli, features, neurons, min(rank, features))
    expected = scikit_learn(X, Y, X_test, most_components(X, components))
    require_close(PLSMapping(components).fit(X, Y).predict(X_test), expected)


@pytest.mark.parametrize(
    ("stimuli", "features", "neurons", "components", "rank"),
    [
        (59, 200, 30, 25, 200),
        (30, 10, 50, 5, 10),
        (30, 10, 50, 25, 10),
        (20, 100, 1, 15, 100),
        (40, 60, 8, 25, 6),
        (12, 500, 300, 25, 500),
    ],
)
def test_shapes_of_real_recordings(stimuli, features, neurons, components, rank):
    X, Y, X_test = correlated(np.random.default_rng(0), stimuli, features, neurons, rank)
    expected = scikit_learn(X, Y, X_test, most_components(X, components))
    require_close(PLSMapping(components).fit(X, Y).predict(X_test), expected)


@settings(deadline=None, max_examples=30)
@given(sets=st.integers(1, 6), neurons=st.integers(1, 12), features=st.integers(1, 40), seed=st.integers(0, 1000))
def test_many_sets_at_once_are_each_set_alone(sets, neurons, features, seed):
    rng = np.random.default_rng(seed)
    X, _, X_test = correlated(rng, 15, features, 1, min(features, 15))
    # Sets of very different size, of which none may disturb another.
    Y = rng.normal(size=(sets, 15, neurons)) * 10.0 ** rng.integers(-3, 4, (sets, 1, 1))
    together = PLSMapping(6).fit_predict_many(X, Y, X_test)
    assert together.shape == (sets, 5, neurons)
    for one, responses in zip(together, Y, strict=True):
        require_close(one, PLSMapping(6).fit(X, responses).predict(X_test), 1e-8)


def test_published_predictions(mouse_vision):
    """The published values have scikit-learn's default tolerance, hence 1e-2."""
    values = np.load(mouse_vision / "neural" / "mappers.npz")
    X, Y, X_test = values["X"], values["Y"], values["Xt"]
    for components in (5, 25):
        found = PLSMapping(components).fit(X, Y).predict(X_test)
        assert np.abs(found - values[f"pred_pls{components}"]).max() < 1e-2 * np.abs(found).max()
        require_close(found, scikit_learn(X, Y, X_test, components))


@settings(deadline=None, max_examples=30)
@given(
    stimuli=st.integers(3, 25),
    features=st.integers(1, 40),
    neurons=st.integers(1, 30),
    components=st.integers(1, 26),
    seed=st.integers(0, 1000),
)
def test_torch_gives_what_numpy_gives(stimuli, features, neurons, components, seed):
    """Torch on this CPU stands in for a GPU: the lines are the same."""
    rng = np.random.default_rng(seed)
    X, _, X_test = correlated(rng, stimuli, features, 1, min(features, stimuli))
    Y = rng.normal(size=(4, stimuli, neurons))
    found = PLSMapping(components, device="cpu:0").fit_predict_many(X, Y, X_test)
    require_close(found, PLSMapping(components).fit_predict_many(X, Y, X_test), 1e-9)


@pytest.mark.gpu
def test_a_gpu_gives_what_the_cpu_gives():
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU here")
    rng = np.random.default_rng(0)
    X, X_test, Y = rng.normal(size=(59, 300)), rng.normal(size=(59, 300)), rng.normal(size=(40, 59, 35))
    found = PLSMapping(25, device="cuda").fit_predict_many(X, Y, X_test)
    require_close(found, PLSMapping(25).fit_predict_many(X, Y, X_test), 1e-9)


def test_threads_change_nothing():
    rng = np.random.default_rng(0)
    X, X_test, Y = rng.normal(size=(59, 80)), rng.normal(size=(9, 80)), rng.normal(size=(100, 59, 60))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = PLSMapping(5).fit_predict_many(X, Y, X_test)
        torch.set_num_threads(3)
        np.testing.assert_array_equal(PLSMapping(5).fit_predict_many(X, Y, X_test), expected)
    finally:
        torch.set_num_threads(before)
    # So many sets make several blocks: what is compared was shared.
    require_close(expected[-1], PLSMapping(5).fit(X, Y[-1]).predict(X_test), 1e-9)


@settings(deadline=None)
@given(sets=st.integers(0, 300), wanted=st.floats(0, 50), multiple=st.integers(1, 6))
def test_blocks_are_all_sets_once_and_even(sets, wanted, multiple):
    blocks = even_blocks(sets, wanted, multiple)
    assert [row for block in blocks for row in range(block.start, block.stop)] == list(range(sets))
    sizes = [block.stop - block.start for block in blocks]
    assert max(sizes, default=0) - min(sizes, default=0) <= 1
    if sets >= 50 * 6 and wanted > 1:
        assert len(blocks) % multiple == 0


def test_every_number_of_components_of_one_fit():
    rng = np.random.default_rng(0)
    X, X_test, Y = rng.normal(size=(30, 50)), rng.normal(size=(9, 50)), rng.normal(size=(3, 30, 7))
    grid = [3, 1, 40, 12]
    found = PLSMapping().fit_predict_grid(X, Y, X_test, grid)
    for count, predicted in zip(grid, found, strict=True):
        require_close(predicted, PLSMapping(count).fit_predict_many(X, Y, X_test), 1e-12)


def test_animals_together_are_each_alone():
    rng = np.random.default_rng(0)
    X, X_test = rng.normal(size=(20, 30)), rng.normal(size=(6, 30))
    groups = [rng.normal(size=(sets, 20, neurons)) for sets, neurons in ((3, 5), (1, 12), (4, 1))]
    together = PLSMapping(8).fit_predict_groups(X, groups, X_test)
    for found, Y in zip(together, groups, strict=True):
        require_close(found, PLSMapping(8).fit_predict_many(X, Y, X_test), 1e-9)


def test_splits_in_coordinates_are_fits_to_the_features():
    rng = np.random.default_rng(0)
    features, responses = rng.normal(size=(40, 3000)).astype(np.float32), rng.normal(size=(2, 40, 6))
    splits = [(order[:20], order[20:]) for order in (rng.permutation(40), rng.permutation(40))]
    found = predict_splits(PLSMapping(10), sample_coordinates(features), responses, splits)
    for predicted, (train, test) in zip(found, splits, strict=True):
        for one, set_responses in zip(predicted, responses, strict=True):
            require_close(one, scikit_learn(features[train], set_responses[train], features[test], 10))


@pytest.mark.parametrize("decades", [3, 7])
def test_features_of_very_different_strength(decades):
    rng = np.random.default_rng(decades)
    X, X_test = (rng.normal(size=(rows, 80)) * 10.0 ** -np.linspace(0, decades, 80) for rows in (59, 20))
    Y = X @ rng.normal(size=(80, 35))
    Y += 0.3 * Y.std() * rng.normal(size=Y.shape)
    require_close(PLSMapping(25).fit_predict_many(X, Y[None], X_test)[0], scikit_learn(X, Y, X_test, 25), 1e-9)


def test_no_neurons_and_no_sets():
    X = np.random.default_rng(0).normal(size=(8, 4))
    assert PLSMapping(2).fit_predict_many(X, np.zeros((3, 8, 0)), X).shape == (3, 8, 0)
    assert PLSMapping(2).fit_predict_many(X, np.zeros((0, 8, 2)), X).shape == (0, 8, 2)


def test_responses_that_are_used_up_early():
    """Two components explain these responses; the others have nothing to explain and must not disturb."""
    rng = np.random.default_rng(0)
    orthonormal = np.linalg.qr(np.column_stack([np.ones(30), rng.normal(size=(30, 10))]))[0][:, 1:]
    Y = orthonormal[:, :2] @ rng.normal(size=(2, 5))
    require_close(PLSMapping(9).fit(orthonormal, Y).predict(orthonormal), Y, 1e-9)


@settings(deadline=None, max_examples=40)
@given(unit=st.integers(-9, 9), response_unit=st.integers(-9, 9), seed=st.integers(0, 100))
def test_units_do_not_matter(unit, response_unit, seed):
    X, Y, X_test = correlated(np.random.default_rng(seed), 20, 30, 4, 30)
    expected = PLSMapping(8).fit(X, Y).predict(X_test)
    found = PLSMapping(8).fit(X * 10.0**unit, Y * 10.0**response_unit).predict(X_test * 10.0**unit)
    require_close(found / 10.0**response_unit, expected)


def test_rotations_and_shifts_of_the_features_do_not_matter():
    rng = np.random.default_rng(0)
    X, Y, X_test = correlated(rng, 20, 12, 4, 12)
    turn = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    expected = PLSMapping(5).fit(X, Y).predict(X_test)
    require_close(PLSMapping(5).fit(X @ turn + 7, Y).predict(X_test @ turn + 7), expected, 1e-9)


def test_enough_components_are_least_squares():
    X, Y, X_test = correlated(np.random.default_rng(0), 40, 6, 3, 6)
    with_one = np.column_stack([X, np.ones(40)])
    expected = np.column_stack([X_test, np.ones(5)]) @ np.linalg.lstsq(with_one, Y, rcond=None)[0]
    require_close(PLSMapping(25).fit(X, Y).predict(X_test), expected, 1e-9)


def test_noise_free_responses_are_predicted_exactly():
    rng = np.random.default_rng(0)
    X, X_test, readout = rng.normal(size=(30, 8)), rng.normal(size=(9, 8)), rng.normal(size=(8, 20))
    require_close(PLSMapping(25).fit(X, X @ readout).predict(X_test), X_test @ readout, 1e-9)


def test_what_does_not_vary_predicts_the_mean():
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(10, 4)), rng.normal(size=(10, 3))
    np.testing.assert_allclose(PLSMapping(3).fit(np.ones((10, 4)), Y).predict(X), np.tile(Y.mean(0), (10, 1)))
    np.testing.assert_allclose(PLSMapping(3).fit(X, np.full((10, 3), 2.5)).predict(X), np.full((10, 3), 2.5))
    Y[:, 1] = 4.0
    np.testing.assert_allclose(PLSMapping(3).fit(X, Y).predict(X)[:, 1], 4.0)


def test_equal_strongest_directions_are_resolved():
    """Two responses that follow two orthogonal features equally: which comes first is open, both together are not."""
    orthonormal = np.linalg.qr(np.column_stack([np.ones(12), np.random.default_rng(0).normal(size=(12, 6))]))[0][:, 1:]
    X, Y = orthonormal, orthonormal[:, :2] * 3
    require_close(PLSMapping(2).fit(X, Y).predict(X), Y, 1e-9)
    one = PLSMapping(1).fit(X, Y).predict(X)
    assert np.isfinite(one).all()
    assert np.linalg.norm(one) == pytest.approx(3, rel=1e-9)


@pytest.mark.parametrize(
    ("X", "Y", "line"),
    [
        (np.ones((3, 2)), np.ones((4, 2)), r"same 2 or more stimuli, found \(3, 2\) and \(4, 2\)"),
        (np.ones((1, 2)), np.ones((1, 2)), "same 2 or more stimuli"),
        (np.ones(3), np.ones((3, 2)), "same 2 or more stimuli"),
        (np.full((3, 2), np.nan), np.ones((3, 2)), "NaN or infinite values; leave out"),
        (np.ones((3, 2)), np.full((3, 2), np.inf), "NaN or infinite values; leave out"),
    ],
)
def test_what_cannot_be_fitted_is_one_line(X, Y, line):
    with pytest.raises(ValueError, match=line):
        PLSMapping(2).fit(X, Y)


@pytest.mark.parametrize(
    ("Y", "X_test", "line"),
    [
        (np.ones((4, 2)), np.ones((3, 2)), r"Y \(sets, stimuli, neurons\) .* found \(4, 2\) and \(4, 2\)"),
        (np.ones((1, 5, 2)), np.ones((3, 2)), r"same 2 or more stimuli, found \(4, 2\) and \(1, 5, 2\)"),
        (np.ones((1, 4, 2)), np.ones((3, 7)), r"X_test must be \(tests, 2 features\) as X is, found \(3, 7\)"),
    ],
)
def test_sets_that_cannot_be_fitted_are_one_line(Y, X_test, line):
    with pytest.raises(ValueError, match=line):
        PLSMapping(2).fit_predict_many(np.ones((4, 2)), Y, X_test)


def test_components_must_be_one_or_more():
    with pytest.raises(ValueError, match="n_components must be at least 1, found 0"):
        PLSMapping(0)


def test_nan_in_a_later_set_is_refused():
    Y = np.random.default_rng(0).normal(size=(3, 8, 2))
    Y[2, 1, 0] = np.nan
    X = np.random.default_rng(1).normal(size=(8, 4))
    with pytest.raises(ValueError, match="NaN or infinite"):
        PLSMapping(2).fit_predict_many(X, Y, X)


@pytest.mark.parametrize("mapping", [PLSMapping(4), RidgeMapping(), OneToOneMapping()])
def test_sets_with_features_of_their_own_are_those_fitted_one_by_one(mapping):
    rng = np.random.default_rng(0)
    x, x_test = rng.normal(size=(5, 20, 8)), rng.normal(size=(5, 7, 8))
    y = rng.normal(size=(5, 20, 3)) + x[:, :, :3]
    found = fit_predict_sets(mapping, x, y, x_test)
    for i in range(5):
        np.testing.assert_allclose(found[i], mapping.fit(x[i], y[i]).predict(x_test[i]), atol=1e-10)
    with pytest.raises(ValueError, match="a mapping needs X"):
        mapping.fit_predict_many(x[:4], y, x_test[:4])


def test_spaces_that_are_remembered_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    splits = [(rng.normal(size=(20, 30)), rng.normal(size=(8, 30))) for _ in range(3)]
    y = rng.normal(size=(4, 20, 5))
    expected = [PLSMapping(4).fit_predict_many(x, y, x_test) for x, x_test in splits]
    calls, original = [], mapping_module.train_space
    monkeypatch.setattr(mapping_module, "train_space", lambda *given: calls.append(1) or original(*given))
    monkeypatch.setattr(mapping_module, "SPACES_REMEMBERED", 2)
    mapping = PLSMapping(4)
    for place in (0, 1, 0, 1, 2, 1, 0):
        np.testing.assert_array_equal(mapping.fit_predict_many(splits[place][0], y, splits[place][1]), expected[place])
    assert len(calls) == 4, "0, 1, 2, and 0 again, which had made room for 2"
    monkeypatch.setattr(mapping_module, "LARGEST_REMEMBERED", 0)
    mapping.fit_predict_many(splits[1][0], y, splits[1][1])
    assert len(calls) == 5
