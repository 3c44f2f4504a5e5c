"""Simulated recordings of animals that watch videos, with the truth behind them.

Comes in: a `SimulationConfig` with `dynamic=true`. Goes out: for each animal a `Recording` whose trials are made when
they are asked for, and its `VideoTruth`.

All animals share one core, a bank of spatiotemporal energy features (`motion_energy.py`); neurons differ in where and
how much they read of it. Rates are multiplied by a gain that follows running and pupil dilation, gaze moves receptive
fields (`behavior_state.py`), and spikes are recorded as such or through calcium (`calcium.py`).

The scale of each neuron follows from the reliability that is drawn for it. With the variance v of its expected response
over the frames of the oracle clips, the mean m of its Poisson variance, both at a scale of 1, and the variance s of the
trace's own noise, the mean of R repeats has the reliability

    scale^2 v / (scale^2 v + (scale m + s) / R)

as long as neither gain nor gaze varies; with them see `VideoTruth.noise_ceiling`.
"""

import dataclasses

import numpy as np
import pandas as pd

from neural_data.behavior_state import BEHAVIOR_NAMES, BehaviorState, simulate_behavior
from neural_data.calcium import Indicator
from neural_data.motion_energy import MotionEnergy, draw_features
from neural_data.natural_videos import GREY
from neural_data.recording import Recording
from neural_data.retinotopy import field_centres, place_neurons, random_kinds
from neural_data.simulate_images import RELIABILITY_SPREAD
from neural_data.simulation_config import SimulationConfig, check_simulation
from neural_data.trial_files import TrialFiles
from neural_data.video_session import EVERYONE, GAP_S, clip_table, render_clip, session_table, stream
from neural_data.video_truth import VideoTruth

SENSITIVITY_SPREAD = 1 / 3  # standard deviation of neurons' sensitivities to arousal, relative to their mean


def simulate_videos(config: SimulationConfig) -> list[tuple[Recording, VideoTruth]]:
    """The recording of each animal and the truth behind it. The same config gives the same numbers.

    Stimuli uint8 (stimuli, time, height, width) and responses float32 (trials, neurons, time) are made trial by trial,
    and again at every look: write what is to be read often. After a clip's end stimuli are grey. Raises ValueError for
    a value outside of its range, or if a neuron answers to all oracle clips alike.
    """
    config = dataclasses.replace(config, dynamic=True)
    check_simulation(config)
    videos = config.videos
    features = draw_features(
        config.areas, videos.features, config.complex_cells, videos.width, stream(config.seed, "features")
    )
    core = MotionEnergy(features, videos.height, videos.width, videos.frame_rate_hz, config.exponent)
    numbers = range(1, config.animals + 1)
    tables = [_neurons(config, number) for number in numbers]
    truths = [_animal(config, core, number, table) for number, table in zip(numbers, tables, strict=True)]
    truths = _scaled(config, truths)
    return [(_recording(truth, table), truth) for truth, table in zip(truths, tables, strict=True)]


