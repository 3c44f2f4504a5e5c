"""Intervals: the same as scipy's from the same draws, and as often right as they say."""

import functools

import numpy as np
import pytest
from scipy import stats

from neural_data.bootstrap import bootstrap_interval, resampled_counts
from neural_data.correlation import pearson
from neural_data.explainable_variance import explainable_fraction, feve
from neural_data.reliability import split_half_reliability
from neural_data.signal_power import cc_max, cc_norm, signal_power


def tuned(rng, repeats=6, stimuli=40, neurons=5, noise=1.0):
    return rng.normal(size=(stimuli, neurons)) + noise * rng.normal(size=(repeats, stimuli, neurons))


def scipys(statistic, *data, **settings):
    """Interval per neuron of a statistic of data (stimuli, ...) whose rows are resampled together."""
    found = stats.bootstrap(
        (np.arange(len(data[0])),),
        lambda rows: statistic(*(array[rows] for array in data)),
        vectorized=False,
        method="percentile",
        **settings,
    )
    return np.stack(found.confidence_interval)


@pytest.mark.parametrize("level", [0.95, 0.5])
def test_intervals_are_scipys(level):
    responses = tuned(np.random.default_rng(0))
    predictions = responses.mean(axis=0) + np.random.default_rng(1).normal(size=(40, 5))
    settings = {"n_resamples": 200, "confidence_level": level}
    cases = [
        (cc_norm, (responses, predictions), {}),
        (feve, (responses, predictions), {"least_fraction": None}),
        (explainable_fraction, (responses,), {}),
        (split_half_reliability, (responses,), {"halvings": 3}),
    ]
    for estimate, data, options in cases:

        def statistic(responses, *predictions, estimate=estimate, options=options):
            return estimate(responses.swapaxes(0, 1), *predictions, **options)

        expected = scipys(statistic, responses.swapaxes(0, 1), *data[1:], rng=np.random.default_rng(7), **settings)
        found = bootstrap_interval(estimate, *data, level=level, resamples=200, seed=7, **options)
        np.testing.assert_allclose((found.low, found.high), expected, rtol=1e-9)
        assert (found.undefined == 0).all()


def test_a_resample_draws_as_many_stimuli_as_there_are():
    counts = resampled_counts(30, 500, seed=0)
    assert counts.shape == (500, 30)
    assert (counts.sum(axis=1) == 30).all()
    np.testing.assert_allclose(counts.var(axis=0).mean(), 29 / 30, rtol=0.05)
    np.testing.assert_array_equal(counts, resampled_counts(30, 500, seed=0))
    assert (counts != resampled_counts(30, 500, seed=1)).any()


def test_clips_are_drawn_whole():
    clip = np.array([5, 5, 5, 2, 2, 9])
    counts = resampled_counts(6, 50, seed=0, clip_of_stimulus=clip)
    assert (counts[:, 0] == counts[:, 1]).all()
    assert (counts[:, 3] == counts[:, 4]).all()
    assert (counts[:, [0, 3, 5]].sum(axis=1) == 3).all()
    responses = tuned(np.random.default_rng(0), stimuli=6)
    found = bootstrap_interval(signal_power, responses, clip_of_stimulus=clip, resamples=50)
    expected = np.nanpercentile(signal_power(responses, weights=counts), [2.5, 97.5], axis=0)
    np.testing.assert_allclose((found.low, found.high), expected)


def test_undefined_resamples_are_counted_and_left_out():
    """Without tuning about half of the signal powers are negative."""
    responses = np.random.default_rng(0).normal(size=(4, 20, 6))
    responses[:, :, 5] = 1.0
    found = bootstrap_interval(cc_max, responses, resamples=300)
    drawn = cc_max(responses, weights=resampled_counts(20, 300, 0))
    np.testing.assert_allclose(found.undefined, np.isnan(drawn).mean(axis=0))
    assert 0 < found.undefined[:5].mean() < 1
    assert found.undefined[5] == 1
    assert np.isnan(found.low[5])
    assert np.isnan(found.high[5])
    expected = np.nanpercentile(drawn[:, :5], [2.5, 97.5], axis=0)
    np.testing.assert_allclose((found.low[:5], found.high[:5]), expected)


@pytest.mark.parametrize(
    "estimate", [explainable_fraction, cc_max, functools.partial(split_half_reliability, halvings=10)]
)
def test_intervals_hold_the_truth_about_as_often_as_they_say(estimate):
    """Signal and noise of variance 1, 100 stimuli; percentile intervals are known to be a little short."""
    responses = tuned(np.random.default_rng(0), repeats=8, stimuli=100, neurons=600)
    truth = {explainable_fraction: 0.5, cc_max: np.sqrt(8 / 9)}.get(estimate, 8 / 9)
    for level in (0.8, 0.95):
        found = bootstrap_interval(estimate, responses, level=level, resamples=400)
        covered = ((found.low <= truth) & (truth <= found.high)).mean()
        assert abs(covered - level) < 0.05
    widths = found.high - found.low
    assert abs(widths.mean() / 4 / estimate(responses).std() - 1) < 0.15


def test_resampled_repeats_would_overestimate():
    """Why repeats are not resampled: a repeat that is drawn twice lies in both halves."""
    rng = np.random.default_rng(0)
    responses = rng.normal(size=(10, 50, 200))
    drawn = responses[rng.integers(0, 10, 10)]
    assert abs(pearson(responses[:5].mean(axis=0), responses[5:].mean(axis=0)).mean()) < 0.03
    assert split_half_reliability(drawn, 30).mean() > 0.1
    assert abs(split_half_reliability(responses, 30).mean()) < 0.05


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"level": 1.0}, r"level must be between 0 and 1, found 1\.0"),
        ({"resamples": 0}, "resamples must be at least 1, found 0"),
        ({"clip_of_stimulus": np.zeros(5)}, "length 5, expected 40"),
        ({"clip_of_stimulus": np.zeros(40)}, "at least 2 stimuli, or clips, found 1"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(cc_max, tuned(np.random.default_rng(0)), **settings)
