"""Which trials, and which windows of them, each training step sees: a pure function of (seed, step).

What comes in: the length of each training trial of each animal, and a plan of windows. What goes out: for any step, by
animal, which trials and the first frames of their windows. Nothing has to be remembered to go on at a step, and nobody
has to have read what came before. Three ways to mix animals:

    all    a batch of every animal in every step. The epoch ends when the animal with the most batches has been gone
           through once, and the others begin again, reshuffled (the LongCycler of neuralpredictors: organisers'
           baselines, ViV1T, V1T); with `cycle="short"`, when the one with the fewest has (ShortCycler).
    one    the same batches, each a step of its own, the animals in turn (Dynamic-VFM).
    mixed  batches drawn over all animals (DwiseNeuro).

With `samples_per_epoch` an epoch is that many samples instead, and of "mixed" each is of an animal in turn and of any
of its trials, as DwiseNeuro draws 7,200 a mouse; without, of "mixed" every sample of every animal comes once.
"""

import zlib
from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from transfer.windows import WindowPlan

BATCHINGS = ("all", "one", "mixed")
CYCLES = ("long", "short")
# Passes over animals whose order is kept; a step needs one of each animal.
KEPT_PASSES = 64

# By animal: which of its trials, and the first frame of each window, both int64 (samples,).
StepSamples = dict[str, tuple[np.ndarray, np.ndarray]]


class SampleOrder:
    """The samples of each step.

    Args:
        lengths: frames of each training trial, by animal.
        batch_size: of each animal, or of "mixed" of all together. The last batch of a pass may be smaller.
        shuffle: False takes trials in order, and random windows are still random.
    """

    def __init__(
        self,
        lengths: Mapping[str, np.ndarray],
        plan: WindowPlan,
        batching: str,
        batch_size: int,
        seed: int,
        samples_per_epoch: int | None = None,
        cycle: str = "long",
        shuffle: bool = True,
    ) -> None:
        for key, value, known in (("batching", batching, BATCHINGS), ("cycle", cycle, CYCLES)):
            if value not in known:
                raise ValueError(f"{key}: found {value!r}, expected one of {', '.join(known)}")
        if batch_size < 1:
            raise ValueError(f"batch_size: found {batch_size}, expected 1 or more")
        self.lengths = {animal: np.asarray(of_animal, np.int64) for animal, of_animal in lengths.items()}
        self.animals = list(self.lengths)
        self.plan, self.batching, self.batch_size = plan, batching, batch_size
        self.seed, self.samples_per_epoch, self.shuffle = seed, samples_per_epoch, shuffle
        self.samples = {animal: plan.samples(of_animal) for animal, of_animal in self.lengths.items()}
        batches = [-(-len(trial) // batch_size) for trial, _ in self.samples.values()]
        self.cycled = max(batches) if cycle == "long" else min(batches)
        self._pass = lru_cache(KEPT_PASSES)(self._shuffled)
        self._epoch = lru_cache(2)(self._slots)
        self.steps_per_epoch = self._steps()

    def step(self, step: int) -> StepSamples:
        """The samples of a step, counted from the beginning of training."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if self.batching == "mixed":
            return self._mixed(epoch, within)
        if self.batching == "all":
            return {animal: self._batch(animal, epoch, within) for animal in self.animals}
        turn, which = divmod(within, len(self.animals))
        return {self.animals[which]: self._batch(self.animals[which], epoch, turn)}

    def _steps(self) -> int:
        n = len(self.animals)
        if self.samples_per_epoch is not None:
            of_a_step = self.batch_size * (n if self.batching == "all" else 1)
            if self.samples_per_epoch < of_a_step:
                raise ValueError(f"samples_per_epoch: found {self.samples_per_epoch}, a step alone takes {of_a_step}")
            return self.samples_per_epoch // of_a_step
        if self.batching == "mixed":
            return -(-sum(len(trial) for trial, _ in self.samples.values()) // self.batch_size)
        return self.cycled * (n if self.batching == "one" else 1)

    def _batch(self, animal: str, epoch: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Batch `number` of an animal within an epoch, from as many passes over its trials as that takes."""
        in_pass = -(-len(self.samples[animal][0]) // self.batch_size)
        trial, start = self._pass(animal, epoch, number // in_pass)
        part = slice(number % in_pass * self.batch_size, (number % in_pass + 1) * self.batch_size)
        return trial[part], start[part]

    def _shuffled(self, animal: str, epoch: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """One pass over an animal's samples."""
        generator = np.random.default_rng([self.seed, epoch, number, zlib.crc32(animal.encode())])
        trial, start = self.samples[animal]
        order = generator.permutation(len(trial)) if self.shuffle else np.arange(len(trial))
        return trial[order], self._starts(animal, trial[order], start[order], generator.random(len(trial)))

    def _starts(self, animal: str, trial: np.ndarray, start: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        return self.plan.start(self.lengths[animal][trial], start, drawn)

    def _mixed(self, epoch: int, within: int) -> StepSamples:
        which, sample, drawn = self._epoch(epoch)
        part = slice(within * self.batch_size, (within + 1) * self.batch_size)
        found = {}
        for number in np.unique(which[part]).tolist():
            animal, mine = self.animals[number], which[part] == number
            trial, start = (values[sample[part][mine]] for values in self.samples[animal])
            found[animal] = trial, self._starts(animal, trial, start, drawn[part][mine])
        return found

    def _slots(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each sample of an epoch of "mixed": its animal, which of that animal's samples, and a random number."""
        generator = np.random.default_rng([self.seed, epoch])
        counts = np.array([len(self.samples[animal][0]) for animal in self.animals])
        if self.samples_per_epoch is None:
            which = np.repeat(np.arange(len(counts)), counts)
            sample = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        else:
            which = np.arange(self.samples_per_epoch) % len(counts)
            sample = (generator.random(len(which)) * counts[which]).astype(np.int64)
        order = generator.permutation(len(which)) if self.shuffle else np.arange(len(which))
        return which[order], sample[order], generator.random(len(which))
