"""Calcium: traces have the mean and variance that are said of them."""

import numpy as np
import pytest

from neural_data.calcium import Indicator
from neural_data.simulation_config import VideoConfig

FRAMES, TRIALS = 60, 1000


@pytest.fixture(scope="module")
def rates():
    return np.random.default_rng(0).gamma(1.0, 0.5, (50, FRAMES))


def recorded(indicator, rates):
    rng = np.random.default_rng(1)
    return np.stack([indicator.record(rates, rng) for _ in range(TRIALS)]).astype(np.float64)


@pytest.mark.parametrize("response", ["spikes", "calcium", "deconvolved"])
def test_mean_and_variance_over_trials_are_exact(rates, response):
    indicator = Indicator.of(VideoConfig(response=response))
    traces = recorded(indicator, rates)
    variance = indicator.variance(rates)
    deviation = (traces.mean(axis=0) - indicator.mean(rates)) / np.sqrt(variance / TRIALS)
    assert (deviation**2).mean() == pytest.approx(1, abs=0.2)
    assert np.abs(deviation).max() < 5
    assert traces.var(axis=0, ddof=1).mean() == pytest.approx(variance.mean(), rel=0.02)


def test_a_spike_rises_and_decays_as_asked():
    indicator = Indicator("calcium", 1000.0, 50.0, 400.0, 30.0, 0.0)
    trace = indicator.kernel_matrix(3000)[100]
    assert not trace[:100].any()
    assert trace.max() == pytest.approx(1, abs=1e-3)
    assert trace.argmax() - 100 == pytest.approx(50 * 400 / 350 * np.log(8), abs=2)
    assert trace[1600] / trace[1200] == pytest.approx(np.exp(-1), rel=0.01)


def test_deconvolved_traces_keep_the_spikes_and_are_never_negative(rates):
    indicator = Indicator.of(VideoConfig(response="deconvolved", noise=0.5))
    spikes = np.zeros((1, FRAMES), np.float32)
    spikes[0, 30] = 2
    trace = indicator.mean(spikes)
    assert trace.sum() == pytest.approx(2, rel=1e-5)
    np.testing.assert_allclose(trace[0, 25:31], trace[0, 35:29:-1])
    assert (recorded(indicator, rates)[:50] >= 0).all()


def test_spikes_are_counts_and_only_calcium_has_noise(rates):
    counts = recorded(Indicator.of(VideoConfig()), rates)[:20]
    assert (counts == np.round(counts)).all()
    silent = np.zeros((1, 500))
    trace = Indicator.of(VideoConfig(response="calcium", noise=0.3)).record(silent, np.random.default_rng(0))
    assert trace.std() == pytest.approx(0.3, rel=0.1)
    assert trace.dtype == np.float32
    assert (
        not Indicator.of(VideoConfig(response="deconvolved", noise=0.3)).record(silent, np.random.default_rng(0)).any()
    )
