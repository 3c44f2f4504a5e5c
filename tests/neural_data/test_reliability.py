"""Reliability: the published values, a slow reference, and Poisson neurons whose truth is known."""

import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_data import reliability
from neural_data.correlation import pearson
from neural_data.halvings import all_orders, halves_batch, halves_in_order, one_generator_orders
from neural_data.reliability import spearman_brown, split_half, split_half_reliability
from neural_data.simulate import SimulationConfig, simulate


@pytest.fixture
def published(shared):
    return np.load(shared / "reference/values/mouse_vision/neural/noise_estimation.npz", allow_pickle=False)


def test_published_reliability_of_each_halving(published):
    half1, half2 = halves_batch(published["target"], 30)
    each = spearman_brown(pearson(half1, half2, axis=1))
    np.testing.assert_allclose(each, published["split_half_raw_perseed"], rtol=0, atol=1e-12)
    mean = split_half_reliability(published["target"], 30)
    np.testing.assert_allclose(mean, published["split_half_raw_perseed"].mean(axis=0), rtol=0, atol=1e-12)


def test_published_reliability_of_each_halving_of_one_generator(published):
    half1, half2 = halves_in_order(published["target"], one_generator_orders(30, 20))
    each = spearman_brown(pearson(half1, half2, axis=1))
    np.testing.assert_allclose(each, published["split_half_raw"], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("data", "stored"), [("target", "split_half"), ("target_nan", "split_half_nan")])
