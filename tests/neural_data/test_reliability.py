"""Reliability: the published values, a slow reference, and Poisson neurons whose truth is known."""

import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_data import reliability
from neural_data.reliability import halves, halves_batch, pearson, spearman_brown, split_half_reliability
from neural_data.simulate import SimulationConfig, simulate


def slow_halves(responses, seed):
    """The rule of `halves`, stimulus by stimulus and neuron by neuron."""
    order = np.random.RandomState(seed).permutation(len(responses))
    half1, half2 = np.full(responses.shape[1:], np.nan), np.full(responses.shape[1:], np.nan)
    for s in range(responses.shape[1]):
        valid = [r for r in order if not np.isnan(responses[r, s]).all()]
        for half, chosen in ((half1, valid[: len(valid) // 2]), (half2, valid[len(valid) // 2 :])):
            for n in range(responses.shape[2]):
                values = [responses[r, s, n] for r in chosen if not np.isnan(responses[r, s, n])]
                half[s, n] = np.mean(values) if values else np.nan
    return half1, half2


@pytest.fixture
def published(shared):
    return np.load(shared / "reference/values/mouse_vision/neural/noise_estimation.npz")


def test_published_reliability_of_each_halving(published):
    half1, half2 = halves_batch(published["target"], 30)
    each = spearman_brown(pearson(half1, half2, axis=1))
    np.testing.assert_allclose(each, published["split_half_raw_perseed"], rtol=0, atol=1e-12)
    mean = split_half_reliability(published["target"], 30)
    np.testing.assert_allclose(mean, published["split_half_raw_perseed"].mean(axis=0), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("data", "stored"), [("target", "split_half_mean"), ("target_nan", "split_half_nan_mean")])
def test_published_reliability_with_other_halvings(published, shared, data, stored):
    """The stored means come from one generator for all halvings: they agree within the spread over halvings."""
    values = json.loads((shared / "reference/values/mouse_vision/neural/neural.json").read_text())
    np.testing.assert_allclose(values[stored], published[stored], atol=1e-12)
    error = np.abs(split_half_reliability(published[data], 30) - values[stored])
    assert (error < 4 * published[stored.replace("mean", "std")] * np.sqrt(2 / 30)).all()


def test_published_permutation_makes_the_halves(shared):
    values = json.loads((shared / "reference/values/mouse_vision/neural/neural.json").read_text())
    order = values["seed0_trial_permutation_T20"]
    responses = np.random.default_rng(0).normal(size=(20, 4, 3))
    half1, half2 = halves(responses, 0)
    np.testing.assert_allclose(half1, responses[order[:10]].mean(axis=0))
    np.testing.assert_allclose(half2, responses[order[10:]].mean(axis=0))


@settings(deadline=None, max_examples=60)
@given(
    repeats=st.integers(2, 9),
    stimuli=st.integers(1, 6),
    neurons=st.integers(1, 4),
    share=st.floats(0, 0.6),
    seed=st.integers(0, 2**31),
    whole=st.booleans(),
)
def test_halves_follow_the_slow_rule(repeats, stimuli, neurons, share, seed, whole):
    rng = np.random.default_rng(seed)
    responses = rng.normal(size=(repeats, stimuli, neurons))
    responses[
        rng.uniform(size=(repeats, stimuli, 1 if whole else neurons)).repeat(neurons if whole else 1, 2) < share
    ] = np.nan
    if ((~np.isnan(responses)).any(axis=2).sum(axis=0) < 2).any():
        with pytest.raises(ValueError, match="fewer than 2 repeats"):
            halves(responses, seed)
        return
    expected = slow_halves(responses, seed)
    np.testing.assert_allclose(halves(responses, seed), expected, atol=1e-12)
    if whole:
        assert not np.isnan(expected).any()


def test_batch_is_one_halving_per_seed():
    responses = np.random.default_rng(1).normal(size=(7, 5, 3)).astype(np.float32)
    responses[4, 2] = np.nan
    half1, half2 = halves_batch(responses, 6)
    assert half1.shape == half2.shape == (6, 5, 3)
    assert half1.dtype == np.float64
    for seed in range(6):
        np.testing.assert_array_equal((half1[seed], half2[seed]), halves(responses, seed))


def test_stimuli_with_one_repeat_are_named():
    responses = np.ones((3, 4, 2))
    responses[1:, 2] = np.nan
    with pytest.raises(ValueError, match=r"stimuli 2 \(1 in all\) have fewer than 2 repeats; leave them out"):
        halves(responses, 0)


def test_infinite_responses_are_refused():
    responses = np.ones((3, 4, 2))
    responses[0, 0, 0] = np.inf
    with pytest.raises(ValueError, match="1 infinite values"):
        split_half_reliability(responses)


def test_wrong_shape_and_no_halvings_are_refused():
    with pytest.raises(ValueError, match=r"\(repeats, stimuli, neurons\), found shape \(4, 2\)"):
        halves(np.ones((4, 2)), 0)
    with pytest.raises(ValueError, match="halvings must be at least 1, found 0"):
        split_half_reliability(np.ones((4, 2, 1)), 0)


def test_spearman_brown_known_values():
    np.testing.assert_allclose(spearman_brown(np.array([0, 0.5, 1, -0.5])), [0, 2 / 3, 1, -2])
    assert np.isnan(spearman_brown(-1.0))


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**31), n=st.integers(3, 30), scale=st.sampled_from([1e-200, 1e-8, 1.0, 1e8, 1e200]))
def test_pearson_is_numpys_whatever_the_scale(seed, n, scale):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 4, n, 3))
    found = pearson(a * scale + 0.0, b, axis=1)
    assert found.shape == (4, 3)
    expected = [[np.corrcoef(a[i, :, j], b[i, :, j])[0, 1] for j in range(3)] for i in range(4)]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_pearson_broadcasts_leading_axes():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 10, 3)), rng.normal(size=(10, 3))
    np.testing.assert_allclose(pearson(a, b, axis=-2)[2], pearson(a[2], b))


