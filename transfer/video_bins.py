"""Bins of the frames of videos as stimuli: a recording of videos becomes one of pictures that are shown repeatedly.

Comes in: a `Recording` of videos, responses (trials, neurons, time), one sample per frame. Goes out: a static one. Its
stimuli are `BinnedClips`, (clip, bin) pairs, and each trial becomes one presentation of every bin that it reaches, with
the mean response in it: what is done with the frames of Allen's natural movies (de Vries et al., Nature Neuroscience
23:138, 2020, https://doi.org/10.1038/s41593-019-0550-9). All else goes the way of images.

    bin b of a clip holds the frames first + b n, ..., first + (b + 1) n - 1,   n = bin_ms in frames,
    and the samples that were recorded `latency_ms` after each of them.

Trials end early, some by a frame, some in the middle. So that the halves of a clip's repeats are the same trials in
every bin, a clip has the bins that all trials reach which count: of all lengths that is the one that keeps most bins
times trials. Trials that end before it and clips that are shown once are left out, and counted aloud.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from neural_data.recording import Recording
from neural_data.time_window import mean_over
from pretrain.progress import say
from transfer.clip_splits import BinPlaces, bin_places
from transfer.config import PredictivityConfig

# A clip of fewer bytes is read as a whole and kept until another is asked for; of a longer one only the frames wanted.
CLIP_BYTES = 256 * 2**20


@dataclass(frozen=True)
class BinTiming:
    """Bins of `frames` frames; the first begins at frame `first`, and responses are taken `shift` samples later.

    `skip`: bins after the onset of a clip that are left out; `block`, `gap`: in bins, as in `clip_splits.py`.
    """

    frames: int
    first: int
    shift: int
    skip: int
    block: int
    gap: int

    def bins(self, frames: np.ndarray) -> np.ndarray:
        """How many whole bins trials of so many frames have, int64 (trials,)."""
        return np.maximum(0, (frames - self.first - max(0, self.shift)) // self.frames)


def bin_timing(recording: Recording, config: PredictivityConfig) -> BinTiming:
    """The config's milliseconds as frames of the recording, rounded; a bin has one frame at least."""
    rate_hz = recording.sampling_rate_hz
    frames = max(1, round(config.bin_ms * rate_hz / 1000))
    shift = round((config.latency_ms - recording.response_start_ms) * rate_hz / 1000)
    bin_ms = 1000 * frames / rate_hz
    skip, gap = (int(np.ceil(round(ms / bin_ms, 6))) for ms in (config.skip_ms, config.gap_ms))
    return BinTiming(frames, max(0, -shift), shift, skip, max(1, round(config.block_ms / bin_ms)), max(1, gap))


