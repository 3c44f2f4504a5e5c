"""Clips: the published normalised correlation, pooling, and errors."""

import json

import numpy as np
import pytest

from neural_data.clips import mean_over_clips, pool_clips
from neural_data.signal_power import cc_norm, signal_power


def test_published_normalised_correlation_of_clips(shared):
    """Float32; the neuron whose prediction is constant is 0 there and NaN here."""
    folder = shared / "reference/values/video/metrics"
    published = json.loads((folder / "reference.json").read_text())
    with np.load(folder / "trials.npz", allow_pickle=False) as stored:
        trials, ids = (stored["y_true"], stored["y_pred"]), stored["video_ids"]
    repeated = [clip for clip in np.unique(ids) if (ids == clip).sum() > 1]
    frames = slice(published["skip"], None)
    responses, predictions = (
        [values[ids == clip][..., frames].swapaxes(1, 2) for clip in repeated] for values in trials
    )
    assert len({clip.shape for clip in responses}) == 2
    found = mean_over_clips(cc_norm, responses, predictions, least_signal_power=1e-4)
    expected = np.array(published["normalized_correlation per neuron"])
    constant = expected == 0
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected) | constant)
    np.testing.assert_allclose(found[~constant], expected[~constant], rtol=0, atol=1e-6)
    whole = published["ViV1T closed-loop normalized_correlation"]
    np.testing.assert_allclose(np.nanmean(np.where(constant, 0, found)), whole, rtol=0, atol=1e-6)


def test_mean_is_over_clips_that_are_defined():
    rng = np.random.default_rng(0)
    clips = [rng.normal(size=(3, frames, 2)) + 3 * rng.normal(size=(frames, 2)) for frames in (10, 20, 30)]
    predictions = [clip.mean(axis=0) for clip in clips]
    clips[1][:, :, 0] = 1.0
    clips[0][:, :, 1] = clips[1][:, :, 1] = clips[2][:, :, 1] = 0.0
    found = mean_over_clips(cc_norm, clips, predictions)
    expected = np.mean([cc_norm(clips[i], predictions[i])[0] for i in (0, 2)])
    np.testing.assert_allclose(found, [expected, np.nan])


def test_pooled_clips_stand_one_after_the_other():
    rng = np.random.default_rng(0)
    clips = [rng.normal(size=(repeats, frames, 2)) for repeats, frames in ((5, 3), (2, 4), (4, 1))]
    pooled, clip = pool_clips(clips)
    assert pooled.shape == (5, 8, 2)
    np.testing.assert_array_equal(clip, [0, 0, 0, 1, 1, 1, 1, 2])
    np.testing.assert_array_equal(pooled[:2, 3:7], clips[1])
    assert np.isnan(pooled[2:, 3:7]).all()
    np.testing.assert_array_equal(pooled[:4, 7:], clips[2])
    # Longer clips count for more, and differences between clips count.
    assert np.isfinite(signal_power(pooled)).all()


def test_what_does_not_fit_together_is_refused():
    clip = np.ones((2, 3, 4))
    with pytest.raises(ValueError, match=r"one array per clip, found lengths \[2, 1\]"):
        mean_over_clips(cc_norm, [clip, clip], [clip])
    with pytest.raises(ValueError, match=r"found lengths \[0\]"):
        pool_clips([])
    with pytest.raises(ValueError, match=r"with the same neurons, found shapes \[\(2, 3, 4\), \(2, 3, 2\)\]"):
        pool_clips([clip, clip[..., :2]])
