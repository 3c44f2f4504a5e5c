"""Truth of simulated videos: what is recorded shows the receptive fields, ceilings, gain, gaze and core that it has."""

import numpy as np
import pytest

from neural_data.behavior_state import arousal
from neural_data.reliability import pearson, split_half_reliability
from neural_data.simulate_videos import simulate_videos
from neural_data.simulation_config import SimulationConfig, VideoConfig
from neural_data.video_truth import moved

SMALL = {"height": 24, "width": 32, "train_clips": 4, "features": 4}
STILL = {"behavior_gain": 0.0, "gaze_shift": 0.0}


def simulated(animals=1, neurons=15, areas=("VISp",), reliability=0.8, dead=0.0, complex_cells=0.5, **videos):
    return simulate_videos(
        SimulationConfig(
            dynamic=True,
            animals=animals,
            areas=list(areas),
            neurons_per_area=neurons,
            reliability=reliability,
            dead_neurons=dead,
            complex_cells=complex_cells,
            videos=VideoConfig(**(SMALL | videos)),
        )
    )


def test_spike_triggered_averages_are_the_receptive_fields_of_simple_neurons():
    """Cross-correlation of recorded spikes with noise, over 80000 frames (44 minutes) at a high signal."""
    noise = {"classes": ["noise"], "frames": 8000, "train_clips": 10, "test_clips": 1, "repeats": 2, "gaze_shift": 0.0}
    size = {"height": 18, "width": 24}
    [(recording, truth)] = simulated(neurons=20, areas=["VISl"], reliability=0.99, **noise | size)
    fields = truth.receptive_fields()
    average = np.zeros_like(fields)
    for row in np.flatnonzero((recording.trials["tier"] == "train").to_numpy()):
        trial = recording.trial(row)
        pixels = trial["video"].astype(np.float32).reshape(len(trial["video"]), -1) / 127.5 - 1
        spikes = trial["responses"] - trial["responses"].mean(axis=1, keepdims=True)
        for lag in range(fields.shape[1]):
            average[:, lag] += (spikes[:, lag:] @ pixels[: len(pixels) - lag]).reshape(len(spikes), 18, 24)
    similarity = pearson(average.reshape(20, -1), fields.reshape(20, -1), axis=1)
    simple = (truth.neurons["kind"] == "simple").to_numpy()
    assert np.median(similarity[simple]) > 0.9
    assert similarity[simple].min() > 0.8
    assert np.abs(similarity[~simple]).max() < 0.5


def whole_frames(responses):
    """(repeats, clips, neurons, time) to (repeats, frames of all clips, neurons), of frames that all repeats have."""
    clips = []
    for clip in responses.swapaxes(0, 1):
        shown = clip[~np.isnan(clip).all(axis=(1, 2))]
        whole = shown[:, :, ~np.isnan(shown).any(axis=(0, 1))].swapaxes(1, 2)
        absent = np.full((len(clip) - len(shown), *whole.shape[1:]), np.nan)
        clips.append(np.concatenate([whole, absent]))
    return np.concatenate(clips, axis=1)


@pytest.mark.parametrize(
    "videos",
    [
        STILL,
        STILL | {"response": "calcium"},
        STILL | {"response": "deconvolved", "short_clips": 0.5, "lost_frames": 0.5, "missing_repeats": 4},
        {"behavior_gain": 0.5, "gaze_shift": 1.0},
    ],
)
def test_estimates_from_recorded_trials_agree_with_the_noise_ceiling(videos):
    """Without bias; single neurons differ as three clips of ten seconds in all let them."""
    [(recording, truth)] = simulated(neurons=60, dead=0.1, reliability=0.7, test_clips=3, **videos)
    oracle = recording.repeats("animal1", tier="oracle").responses
    ceiling = truth.noise_ceiling("oracle")
    alive = (truth.neurons["kind"] != "dead").to_numpy()
    assert ceiling[~alive].isna().all(axis=None)
    error = (split_half_reliability(whole_frames(oracle), halvings=20) - ceiling["reliability"])[alive]
    assert abs(error.mean()) < 0.02
    assert error.std() < 0.12
    rows = np.flatnonzero((recording.trials["tier"] == "oracle").to_numpy())
    pairs = [(recording.trial(row)["responses"], truth.expected_of_trial(row)) for row in rows]
    correlation = pearson(*(np.concatenate(traces, axis=1) for traces in zip(*pairs, strict=True)), axis=1)
    error = (correlation - ceiling["single_trial_correlation"])[alive]
    assert abs(error.mean()) < 0.01
    assert error.std() < 0.07
    mean = np.concatenate([responses for responses, _ in pairs], axis=1).mean(axis=1)
    assert mean[alive].sum() / ceiling["mean"][alive].sum() == pytest.approx(1, abs=0.03)
    assert pearson(mean[alive], ceiling["mean"][alive]) > 0.98


