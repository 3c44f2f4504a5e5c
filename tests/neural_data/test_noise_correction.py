"""The corrected score: mouse-vision's values in each mode, its mappings fitted here by scikit-learn."""

import numpy as np
import pytest
from sklearn.cross_decomposition import PLSRegression
from sklearn.linear_model import Ridge

from neural_data.correlation import pearson
from neural_data.halvings import halves_in_order, seeded_orders
from neural_data.noise_correction import noise_corrected

AFTER, DENOMINATOR = "spearman_brown_split_half", "spearman_brown_split_half_denominator"


@pytest.fixture
def published(shared):
    path = shared / "reference/values/mouse_vision/neural/noise_estimation.npz"
    with np.load(path, allow_pickle=False) as stored:
        return dict(stored)


def pls(x, y, x_test):
    return PLSRegression(5, scale=False).fit(x, y).predict(x_test)


def ridge(x, y, x_test):
    return Ridge().fit(x, y).predict(x_test)


def one_to_one(x, y, x_test):
    return x_test[:, pearson(x[:, :, None], y[:, None, :]).argmax(axis=0)]


def dissimilarities(values):
    return (1 - np.corrcoef(values))[np.triu_indices(len(values), 1)]


def correlations(published, mapping, source1, source2, half1, half2):
    """What `noise_corrected` takes, of one halving."""
    train, test = published["train_idx"], published["test_idx"]
    first, second = (mapping(x[train], s[train], x[test]) for x, s in ((source1, half1), (source2, half2)))
    return pearson(first, half2[test]), pearson(first, second), pearson(half1[test], half2[test])


@pytest.mark.parametrize(
    ("stored", "mapping", "mode"),
    [
        ("model_pls_denominator", pls, DENOMINATOR),
        ("model_pls_sb", pls, AFTER),
        ("model_corr_denominator", one_to_one, DENOMINATOR),
        ("model_ridge_denominator", ridge, DENOMINATOR),
        ("animal_pls_denominator", pls, DENOMINATOR),
        ("animal_corr_denominator", one_to_one, DENOMINATOR),
    ],
)
def test_published_scores(published, stored, mapping, mode):
    target_orders, source_orders = seeded_orders(5, 20, 20)
    halves = halves_in_order(published["target"], target_orders)
    if stored.startswith("animal"):
        sources = halves_in_order(published["source"], source_orders)
    else:
        sources = [[published["features"]] * 5] * 2
    each = [correlations(published, mapping, *one) for one in zip(*sources, *halves, strict=True)]
    found = noise_corrected(*np.stack(each, axis=1), mode)
    np.testing.assert_allclose(found, published[f"out_{stored}"], rtol=0, atol=1e-8)


@pytest.mark.parametrize("source", ["model", "animal"])
def test_published_scores_of_dissimilarities(published, source):
    """One number per halving."""
    target_orders, source_orders = seeded_orders(5, 20, 20)
    test = published["test_idx"]
    s1, s2 = halves_in_order(published["target"][:, test], target_orders)
    x1, x2 = halves_in_order(published["source"][:, test], source_orders)
    if source == "model":
        x1 = x2 = np.stack([published["features"][test]] * 5)
    s1, s2, x1, x2 = (np.stack([dissimilarities(half) for half in halves]) for halves in (s1, s2, x1, x2))
    found = noise_corrected(pearson(x1, s2, axis=1), pearson(x1, x2, axis=1), pearson(s1, s2, axis=1))
    np.testing.assert_allclose(found, published[f"out_{source}_identity_rsa_denominator"], rtol=0, atol=1e-8)


def test_published_scores_of_some_source_neurons(published):
    """Three draws of 6 of 12 source neurons; one generator draws neurons, target and source halves in turn."""
    drawn = seeded_orders(5, *(12, 20, 20) * 3)
    scores = np.empty((5, 3, 8))
    for k in range(3):
        neurons, target_orders, source_orders = drawn[3 * k : 3 * k + 3]
        halves = (
            *halves_in_order(published["source"], source_orders),
            *halves_in_order(published["target"], target_orders),
        )
        for i, (x1, x2, s1, s2) in enumerate(zip(*halves, strict=True)):
            some = neurons[i, :6]
            scores[i, k] = noise_corrected(*correlations(published, pls, x1[:, some], x2[:, some], s1, s2))
    np.testing.assert_allclose(scores.reshape(15, 8), published["out_animal_pls_subsample6"], rtol=0, atol=1e-8)


def test_known_values():
    assert noise_corrected(0.5, 0.6, 0.4) == pytest.approx(0.5 / np.sqrt(0.75 * 0.8 / 1.4))
    ratio = 0.4 / np.sqrt(0.6 * 0.4)
    assert noise_corrected(0.4, 0.6, 0.4, AFTER) == pytest.approx(2 * ratio / (1 + ratio))


@pytest.mark.parametrize("repeats", [2, 8])
def test_a_perfect_model_scores_below_one_as_published(repeats):
    """The correlation with half of the repeats is divided by the reliability of all: 1 / sqrt(2 - reliability)."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(50_000, 4))
    half1, half2 = halves_in_order(truth + rng.normal(size=(repeats, 50_000, 4)), np.arange(repeats)[None])
    r = pearson(truth, half2, axis=-2), 1.0, pearson(half1, half2, axis=-2)
    expected = 1 / np.sqrt(2 - repeats / (repeats + 1))
    np.testing.assert_allclose(noise_corrected(*r), expected, atol=0.01)
    np.testing.assert_allclose(noise_corrected(*r, AFTER), 1, atol=0.01)


@pytest.mark.parametrize("mode", [AFTER, DENOMINATOR])
def test_what_has_no_root_is_nan_and_nan_stays(mode):
    r_pp, r_tt = np.array([0.5, -0.5, -0.5, 0, np.nan]), np.array([0.5, 0.5, -0.5, 0.5, 0.5])
    found = noise_corrected(np.full((3, 5), 0.1), r_pp, r_tt, mode)
    assert found.shape == (3, 5)
    np.testing.assert_array_equal(np.isnan(found), np.broadcast_to([False, True, False, True, True], (3, 5)))


def test_another_mode_is_refused():
    with pytest.raises(
        ValueError, match=r"mode must be one of spearman_brown_split_half_denominator, .* found 'bootstr"
    ):
        noise_corrected(0.5, 0.5, 0.5, "bootstrap")
