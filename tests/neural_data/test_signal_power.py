"""Signal power and normalised correlation: the published values, the formulas as printed, and drift."""

import numpy as np
import pytest

from neural_data.correlation import pearson
from neural_data.signal_power import (
    cc_abs,
    cc_max,
    cc_norm,
    noise_power,
    signal_power,
    single_trial_ceiling,
    unbiased_r_squared,
)
from neural_data.stimulus_moments import without_offsets
from tests.neural_data.published_repeats import equal_repeats


def test_published_powers_and_correlations(shared):
    responses, predictions, published = equal_repeats(shared)
    signal, noise = signal_power(responses), noise_power(responses)
    found = {
        "SP": signal,
        "TP": signal + noise,
        "cc_abs": cc_abs(responses, predictions),
        "cc_max": cc_max(responses),
        "cc_norm": cc_norm(responses, predictions),
    }
    assert np.isnan(found["cc_norm"]).any()
    for name, values in found.items():
        np.testing.assert_allclose(values, published[f"schoppe_{name}"], rtol=1e-10, err_msg=name)


def tuned(rng, repeats=6, stimuli=40, neurons=5):
    return 2 * rng.normal(size=(stimuli, neurons)) + rng.normal(size=(repeats, stimuli, neurons))


def test_signal_power_is_the_mean_covariance_of_pairs_of_repeats():
    responses = tuned(np.random.default_rng(0))
    for n, found in enumerate(signal_power(responses)):
        covariance = np.cov(responses[:, :, n])
        np.testing.assert_allclose(found, covariance[~np.eye(6, dtype=bool)].mean(), rtol=1e-10)


def test_ceilings_follow_from_the_powers():
    responses = tuned(np.random.default_rng(0))
    signal, noise = signal_power(responses), noise_power(responses)
    np.testing.assert_allclose(cc_max(responses) ** 2, signal / (signal + noise / 6))
    np.testing.assert_allclose(single_trial_ceiling(responses) ** 2, signal / (signal + noise))
    # Cronbach's alpha of the repeats
    alpha = 6 / 5 * (1 - responses.var(axis=1, ddof=1).sum(axis=0) / responses.sum(axis=0).var(axis=0, ddof=1))
    np.testing.assert_allclose(cc_max(responses) ** 2, alpha)


def test_normalised_correlation_is_the_ratio():
    responses = tuned(np.random.default_rng(0))
    predictions = responses.mean(axis=0) + np.random.default_rng(1).normal(size=(40, 5))
    found = cc_abs(responses, predictions)
    np.testing.assert_allclose(found, pearson(responses.mean(axis=0), predictions))
    np.testing.assert_allclose(cc_norm(responses, predictions), found / cc_max(responses))
    chance = noise_power(responses) / (6 * 39 * signal_power(responses))
    expected = cc_norm(responses, predictions) ** 2 - chance
    np.testing.assert_allclose(unbiased_r_squared(responses, predictions), expected)


def test_predictions_of_every_repeat_are_averaged_over_those_that_are_present():
    rng = np.random.default_rng(0)
    responses = tuned(rng)
    predictions = responses + rng.normal(size=responses.shape)
    responses[3:, 4] = responses[1, 7, 2] = np.nan
    mean = np.where(np.isnan(responses), np.nan, predictions)
    np.testing.assert_allclose(cc_norm(responses, predictions), cc_norm(responses, np.nanmean(mean, axis=0)))


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_drift_of_whole_repeats_is_no_noise(share):
    rng = np.random.default_rng(0)
    responses = tuned(rng)
    responses[2:][rng.random((4, 40, 5)) < share] = np.nan
    responses[3, :, 0] = np.nan  # a repeat that a neuron lacks altogether
    drifted = responses + np.array([0, 3, 6, 9, 12, -50])[:, None, None]
    np.testing.assert_allclose(noise_power(drifted), noise_power(responses))
    np.testing.assert_allclose(signal_power(drifted), signal_power(responses))