def test_pearson_of_what_does_not_vary_is_nan_without_a_warning():
    a = np.random.default_rng(0).normal(size=(10, 3))
    a[:, 0] = 0.1  # ten times 0.1, over ten, is not 0.1
    a[4, 1] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = pearson(a, a)
    np.testing.assert_allclose(found, [np.nan, np.nan, 1.0])


def test_pearson_of_unequal_lengths_is_refused():
    with pytest.raises(ValueError, match="equal lengths, at least 1, found 3 and 4"):
        pearson(np.ones((3, 2)), np.ones((4, 2)))


def test_blocks_of_neurons_change_nothing(monkeypatch):
    responses = np.random.default_rng(0).normal(size=(6, 20, 11)) + np.random.default_rng(1).normal(size=(20, 11))
    # Valid for the other neurons: a block alone must not decide which repeats are valid.
    responses[2, 3, :5] = np.nan
    whole = split_half_reliability(responses, 10)
    monkeypatch.setattr(reliability, "BLOCK_BYTES", 1)
    np.testing.assert_allclose(split_half_reliability(responses, 10), whole, atol=1e-12)
    assert not np.isnan(whole).any()


def test_silent_neurons_are_nan_and_exact_ones_are_one():
    signal = np.random.default_rng(0).normal(size=(1, 15, 1))
    responses = np.concatenate([np.zeros((8, 15, 1)), np.repeat(signal, 8, axis=0)], axis=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(split_half_reliability(responses, 5), [np.nan, 1.0])


@pytest.mark.parametrize("missing", [0, 10])
def test_estimate_is_unbiased_for_poisson_neurons(missing):
    config = SimulationConfig(repeats=50, dead_neurons=0.0, size=32, missing_repeats=missing, seed=3)
    recording, truth = simulate(config)
    errors = []
    for animal in recording.animals:
        seen = recording.repeats(animal)
        errors.append(split_half_reliability(seen.responses, 50) - truth.reliability[seen.neurons])
    assert abs(np.mean(errors)) < 0.02
    assert np.std(errors) < 0.1
