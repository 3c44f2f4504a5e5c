"""Read shards as batches, in an order that is a pure function of (seed, epoch).

What comes in: a `ShardSet`. What goes out: batches, as `pretrain/samples.py` describes them.

The whole order is known beforehand (`pretrain/order.py`), so each process reads and decodes only the samples of its own
batches. The order does not depend on the number of workers or devices, no sample is lost or repeated within an epoch,
every device gets the same number of batches, and a run goes on at any batch without reading what came before.

A sample that is missing or cannot be decoded is named, and the next good one of its batch takes its place, or where
there is none the next good one of the set, so that batches keep their size; above a share of the data the run stops.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pretrain.clip_times import ShownTimes, TimesOfClip
from pretrain.samples import Sample, collate, decode
from pretrain.shard_cache import ShardUnavailable
from pretrain.shard_reader import ShardReader
from pretrain.shard_set import CLIPS, Damage, ShardSet
from pretrain.video import NoDecoder

PROBLEMS, UNAVAILABLE = "problems", "unavailable"
# Batches that each worker reads ahead.
PREFETCH = 4
# What a sample that is missing or damaged raises.
UNREADABLE = (OSError, KeyError, ValueError)
# What says nothing of the sample.
NO_DAMAGE = (ShardUnavailable, NoDecoder)
# For each sample of a batch when its views are, where that is known before it is decoded.
Times = list[TimesOfClip | None]


class EpochBatches(IterableDataset):
    """The batches that one device sees of one or more epochs, from batch number `start` of the first on.

    Args:
        shards: where to read.
        batch_size: samples in a batch over all devices; a last, smaller batch is dropped if `drop_last`.
        seed, epoch: determine the order; `epoch=None` keeps the order of the shards.
        buffer: samples, at least, that are shuffled together.
        start: batches of the first epoch that are passed over.
        rank, world: which of how many devices; each takes an equal slice of every batch.
        epochs: how many epochs, from `epoch` on.
        collate: makes a batch of decoded samples; without one, `collate` does, with others in the place of bad samples.
        times: of clips only the frames at these times are decoded, those of the first batch at position 0.
    """

    def __init__(
        self,
        shards: ShardSet,
        batch_size: int,
        seed: int = 0,
        epoch: int | None = None,
        buffer: int = 10000,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = True,
        epochs: int = 1,
        collate: Callable[[list[Sample]], dict[str, Tensor]] | None = None,
        times: ShownTimes | None = None,
    ) -> None:
        self.shards, self.batch_size = shards, batch_size
        self.order = shards.order(seed, buffer)
        self.epoch, self.epochs, self.start = epoch, epochs, start
        self.rank, self.world, self.drop_last = rank, world, drop_last
        self.collate, self.times = collate, times if shards.kind == CLIPS else None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        reader = self.shards.reader()
        for position, numbers in enumerate(self.numbers()):
            # The loader takes batches from its workers in turn, so that this deal restores the order.
            if position % workers == number:
                yield self.read_or_why_not(reader, numbers, position)

    def numbers(self) -> Iterator[np.ndarray]:
        """Sample numbers (batch / world,) of this device's part of each batch."""
        for epoch in range(self.epochs):
            which = None if self.epoch is None else self.epoch + epoch
            start = 0 if epoch else self.start
            for batch in self.order.batches(which, self.batch_size, start, self.drop_last):
                yield batch[self.rank :: self.world]

    def read_or_why_not(self, reader: ShardReader, numbers: np.ndarray, position: int) -> dict[str, Any]:
        """A batch, or why it is `unavailable`: what a reading process raises would come with its traceback."""
        try:
            return self.read(reader, numbers, position)
        except NO_DAMAGE as error:
            return {UNAVAILABLE: str(error)}

    def read(self, reader: ShardReader, numbers: np.ndarray, position: int = 0) -> dict[str, Any]:
        """Batch number `position`; `problems` lists the samples that others had to stand in for.

        There is nothing but `problems` where these are more than may be, and where a collate of its own has no sample.
        """
        problems: list[str] = []
        times = self.times.of_batch(position, len(numbers)) if self.times else [None] * len(numbers)
        samples = [
            self.sample(reader, index, problems, shown) for index, shown in zip(numbers.tolist(), times, strict=True)
        ]
        if self.collate is not None:
            good = [sample for sample in samples if sample is not None]
            batch = self.collate(good) if good else {}
        else:
            filled = self.filled(reader, samples, times, problems) or self.borrowed(reader, numbers, times, problems)
            batch = collate(filled) if filled else {}
        return batch | {PROBLEMS: problems} if problems else batch

    def sample(
        self, reader: ShardReader, index: int, problems: list[str], times: TimesOfClip | None = None
    ) -> Sample | None:
        """A decoded sample, or None, with one more problem."""
        try:
            return decode(self.shards.read(reader, index), times)
        except NO_DAMAGE:
            raise
        except UNREADABLE as error:
            problems.append(f"sample {index:09d} of {self.shards.url_of(index)} {what_failed(error)}")
            return None

    def filled(
        self, reader: ShardReader, samples: list[Sample | None], times: Times, problems: list[str]
    ) -> list[Sample] | None:
        """The samples, with the next good one in the place of each that is None; None where none is good.

        A clip shows other frames in the place of another, and one of those may turn out to be damaged.
        """
        while (good := substitutes([sample is not None for sample in samples])) is not None:
            found = [
                samples[other]
                if shown is None or other == place
                else self.sample(reader, samples[other].index, problems, shown)
                for place, (other, shown) in enumerate(zip(good, times, strict=True))
            ]
            if None not in found:
                return found
            failed = {other for other, sample in zip(good, found, strict=True) if sample is None}
            samples = [None if place in failed else sample for place, sample in enumerate(samples)]
        return None

    def borrowed(
        self, reader: ShardReader, numbers: np.ndarray, times: Times, problems: list[str]
    ) -> list[Sample] | None:
        """A batch of the next sample after the last of `numbers` that can be read; None once more cannot than a run
        allows."""
        for index in self.shards.following(int(numbers[-1])):
            if len(problems) > self.shards.damaged_share * self.shards.samples:
                return None
            # First whole, so that it can be shown at any times.
            if (whole := self.sample(reader, index, problems)) is None:
                continue
            found = [whole if shown is None else self.sample(reader, index, problems, shown) for shown in times]
            if None not in found:
                return found
        return None