class BinnedClips:
    """Array-like (stimuli, height, width[, channels]) of the mean frames of bins; `frames` gives them one by one.

    Stimulus `clip * bins_per_clip + bin` is a bin of a row of `videos` (clips, frames, height, width[, channels]),
    which stay where they are.
    """

    def __init__(self, videos: Any, timing: BinTiming, bins_per_clip: int) -> None:
        self.videos, self.timing, self.bins_per_clip = videos, timing, bins_per_clip
        self.shape = (len(videos) * bins_per_clip, *videos.shape[2:])
        self.dtype = np.dtype(np.float32)
        self._kept: tuple[int, np.ndarray] | None = None

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        chosen = np.arange(len(self))[rows]
        pictures = self.frames(np.atleast_1d(chosen)).mean(1, dtype=np.float64).astype(self.dtype)
        return pictures if chosen.ndim else pictures[0]

    def frames(self, rows: np.ndarray) -> np.ndarray:
        """The frames (rows, frames, height, width[, channels]) of bins."""
        return np.stack([self._read(clip, self.first_frame(bin)) for clip, bin in zip(*self.places(rows), strict=True)])

    def clip(self, clip: int, stop: int) -> np.ndarray:
        """The frames of a clip (stop, height, width[, channels]) from its beginning."""
        return np.asarray(self.videos[int(clip), :stop])

    def places(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The clip of each stimulus, and its bin there."""
        return np.divmod(np.asarray(rows), self.bins_per_clip)

    def first_frame(self, bins: Any) -> Any:
        return self.timing.first + bins * self.timing.frames

    def bin_places(self, rows: np.ndarray) -> BinPlaces:
        """Where stimuli lie in time, for splits."""
        return bin_places(*self.places(rows), self.timing.block, self.timing.gap)

    def _read(self, clip: int, first: int) -> np.ndarray:
        window = slice(int(first), int(first) + self.timing.frames)
        if np.prod(self.videos.shape[1:]) * np.dtype(self.videos.dtype).itemsize > CLIP_BYTES:
            return np.asarray(self.videos[int(clip), window])
        if self._kept is None or self._kept[0] != clip:
            self._kept = (clip, np.asarray(self.videos[int(clip)]))
        return self._kept[1][window]


def binned_recording(recording: Recording, config: PredictivityConfig) -> Recording:
    """The static recording of a recording of videos: stimuli `BinnedClips`, one trial per trial and bin.

    Only trials of the config's tier whose responses were published are read. Raises ValueError where no clip was shown
    twice, where a tier is unknown, and where no trial is as long as a bin.
    """
    if not recording.dynamic:
        raise ValueError(
            f"{recording.name}: responses to videos have shape {tuple(recording.responses.shape)}, without time; "
            "expected (trials, neurons, time), one sample per frame"
        )
    timing, frames = bin_timing(recording, config), recording.frames
    shown = chosen_trials(recording, config)
    stimulus = recording.trials["stimulus"].to_numpy()
    lengths = timing.bins(frames)
    bins = np.zeros(len(frames), np.int64)
    for trials in pd.Series(shown).groupby(stimulus[shown]).groups.values():
        of_clip = shown[trials]
        length = common_length(lengths[of_clip])
        bins[of_clip[lengths[of_clip] >= length]] = length
    kept = np.flatnonzero(bins > timing.skip)
    if not len(kept):
        raise ValueError(
            f"{recording.name}: no clip was shown twice for longer than a bin of {timing.frames} frames; found "
            f"{len(shown)} trials of up to {frames[shown].max(initial=0)} frames; change bin_ms, latency_ms or skip_ms"
        )
    say_kept(recording, timing, shown, kept, bins)
    per_clip = int(bins.max())
    trial = np.repeat(kept, bins[kept] - timing.skip)
    bin = np.concatenate([np.arange(timing.skip, bins[row]) for row in kept])
    table = recording.trials.iloc[trial][["stimulus", "repeat", "tier"]].reset_index(drop=True)
    return dataclasses.replace(
        recording,
        stimuli=BinnedClips(recording.stimuli, timing, per_clip),
        trials=table.assign(stimulus=table["stimulus"].astype(np.int64) * per_clip + bin),
        responses=mean_responses(recording, timing, kept, bins),
        behavior=None, pupil_center=None, behavior_names=(), sampling_rate_hz=None,
    )  # fmt: skip


def chosen_trials(recording: Recording, config: PredictivityConfig) -> np.ndarray:
    """The trials that can count, int64 (trials,): of the tier that is asked for, with published responses."""
    tiers = recording.trials["tier"]
    if config.tier is not None and config.tier not in set(tiers):
        raise ValueError(f"{recording.name}: no tier {config.tier!r}; there are {', '.join(map(repr, tiers.unique()))}")
    chosen = ~recording.withheld
    return np.flatnonzero(chosen if config.tier is None else chosen & (tiers == config.tier).to_numpy())


def common_length(lengths: np.ndarray) -> int:
    """The length that keeps most bins times trials of lengths (trials,), two trials at least; 0 where there are none.

    Of equal ones the shortest, which keeps most trials.
    """
    ascending = np.sort(lengths)
    reached_by = len(ascending) - np.searchsorted(ascending, ascending)
    kept = np.where(reached_by >= 2, ascending * reached_by, 0)
    return int(ascending[kept.argmax()]) if kept.any() else 0


def mean_responses(recording: Recording, timing: BinTiming, trials: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """Mean responses float (trials' bins, neurons), trial by trial, of which one is in memory; NaN are passed over."""
    rows = int((bins[trials] - timing.skip).sum())
    kind = np.result_type(recording.responses.dtype, np.float32)
    found, at = np.empty((rows, len(recording.neurons)), kind), 0
    for trial in trials:
        first = timing.first + timing.shift + timing.skip * timing.frames
        number = bins[trial] - timing.skip
        samples = np.asarray(recording.responses[int(trial), :, first : first + number * timing.frames])
        found[at : at + number] = mean_over(samples.reshape(len(samples), number, timing.frames), slice(None)).T
        at += number
    return found


def say_kept(recording: Recording, timing: BinTiming, shown: np.ndarray, kept: np.ndarray, bins: np.ndarray) -> None:
    stimulus = recording.trials["stimulus"].to_numpy()
    clips, others = np.unique(stimulus[kept]), np.unique(stimulus[shown])
    early = np.isin(stimulus[shown], clips).sum() - len(kept)
    bin_ms = 1000 * timing.frames / recording.sampling_rate_hz
    left_out = [
        f"{len(others) - len(clips):,} clips that are shown once or are too short" if len(others) > len(clips) else "",
        f"{early:,} trials that end early" if early else "",
    ]
    dropped = " and ".join(part for part in left_out if part)
    say(
        f"{recording.name}: {len(clips)} clips in bins of {timing.frames} frames ({bin_ms:.4g} ms), responses "
        f"{timing.shift} samples later" + (f"; {dropped} are left out" if dropped else "")
    )