def test_reliability_of_still_neurons_is_the_one_asked_for():
    for response in ("spikes", "calcium", "deconvolved"):
        whole = STILL | {"response": response, "short_clips": 0.0, "lost_frames": 0.0, "noise": 0.5}
        [(_, truth)] = simulated(neurons=30, reliability=0.6, **whole)
        assert truth.noise_ceiling()["reliability"].median() == pytest.approx(0.6, abs=0.01)


def test_gain_is_recovered_by_regression_on_recorded_behavior():
    [(recording, truth)] = simulated(
        neurons=60, train_clips=60, test_clips=1, repeats=2, behavior_gain=0.4, gaze_shift=0.0
    )
    factors, states = [], []
    for row in range(len(recording.trials)):
        trial = recording.trial(row)
        without = truth.rates_of_clip(int(recording.trials["stimulus"].iat[row]))[:, : trial["responses"].shape[1]]
        for part in np.array_split(np.arange(without.shape[1]), 4):
            factors.append(trial["responses"][:, part].sum() / without[:, part].sum())
            states.append(trial["behavior"][:, part].mean(axis=1))
    dilation, speed = np.array(states, dtype=float).T
    regressors = np.column_stack([np.ones(len(dilation)), dilation, np.log1p(speed)])
    found = regressors @ np.linalg.lstsq(regressors, np.log(np.maximum(factors, 1e-3)), rcond=None)[0]
    alive = truth.neurons["scale"].to_numpy() > 0
    true = [
        np.log(gain[alive][:, part].mean())
        for gain in map(truth.gain, range(len(recording.trials)))
        for part in np.array_split(np.arange(gain.shape[1]), 4)
    ]
    assert np.corrcoef(found, true)[0, 1] > 0.9
    assert np.polyfit(true, found, 1)[0] == pytest.approx(1, abs=0.2)


def test_gain_follows_arousal_of_the_whole_session():
    [(recording, truth)] = simulated()
    inside = ~np.isnan(truth.arousal)
    together = arousal(np.stack([recording.behavior[:, channel][inside] for channel in range(2)]).astype(float))
    assert np.corrcoef(together, truth.arousal[inside])[0, 1] > 0.999
    gain = np.log(truth.gain(3))
    centred = gain - gain.mean(axis=1, keepdims=True)
    frames = int(recording.trials["frames"].iat[3])
    expected = truth.neurons["sensitivity"].to_numpy()[:, None] * truth.arousal[3, :frames]
    np.testing.assert_allclose(centred, expected - expected.mean(axis=1, keepdims=True), atol=1e-4)
    assert truth.neurons["sensitivity"].mean() == pytest.approx(0.3, abs=0.1)


def test_gaze_is_recovered_from_responses_and_from_the_pupil():
    """The most likely of many shifts, by responses alone, follows the true gaze, and the pupil by an affine map."""
    shown = {"classes": ["noise"], "frames": 400, "train_clips": 2, "test_clips": 1, "repeats": 2}
    [(recording, truth)] = simulated(neurons=60, reliability=0.9, gaze_shift=2.0, behavior_gain=0.0, **shown)
    shifts = np.array([(x, y) for x in range(-5, 6) for y in (-1, 0, 1)], float)
    found, true, pupil = [], [], []
    for row in np.flatnonzero((recording.trials["tier"] == "train").to_numpy()):
        trial = recording.trial(row)
        frames = len(trial["video"])
        likelihood = []
        for shift in shifts:
            rates = truth.rates_of(trial["video"], np.repeat(shift[:, None], frames, axis=1)) + 1e-3
            likelihood.append((trial["responses"] * np.log(rates) - rates).sum(axis=0))
        smooth = np.apply_along_axis(np.convolve, 1, likelihood, np.ones(9), "same")
        found.append(shifts[smooth.argmax(axis=0)])
        true.append(truth.gaze[row, :, :frames].T)
        pupil.append(trial["pupil_center"].T)
    found, true, pupil = map(np.concatenate, (found, true, pupil))
    assert np.corrcoef(found[:, 0], true[:, 0])[0, 1] > 0.8
    regressors = np.column_stack([pupil, np.ones(len(pupil))])
    learned = np.linalg.lstsq(regressors, found, rcond=None)[0].T
    np.testing.assert_allclose(learned[0, :2], truth.camera_to_gaze[0, :2], atol=0.1)
    np.testing.assert_allclose(regressors @ truth.camera_to_gaze.T, true, atol=0.3)