def test_a_missing_presentation_hardly_changes_an_estimate():
    """One of 2,400 moves a neuron to the other formula, which is the same where nothing is missing."""
    responses = tuned(np.random.default_rng(0), stimuli=400) + 3 * np.arange(6)[:, None, None]
    signal, noise = signal_power(responses), noise_power(responses)
    responses[0, 0] = np.nan
    np.testing.assert_allclose(signal_power(responses), signal, rtol=0.01)
    np.testing.assert_allclose(noise_power(responses), noise, rtol=0.01)


def test_offsets_are_those_of_a_linear_model():
    rng = np.random.default_rng(0)
    responses = tuned(rng, repeats=4, stimuli=6, neurons=1)
    responses[1, 2] = responses[3, :3] = np.nan
    repeat, stimulus = np.nonzero(~np.isnan(responses[..., 0]))
    known = responses[repeat, stimulus, 0]
    design = np.concatenate([repeat[:, None] == np.arange(4), stimulus[:, None] == np.arange(6)], axis=1).astype(float)
    fitted = np.linalg.lstsq(design, known)[0]
    counts = np.bincount(stimulus)
    adjusted = np.bincount(stimulus, known - fitted[repeat]) / counts
    variances = np.bincount(stimulus, (known - fitted[repeat] - adjusted[stimulus]) ** 2) / (counts - 1)
    scale = (len(known) - 6) / (len(known) - 6 - 3)
    np.testing.assert_allclose(noise_power(responses), variances.mean() * scale)
    np.testing.assert_allclose(signal_power(responses), adjusted.var(ddof=1) - (variances / counts).mean() * scale)


@pytest.mark.parametrize("repeats", [3, 8])
def test_powers_are_unbiased_with_unequal_repeats(repeats):
    """Two repeats of a third of the stimuli; noise that grows with the response, as that of spikes."""
    rng = np.random.default_rng(0)
    rates = rng.gamma(2, 1, size=(30, 4000))
    responses = rng.poisson(rates, (repeats, *rates.shape)).astype(float)
    responses[2:, ::3] = np.nan
    error = signal_power(responses) - rates.var(axis=0, ddof=1)
    assert abs(error.mean()) < 4 * error.std() / np.sqrt(4000)
    error = noise_power(responses) - rates.mean(axis=0)
    assert abs(error.mean()) < 4 * error.std() / np.sqrt(4000)


def test_resamples_of_a_partial_neuron_keep_its_offsets():
    responses = tuned(np.random.default_rng(0), neurons=1)
    responses[4:, ::2] = np.nan
    counts = np.random.default_rng(1).multinomial(40, np.full(40, 1 / 40))
    adjusted = np.repeat(without_offsets(responses), counts, axis=1)[..., 0]
    number = (~np.isnan(adjusted)).sum(axis=0)
    variances = np.nanvar(adjusted, axis=0, ddof=1) * (160 / 155)  # 200 responses, 40 values, 5 offsets
    noise = noise_power(responses, weights=counts[None])
    np.testing.assert_allclose(noise, [[variances.mean()]])
    signal = np.nanmean(adjusted, axis=0).var(ddof=1) - (variances / number).mean()
    np.testing.assert_allclose(signal_power(responses, weights=counts[None]), [[signal]])


def test_a_failed_prediction_is_nan_for_its_neuron():
    responses = tuned(np.random.default_rng(0))
    predictions = responses.mean(axis=0)
    predictions[3, 1] = np.nan
    for estimate in (cc_abs, cc_norm, unbiased_r_squared):
        for weights in (None, np.ones((1, 40))):
            found = np.atleast_2d(estimate(responses, predictions, weights=weights))
            np.testing.assert_array_equal(np.isnan(found), [[False, True, False, False, False]])


def test_a_little_signal_power_can_be_refused():
    responses = tuned(np.random.default_rng(0))
    signal, predictions = signal_power(responses), responses.mean(axis=0)
    level = np.sort(signal)[2]
    found = cc_norm(responses, predictions, least_signal_power=level)
    np.testing.assert_array_equal(np.isnan(found), signal <= level)
