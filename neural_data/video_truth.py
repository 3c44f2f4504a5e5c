"""The truth behind one simulated animal: rates, receptive fields, gain, gaze and noise ceiling.

Comes in: the shared core, the animal's readout, session and state. Goes out: `VideoTruth`, which makes any clip or
trial alone when it is asked for, so that a recording of any size is never held whole. Rates are expected spikes per
frame:

    rate = gain(t) * scale * sum over features of weight * feature at (x, y), of the video as gaze(t) has moved it

Noise ceiling. Let e_r be the expected responses to repeat r of a clip at one frame, given that trial's rates, and n_r
the variance of the response around it (`calcium.py`). Over repeats e_r has the mean m and the variance b, which comes
of behaviour and gaze. Over all frames of all clips, R repeats of each,

    signal      = Var(m) - Mean(b / R)
    reliability = signal / (signal + Mean((b + n) / R)),

which the split-half correlation with Spearman-Brown correction estimates, and a model that predicts every trial's
expected response correlates with single trials by

    single_trial_correlation = sqrt(Var(e) / (Var(e) + Mean(n))),  over all frames of all trials.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from neural_data.behavior_state import log_gain
from neural_data.calcium import Indicator
from neural_data.motion_energy import MotionEnergy
from neural_data.simulation_config import SimulationConfig
from neural_data.trial_files import TrialFiles
from neural_data.video_session import render_clip, stream

if TYPE_CHECKING:
    from scipy.sparse import csr_array


@dataclass(frozen=True, eq=False)
class VideoTruth:
    """What generated the recording of one animal; neurons and trials in the order of its tables.

    `core`: the bank of features, the same object for all animals. `weights`: float32 (neurons, features), its readout.
    `neurons`: table with `kind` ("simple", "complex", "dead"), `x` and `y` (place of the readout in pixels), `scale`
    (expected spikes per frame of a drive of 1) and `sensitivity` (how much of the arousal is in the logarithm of the
    gain). `clips`: table of the stimuli. `trials`: the recording's. `arousal`: float32 (trials, time). `gaze`: float32
    (trials, 2, time), by how many pixels receptive fields are moved to the right and down. `camera_to_gaze`: float64
    (2, 3), gaze = camera_to_gaze @ (pupil_center x, y, 1).
    """

    config: SimulationConfig
    animal: int
    core: MotionEnergy
    weights: np.ndarray
    neurons: pd.DataFrame
    clips: pd.DataFrame
    trials: pd.DataFrame
    arousal: np.ndarray
    gaze: np.ndarray
    camera_to_gaze: np.ndarray

    @property
    def indicator(self) -> Indicator:
        """How spikes become responses."""
        return Indicator.of(self.config.videos)

    @property
    def rates(self) -> TrialFiles:
        """Rates without gain and gaze, float32 (stimuli, neurons, time), each clip made when asked for."""
        return TrialFiles(self.rates_of_clip, (len(self.clips), *self._responses_shape))

    @property
    def trial_rates(self) -> TrialFiles:
        """Rates of each presentation, with its gain and gaze, float32 (trials, neurons, time)."""
        return TrialFiles(self.rates_of_trial, (len(self.trials), *self._responses_shape))

    @property
    def expected_responses(self) -> TrialFiles:
        """Mean of the responses given `trial_rates`, float32 (trials, neurons, time)."""
        return TrialFiles(self.expected_of_trial, (len(self.trials), *self._responses_shape))

    def clip(self, stimulus: int) -> np.ndarray:
        """The frames of a stimulus, uint8 (frames, height, width)."""
        return render_clip(self.config, self.clips.iloc[stimulus])

    def rates_of(self, video: np.ndarray, gaze: np.ndarray | None = None) -> np.ndarray:
        """Rates in answer to any video uint8 (frames, height, width), float32 (neurons, frames), with a gain of 1.

        `gaze`: (2, frames) in pixels, as in the field of that name.
        """
        pixels = video.astype(np.float32) / 127.5 - 1
        maps = self.core.maps(pixels if gaze is None else moved(pixels, gaze))
        return self.neurons["scale"].to_numpy(np.float32)[:, None] * (self.readout @ maps.reshape(-1, len(video)))

    def rates_of_clip(self, stimulus: int) -> np.ndarray:
        """A row of `rates` without padding: float32 (neurons, frames of the clip)."""
        return self.rates_of(self.clip(stimulus))

    def rates_of_trial(self, trial: int) -> np.ndarray:
        """A row of `trial_rates` without padding: float32 (neurons, frames of the trial)."""
        stimulus, frames = (int(self.trials[name].iat[trial]) for name in ("stimulus", "frames"))
        gaze = self.gaze[trial, :, :frames]
        rates = self.rates_of(self.clip(stimulus)[:frames], gaze if gaze.any() else None)
        return rates * self.gain(trial)

    def expected_of_trial(self, trial: int) -> np.ndarray:
        """A row of `expected_responses` without padding: float32 (neurons, frames of the trial)."""
        return self.indicator.mean(self.rates_of_trial(trial))

    def gain(self, trial: int) -> np.ndarray:
        """The factor on each neuron's rate, float32 (neurons, frames of the trial)."""
        arousal = self.arousal[trial, : int(self.trials["frames"].iat[trial])]
        return np.exp(log_gain(self.neurons["sensitivity"].to_numpy(np.float32), arousal))

    def respond(self, trial: int) -> np.ndarray:
        """What was recorded in a trial: float32 (neurons, frames of the trial); NaN where it is withheld."""
        if "withheld" in self.trials and self.trials["withheld"].iat[trial]:
            return np.full((len(self.neurons), int(self.trials["frames"].iat[trial])), np.nan, np.float32)
        rng = stream(self.config.seed, "spikes", self.animal, trial)
        return self.indicator.record(self.rates_of_trial(trial), rng)

    def receptive_fields(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Receptive fields float32 (neurons, lags, height, width), unit length, lag 0 the present frame; zero for dead
        neurons.

        `rows`: which neurons, by default all. Of complex neurons it is the first of the two filters of the feature that
        they read most of, of simple ones the sum of their features' filters.
        """
        rows = np.arange(len(self.neurons)) if rows is None else np.asarray(rows)
        of, weights = self.neurons.iloc[rows], self.weights[rows]
        strongest = weights == weights.max(axis=1, keepdims=True)
        weights = np.where((of["kind"] == "complex").to_numpy()[:, None] & ~strongest, 0, weights)
        fields = self.core.filters(of["x"].to_numpy(), of["y"].to_numpy(), weights)
        length = np.linalg.norm(fields.reshape(len(rows), -1), axis=1)[:, None, None, None]
        return np.divide(fields, length, out=fields, where=length > 0)

    def noise_ceiling(self, tier: str = "oracle") -> pd.DataFrame:
        """Expected scores of each neuron over the trials of a tier whose clips are repeated, by the equations above.

        Columns, float64: `reliability` of the mean over the repeats that there are; `single_trial_correlation`; `mean`,
        the mean expected response. NaN for dead neurons. Of repeats that differ in length the shortest counts. Raises
        ValueError where no clip of the tier has two presentations.
        """
        of_tier = np.flatnonzero((self.trials["tier"] == tier).to_numpy())
        shown = self.trials.iloc[of_tier].groupby("stimulus").indices
        repeated = [of_tier[places] for places in shown.values() if len(places) > 1]
        if not repeated:
            tiers = ", ".join(self.trials["tier"].unique())
            raise ValueError(f"tier: found {tier!r}, expected one whose clips are repeated; there are {tiers}")
        sums: dict[str, np.ndarray] = {}
        for trials in repeated:
            for name, value in self._sums_of_clip(trials).items():
                sums[name] = sums.get(name, 0) + value
        mean = sums["e"] / sums["samples"]
        signal = sums["m2"] / sums["points"] - (sums["m"] / sums["points"]) ** 2 - sums["b/R"] / sums["points"]
        noise = (sums["b/R"] + sums["n/R"]) / sums["points"]
        varying, around = sums["e2"] / sums["samples"] - mean**2, sums["n"] / sums["samples"]
        alive = (self.neurons["kind"] != "dead").to_numpy()
        scores = {
            "reliability": signal / np.where(alive, signal + noise, np.nan),
            "single_trial_correlation": np.sqrt(varying / np.where(alive, varying + around, np.nan)),
            "mean": np.where(alive, mean, np.nan),
        }
        return pd.DataFrame(scores)

    @cached_property
    def readout(self) -> "csr_array":
        """The matrix that reads the core's maps for each neuron, before `scale`."""
        return self.core.readout(self.neurons["x"].to_numpy(), self.neurons["y"].to_numpy(), self.weights)

    @property
    def _responses_shape(self) -> tuple[int, int]:
        return len(self.neurons), self.config.videos.frames

    def _sums_of_clip(self, trials: np.ndarray) -> dict[str, np.ndarray]:
        """Sums of what the equations above need over the frames of one clip, in their names."""
        frames, repeats = int(self.trials["frames"].iloc[trials].min()), len(trials)
        e = e2 = n = np.zeros((len(self.neurons), frames))
        for trial in trials:
            rates = self.rates_of_trial(int(trial)).astype(np.float64)
            expected = self.indicator.mean(rates)[:, :frames]
            e, e2, n = e + expected, e2 + expected**2, n + self.indicator.variance(rates)[:, :frames]
        m = e / repeats
        b = np.maximum(e2 - repeats * m**2, 0) / (repeats - 1)
        sums = {"e": e, "e2": e2, "n": n, "m": m, "m2": m**2, "b/R": b / repeats, "n/R": n / repeats**2}
        summed = {name: value.sum(axis=1) for name, value in sums.items()}
        return summed | {"points": np.float64(frames), "samples": np.float64(frames * repeats)}


def moved(pixels: np.ndarray, gaze: np.ndarray) -> np.ndarray:
    """A video (frames, height, width) as an eye sees it that looks (2, frames) pixels to the right and down: moved to
    the left and up, bilinear between pixels, 0 (grey) beyond the screen."""
    frames, height, width = pixels.shape
    margin = int(np.ceil(np.abs(gaze).max())) + 1
    around = np.pad(pixels, ((0, 0), (margin, margin), (margin, margin)))
    whole = np.floor(gaze).astype(np.int64)
    of_x, of_y = (gaze - whole).astype(np.float32)[:, :, None, None]
    columns = whole[0][:, None, None] + margin + np.arange(width)
    rows = whole[1][:, None, None] + margin + np.arange(height)[:, None]
    frame = np.arange(frames)[:, None, None]
    upper = (1 - of_x) * around[frame, rows, columns] + of_x * around[frame, rows, columns + 1]
    lower = (1 - of_x) * around[frame, rows + 1, columns] + of_x * around[frame, rows + 1, columns + 1]
    return (1 - of_y) * upper + of_y * lower
