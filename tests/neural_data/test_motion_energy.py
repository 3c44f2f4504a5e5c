"""Motion energy: maps equal the equations written out, and what they prefer is what their parameters say."""

from math import factorial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_data.motion_energy import BLOCK_FRAMES, MotionEnergy, causal, draw_features, temporal_kernels
from neural_data.simulate_images import C50

HEIGHT, WIDTH, RATE_HZ = 24, 32, 30.0


def core(exponent=1.0, complex_share=0.5, per_area=6, seed=0):
    rng = np.random.default_rng(seed)
    features = draw_features(["VISp", "VISl"], per_area, complex_share, WIDTH, rng)
    return MotionEnergy(features, HEIGHT, WIDTH, RATE_HZ, exponent)


def written_out(bank, video):
    """The feature maps by sums over all pixels and lags, in float64, filter by filter from the paper's equations."""
    frames = len(video)
    maps = np.zeros((len(bank.features), len(bank.rows), len(bank.columns), frames))
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for at, feature in bank.features.iterrows():
        t = (np.arange(18) + 0.5) / RATE_HZ * 1000 / feature["time_ms"]
        fast, slow = (t**n * np.exp(-t) * (1 / factorial(n) - t**2 / factorial(n + 2)) for n in (3, 5))
        fast, slow = fast / np.linalg.norm(fast), slow / np.linalg.norm(slow)
        past = np.concatenate([np.zeros((17, HEIGHT, WIDTH)), video])
        for i, row in enumerate(bank.rows):
            for j, column in enumerate(bank.columns):
                even, odd = gabor_pair(feature, x - column, y - row)
                in_even, in_odd = ((past * filter_).sum(axis=(1, 2)) for filter_ in (even, odd))
                window = np.exp(-((x - column) ** 2 + (y - row) ** 2) / (2 * feature["pool"] ** 2))
                window /= window.sum()
                variance = (past**2 * window).sum(axis=(1, 2)) - (past * window).sum(axis=(1, 2)) ** 2
                for frame in range(frames):
                    back = slice(frame + 17, frame - 1 if frame else None, -1)
                    e, o = in_even[back], in_odd[back]
                    if feature["direction"]:
                        first = (e @ fast - feature["direction"] * (o @ slow)) / np.sqrt(2)
                        second = (o @ fast + feature["direction"] * (e @ slow)) / np.sqrt(2)
                    else:
                        first, second = e @ fast, o @ fast
                    squared = first**2 + second**2 if feature["kind"] == "complex" else max(first, 0) ** 2
                    contrast = variance[back] @ (fast**2 + slow**2) / 2
                    maps[at, i, j, frame] = (squared / (C50**2 + contrast)) ** (bank.exponent / 2)
    return maps


def gabor_pair(feature, dx, dy):
    """Even and odd Gabor, of zero mean over the whole plane and, on average, unit length."""
    reach = np.arange(-60, 61)
    grid = (np.broadcast_to(reach, (121, 121)), np.broadcast_to(reach[:, None], (121, 121)))

    def wave(dx, dy):
        across = dx * np.cos(feature["orientation"]) + dy * np.sin(feature["orientation"])
        envelope = np.exp(-(dx**2 + dy**2) / (2 * feature["sigma"] ** 2))
        angle = 2 * np.pi * feature["frequency"] * across + feature["phase"]
        return envelope, envelope * np.cos(angle), envelope * np.sin(angle)

    whole_envelope, whole_even, whole_odd = wave(*grid)
    envelope, even, odd = wave(dx, dy)
    means = [wave_.sum() / whole_envelope.sum() for wave_ in (whole_even, whole_odd)]
    whole = [wave_ - mean * whole_envelope for wave_, mean in zip((whole_even, whole_odd), means, strict=True)]
    length = np.sqrt(sum((wave_**2).sum() for wave_ in whole) / 2)
    return tuple((wave_ - mean * envelope) / length for wave_, mean in zip((even, odd), means, strict=True))


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_maps_are_the_equations(exponent):
    bank = core(exponent, per_area=3)
    assert {*bank.features["kind"]} == {"simple", "complex"}
    assert len({*bank.features["direction"]}) > 1
    video = np.random.default_rng(1).uniform(-1, 1, (7, HEIGHT, WIDTH))
    np.testing.assert_allclose(bank.maps(video.astype(np.float32)), written_out(bank, video), atol=2e-5, rtol=2e-4)


