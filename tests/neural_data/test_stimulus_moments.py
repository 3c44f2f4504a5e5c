"""What all estimates share: moments beside numpy's, weights beside stimuli that stand several times, blocks, errors."""

import functools
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_data import stimulus_moments as module
from neural_data.explainable_variance import (
    anscombe_snr,
    explainable_fraction,
    explainable_variance,
    feve,
    noise_variance,
    total_variance,
)
from neural_data.oracle import oracle_conservative, oracle_jackknife
from neural_data.reliability import split_half_reliability
from neural_data.signal_power import (
    cc_abs,
    cc_max,
    cc_norm,
    noise_power,
    signal_power,
    single_trial_ceiling,
    unbiased_r_squared,
)
from neural_data.stimulus_moments import centre, stimulus_moments

OF_RESPONSES = (
    noise_variance,
    total_variance,
    explainable_variance,
    explainable_fraction,
    anscombe_snr,
    oracle_jackknife,
    oracle_conservative,
    signal_power,
    noise_power,
    cc_max,
    single_trial_ceiling,
)
OF_PREDICTIONS = (functools.partial(feve, least_fraction=None), cc_abs, cc_norm, unbiased_r_squared)
# Where presentations are missing these take off offsets of repeats, which are not those of a resample.
OF_OFFSETS = (signal_power, noise_power, cc_max, single_trial_ceiling, cc_norm, unbiased_r_squared)
SPLIT_HALF = functools.partial(split_half_reliability, halvings=5)


def counts(rng, repeats=5, stimuli=9, neurons=4):
    """Poisson counts of tuned neurons, and predictions that differ between repeats."""
    rates = rng.gamma(2, 2, size=(stimuli, neurons))
    return rng.poisson(rates, (repeats, stimuli, neurons)).astype(float), rates + rng.normal(size=(repeats, 1, 1))


def test_moments_are_numpys():
    rng = np.random.default_rng(0)
    responses = rng.normal(size=(6, 5, 3)) + 1e3
    responses[2:, 1, 0] = responses[1:, 4, 2] = np.nan
    m = stimulus_moments(responses)
    np.testing.assert_array_equal(m.number, np.where(np.arange(5)[:, None] == [1, -1, -1], 2, 6) * m.used)
    assert not m.used[4, 2]
    known = np.where(m.used, responses, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.nanmean(known, axis=0) - np.nanmean(known, axis=(0, 1)), np.nanvar(known, axis=0, ddof=1)
    np.testing.assert_allclose(m.mean[m.used], expected[0][m.used], atol=1e-9)
    np.testing.assert_allclose(m.variance[m.used], expected[1][m.used], atol=1e-9)
    np.testing.assert_array_equal(m.complete, [False, True, False])
    for quantity in (m.number, m.mean, m.scatter, m.variance):
        assert quantity[4, 2] == 0


def test_equal_values_are_centred_to_exactly_zero():
    values = np.full((10, 3), 0.1)
    present = np.ones((10, 3), bool)
    present[0, 1] = False
    assert (centre(values, present) == 0).all()


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**31), missing=st.booleans())
def test_weights_count_stimuli_in_every_estimate(seed, missing):
    rng = np.random.default_rng(seed)
    responses, predictions = counts(rng)
    if missing:
        responses[3:, 0] = responses[1, 2, 1] = responses[:4, 5, 2] = np.nan
    # Each once at least, so that no neuron lacks every response in a repeated array.
    weights = 1 + rng.multinomial(9, np.full(9, 1 / 9), size=3)
    for estimate in (*OF_RESPONSES, *OF_PREDICTIONS, SPLIT_HALF):
        data = (responses, predictions) if estimate in OF_PREDICTIONS else (responses,)
        found = estimate(*data, weights=weights)
        assert found.shape == (3, 4)
        if missing and estimate in OF_OFFSETS:
            continue
        for row, count in zip(found, weights, strict=True):
            expected = estimate(*(np.repeat(array, count, axis=1) for array in data))
            np.testing.assert_allclose(row, expected, rtol=1e-8, atol=1e-10, err_msg=str(estimate))


