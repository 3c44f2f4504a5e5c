"""The competitions' scores: published values of every formula, streaming, and what is undefined."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neural_data.explainable_variance import anscombe_snr, explainable_fraction, feve
from neural_data.oracle import oracle_conservative, oracle_jackknife
from transfer.metrics import (
    across_neurons,
    correlation,
    correlation_to_average,
    gini,
    image_correlation_to_average,
    normalized_correlation,
    openretina_feve,
    per_trial_correlation,
    single_trial_correlation,
    stack_repeats,
)


@pytest.fixture(scope="module")
def video(shared: Path):
    """Trials (trials, neurons, frames that count), the clip of each, and the published figures."""
    folder = shared / "reference/values/video/metrics"
    published = json.loads((folder / "reference.json").read_text())
    with np.load(folder / "trials.npz", allow_pickle=False) as stored:
        frames = slice(published["skip"], None)
        return stored["y_true"][..., frames], stored["y_pred"][..., frames], stored["video_ids"], published


@pytest.fixture(scope="module")
def static(shared: Path):
    """Reads a case of the static metrics: what went in and what came out, by name."""

    def read(name: str):
        path = shared / f"reference/values/static/metrics/{name}.npz"
        with np.load(path, allow_pickle=False) as stored:
            sides = (
                {key[len(side) :]: stored[key] for key in stored if key.startswith(side)} for side in ("in/", "out/")
            )
            return tuple(sides)

    return read


def of_clips(values, ids):
    return [values[ids == clip] for clip in np.unique(ids)]


# The stored value of the paper's definition was made of six clips of five trials, whatever the ids say.
FIVES = np.arange(30) // 5


def test_published_single_trial_correlations(video):
    responses, predictions, _, published = video
    found = single_trial_correlation(responses, predictions)
    for name in ("sensorium_2023.get_correlations(per neuron)", "ViV1T closed-loop challenge_correlation per neuron"):
        np.testing.assert_allclose(found, published[name], rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        found.mean(), published["ViV1T competition single_trial_correlation(skip=10)"], atol=1e-6
    )
    within = per_trial_correlation(responses, predictions)
    np.testing.assert_allclose(within, published["... per neuron"], rtol=0, atol=1e-6)


def test_published_correlations_to_average(video):
    responses, predictions, ids, published = video
    found = correlation_to_average(of_clips(responses, ids), of_clips(predictions, ids), "per_clip")
    np.testing.assert_allclose(found, published["correlation_to_average per neuron"], rtol=0, atol=1e-6)
    found = correlation_to_average(of_clips(responses, FIVES), of_clips(predictions, FIVES), "concatenated")
    name = "concatenated repeat-averaged correlation per neuron (whitepaper definition, own computation)"
    np.testing.assert_allclose(found, published[name], rtol=0, atol=1e-6)


def test_published_normalised_correlation(video):
    responses, predictions, ids, published = video
    found = normalized_correlation(of_clips(responses, ids), of_clips(predictions, ids))
    np.testing.assert_allclose(found, published["normalized_correlation per neuron"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.nanmean(found), published["ViV1T closed-loop normalized_correlation"], atol=1e-6)


def test_published_scores_of_images(static):
    given, published = static("v1t")
    single = correlation(given["predictions"], given["responses"], axis=0)
    np.testing.assert_allclose(single.mean(), published["single_trial"], rtol=0, atol=1e-12)
    _, (responses, predictions) = stack_repeats(given["image_ids"], given["responses"], given["predictions"])
    to_average = image_correlation_to_average(responses, predictions)
    np.testing.assert_allclose(to_average.mean(), published["to_average"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.nanmean(feve(responses, predictions)), published["feve"], rtol=0, atol=1e-12)
    # V1T's is NaN on this case, because one image has no positive signal power over neurons.
    normalised = across_neurons(responses, predictions)
    assert np.isnan(published["normalized_correlation"])
    assert np.isnan(normalised).sum() == 1
    torch_like = correlation(given["y_true"], given["y_pred"], axis=0)
    np.testing.assert_allclose(torch_like, published["corr_torch_ddof0"], rtol=0, atol=1e-6)


def test_published_scores_of_the_competition(static):
    given, published = static("competition")
    rows, columns = np.argsort(given["trial_idx"]), np.argsort(given["neuron_ids"])
    responses = given["responses"][rows][:, columns]
    rows, columns = np.argsort(given["sub_trial_idx"]), np.argsort(given["sub_neuron_ids"])
    predictions = given["sub_predictions"][rows][:, columns]
    single = correlation(predictions, responses, axis=0)
    np.testing.assert_allclose(single, published["single_trial_per_neuron"], rtol=0, atol=1e-12)
    image = given["image_ids"][np.argsort(given["trial_idx"])]
    _, (stacked, predicted) = stack_repeats(image, responses, predictions)
    to_average = image_correlation_to_average(stacked, predicted)
    np.testing.assert_allclose(to_average, published["to_average_per_neuron"], rtol=0, atol=1e-12)
    explained = feve(stacked, predicted)
    np.testing.assert_allclose(explained[~np.isnan(explained)], published["feve_per_neuron"], rtol=0, atol=1e-11)
    whole = feve(stacked, predicted, least_fraction=None)
    np.testing.assert_allclose(whole, published["feve_thr0"], rtol=0, atol=1e-11)


def test_published_figures_of_repeats(static):
    """neuralpredictors' formulas, of (images, repeats, neurons) there."""
    given, published = static("repeats")
    responses, predictions = (given[name].swapaxes(0, 1) for name in ("responses", "predictions"))
    flat = [given[name].reshape(-1, 9) for name in ("predictions", "responses")]
    expected = {
        "corr_single_trial": correlation(*flat, axis=0),
        "corr_axis_minus1": correlation(*flat, axis=-1),
        "corr_to_mean": image_correlation_to_average(responses, predictions),
        "oracle_jackknife": np.nan_to_num(oracle_jackknife(responses)),
        "oracle_conservative": oracle_conservative(responses),
        "fev": explainable_fraction(responses),
        "feve": feve(responses, predictions, least_fraction=None),
        "snr": anscombe_snr(responses),
    }
    for name, found in expected.items():
        # The oracle of neuralpredictors has the 1e-8 of its correlation.
        np.testing.assert_allclose(found, published[name], rtol=0, atol=1e-7, err_msg=name)


