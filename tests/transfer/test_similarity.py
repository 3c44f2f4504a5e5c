"""RSA and CKA: the published values, plain loops over numpy, known answers, and many sets at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import transfer.similarity
from neural_data.reliability import halves, spearman_brown
from transfer.sample_space import sample_coordinates
from transfer.similarity import cka, dissimilarities, rsa, rsa_of_dissimilarities


def plain_rsa(first: np.ndarray, second: np.ndarray) -> float:
    upper = np.triu_indices(len(first), k=1)
    return np.corrcoef((1 - np.corrcoef(first))[upper], (1 - np.corrcoef(second))[upper])[0, 1]


def hsic(K: np.ndarray, L: np.ndarray) -> float:
    """The unbiased estimator as Song et al. (2012), equation 5, and Nguyen et al. (2021), equation 3, print it."""
    n = len(K)
    K, L = K - np.diag(np.diag(K)), L - np.diag(np.diag(L))
    one = np.ones(n)
    first = np.trace(K @ L) + (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2))
    return (first - 2 / (n - 2) * (one @ K @ L @ one)) / (n * (n - 3))


def test_published_rsa(mouse_vision):
    values = np.load(mouse_vision / "neural" / "mappers.npz")
    np.testing.assert_allclose(dissimilarities(values["X"][:10]), values["rdm_X"], rtol=0, atol=1e-12)
    assert rsa(values["X"], values["Y"]) == pytest.approx(float(values["rsa_X_Y"]), abs=1e-12)
    assert rsa(values["Xt"], values["Yt"]) == pytest.approx(float(values["score_identity_rsa"]), abs=1e-12)


def test_published_score_of_representations(mouse_vision):
    """The noise-corrected score with r replaced by RSA on the test images, which needs no mapping."""
    values = np.load(mouse_vision / "neural" / "noise_estimation.npz")
    test, features = values["test_idx"], values["features"]
    for seed, expected in enumerate(values["out_model_identity_rsa_denominator"]):
        first, second = halves(values["target"], seed)
        reliability = spearman_brown(rsa(first[test], second[test]))
        # The mapped features of both halves are the features: they agree perfectly.
        assert rsa(features[test], second[test]) / np.sqrt(reliability) == pytest.approx(expected, abs=1e-8)


@settings(deadline=None, max_examples=40)
@given(
    stimuli=st.integers(4, 10), neurons=st.integers(2, 12), others=st.integers(2, 12),
    offset=st.sampled_from([0.0, 1e5]), block=st.integers(1, 12), seed=st.integers(0, 99),
)  # fmt: skip
def test_many_sets_are_plain_loops(stimuli, neurons, others, offset, block, seed):
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(3, stimuli, neurons)) + offset
    second = rng.normal(size=(stimuli, others))
    before = transfer.similarity.BLOCK_FEATURES
    try:
        transfer.similarity.BLOCK_FEATURES = block
        found = {"rsa": rsa(first, second), "cka": cka(first, second), "unbiased": cka(first, second, unbiased=True)}
    finally:
        transfer.similarity.BLOCK_FEATURES = before
    # Of two neurons, stimuli correlate by 1 or -1, and their dissimilarities may not vary.
    if min(neurons, others) > 2:
        np.testing.assert_allclose(found["rsa"], [plain_rsa(one, second) for one in first], atol=1e-7)
    b = second - second.mean(0)
    for number, one in enumerate(first - first.mean(1, keepdims=True)):
        cross = np.linalg.norm(b.T @ one) ** 2 / (np.linalg.norm(one.T @ one) * np.linalg.norm(b.T @ b))
        assert found["cka"][number] == pytest.approx(cross, abs=1e-8)
        K, L = one @ one.T, second @ second.T
        assert found["unbiased"][number] == pytest.approx(hsic(K, L) / np.sqrt(hsic(K, K) * hsic(L, L)), abs=1e-7)


def test_what_each_is_blind_to():
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(20, 15)), rng.normal(size=(20, 8))
    turned = X @ np.linalg.qr(rng.normal(size=(15, 15)))[0] * 3 + 7
    for unbiased in (False, True):
        assert cka(X, turned, unbiased) == pytest.approx(1)
        assert cka(sample_coordinates(X), Y, unbiased) == pytest.approx(float(cka(X, Y, unbiased)))
    moved = X * rng.uniform(0.5, 2, (20, 1)) + rng.normal(size=(20, 1))
    assert rsa(X, moved) == pytest.approx(1)


def test_unbiased_is_zero_on_average_for_strangers():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(300, 12, 200)), rng.normal(size=(300, 12, 200))
    assert cka(first, second).mean() > 0.8
    assert abs(cka(first, second, unbiased=True).mean()) < 0.02


def test_dissimilarities_of_a_subset_are_a_part():
    rng = np.random.default_rng(0)
    X, Y, rows = rng.normal(size=(20, 30)), rng.normal(size=(4, 20, 9)), rng.permutation(20)[:8]
    part = dissimilarities(X)[np.ix_(rows, rows)]
    np.testing.assert_allclose(rsa_of_dissimilarities(part, dissimilarities(Y[:, rows])), rsa(X[rows], Y[:, rows]))


@pytest.mark.filterwarnings("error")
def test_a_stimulus_that_all_neurons_answer_alike():
    X = np.random.default_rng(0).normal(size=(6, 5))
    # The mean of equal numbers is not always that number.
    for neurons in range(3, 60):
        Y = np.random.default_rng(1).normal(size=(6, neurons))
        Y[2] = 0.7
        assert np.isnan(rsa(X, Y))
    assert np.isnan(cka(X, np.ones((6, 3))))


@pytest.mark.parametrize(
    ("measure", "first", "second", "line"),
    [
        (rsa, np.ones((4, 2)), np.ones((5, 2)), r"same 3 or more stimuli, found \(4, 2\) and \(5, 2\)"),
        (rsa, np.ones((2, 2)), np.ones((2, 2)), "same 3 or more stimuli"),
        (cka, np.ones(4), np.ones((4, 2)), "same 2 or more stimuli"),
        (rsa, np.full((4, 2), np.nan), np.ones((4, 2)), "NaN or infinite"),
        (cka, np.ones((4, 2)), np.full((4, 2), np.nan), "NaN or infinite"),
    ],
)
def test_what_cannot_be_compared_is_one_line(measure, first, second, line):
    with pytest.raises(ValueError, match=line):
        measure(first, second)


def test_unbiased_needs_four_stimuli():
    with pytest.raises(ValueError, match="same 4 or more stimuli"):
        cka(np.eye(3), np.eye(3), unbiased=True)