@pytest.mark.parametrize("estimate", [*OF_RESPONSES, *OF_PREDICTIONS])
@pytest.mark.parametrize("weighted", [False, True])
def test_blocks_of_neurons_change_nothing(monkeypatch, estimate, weighted):
    responses, predictions = counts(np.random.default_rng(0))
    responses[1, 2, 1] = np.nan
    data = (responses, predictions) if estimate in OF_PREDICTIONS else (responses,)
    weights = np.random.default_rng(2).multinomial(9, np.full(9, 1 / 9), size=4) if weighted else None
    whole = estimate(*data, weights=weights)
    monkeypatch.setattr(module, "BLOCK_BYTES", 1)
    np.testing.assert_allclose(estimate(*data, weights=weights), whole, rtol=1e-10)


@pytest.mark.parametrize("estimate", [*OF_RESPONSES, *OF_PREDICTIONS])
def test_offset_and_scale_and_dtype_are_no_matter(estimate):
    responses, predictions = counts(np.random.default_rng(0))
    data = (responses, predictions) if estimate in OF_PREDICTIONS else (responses,)
    found = estimate(*data)
    np.testing.assert_allclose(estimate(*(array.astype(np.float32) for array in data)), found, rtol=1e-4)
    if estimate is anscombe_snr:
        return
    power = 4 if estimate in (noise_variance, total_variance, explainable_variance, signal_power, noise_power) else 1
    np.testing.assert_allclose(estimate(*(2 * array + 1000 for array in data)), power * found, rtol=1e-8)


@pytest.mark.parametrize("estimate", [*OF_RESPONSES, *OF_PREDICTIONS])
def test_what_never_varies_is_undefined_or_zero_without_a_warning(estimate):
    """Also in resamples that leave out the one stimulus that a sparse neuron answers to."""
    responses = np.full((4, 6, 2), 0.1)
    responses[:, 3, 1] = np.random.default_rng(0).random(4) + 5
    data = (responses, responses[0] * 3) if estimate in OF_PREDICTIONS else (responses,)
    weights = np.ones((2, 6))
    weights[1, 3] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, resampled = estimate(*data), estimate(*data, weights=weights)
    np.testing.assert_allclose(resampled[0], found, rtol=1e-9)
    is_power = estimate in (noise_variance, total_variance, explainable_variance, signal_power, noise_power)
    for value in (found[0], *resampled[:, 0], resampled[1, 1]):
        assert value == 0 if is_power else np.isnan(value)
    assert np.isfinite(found[1])


@pytest.mark.parametrize("estimate", [*OF_RESPONSES, *OF_PREDICTIONS, SPLIT_HALF])
def test_a_stimulus_seen_once_is_refused(estimate):
    responses, predictions = counts(np.random.default_rng(0))
    responses[1:, 2] = np.nan
    data = (responses, predictions) if estimate in OF_PREDICTIONS else (responses,)
    with pytest.raises(ValueError, match=r"stimuli 2 \(1 in all\) have fewer than 2 repeats; leave them out"):
        estimate(*data)


def test_a_stimulus_that_one_neuron_saw_once_is_left_out_for_it():
    responses, predictions = counts(np.random.default_rng(0))
    responses[1:, 2, 0] = np.nan
    without = np.delete(responses, 2, axis=1), np.delete(predictions, 2, axis=1)
    for estimate in (*OF_RESPONSES, *OF_PREDICTIONS):
        n = 2 if estimate in OF_PREDICTIONS else 1
        found = estimate(*(responses, predictions)[:n])[0]
        np.testing.assert_allclose(found, estimate(*without[:n])[0], rtol=1e-9, err_msg=str(estimate))


def test_shapes_that_do_not_match_are_refused():
    responses, predictions = counts(np.random.default_rng(0))
    with pytest.raises(
        ValueError, match=r"predictions have shape \(4, 9, 4\), expected \(stimuli, neurons\) = \(9, 4\)"
    ):
        cc_norm(responses, predictions[1:])
    with pytest.raises(ValueError, match=r"weights have shape \(2, 8\), expected \(resamples, 9 stimuli\)"):
        cc_max(responses, weights=np.ones((2, 8)))
    with pytest.raises(ValueError, match=r"weights have shape \(2, 8\), expected \(resamples, 9 stimuli\)"):
        split_half_reliability(responses, 3, weights=np.ones((2, 8)))
    with pytest.raises(ValueError, match="1 infinite values"):
        cc_max(np.where(np.arange(responses.size).reshape(responses.shape) == 7, np.inf, responses))
