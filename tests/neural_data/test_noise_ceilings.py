"""Every noise ceiling on Poisson neurons whose truth is known: mean error below 0.01 at 50 repeats."""

import numpy as np
import pytest

from neural_data.correlation import pearson
from neural_data.explainable_variance import explainable_fraction, feve
from neural_data.oracle import oracle_conservative, oracle_jackknife
from neural_data.reliability import split_half_reliability
from neural_data.signal_power import (
    cc_max,
    cc_norm,
    noise_power,
    signal_power,
    single_trial_ceiling,
    unbiased_r_squared,
)
from neural_data.simulate import SimulationConfig, simulate

REPEATS = 50


@pytest.fixture(scope="module")
def population():
    """By median reliability: rates (stimuli, neurons), and three draws of spikes (repeats, stimuli, neurons)."""
    made = {}
    for reliability in (0.8, 0.98):
        config = SimulationConfig(
            animals=1, neurons_per_area=125, dead_neurons=0.0, repeats=REPEATS, size=32, reliability=reliability
        )
        rates = simulate(config)[1].rates
        rng = np.random.default_rng(0)
        made[reliability] = rates, [rng.poisson(rates, (REPEATS, *rates.shape)).astype(float) for _ in range(3)]
    return made


@pytest.mark.parametrize("reliability", [0.8, 0.98])
def test_ceilings_are_unbiased(population, reliability):
    rates, draws = population[reliability]
    signal, noise = rates.var(axis=0, ddof=1), rates.mean(axis=0)
    of_mean, of_trial = signal / (signal + noise / REPEATS), signal / (signal + noise)
    np.testing.assert_allclose(np.median(of_mean), reliability, atol=0.01)
    truths = {
        split_half_reliability: of_mean,
        cc_max: np.sqrt(of_mean),
        single_trial_ceiling: np.sqrt(of_trial),
        explainable_fraction: of_trial,
        oracle_jackknife: signal / np.sqrt((signal + noise) * (signal + noise / (REPEATS - 1))),
        oracle_conservative: np.sqrt((signal + noise / REPEATS) / (signal + noise)),
    }
    for estimate, truth in truths.items():
        found = np.stack([estimate(spikes) for spikes in draws])
        assert np.isnan(found).mean() < 0.01
        assert abs(np.nanmean(found - truth)) < 0.01, estimate
    for estimate, truth in ((signal_power, signal), (noise_power, noise)):
        error = np.mean([estimate(spikes).mean() for spikes in draws]) / truth.mean() - 1
        assert abs(error) < 0.01, estimate


def test_oracles_lie_on_either_side_of_the_ceiling(population):
    rates, draws = population[0.8]
    truth = np.sqrt(rates.var(axis=0, ddof=1) / (rates.var(axis=0, ddof=1) + rates.mean(axis=0)))
    assert np.mean([oracle_jackknife(spikes) - truth for spikes in draws]) < -0.02
    assert np.mean([oracle_conservative(spikes) - truth for spikes in draws]) > 0.02


def test_scores_of_a_model_are_unbiased(population):
    """A model whose correlation with the true rates is known, and whose scale is the best."""
    rates, draws = population[0.98]
    wrong = rates + np.random.default_rng(1).normal(size=rates.shape) * rates.std(axis=0)
    r = pearson(wrong, rates)
    predictions = rates.mean(axis=0) + r * rates.std(axis=0) / wrong.std(axis=0) * (wrong - wrong.mean(axis=0))
    assert 0.5 < r.mean() < 0.9
    for estimate, truth in ((cc_norm, r), (unbiased_r_squared, r**2), (feve, r**2)):
        errors = [estimate(spikes, predictions) - truth for spikes in draws]
        assert abs(np.nanmean(errors)) < 0.01, estimate