def test_published_mean_and_deviation(published, shared, data, stored):
    """Inter-trial consistency, with repeats missing in the second row; halves of repeat numbers, as published."""
    found = split_half(published[data], one_generator_orders(30, 20), balanced=False)
    np.testing.assert_allclose(found.mean, published[f"{stored}_mean"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.sd, published[f"{stored}_std"], rtol=0, atol=1e-12)
    values = json.loads((shared / "reference/values/mouse_vision/neural/neural.json").read_text())
    np.testing.assert_allclose(found.mean, values[f"{stored}_mean"], rtol=0, atol=1e-12)
    assert found.halvings == 30
    assert (found.defined == 30).all()


def test_halves_of_valid_repeats_are_near_the_published_ones(published):
    error = np.abs(split_half_reliability(published["target_nan"], 30) - published["split_half_nan_mean"])
    assert (error < 4 * published["split_half_nan_std"] * np.sqrt(2 / 30)).all()


@pytest.mark.parametrize("repeats", [2, 5, 8])
def test_all_halvings_are_the_mean_over_each(repeats):
    responses = np.random.default_rng(0).normal(size=(repeats, 12, 3)) + np.random.default_rng(1).normal(size=(12, 3))
    found = split_half(responses, "all")
    each = [
        spearman_brown(pearson(responses[o[: repeats // 2]].mean(axis=0), responses[o[repeats // 2 :]].mean(axis=0)))
        for o in all_orders(repeats)
    ]
    np.testing.assert_allclose(found.mean, np.mean(each, axis=0), atol=1e-12)
    np.testing.assert_allclose(found.sd, np.std(each, axis=0), atol=1e-12)
    assert found.halvings == len(each)
    np.testing.assert_allclose(split_half_reliability(responses, "all"), found.mean, atol=1e-12)


def test_many_random_halvings_approach_all():
    responses = np.random.default_rng(0).normal(size=(8, 40, 20)) + np.random.default_rng(1).normal(size=(40, 20))
    every, random = split_half(responses, "all"), split_half(responses, 1000)
    assert (np.abs(random.mean - every.mean) < 5 * every.sd / np.sqrt(1000)).all()
    np.testing.assert_allclose(random.sd, every.sd, rtol=0.15)


def test_all_halvings_of_unequal_repeats_are_of_repeat_numbers():
    responses = np.random.default_rng(0).normal(size=(4, 15, 2)) + np.random.default_rng(1).normal(size=(15, 2))
    responses[2:, 3] = np.nan
    with pytest.raises(
        ValueError, match=r'"all" halvings need every repeat of every stimulus, 2 are missing; pass bal'
    ):
        split_half(responses, "all")
    found = split_half(responses, "all", balanced=False)
    # Of the halvings 01|23, 02|13 and 03|12 the first leaves stimulus 3 without a second half.
    assert (found.defined == 2).all()
    each = [
        spearman_brown(pearson(np.nanmean(responses[[0, i]], axis=0), np.nanmean(responses[list(j)], axis=0)))
        for i, j in ((2, (1, 3)), (3, (1, 2)))
    ]
    np.testing.assert_allclose(found.mean, np.mean(each, axis=0), atol=1e-12)


def test_wrong_halvings_are_refused():
    responses = np.ones((4, 2, 1))
    with pytest.raises(ValueError, match="must be a number, \"all\" or orders of the repeats, found 'most'"):
        split_half(responses, "most")
    with pytest.raises(ValueError, match="halvings must be at least 1, found 0"):
        split_half_reliability(responses, 0)
    with pytest.raises(ValueError, match="1 infinite values"):
        split_half_reliability(np.where(np.arange(8).reshape(4, 2, 1) == 3, np.inf, responses))
    with pytest.raises(ValueError, match="24 repeats have 1,352,078 halvings, more than 100,000"):
        split_half_reliability(np.ones((24, 2, 1)), "all")


def test_spearman_brown_known_values():
    np.testing.assert_allclose(spearman_brown(np.array([0, 0.5, 1, -0.5])), [0, 2 / 3, 1, -2])
    assert np.isnan(spearman_brown(-1.0))


@settings(deadline=None)
@given(r=st.floats(0, 1), times=st.integers(2, 50))
def test_fewer_repeats_undo_more(r, times):
    np.testing.assert_allclose(spearman_brown(spearman_brown(r, times), 1 / times), r, atol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_blocks_of_neurons_and_halvings_change_nothing(monkeypatch, weighted):
    responses = np.random.default_rng(0).normal(size=(6, 20, 11)) + np.random.default_rng(1).normal(size=(20, 11))
    # Valid for the other neurons: a block alone must not decide which repeats are valid.
    responses[2, 3, :5] = np.nan
    weights = np.random.default_rng(2).multinomial(20, np.full(20, 0.05), size=4) if weighted else None
    whole, spread = split_half_reliability(responses, 10, weights=weights), split_half(responses, 10)
    monkeypatch.setattr(reliability, "BLOCK_BYTES", 1)
    monkeypatch.setattr(reliability, "BLOCK_HALVINGS", 3)
    np.testing.assert_allclose(split_half_reliability(responses, 10, weights=weights), whole, atol=1e-12)
    np.testing.assert_allclose(split_half(responses, 10).sd, spread.sd, atol=1e-12)
    assert whole.shape == ((4, 11) if weighted else (11,))
    assert not np.isnan(whole).any()


def test_silent_neurons_are_nan_and_exact_ones_are_one():
    signal = np.random.default_rng(0).normal(size=(1, 15, 1))
    responses = np.concatenate([np.zeros((8, 15, 1)), np.repeat(signal, 8, axis=0)], axis=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = split_half(responses, 5)
        np.testing.assert_allclose(split_half_reliability(responses, 5), [np.nan, 1.0])
    np.testing.assert_allclose(found.mean, [np.nan, 1.0])
    np.testing.assert_allclose(found.sd, [np.nan, 0.0], atol=1e-12)
    np.testing.assert_array_equal(found.defined, [0, 5])


def test_no_neurons_are_refused():
    with pytest.raises(ValueError, match=r"none of them 0, found shape \(4, 3, 0\)"):
        split_half_reliability(np.ones((4, 3, 0)), 5)


@pytest.mark.parametrize("missing", [0, 10])
def test_estimate_is_unbiased_for_poisson_neurons(missing):
    config = SimulationConfig(repeats=50, dead_neurons=0.0, size=32, missing_repeats=missing, seed=3)
    recording, truth = simulate(config)
    errors = []
    for animal in recording.animals:
        seen = recording.repeats(animal)
        errors.append(split_half_reliability(seen.responses, 50) - truth.reliability[seen.neurons])
    assert abs(np.mean(errors)) < 0.01
    assert np.std(errors) < 0.1