def _neurons(config: SimulationConfig, animal: int) -> pd.DataFrame:
    """The neuron table of one animal. Some ids are missing, as after quality control."""
    rng = stream(config.seed, "neurons", animal)
    neurons = place_neurons(dataclasses.replace(config, animals=1), rng)
    found = np.sort(rng.permutation(len(neurons) + len(neurons) // 10 + 1)[: len(neurons)]) + 1
    return neurons.assign(neuron_id=[str(number) for number in found], animal=f"animal{animal}")


def _animal(config: SimulationConfig, core: MotionEnergy, animal: int, table: pd.DataFrame) -> VideoTruth:
    """The truth of one animal, of whose neurons the scale is still 1."""
    videos, rng = config.videos, stream(config.seed, "neurons", animal, 1)
    kind = random_kinds(len(table), config, rng)
    x, y = field_centres(table, rng) * np.array([[videos.width - 1], [videos.height - 1]])
    weights = _weights(core.features, table["area"].to_numpy(), kind, videos.features_per_neuron, rng)
    sensitivity = videos.behavior_gain * (1 + SENSITIVITY_SPREAD * rng.standard_normal(len(table)))
    neurons = pd.DataFrame({"kind": kind, "x": x, "y": y, "scale": 1.0, "sensitivity": sensitivity})
    clips = clip_table(config, animal)
    trials = session_table(config, clips, animal)
    state = _state(config, trials, animal)
    arousal, gaze = (_by_trial(trace, trials, config) for trace in (state.arousal[None], state.gaze))
    return VideoTruth(config, animal, core, weights, neurons, clips, trials, arousal[:, 0], gaze, state.camera_to_gaze)


def _weights(
    features: pd.DataFrame, area: np.ndarray, kind: np.ndarray, per_neuron: int, rng: np.random.Generator
) -> np.ndarray:
    """Readout weights float32 (neurons, features), of sum 1: each neuron reads a few features of its area and kind;
    dead neurons none."""
    fits = (features["area"].to_numpy() == area[:, None]) & (features["kind"].to_numpy() == kind[:, None])
    lot = np.where(fits, rng.random(fits.shape), np.inf)
    drawn = fits & (lot.argsort(axis=1).argsort(axis=1) < per_neuron)
    weights = np.where(drawn, rng.exponential(size=fits.shape), 0)
    total = weights.sum(axis=1, keepdims=True)
    return np.divide(weights, total, out=weights, where=total > 0).astype(np.float32)


def _state(config: SimulationConfig, trials: pd.DataFrame, animal: int) -> BehaviorState:
    videos = config.videos
    samples = len(trials) * _samples_per_trial(config)
    rng = stream(config.seed, "behavior", animal)
    return simulate_behavior(samples, videos.frame_rate_hz, videos.gaze_shift, rng)


def _samples_per_trial(config: SimulationConfig) -> int:
    return config.videos.frames + round(GAP_S * config.videos.frame_rate_hz)


def _by_trial(traces: np.ndarray, trials: pd.DataFrame, config: SimulationConfig) -> np.ndarray:
    """Traces of a session (channels, samples) by trial, (trials, channels, time), NaN after a trial's end."""
    frames = config.videos.frames
    cut = traces.reshape(len(traces), len(trials), -1)[:, :, :frames].swapaxes(0, 1).copy()
    over = np.arange(frames) >= trials["frames"].to_numpy()[:, None]
    return np.where(over[:, None], np.float32(np.nan), cut)


def _scaled(config: SimulationConfig, truths: list[VideoTruth]) -> list[VideoTruth]:
    """Truths with the scales that give neurons their reliabilities, from the oracle clips, which all animals see."""
    indicator = Indicator.of(config.videos)
    counting = dataclasses.replace(indicator, noise=0.0)
    oracle = truths[0].clips[lambda clips: (clips["tier"] == "oracle") & (clips["owner"] == EVERYONE)]
    sums, frames = [np.zeros((3, len(truth.neurons))) for truth in truths], 0
    for _, clip in oracle.iterrows():
        maps = truths[0].core.maps(render_clip(config, clip).astype(np.float32) / 127.5 - 1)
        frames += maps.shape[-1]
        for truth, total in zip(truths, sums, strict=True):
            drive = (truth.readout @ maps.reshape(-1, maps.shape[-1])).astype(np.float64)
            expected = counting.mean(drive)
            total += [expected.sum(axis=1), (expected**2).sum(axis=1), counting.variance(drive).sum(axis=1)]
    scaled = []
    for truth, (first, second, noise) in zip(truths, sums, strict=True):
        variance = second / frames - (first / frames) ** 2
        scale = _scale(config, truth, variance, noise / frames, indicator.noise**2)
        scaled.append(dataclasses.replace(truth, neurons=truth.neurons.assign(scale=scale)))
    return scaled


def _scale(
    config: SimulationConfig, truth: VideoTruth, variance: np.ndarray, poisson: np.ndarray, own: float
) -> np.ndarray:
    """The positive root of repeats * variance * scale^2 = odds(reliability) * (poisson * scale + own), (neurons,)."""
    alive = (truth.neurons["kind"] != "dead").to_numpy()
    if (variance[alive] <= 0).any():
        raise ValueError(
            f"{(variance[alive] <= 0).sum()} neurons of animal{truth.animal} answer to all oracle clips alike; raise "
            f"`videos.frames` or `videos.test_clips`, found {config.videos.frames} and {config.videos.test_clips}"
        )
    log_odds = RELIABILITY_SPREAD * stream(config.seed, "reliability", truth.animal).standard_normal(alive.sum())
    # The drawn neurons' own median is moved, so that it is the wanted one with few neurons, too.
    if len(log_odds):
        log_odds += np.log(config.reliability / (1 - config.reliability)) - np.median(log_odds)
    odds, square = np.exp(log_odds), config.videos.repeats * variance[alive]
    linear = odds * poisson[alive]
    scale = np.zeros(len(alive))
    scale[alive] = (linear + np.sqrt(linear**2 + 4 * square * odds * own)) / (2 * square)
    return scale


def _recording(truth: VideoTruth, neurons: pd.DataFrame) -> Recording:
    config, trials = truth.config, truth.trials
    videos = config.videos
    state = _state(config, trials, truth.animal)
    behavior, pupil_center = (_by_trial(trace, trials, config) for trace in (state.behavior, state.pupil_center))
    absent = [name for name in ("behavior", "pupil_center") if not getattr(videos, f"record_{name}")]
    return Recording(
        name=f"animal{truth.animal}",
        stimuli=TrialFiles(
            _PaddedClips(truth), (len(truth.clips), videos.frames, videos.height, videos.width), np.uint8
        ),
        trials=trials,
        responses=TrialFiles(truth.respond, (len(trials), len(neurons), videos.frames)),
        neurons=neurons,
        behavior=behavior if videos.record_behavior else None,
        pupil_center=pupil_center if videos.record_pupil_center else None,
        sampling_rate_hz=videos.frame_rate_hz,
        source=f"simulated, seed {config.seed}",
        behavior_names=BEHAVIOR_NAMES if videos.record_behavior else (),
        notes=tuple(f"{name} was not recorded, although it acts on the neurons" for name in absent),
    )


@dataclasses.dataclass(frozen=True)
class _PaddedClips:
    """Reads a clip, followed by the grey screen until the longest clip ends."""

    truth: VideoTruth

    def __call__(self, stimulus: int) -> np.ndarray:
        clip = self.truth.clip(stimulus)
        left = self.truth.config.videos.frames - len(clip)
        return np.pad(clip, ((0, left), (0, 0), (0, 0)), constant_values=GREY)
