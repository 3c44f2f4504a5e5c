"""Random projections: scikit-learn's own, in blocks, with the error that they are said to have."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from sklearn.random_projection import GaussianRandomProjection, SparseRandomProjection

import transfer.random_projection
from transfer.random_projection import KINDS, project_block, random_projection


def stimulus_features(stimuli: int = 30, features: int = 6000) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(stimuli, features)).astype(np.float32) + 3


@pytest.mark.parametrize("kind", KINDS)
def test_one_block_is_scikit_learns(kind):
    values = stimulus_features(10, 500).astype(np.float64)
    found = random_projection(values, 40, kind, seed=3)
    state = np.random.RandomState(np.random.SeedSequence((3, 0)).generate_state(4))
    scikit_learn = {"gaussian": GaussianRandomProjection, "sparse": SparseRandomProjection}[kind]
    expected = scikit_learn(40, random_state=state).fit_transform(values)
    np.testing.assert_allclose(found.features, expected - expected.mean(0), atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_distortion_is_that_of_the_distances(kind):
    values = stimulus_features()
    found = random_projection(values, 700, kind)
    error = np.abs(pdist(found.features, "sqeuclidean") / pdist(values, "sqeuclidean") - 1)
    assert found.mean_distortion == pytest.approx(error.mean(), rel=1e-6)
    assert found.max_distortion == pytest.approx(error.max(), rel=1e-6)
    # Of Gaussian projections d'^2 / d^2 is chi-squared over 700: its mean absolute error is sqrt(2 / 700 * 2 / pi).
    assert found.mean_distortion == pytest.approx(np.sqrt(2 / 700 * 2 / np.pi), rel=0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_from_disk_are_as_good_as_one(kind, tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", stimulus_features())
    values = np.load(tmp_path / "x.npy", mmap_mode="r")
    monkeypatch.setattr(transfer.random_projection, "BLOCK_NUMBERS", 700 * 900)
    found = random_projection(values, 700, kind)
    assert found.features.shape == (30, 700)
    assert found.mean_distortion == pytest.approx(np.sqrt(2 / 700 * 2 / np.pi), rel=0.2)
    np.testing.assert_array_equal(random_projection(values, 700, kind).features, found.features)
    assert not np.array_equal(random_projection(values, 700, kind, seed=1).features, found.features)


def test_the_density_of_a_block_is_that_of_all_features():
    matrix = project_block(np.eye(200), "sparse", components=400, features=10_000, seed=(0, 0))
    assert np.mean(matrix != 0) == pytest.approx(0.01, rel=0.1)


def test_auto_keeps_the_promise_of_the_lemma():
    found = random_projection(stimulus_features(20, 3000), "auto", eps=0.2)
    assert found.features.shape == (20, 691)
    assert 0 < found.mean_distortion < found.max_distortion < 0.2


def test_equal_stimuli_stay_together():
    values = stimulus_features(5, 400)
    values[3] = values[1]
    found = random_projection(values, 100)
    np.testing.assert_allclose(found.features[3], found.features[1], atol=1e-9)
    assert found.max_distortion < 1
    same = random_projection(np.ones((3, 400)), 100)
    assert same.mean_distortion == same.max_distortion == 0


@pytest.mark.parametrize(
    ("values", "keys", "line"),
    [
        (np.ones((3, 50)), {"components": 10, "kind": "dense"}, "kind must be one of gaussian, sparse, found 'dense'"),
        (np.ones((1, 50)), {"components": 10}, "distances between stimuli, found 1 stimuli"),
        (np.ones((3, 50)), {"components": 50}, "50 components needs more features than that, found 50"),
        (np.ones((3, 50)), {}, "components needs more features than that, found 50"),
        (np.ones((3, 50)), {"components": 0}, "0 components"),
        (np.full((3, 50), np.nan), {"components": 10}, "NaN or infinite"),
    ],
)
def test_what_cannot_be_projected_is_one_line(values, keys, line):
    with pytest.raises(ValueError, match=line):
        random_projection(values, **keys)