def what_failed(error: Exception) -> str:
    """How a sentence about a sample goes on."""
    if isinstance(error, OSError):
        return f"cannot be read ({error})".replace("\n", " ")
    return str(error.args[0])


def substitutes(intact: list[bool]) -> list[int] | None:
    """For each place of a batch its own number, or that of the next intact place, round the end; None without any."""
    places = [place for place, good in enumerate(intact) if good]
    if len(places) == len(intact):
        return places
    if not places:
        return None
    following = np.searchsorted(places, np.arange(len(intact))) % len(places)
    return [places[number] for number in following]


def load_batches(
    batches: EpochBatches, workers: int, pin: bool = False, damage: Damage | None = None
) -> Iterator[dict[str, Tensor]]:
    """Iterate batches, decoded in `workers` processes beside this one (0: in this one).

    `damage` counts what could not be read, over all that is iterated with it. Raises ShardUnavailable where a shard
    cannot be had, as of storage that goes on failing.
    """
    damage = damage or Damage(batches.shards)
    ahead = PREFETCH if workers else None
    # A generator of its own, or starting to read would draw from the one that training seeds at each step.
    own = torch.Generator()
    loader = DataLoader(
        batches, batch_size=None, num_workers=workers, pin_memory=pin, prefetch_factor=ahead, generator=own
    )
    for batch in loader:
        if UNAVAILABLE in batch:
            raise ShardUnavailable(batch[UNAVAILABLE])
        damage.note(batch.pop(PROBLEMS, []))
        if batch:
            yield batch
        elif batches.collate is None:
            raise ValueError(
                f"no sample of {batches.shards.folder} can be read; remove the shards, and let the same "
                "`murine shards` write them again"
            )
