"""Simulated recordings whose truth is known: receptive fields, rates and reliabilities.

Comes in: a `SimulationConfig`. Goes out: a `Recording` of Poisson spike counts per presentation, and its `Truth`.

Simple cells: amplitude is the half-wave rectified response of a Gabor filter. Complex cells: amplitude^2 is the
energy, the summed squares of two Gabor filters in quadrature (Adelson and Bergen, J. Opt. Soc. Am. A 2:284, 1985).
Both are divided by pooled local contrast (Carandini and Heeger, Nature Reviews Neuroscience 13:51, 2012):

    rate = gain * (amplitude^2 / (c50^2 + contrast^2))^(exponent / 2)

Reliability: for Poisson counts with mean rate m over the stimuli and variance v of the rates over the stimuli, the
mean of R repeats has reliability v / (v + m / R), which is what the Spearman-Brown corrected split-half correlation
estimates; the gain of each neuron is solved from it.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from neural_data.natural_images import grey, image_samples
from neural_data.recording import Recording
from neural_data.retinotopy import field_centres, place_neurons, random_kinds
from neural_data.simulation_config import FIELD_SIZE, SimulationConfig, check_simulation
from neural_data.tables import trial_table

FIELD_SIGMA = (0.05, 0.07)  # standard deviation of a VISp Gabor's envelope, share of the image's side
CYCLES_PER_SIGMA = (0.25, 0.5)  # one to two cycles within two standard deviations of the centre
ASPECT = (1.0, 1.6)  # envelope along the stripes, relative to across
POOL_SIZE = 2.0  # pooling of contrast, relative to the Gabor's envelope
C50 = 0.2  # contrast at which normalisation halves the response
RELIABILITY_SPREAD = 0.8  # standard deviation of logit(reliability) over neurons


@dataclass(frozen=True)
class Truth:
    """What generated a simulated recording; neurons in the order of its neuron table.

    `rates`: float64 (stimuli, neurons), expected spikes per presentation. `receptive_fields`: float32
    (neurons, size, size), unit length, the first of a complex cell's two filters, zero for dead neurons.
    `reliability`: float64 (neurons,), the expected Spearman-Brown split-half reliability, NaN for dead
    neurons. `kind`: text (neurons,), "simple", "complex" or "dead". `gabors`: table with `x`, `y` (centre),
    `sigma` (across the stripes) and `aspect`, in pixels; `orientation` and `phase` in radians; `frequency` in
    cycles per pixel.
    """

    rates: np.ndarray
    receptive_fields: np.ndarray
    reliability: np.ndarray
    kind: np.ndarray
    gabors: pd.DataFrame


def simulate(config: SimulationConfig) -> tuple[Recording, Truth]:
    """The recording and the truth behind it. The same config gives the same numbers.

    Raises ValueError for a value outside of its range, or if too few repeats would be left.
    """
    check_simulation(config)
    if config.dynamic:
        raise ValueError("dynamic: found true, expected false; `simulate_videos` makes dynamic recordings")
    rng = np.random.default_rng(config.seed)
    images = _grey_images(config)
    neurons = place_neurons(config, rng)
    gabors = _random_gabors(neurons, config.size, rng)
    kind = random_kinds(len(neurons), config, rng)
    rates = drive(images, gabors, kind, config.exponent)
    # A simple cell that no stimulus excites is excited by all with the opposite phase.
    gabors.loc[(rates.max(axis=0) == 0) & (kind == "simple"), "phase"] += np.pi
    rates = drive(images, gabors, kind, config.exponent)
    n_repeats = _repeats_of_neurons(neurons, config, rng)
    alive = kind != "dead"
    rates[:, alive] *= _gain(rates[:, alive], config, rng)
    noise = (rates / n_repeats).mean(axis=0)
    signal = rates.var(axis=0, ddof=1)
    reliability = np.divide(signal, signal + noise, out=np.full(len(kind), np.nan), where=alive)
    receptive_fields = gabor_filters(gabors, config.size)[0]
    receptive_fields[~alive] = 0
    truth = Truth(rates, receptive_fields.astype(np.float32), reliability, kind, gabors)
    stimulus = np.tile(np.arange(config.stimuli), config.repeats)
    recording = Recording(
        name="simulated",
        stimuli=images,
        trials=trial_table(stimulus, np.repeat(np.arange(config.repeats), config.stimuli)),
        responses=_spike_counts(rates, n_repeats, config.repeats, rng),
        neurons=neurons,
        source=f"simulated, seed {config.seed}",
    )
    return recording, truth


def gabor_filters(gabors: pd.DataFrame, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The two filters in quadrature of each Gabor: float64 (neurons, size, size) each, zero mean, unit
    length."""
    at = {name: gabors[name].to_numpy()[:, None, None] for name in gabors}
    along, across = _rotated(at, size)
    envelope = np.exp(-(across**2 + (along / at["aspect"]) ** 2) / (2 * at["sigma"] ** 2))
    filters = []
    for shift in (0.0, np.pi / 2):
        carrier = np.cos(2 * np.pi * at["frequency"] * across + at["phase"] + shift)
        # Without the envelope's share of the mean the cell would also answer to luminance.
        mean = (envelope * carrier).sum(axis=(1, 2)) / envelope.sum(axis=(1, 2))
        wave = envelope * (carrier - mean[:, None, None])
        filters.append(wave / np.linalg.norm(wave, axis=(1, 2), keepdims=True))
    return filters[0], filters[1]


