"""Batches of trials for training encoders, read where they lie, in an order that is a pure function of (seed, step).

What comes in: recordings of one animal each, the rows of their training trials, a normalisation for each, and a plan of
windows. What goes out: for each training step, by animal, a dictionary of tensors:

    video         float32 (batch, channels, time, height, width), or images (batch, channels, height, width)
    behavior      float32 (batch, K[, time]), and pupil_center (batch, 2[, time]), where the animal has them
    responses     float32 (batch, neurons[, time]), in the response space of the normalisation; of prepared recordings
                  a view of memory with time first
    valid         bool (batch, time), False at the padding of trials that are shorter; only where there is time
    index         int64 (batch,), rows of the recording's trials

Only the windows asked for are read, by threads, a few steps ahead; nothing is kept. From the published layout of 2023,
whose files have time last, a window costs the pages of its whole trial (26 MB in float64), though only the window is
copied; `neural_data/prepared.py` writes a layout in which it costs itself.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from neural_data.recording import Recording
from transfer.normalisation import Normalisation
from transfer.sample_order import SampleOrder, StepSamples
from transfer.windows import WindowPlan

AnimalBatch = dict[str, Tensor]
StepBatch = dict[str, AnimalBatch]


class TrialStream:
    """The batches of a fit.

    Args:
        recordings, rows, normalisations: by animal: what was recorded, int (trials,) rows that are trained on, and what
            is done to them. The order of animals is that of `recordings`.
        plan: which frames of a trial a sample is; images and responses without time are always whole.
        batching, batch_size, samples_per_epoch, cycle, shuffle: see `sample_order.py`.
        workers: threads that read ahead; 0 reads when a batch is asked for. Batches do not depend on it.

    Raises ValueError where animals do not agree, rows are withheld, without frames or not there, or there are none.
    """

    def __init__(
        self,
        recordings: Mapping[str, Recording],
        rows: Mapping[str, np.ndarray],
        normalisations: Mapping[str, Normalisation],
        plan: WindowPlan,
        batching: str = "all",
        batch_size: int = 8,
        seed: int = 0,
        samples_per_epoch: int | None = None,
        workers: int = 2,
        cycle: str = "long",
        shuffle: bool = True,
    ) -> None:
        _check_animals(recordings, rows, normalisations)
        self.recordings, self.normalisations = dict(recordings), dict(normalisations)
        self.rows = {animal: _checked_rows(recordings[animal], rows[animal]) for animal in recordings}
        self.frames = {animal: recording.frames for animal, recording in recordings.items()}
        lengths = {animal: self.frames[animal][self.rows[animal]] for animal in recordings}
        timeless = [animal for animal, recording in recordings.items() if not recording.dynamic]
        if timeless and len(timeless) < len(recordings):
            raise ValueError(f"{timeless[0]} has one response per trial, other animals have responses in time")
        self.plan = WindowPlan() if timeless else plan
        self.order = SampleOrder(
            lengths, self.plan, batching, batch_size, seed, samples_per_epoch, cycle=cycle, shuffle=shuffle
        )
        self.workers = workers
        self.notes = tuple(_short_trials(lengths, self.plan))

    @property
    def animals(self) -> list[str]:
        """The animals in the order of `recordings`."""
        return list(self.recordings)

    @property
    def steps_per_epoch(self) -> int:
        """How many steps an epoch has."""
        return self.order.steps_per_epoch

    def batches(self, step: int = 0, stop: int | None = None) -> Iterator[StepBatch]:
        """The batches of steps `step`, `step` + 1, ..., endless unless `stop` is the step before which to end."""
        if self.workers < 1:
            while stop is None or step < stop:
                yield {animal: self.read(animal, *samples) for animal, samples in self.order.step(step).items()}
                step += 1
            return
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="trials")
        ahead: deque[dict[str, Future[AnimalBatch]]] = deque()
        try:
            while True:
                while len(ahead) < self._steps_ahead(ahead) and (stop is None or step < stop):
                    ahead.append(self._submit(pool, self.order.step(step)))
                    step += 1
                if not ahead:
                    return
                yield {animal: reading.result() for animal, reading in ahead.popleft().items()}
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _steps_ahead(self, ahead: deque[dict[str, Future[AnimalBatch]]]) -> int:
        """Two steps where one keeps all threads busy; as many as there are threads, and one, where it does not."""
        parts = len(ahead[0]) if ahead else 1
        return 1 + -(-self.workers // parts)

    def _submit(self, pool: ThreadPoolExecutor, samples: StepSamples) -> dict[str, Future[AnimalBatch]]:
        return {animal: pool.submit(self.read, animal, *of_animal) for animal, of_animal in samples.items()}

    def read(self, animal: str, trials: np.ndarray, starts: np.ndarray) -> AnimalBatch:
        """The batch of one animal: which of its training trials, and the first frame of each window."""
        samples = [
            self._sample(animal, int(row), int(start))
            for row, start in zip(self.rows[animal][trials], starts, strict=True)
        ]
        batch = {part: _stacked([sample[part] for sample in samples], part) for part in samples[0]}
        batch["index"] = torch.from_numpy(self.rows[animal][trials])
        return batch

    def _sample(self, animal: str, row: int, start: int) -> dict[str, np.ndarray]:
        """One window, normalised, padded to the window's frames, with `valid` where there is time."""
        recording, normalisation = self.recordings[animal], self.normalisations[animal]
        if not recording.dynamic:
            return self._checked(animal, row, normalisation.apply(recording.trial(row)))
        frames = self.plan.numbers(start, int(self.frames[animal][row]))
        window = window_of_trial(recording, row, frames)
        sample = self._checked(animal, row, normalisation.apply(window, frames))
        sample["valid"] = np.ones(len(frames), bool)
        missing = 0 if self.plan.whole else self.plan.frames - len(frames)
        return {part: _padded(values, part, missing) for part, values in sample.items()}

    def _checked(self, animal: str, row: int, sample: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for part, values in sample.items():
            # A sum is not finite where an element is not, and needs no array of booleans.
            if not np.isfinite(values.sum(dtype=np.float64)):
                raise ValueError(
                    f"{self.recordings[animal].name}: {part} of trial {row} hold NaN or infinity, expected numbers; "
                    "leave the trial out"
                )
        return sample


def window_of_trial(recording: Recording, row: int, frames: np.ndarray) -> dict[str, np.ndarray]:
    """Evenly spaced frames of a trial with time: `Recording.trial`, but that frames between are not read."""
    window = slice(int(frames[0]), int(frames[-1]) + 1, int(frames[1] - frames[0]) if len(frames) > 1 else 1)
    stimulus = int(recording.trials["stimulus"].iat[row])
    if recording.video:
        found = {"video": np.asarray(recording.stimuli[stimulus, window])}
    else:
        found = {"images": np.asarray(recording.stimuli[stimulus])}
    for part in ("responses", "behavior", "pupil_center"):
        values = getattr(recording, part)
        if values is not None:
            found[part] = np.asarray(values[row, :, window] if len(values.shape) == 3 else values[row])
    return found


def _time_axis(part: str) -> int:
    """Of a sample as `Normalisation.apply` gives it."""
    return 1 if part == "video" else -1


def _padded(values: np.ndarray, part: str, missing: int) -> np.ndarray:
    """A sample with `missing` frames of zeros behind it; images and signals without time stay as they are."""
    if missing == 0 or part == "images" or (part != "valid" and values.ndim < 2):
        return values
    padding = [(0, 0)] * values.ndim
    padding[_time_axis(part)] = (0, missing)
    return np.pad(values, padding)


def _stacked(samples: list[np.ndarray], part: str) -> Tensor:
    """Samples (batch, ...), the shorter ones of whole trials with zeros behind them."""
    if len({values.shape for values in samples}) > 1:
        longest = max(values.shape[_time_axis(part)] for values in samples)
        samples = [_padded(values, part, longest - values.shape[_time_axis(part)]) for values in samples]
    if samples[0].ndim == 2 and not samples[0].flags.c_contiguous:
        # Responses that lie time first in memory stay so: turning them takes longer than all else.
        return torch.from_numpy(np.stack([values.T for values in samples])).transpose(1, 2)
    return torch.from_numpy(np.stack(samples))


def _check_animals(*by_animal: Mapping[str, object]) -> None:
    recordings, *others = by_animal
    if not recordings:
        raise ValueError("no recordings to train on")
    for name, other in zip(("rows", "normalisations"), others, strict=True):
        absent = [animal for animal in recordings if animal not in other]
        if absent:
            raise ValueError(f"{name} of animal {absent[0]}: found none, expected those of each recording")


def _checked_rows(recording: Recording, rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows)
    name, n = recording.name, len(recording.trials)
    if rows.ndim != 1 or not len(rows) or rows.dtype.kind not in "iu":
        raise ValueError(f"{name}: training rows are {rows.dtype} of shape {rows.shape}, expected at least one number")
    if len(recording.animals) != 1:
        raise ValueError(f"{name}: holds {len(recording.animals)} animals, expected one per recording")
    if rows.min() < 0 or rows.max() >= n:
        raise ValueError(f"{name}: training rows reach from {rows.min()} to {rows.max()}, expected 0 to {n - 1}")
    for what, wrong in (("withheld responses", recording.withheld[rows]), ("no frames", recording.frames[rows] < 1)):
        if wrong.any():
            first = rows[wrong.argmax()]
            tier = recording.trials["tier"].iat[first]
            raise ValueError(f"{name}: {wrong.sum()} training trials have {what}, such as {first} of tier {tier!r}")
    return rows.astype(np.int64)


def _short_trials(lengths: Mapping[str, np.ndarray], plan: WindowPlan) -> Iterator[str]:
    for animal, of_animal in lengths.items():
        short = int((of_animal < plan.span).sum())
        if short:
            which = f"{short} of {len(of_animal)} trials are shorter than a window"
            yield f"{animal}: {which} of {plan.span} frames, and padded with zeros that do not count"
