"""Halvings: the published ones, a slow reference, and all there are."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_data.halvings import (
    all_orders,
    halves,
    halves_batch,
    halves_in_order,
    one_generator_orders,
    seeded_orders,
    valid_repeats,
)


def slow_halves(responses, order, balanced=True):
    """The rule of `halves_in_order`, stimulus by stimulus and neuron by neuron."""
    half1, half2 = np.full(responses.shape[1:], np.nan), np.full(responses.shape[1:], np.nan)
    for s in range(responses.shape[1]):
        valid = [r for r in order if not balanced or not np.isnan(responses[r, s]).all()]
        for half, chosen in ((half1, valid[: len(valid) // 2]), (half2, valid[len(valid) // 2 :])):
            for n in range(responses.shape[2]):
                values = [responses[r, s, n] for r in chosen if not np.isnan(responses[r, s, n])]
                half[s, n] = np.mean(values) if values else np.nan
    return half1, half2


def test_published_permutation_makes_the_halves(shared):
    values = json.loads((shared / "reference/values/mouse_vision/neural/neural.json").read_text())
    order = values["seed0_trial_permutation_T20"]
    responses = np.random.default_rng(0).normal(size=(20, 4, 3))
    half1, half2 = halves(responses, 0)
    np.testing.assert_allclose(half1, responses[order[:10]].mean(axis=0))
    np.testing.assert_allclose(half2, responses[order[10:]].mean(axis=0))
    np.testing.assert_array_equal(seeded_orders(3, 20)[0][0], order)
    np.testing.assert_array_equal(one_generator_orders(3, 20)[0], order)


@settings(deadline=None, max_examples=60)
@given(
    repeats=st.integers(2, 9),
    stimuli=st.integers(1, 6),
    neurons=st.integers(1, 4),
    share=st.floats(0, 0.6),
    seed=st.integers(0, 2**31),
    whole=st.booleans(),
    balanced=st.booleans(),
)
def test_halves_follow_the_slow_rule(repeats, stimuli, neurons, share, seed, whole, balanced):
    rng = np.random.default_rng(seed)
    responses = rng.normal(size=(repeats, stimuli, neurons))
    missing = rng.uniform(size=(repeats, stimuli, 1 if whole else neurons)) < share
    responses[np.broadcast_to(missing, responses.shape)] = np.nan
    order = np.random.RandomState(seed).permutation(repeats)
    if ((~np.isnan(responses)).any(axis=2).sum(axis=0) < 2).any():
        with pytest.raises(ValueError, match="fewer than 2 repeats"):
            halves(responses, seed)
        return
    expected = slow_halves(responses, order, balanced)
    half1, half2 = halves_in_order(responses, order[None], balanced=balanced)
    np.testing.assert_allclose((half1[0], half2[0]), expected, atol=1e-12)
    if balanced:
        np.testing.assert_array_equal((half1[0], half2[0]), halves(responses, seed))
        assert not (whole and np.isnan(expected).any())


def test_batch_is_one_halving_per_seed():
    responses = np.random.default_rng(1).normal(size=(7, 5, 3)).astype(np.float32)
    responses[4, 2] = np.nan
    half1, half2 = halves_batch(responses, 6)
    assert half1.shape == half2.shape == (6, 5, 3)
    assert half1.dtype == np.float64
    for seed in range(6):
        np.testing.assert_array_equal((half1[seed], half2[seed]), halves(responses, seed))


def test_target_and_source_are_drawn_one_after_the_other():
    target, source = seeded_orders(3, 20, 8)
    for seed in range(3):
        generator = np.random.RandomState(seed)
        np.testing.assert_array_equal(target[seed], generator.permutation(20))
        np.testing.assert_array_equal(source[seed], generator.permutation(8))


@pytest.mark.parametrize("repeats", range(2, 10))
def test_all_halvings_are_there_once(repeats):
    orders = all_orders(repeats)
    size = repeats // 2
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.broadcast_to(np.arange(repeats), orders.shape))
    halvings = {frozenset([frozenset(order[:size]), frozenset(order[size:])]) for order in orders.tolist()}
    assert len(halvings) == len(orders) == math.comb(repeats, size) / (1 if repeats % 2 else 2)


def test_too_many_halvings_are_counted_and_refused():
    assert len(all_orders(10, at_most=126)) == 126
    with pytest.raises(ValueError, match=r"10 repeats have 126 halvings, more than 125; take a number of random ones"):
        all_orders(10, at_most=125)
    with pytest.raises(ValueError, match="50 repeats have 63,205,303,218,876 halvings, more than 100,000"):
        all_orders(50)
    with pytest.raises(ValueError, match="at least 2 to be halved, found 1"):
        all_orders(1)


def test_valid_repeats_are_those_of_any_neuron():
    responses = np.zeros((3, 2, 2))
    responses[0, 0, 0] = responses[1, 1] = np.nan
    np.testing.assert_array_equal(valid_repeats(responses), [[True, True], [True, False], [True, True]])


def test_neurons_alone_do_not_change_which_repeats_are_valid():
    responses = np.random.default_rng(0).normal(size=(6, 4, 3))
    responses[2, 1, 0] = np.nan
    orders = seeded_orders(5, 6)[0]
    whole = halves_in_order(responses, orders)
    alone = halves_in_order(responses[:, :, :1], orders, valid=valid_repeats(responses))
    np.testing.assert_allclose(np.stack(alone), np.stack(whole)[..., :1], atol=1e-12)


def test_stimuli_with_one_repeat_are_named():
    responses = np.ones((3, 4, 2))
    responses[1:, 2] = np.nan
    with pytest.raises(ValueError, match=r"stimuli 2 \(1 in all\) have fewer than 2 repeats; leave them out"):
        halves(responses, 0)


def test_what_cannot_be_halved_is_refused():
    with pytest.raises(ValueError, match=r"\(repeats, stimuli, neurons\), none of them 0, found shape \(4, 2\)"):
        halves(np.ones((4, 2)), 0)
    with pytest.raises(ValueError, match=r"none of them 0, found shape \(4, 0, 2\)"):
        halves(np.ones((4, 0, 2)), 0)
    with pytest.raises(ValueError, match="halvings must be at least 1, found 0"):
        halves_batch(np.ones((4, 2, 1)), 0)
    with pytest.raises(ValueError, match=r"orders have shape \(3, 5\), expected \(halvings, 4 repeats\)"):
        halves_in_order(np.ones((4, 2, 1)), np.zeros((3, 5), int))