def test_receptive_fields_move_with_gaze():
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((3, 12, 16)).astype(np.float32)
    gaze = np.array([[2, 0, -1], [-1, 0, 3]], np.float32)
    seen = moved(pixels, gaze)
    np.testing.assert_array_equal(seen[1], pixels[1])
    np.testing.assert_array_equal(seen[0, 1:, :-2], pixels[0, :-1, 2:])
    assert not seen[0, 0].any()
    assert not seen[0, :, -2:].any()
    np.testing.assert_array_equal(seen[2, :-3, 1:], pixels[2, 3:, :-1])
    between = moved(pixels, np.full((2, 3), 0.25, np.float32))
    by_hand = 0.75 * pixels[:, :, :-1] + 0.25 * pixels[:, :, 1:]
    by_hand = 0.75 * by_hand[:, :-1] + 0.25 * by_hand[:, 1:]
    np.testing.assert_allclose(between[:, :-1, :-1], by_hand, atol=1e-6)


def test_all_animals_share_the_core_and_their_weights_are_recovered_from_it():
    """Regression of recorded responses on the core's maps at the place of a neuron gives back its readout."""
    animals = simulated(
        animals=2, neurons=20, train_clips=30, test_clips=1, reliability=0.9, complex_cells=1.0, **STILL
    )
    (_, first), (_, second) = animals
    assert first.core is second.core
    assert not np.allclose(first.neurons[["x", "y"]], second.neurons[["x", "y"]])
    for recording, truth in animals:
        x, y = truth.neurons[["x", "y"]].to_numpy().T
        n_neurons, n_features = truth.weights.shape
        # Every feature at the place of every neuron.
        every = np.tile(np.eye(n_features), (n_neurons, 1))
        readout = truth.core.readout(np.repeat(x, n_features), np.repeat(y, n_features), every)
        gram = correlated = 0
        for row in np.flatnonzero((recording.trials["tier"] == "train").to_numpy()):
            trial = recording.trial(row)
            maps = truth.core.maps(trial["video"].astype(np.float32) / 127.5 - 1)
            seen = (readout @ maps.reshape(-1, maps.shape[-1])).reshape(n_neurons, n_features, -1)
            gram = gram + seen @ seen.swapaxes(1, 2)
            correlated = correlated + seen @ trial["responses"][:, :, None]
        found = np.linalg.solve(gram, correlated)[:, :, 0]
        true = truth.weights * truth.neurons["scale"].to_numpy()[:, None]
        assert pearson(found, true, axis=1).min() > 0.9


def test_receptive_fields_have_unit_length_or_none_and_can_be_chosen():
    [(_, truth)] = simulated(dead=0.2)
    fields = truth.receptive_fields()
    assert fields.shape == (15, 18, 24, 32)
    assert fields.dtype == np.float32
    length = np.linalg.norm(fields.reshape(15, -1), axis=1)
    np.testing.assert_allclose(length, truth.neurons["kind"] != "dead", atol=1e-5)
    np.testing.assert_array_equal(truth.receptive_fields([4, 2]), fields[[4, 2]])
    peak = np.abs(fields).max(axis=1).reshape(15, -1).argmax(axis=1)
    alive = length > 0
    assert np.abs(peak % 32 - truth.neurons["x"])[alive].max() < 5
    assert np.abs(peak // 32 - truth.neurons["y"])[alive].max() < 5


def test_rates_by_stimulus_by_trial_and_of_any_video_agree():
    [(recording, truth)] = simulated(short_clips=0.5, **STILL)
    assert truth.rates.shape == (len(truth.clips), 15, 100)
    row = int(np.flatnonzero(recording.trials["frames"] < 99)[0])
    stimulus, frames = (int(recording.trials[name].iat[row]) for name in ("stimulus", "frames"))
    assert np.isnan(truth.trial_rates[row, :, frames:]).all()
    np.testing.assert_allclose(
        truth.trial_rates[row, :, :frames], truth.rates[stimulus, :, :frames], rtol=1e-4, atol=1e-6
    )
    video = recording.trial(row)["video"]
    np.testing.assert_allclose(truth.rates_of(video), truth.rates[stimulus, :, :frames], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(truth.expected_responses[row], truth.trial_rates[row])


def test_a_tier_without_repeats_has_no_ceiling():
    [(_, truth)] = simulated()
    with pytest.raises(
        ValueError, match=r"tier: found 'train', expected one whose clips are repeated; there are .*oracle"
    ):
        truth.noise_ceiling("train")
