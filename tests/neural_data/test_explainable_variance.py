"""Explainable variance: the published values, and definitions written out."""

import numpy as np
import pytest

from neural_data.explainable_variance import (
    anscombe_snr,
    explainable_fraction,
    explainable_variance,
    feve,
    noise_variance,
    total_variance,
)
from tests.neural_data.published_repeats import equal_repeats, load, padded, unequal_repeats

SOURCES = pytest.mark.parametrize("source", [equal_repeats, unequal_repeats])


@SOURCES
def test_published_fractions(shared, source):
    responses, predictions, published = source(shared)
    np.testing.assert_allclose(explainable_fraction(responses), published["fev"], rtol=0, atol=1e-12)
    found = feve(responses, predictions, least_fraction=None)
    np.testing.assert_allclose(found, published["feve"], rtol=1e-11)


def test_published_fraction_with_an_epsilon(shared):
    responses, _, published = equal_repeats(shared)
    np.testing.assert_allclose(explainable_fraction(responses), published["explainable_var"], rtol=0, atol=1e-8)


def test_published_snr(shared):
    responses, _, published = equal_repeats(shared)
    np.testing.assert_allclose(anscombe_snr(responses), published["snr"], rtol=1e-12)
    np.testing.assert_allclose(anscombe_snr(responses).mean(), published["snr_mean"], rtol=1e-12)


def test_competition_leaves_out_what_cannot_be_explained(shared):
    """Trials in another order, ids of neurons that are not sorted: as the competition's files have them."""
    stored = load(shared, "competition")
    order, images = np.argsort(stored["in/image_ids"], kind="stable"), stored["in/image_ids"]
    counts = np.unique(images, return_counts=True)[1]
    trial = {index: row for row, index in enumerate(stored["in/sub_trial_idx"])}
    rows = [trial[index] for index in stored["in/trial_idx"][order]]
    neurons, submitted = (np.argsort(stored[f"in/{name}"]) for name in ("neuron_ids", "sub_neuron_ids"))
    responses = padded(stored["in/responses"][order][:, neurons], counts)
    predictions = padded(stored["in/sub_predictions"][rows][:, submitted], counts)
    found = feve(responses, predictions)
    np.testing.assert_allclose(found[~np.isnan(found)], stored["out/feve_per_neuron"], rtol=1e-10)
    np.testing.assert_allclose(np.nanmean(found), stored["out/feve"], rtol=1e-10)
    every = feve(responses, predictions, least_fraction=None)
    np.testing.assert_allclose(every, stored["out/feve_thr0"], rtol=1e-10)
    np.testing.assert_array_equal(np.isnan(found), explainable_fraction(responses) < 0.15)


def test_published_values_that_are_clipped(shared):
    stored = load(shared, "openretina")
    responses, predictions = (stored[f"in/{name}"].transpose(1, 0, 2) for name in ("responses", "predictions"))
    found = explainable_variance(responses)
    np.testing.assert_allclose(np.maximum(found, 1e-9), stored["out/explainable_var"], rtol=1e-10)
    explained = np.clip(feve(responses, predictions, least_fraction=None), 0, 1)
    positive = found > 0
    np.testing.assert_allclose(explained[positive], stored["out/feve"][positive], rtol=1e-6)


def test_variances_are_numpys_with_unequal_repeats():
    rng = np.random.default_rng(0)
    responses = rng.normal(size=(6, 7, 3)) + 50
    responses[4:, 1] = responses[3, 2, 0] = responses[:4, 5, 1] = np.nan
    np.testing.assert_allclose(noise_variance(responses), np.nanvar(responses, axis=0, ddof=1).mean(axis=0))
    np.testing.assert_allclose(total_variance(responses), np.nanvar(responses, axis=(0, 1), ddof=1))


def test_the_mean_over_repeats_explains_all_but_its_noise():
    """A prediction equal for all repeats, given once or for each repeat."""
    rng = np.random.default_rng(0)
    responses = rng.normal(size=(4, 30, 5)) + 2 * rng.normal(size=(30, 5))
    once = rng.normal(size=(30, 5))
    np.testing.assert_allclose(feve(responses, once), feve(responses, np.broadcast_to(once, responses.shape)))
    # MSE of the mean is (R - 1) / R of the noise variance: FEVE exceeds 1, and is not clipped.
    noise, total = noise_variance(responses), total_variance(responses)
    np.testing.assert_allclose(feve(responses, responses.mean(axis=0)), 1 + noise / 4 / (total - noise))


def test_a_failed_prediction_is_nan():
    rng = np.random.default_rng(0)
    responses = rng.normal(size=(4, 10, 3)) + 2 * rng.normal(size=(10, 3))
    predictions = responses.mean(axis=0)
    predictions[:, 1] = np.nan
    np.testing.assert_array_equal(np.isnan(feve(responses, predictions)), [False, True, False])


def test_counts_below_zero_are_refused():
    responses = np.ones((3, 4, 2))
    responses[0, 0, 0] = -0.5
    with pytest.raises(ValueError, match=r"spike counts, 0 or more; the lowest response is -0\.5"):
        anscombe_snr(responses)
