"""An animal's state over a session: running, pupil and gaze, and what they do to its neurons.

Comes in: the samples of a session and its frame rate. Goes out: `BehaviorState`: traces as cameras and wheel record
them and, behind these, arousal and gaze.

Running comes in bouts, pupil dilation follows running and wanders by itself; both raise rates (Niell and Stryker,
Neuron 65:472, 2010; Reimer et al., Neuron 84:355, 2014). Gaze stays, drifts a little and jumps about every two seconds,
more along the horizon. Means and spreads are near those of the Sensorium 2023 recordings: dilation 54 +- 15, place of
the pupil (120, 120) +- (5, 7) camera pixels, speed 0.3 to 6 on average, heavy-tailed; round numbers for illustration.
"""

from dataclasses import dataclass

import numpy as np

from neural_data.smoothing import smooth, smooth_noise, standardised

BEHAVIOR_NAMES = ("pupil_dilation", "running_speed")

RUNNING_SHARE = (0.1, 0.5)  # of the session, drawn for each animal
BOUT_S = 6.0  # mean duration of a bout of running
BOUT_SPEED = (3.0, 5.0)  # shape and scale of the gamma distribution of a bout's speed, cm/s
RUNNING_SMOOTH_S = 0.5
PUPIL_SMOOTH_S = 2.0
PUPIL_MEAN, PUPIL_SPREAD, PUPIL_SMALLEST = 54.0, 15.0, 5.0  # camera pixels
SACCADES_HZ = 0.5
DRIFT_SHARE = 0.2  # of gaze that is slow drift, in standard deviations
CAMERA_CENTER_PX = (120.0, 120.0)
CAMERA_PX_PER_PX = 3.0  # how far the pupil moves in the camera's picture when gaze moves by one pixel of the stimulus
CAMERA_NOISE_PX = 0.1


@dataclass(frozen=True, eq=False)
class BehaviorState:
    """One session; samples are those of the frame rate.

    `behavior`: float32 (2, samples), pupil dilation in camera pixels and running speed in cm/s. `pupil_center`: float32
    (2, samples), x and y in camera pixels. `arousal`: float32 (samples,), zero mean and unit variance. `gaze`: float32
    (2, samples), how far receptive fields move to the right and down, in pixels of the stimulus. `camera_to_gaze`:
    float64 (2, 3), with which gaze = camera_to_gaze @ (x, y, 1) but for the camera's noise.
    """

    behavior: np.ndarray
    pupil_center: np.ndarray
    arousal: np.ndarray
    gaze: np.ndarray
    camera_to_gaze: np.ndarray


def simulate_behavior(samples: int, frame_rate_hz: float, gaze_shift: float, rng: np.random.Generator) -> BehaviorState:
    """A session of so many samples. `gaze_shift`: standard deviation of horizontal gaze in pixels of the stimulus."""
    running = _running(samples, frame_rate_hz, rng)
    pupil = standardised(smooth(standardised(running), PUPIL_SMOOTH_S, frame_rate_hz))
    pupil = standardised(pupil + smooth_noise(1, samples, PUPIL_SMOOTH_S, frame_rate_hz, rng)[0])
    dilation = np.maximum(PUPIL_MEAN + PUPIL_SPREAD * pupil, PUPIL_SMALLEST)
    behavior = np.stack([dilation, running])
    gaze = gaze_shift * np.array([[1.0], [0.5]]) * _gaze(samples, frame_rate_hz, rng)
    to_camera = _camera(rng)
    noise = CAMERA_NOISE_PX * rng.standard_normal(gaze.shape)
    pupil_center = to_camera @ gaze + np.array(CAMERA_CENTER_PX)[:, None] + noise
    back = np.linalg.inv(to_camera)
    return BehaviorState(
        behavior.astype(np.float32),
        pupil_center.astype(np.float32),
        arousal(behavior).astype(np.float32),
        gaze.astype(np.float32),
        np.column_stack([back, -back @ CAMERA_CENTER_PX]),
    )


def arousal(behavior: np.ndarray) -> np.ndarray:
    """Arousal (samples,) of dilation and speed (2, samples): the sum of the standardised dilation and the standardised
    log(1 + speed), standardised over the session."""
    dilation, speed = behavior
    return standardised(standardised(dilation) + standardised(np.log1p(speed)))


def log_gain(sensitivity: np.ndarray, aroused: np.ndarray) -> np.ndarray:
    """Logarithm of the factor on a neuron's rate, (neurons, samples): sensitivity * arousal - sensitivity^2 / 2, such
    that the factor would be 1 on average if arousal were Gaussian."""
    return sensitivity[:, None] * aroused - sensitivity[:, None] ** 2 / 2


def _running(samples: int, frame_rate_hz: float, rng: np.random.Generator) -> np.ndarray:
    """Speed in cm/s: rest and bouts in turn, of exponential durations, smoothed."""
    share = rng.uniform(*RUNNING_SHARE)
    rest_s = BOUT_S * (1 - share) / share
    count = int(np.ceil(samples / (frame_rate_hz * (rest_s + BOUT_S)))) * 2 + 20
    durations = rng.exponential(np.stack([np.full(count, rest_s), np.full(count, BOUT_S)], axis=1)).ravel()
    speeds = np.stack([np.zeros(count), rng.gamma(*BOUT_SPEED, count)], axis=1).ravel()
    # The session begins somewhere within the first pair.
    ends = np.cumsum(durations) - rng.uniform(0, durations[:2].sum())
    speed = speeds[np.minimum(np.searchsorted(ends, np.arange(samples) / frame_rate_hz), len(speeds) - 1)]
    jitter = 1 + 0.2 * smooth_noise(1, samples, RUNNING_SMOOTH_S, frame_rate_hz, rng)[0]
    return np.maximum(smooth(speed, RUNNING_SMOOTH_S, frame_rate_hz) * jitter, 0)


def _gaze(samples: int, frame_rate_hz: float, rng: np.random.Generator) -> np.ndarray:
    """Gaze (2, samples) of unit variance: fixations at independent places, and drift."""
    jumps = rng.random(samples) < SACCADES_HZ / frame_rate_hz
    fixation = np.cumsum(jumps)
    places = np.clip(rng.standard_normal((2, fixation[-1] + 1)), -3, 3)
    drift = smooth_noise(2, samples, PUPIL_SMOOTH_S, frame_rate_hz, rng)
    return np.sqrt(1 - DRIFT_SHARE**2) * places[:, fixation] + DRIFT_SHARE * drift


def _camera(rng: np.random.Generator) -> np.ndarray:
    """What moves the pupil in the camera's picture, (2, 2): the camera looks back at the eye, a little askew."""
    angle = rng.uniform(-0.3, 0.3)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return CAMERA_PX_PER_PX * turn @ np.diag([-rng.uniform(0.8, 1.2), rng.uniform(0.8, 1.2)])