def drive(images: np.ndarray, gabors: pd.DataFrame, kind: np.ndarray, exponent: float) -> np.ndarray:
    """Responses before the gain, float64 (stimuli, neurons), to grey images uint8 (stimuli, size, size).

    Pixel values become -1 to 1. Contrast is the standard deviation of the pixels under a Gaussian window
    twice as wide as the Gabor's envelope. Dead neurons are 0.
    """
    size = images.shape[1]
    pixels = images.reshape(len(images), -1) / 127.5 - 1.0
    first, second = (pixels @ f.reshape(len(f), -1).T for f in gabor_filters(gabors, size))
    squared = np.where(kind == "complex", first**2 + second**2, np.maximum(first, 0.0) ** 2)
    at = {name: gabors[name].to_numpy()[:, None, None] for name in gabors}
    along, across = _rotated(at, size)
    window = np.exp(-(across**2 + along**2) / (2 * (POOL_SIZE * at["sigma"]) ** 2)).reshape(len(gabors), -1)
    window /= window.sum(axis=1, keepdims=True)
    variance = np.maximum(pixels**2 @ window.T - (pixels @ window.T) ** 2, 0.0)
    normalised = (squared / (C50**2 + variance)) ** (exponent / 2)
    return np.where(kind == "dead", 0.0, normalised)


def _grey_images(config: SimulationConfig) -> np.ndarray:
    # From the test part of the photographs: a model pretrained on the train part has not seen these stimuli.
    samples = image_samples(config.stimuli, config.size, config.seed, split="test")
    return np.stack([grey(image) for _, image, _ in samples])


def _random_gabors(neurons: pd.DataFrame, size: int, rng: np.random.Generator) -> pd.DataFrame:
    """Gabor parameters (see `Truth`), centres following the position in the area."""
    n = len(neurons)
    centre = field_centres(neurons, rng) * (size - 1)
    sigma = rng.uniform(*FIELD_SIGMA, n) * size * neurons["area"].map(FIELD_SIZE).to_numpy()
    return pd.DataFrame(
        {
            "x": centre[0],
            "y": centre[1],
            "sigma": sigma,
            "aspect": rng.uniform(*ASPECT, n),
            "orientation": rng.uniform(0, np.pi, n),
            "frequency": rng.uniform(*CYCLES_PER_SIGMA, n) / sigma,
            "phase": rng.uniform(0, 2 * np.pi, n),
        }
    )


def _rotated(at: dict[str, np.ndarray], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along and across the stripes, in pixels from the centre: (neurons, size, size) each."""
    y, x = np.mgrid[:size, :size]
    dx, dy = x - at["x"], y - at["y"]
    cosine, sine = np.cos(at["orientation"]), np.sin(at["orientation"])
    return dx * sine - dy * cosine, dx * cosine + dy * sine


def _repeats_of_neurons(neurons: pd.DataFrame, config: SimulationConfig, rng: np.random.Generator) -> np.ndarray:
    """How often each stimulus is presented to each neuron: int (stimuli, neurons)."""
    n_repeats = np.full((config.stimuli, len(neurons)), config.repeats)
    animals = neurons["animal"].to_numpy()
    for animal in pd.unique(animals)[1:]:
        fewer = rng.permutation(config.stimuli)[: config.stimuli // 2]
        n_repeats[np.ix_(fewer, np.flatnonzero(animals == animal))] -= config.missing_repeats
    return n_repeats


def _gain(responses: np.ndarray, config: SimulationConfig, rng: np.random.Generator) -> np.ndarray:
    """Gain (neurons,) that gives each neuron its reliability at all repeats: from v / (v + m / R) = reliability,
    with m = gain * mean and v = gain^2 * variance, gain = odds(reliability) * mean / (R * variance)."""
    variance = responses.var(axis=0, ddof=1)
    if not len(variance):
        return variance
    if (variance == 0).any():
        raise ValueError(
            f"{(variance == 0).sum()} neurons answer to all stimuli alike; raise `stimuli`, found {config.stimuli}"
        )
    log_odds = RELIABILITY_SPREAD * rng.standard_normal(len(variance))
    # The drawn neurons' own median is moved, so that it is the wanted one with few neurons, too.
    log_odds += np.log(config.reliability / (1 - config.reliability)) - np.median(log_odds)
    return np.exp(log_odds) * responses.mean(axis=0) / (config.repeats * variance)


def _spike_counts(rates: np.ndarray, n_repeats: np.ndarray, repeats: int, rng: np.random.Generator) -> np.ndarray:
    """float32 (repeats * stimuli, neurons), repeat by repeat; the last repeats are those that are missing."""
    counts = np.empty((repeats, *rates.shape), dtype=np.float32)
    for repeat in range(repeats):
        counts[repeat] = np.where(repeat < n_repeats, rng.poisson(rates), np.nan)
    return counts.reshape(-1, rates.shape[1])