def drifting(direction, frequency, hz, frames=60):
    """A grating that drifts towards `direction`, -1 to 1."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    cycles = frequency * (x * np.cos(direction) + y * np.sin(direction))
    phase = hz * np.arange(frames)[:, None, None] / RATE_HZ
    return np.cos(2 * np.pi * (cycles - phase)).astype(np.float32)


def alone(bank, at):
    """What the feature in row `at` says in the middle of the grid, (frames,), to a video."""
    one = MotionEnergy(bank.features.iloc[[at]], HEIGHT, WIDTH, RATE_HZ, bank.exponent)
    return lambda video: one.maps(video)[0, len(bank.rows) // 2, len(bank.columns) // 2]


def test_directional_features_prefer_their_direction_and_others_none():
    bank = core(per_area=8)
    assert {-1, 0, 1} == {*bank.features["direction"]}
    for at, feature in bank.features.iterrows():
        towards, away = (
            alone(bank, at)(drifting(angle, feature["frequency"], 4.0))[30:].mean()
            for angle in (feature["orientation"], feature["orientation"] + np.pi)
        )
        preference = (towards - away) / (towards + away)
        assert feature["direction"] * preference > 0.3 if feature["direction"] else abs(preference) < 0.05


def test_complex_features_ignore_the_phase_of_motion_and_simple_ones_follow_it():
    bank = core(per_area=8)
    for at, feature in bank.features[bank.features["direction"] != 0].iterrows():
        towards = feature["orientation"] + (np.pi if feature["direction"] < 0 else 0)
        answer = alone(bank, at)(drifting(towards, feature["frequency"], 4.0))[30:]
        modulation = np.ptp(answer) / answer.max()
        assert modulation > 0.95 if feature["kind"] == "simple" else modulation < 0.5


def test_luminance_is_ignored_and_contrast_saturates():
    bank = core()
    assert np.abs(bank.maps(np.full((30, HEIGHT, WIDTH), 0.7, np.float32))[:, 3:-3, 5:-5]).max() < 0.05
    feature = bank.features.iloc[0]
    grating = drifting(feature["orientation"], feature["frequency"], 3.0)
    low, middle, high = (alone(bank, 0)(contrast * grating).max() for contrast in (0.1, 0.4, 1.0))
    assert 0 < low < middle < high < 0.75 * 2.5 * middle


def test_filters_are_what_simple_neurons_see():
    """Without rectification and normalisation a readout is linear: its maps are products with its filters."""
    bank = core(complex_share=0.0)
    rng = np.random.default_rng(0)
    x, y = rng.uniform(10, 21, 5), rng.uniform(7.5, 15.5, 5)
    weights = np.where(rng.random((5, 12)) < 0.4, rng.random((5, 12)), 0)
    filters = bank.filters(x, y, weights)
    assert filters.shape == (5, 18, HEIGHT, WIDTH)
    video = rng.uniform(-1, 1, (40, HEIGHT, WIDTH)).astype(np.float32)
    opposite = bank.maps(video) - bank.maps(-video)  # rectified halves of either sign: half-wave rectification undone
    normaliser = np.stack(
        [
            np.sqrt(C50**2 + bank._contrast_squared(video.transpose(1, 2, 0).reshape(HEIGHT, -1), pool, time_ms))
            for pool, time_ms in bank.features[["pool", "time_ms"]].to_numpy()
        ]
    )
    linear = bank.readout(x, y, weights) @ (opposite * normaliser).reshape(-1, 40)
    seen = [np.tensordot(filters[:, :18], video[frame - 17 : frame + 1][::-1], 3) for frame in range(17, 40)]
    np.testing.assert_allclose(linear[:, 17:].T, seen, atol=1e-4)


def test_readout_interpolates_between_pixels():
    bank = core()
    maps = np.broadcast_to(bank.rows[:, None] + 100.0 * bank.columns, (12, len(bank.rows), len(bank.columns)))
    weights = np.eye(12)[:3]
    x, y = np.array([9.3, 15.0, 21.7]), np.array([6.9, 11.25, 16.1])
    read = bank.readout(x, y, weights) @ maps.reshape(-1)
    np.testing.assert_allclose(read, y + 100 * x, rtol=1e-6)


def test_kernels_are_causal_biphasic_and_a_quarter_cycle_apart():
    fast, slow = temporal_kernels(20.0, 240.0)
    time_ms = (np.arange(len(fast)) + 0.5) * 1000 / 240
    assert np.linalg.norm(fast) == pytest.approx(1)
    for kernel, n in ((fast, 3), (slow, 5)):
        crossing_ms = 20 * np.sqrt((n + 1) * (n + 2))
        assert (kernel[time_ms < crossing_ms] > 0).all()
        assert (kernel[time_ms > crossing_ms] < 0).all()
        assert abs(kernel[-1]) < 0.01 * kernel.max()
    # Their spectra are in the ratio (1 + i u)^-2, u = 2 pi f time_ms: a quarter of a cycle at u = 1, 8 Hz.
    frequency_hz, ratio = np.arange(1, 13), np.fft.rfft(slow, 2400) / np.fft.rfft(fast, 2400)
    expected = (1 + 2j * np.pi * frequency_hz * 0.02) ** -2
    expected *= np.abs(ratio[80]) / np.abs(expected[7])
    np.testing.assert_allclose(ratio[10:130:10], expected, atol=0.02)


@settings(max_examples=20, deadline=None)
@given(frames=st.integers(1, 3 * BLOCK_FRAMES), lags=st.integers(1, 30))
def test_causal_is_a_convolution(frames, lags):
    rng = np.random.default_rng(frames)
    values, kernel = rng.standard_normal((2, 3, frames)), rng.standard_normal(lags)
    expected = np.apply_along_axis(lambda trace: np.convolve(trace, kernel)[:frames], -1, values)
    np.testing.assert_allclose(causal(values, kernel), expected, atol=1e-12)


def test_banks_have_both_kinds_and_grow_with_the_area():
    features = draw_features(["VISp", "VISam"], 2, 0.01, 64, np.random.default_rng(0))
    assert features.groupby("area")["kind"].nunique().tolist() == [2, 2]
    many = draw_features(["VISp", "VISam"], 100, 0.0, 64, np.random.default_rng(0))
    assert {*many["kind"]} == {"simple"}
    sizes = many.groupby("area")["sigma"].mean()
    assert sizes["VISam"] / sizes["VISp"] == pytest.approx(1.9, rel=0.05)