def test_published_figures_of_unequal_repeats(static):
    given, published = static("repeats")
    stimulus = np.repeat(np.arange(12), given["uneq_repeats"])
    shown, (responses, predictions) = stack_repeats(stimulus, given["uneq_responses"], given["uneq_predictions"])
    assert len(shown) == 12
    np.testing.assert_allclose(explainable_fraction(responses), published["uneq_fev"], atol=1e-12)
    found = feve(responses, predictions, least_fraction=None)
    np.testing.assert_allclose(found, published["uneq_feve"], rtol=1e-10)


def test_published_open_retina(static):
    given, published = static("openretina")
    responses, predictions = (given[name].swapaxes(0, 1) for name in ("responses", "predictions"))
    np.testing.assert_allclose(openretina_feve(responses, predictions), published["feve"], rtol=0, atol=1e-7)
    single = openretina_feve(responses, predictions[0])
    np.testing.assert_allclose(single, published["feve_2d_predictions"], rtol=0, atol=1e-7)


def test_published_gini(static):
    given, published = static("repeats")
    flat = given["responses"].reshape(-1, 9)
    np.testing.assert_allclose(gini(flat), published["gini_axis0"], rtol=0, atol=1e-12)


def test_across_neurons_is_schoppes_formula():
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(4, 30))
    responses = signal + 0.5 * rng.normal(size=(5, 4, 30))
    predictions = np.broadcast_to(signal, responses.shape)
    for image, found in enumerate(across_neurons(responses, predictions)):
        shown = responses[:, image]
        power = (shown.sum(axis=0).var(ddof=1) - shown.var(axis=1, ddof=1).sum()) / 20
        covariance = np.cov(shown.mean(axis=0), signal[image])[0, 1]
        np.testing.assert_allclose(found, covariance / np.sqrt(signal[image].var(ddof=1) * power), rtol=1e-12)


@given(trials=st.lists(st.integers(1, 7), min_size=1, max_size=6), offset=st.floats(-1e6, 1e6), seed=st.integers(0, 99))
def test_trials_are_correlated_as_if_they_were_one(trials, offset, seed):
    rng = np.random.default_rng(seed)
    responses = [rng.normal(size=(3, n)) + offset for n in trials]
    predictions = [response + rng.normal(size=response.shape) for response in responses]
    found = single_trial_correlation(responses, predictions)
    expected = correlation(np.concatenate(responses, 1), np.concatenate(predictions, 1))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_what_is_undefined():
    one = np.random.default_rng(0).normal(size=(1, 2, 9))
    with pytest.raises(ValueError, match="no clip is repeated"):
        correlation_to_average([one], [one])
    with pytest.raises(ValueError, match="found 'mean', expected per_clip or concatenated"):
        correlation_to_average([one], [one], "mean")
    with pytest.raises(ValueError, match="no trials to correlate"):
        single_trial_correlation([], [])
    with pytest.raises(ValueError, match=r"\(2, 9\) and predictions \(2, 8\)"):
        single_trial_correlation([one[0]], [one[0, :, :8]])
    assert np.isnan(normalized_correlation([one], [one])).all()
    np.testing.assert_array_equal(correlation(np.ones((2, 9)), one[0]), [0, 0])


def test_stacked_repeats_leave_out_what_was_shown_once():
    stimulus, values = np.array([7, 3, 7, 5, 3, 7]), np.arange(6.0)[:, None]
    shown, (stacked,) = stack_repeats(stimulus, values)
    np.testing.assert_array_equal(shown, [3, 7])
    np.testing.assert_array_equal(stacked[..., 0], [[1, 0], [4, 2], [np.nan, 5]])
