"""Smoothing: the exponential average and noise of the variance and the time constant that are asked for."""

import numpy as np
import pytest

from neural_data.smoothing import smooth, smooth_noise, standardised

RATE_HZ = 30.0


def test_smoothing_starts_at_the_first_value_and_nothing_varies_in_a_constant():
    constant = np.full((2, 50), 3.0)
    np.testing.assert_allclose(smooth(constant, 1.0, RATE_HZ), constant)
    assert not standardised(constant[0]).any()
    step = smooth(np.append(0.0, np.ones(300)), 1.0, RATE_HZ)
    assert step[30] == pytest.approx(1 - np.exp(-1), abs=1e-6)


@pytest.mark.parametrize("time_s", [0.1, 0.5, 2.0])
def test_smooth_noise_has_unit_variance_from_the_start_and_its_time_constant(time_s):
    noise = smooth_noise(4000, 60, time_s, RATE_HZ, np.random.default_rng(0))
    assert noise.shape == (4000, 60)
    np.testing.assert_allclose(noise.var(axis=0), 1, atol=0.15)
    assert abs(noise.mean()) < 0.05
    lag = round(time_s * RATE_HZ)
    if lag < 30:
        # Of two first-order filters the autocorrelation is (1 + t / time_s) exp(-t / time_s).
        assert (noise[:, 0] * noise[:, lag]).mean() == pytest.approx(2 / np.e, abs=0.08)
