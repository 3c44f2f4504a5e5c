"""Oracles: the published values, loops over presentations, and what they tend to."""

import json

import numpy as np
import pytest

from neural_data.correlation import pearson
from neural_data.oracle import oracle_conservative, oracle_jackknife
from tests.neural_data.published_repeats import equal_repeats, load, unequal_repeats

SOURCES = pytest.mark.parametrize("source", [equal_repeats, unequal_repeats])


def pairs(responses):
    """Each presentation of one neuron, and the mean over the other presentations of its stimulus."""
    response, others = [], []
    for stimulus in responses.T:
        known = stimulus[~np.isnan(stimulus)]
        response += list(known)
        others += [np.delete(known, k).mean() for k in range(len(known))]
    return np.array(response), np.array(others)


def with_epsilon(a, b):
    """The published correlation, which adds 1e-8 to standard deviations."""
    a, b = ((x - x.mean()) / (x.std() + 1e-8) for x in (a, b))
    return (a * b).mean()


@SOURCES
def test_published_jackknife(shared, source):
    responses, _, published = source(shared)
    found = oracle_jackknife(responses)
    np.testing.assert_allclose(found, published["oracle_jackknife"], rtol=0, atol=2e-8)
    for n, value in enumerate(published["oracle_jackknife"]):
        one = pairs(responses[:, :, n])
        np.testing.assert_allclose(with_epsilon(*one), value, rtol=0, atol=1e-12)
        np.testing.assert_allclose(found[n], pearson(*one), rtol=0, atol=1e-12)


def test_jackknife_of_another_program(shared):
    stored = load(shared, "openretina")
    found = oracle_jackknife(stored["in/responses"].transpose(1, 0, 2))
    np.testing.assert_allclose(found, stored["out/jackknife"], rtol=0, atol=2e-8)


@SOURCES
def test_published_conservative(shared, source):
    responses, _, published = source(shared)
    np.testing.assert_allclose(oracle_conservative(responses), published["oracle_conservative"], rtol=0, atol=1e-12)


def test_published_oracles_of_frames(shared):
    """Float32, and 0 for the silent neuron's jackknife; the stored trials are six clips of five repeats."""
    folder = shared / "reference/values/video/metrics"
    published = json.loads((folder / "reference.json").read_text())
    with np.load(folder / "trials.npz", allow_pickle=False) as stored:
        trials = stored["y_true"][..., published["skip"] :]
    responses = trials.reshape(6, 5, 7, -1).transpose(1, 0, 3, 2).reshape(5, -1, 7)
    jackknife = published["oracle_corr_jackknife per neuron (each frame = image, 5 repeats)"]
    np.testing.assert_allclose(np.nan_to_num(oracle_jackknife(responses)), jackknife, rtol=0, atol=2e-6)
    conservative = published["oracle_corr_conservative per neuron"]
    np.testing.assert_allclose(oracle_conservative(responses), conservative, rtol=0, atol=2e-6)


@pytest.mark.parametrize("repeats", [2, 5, 20])
def test_what_the_oracles_tend_to(repeats):
    """Signal variance 1 and noise variance 2, over very many stimuli."""
    rng = np.random.default_rng(0)
    responses = rng.normal(size=(1, 100_000, 4)) + np.sqrt(2) * rng.normal(size=(repeats, 100_000, 4))
    low = 1 / np.sqrt(3 * (1 + 2 / (repeats - 1)))
    high = np.sqrt((1 + 2 / repeats) / 3)
    assert low < np.sqrt(1 / 3) < high
    np.testing.assert_allclose(oracle_jackknife(responses), low, atol=0.01)
    np.testing.assert_allclose(oracle_conservative(responses), high, atol=0.01)
