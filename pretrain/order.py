"""In which order the samples of a set of shards are seen: a pure function of (seed, epoch).

What comes in: how many samples each shard has. What goes out: arrays of sample numbers, counted over all shards in the
order of the index, batch by batch, from any batch on.

An epoch takes the shards in a random order, in groups that together hold at least `buffer` samples, and shuffles the
samples of each group. So at any time only one group's shards are read from, as with a shuffle buffer of that size, but
where a sample comes is known without reading any other: a run goes on at any batch at once, and every process can
compute the whole order and read only its own part of it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Order:
    """The order of samples of shards with `counts` samples each, of which shards may have none.

    `first` are the numbers of the shards' first samples, which are not the sums of `counts` where samples are missing.
    """

    counts: Sequence[int]
    first: Sequence[int]
    seed: int = 0
    buffer: int = 10_000

    @property
    def samples(self) -> int:
        return sum(self.counts)

    def batches(
        self, epoch: int | None, batch_size: int, start: int = 0, drop_last: bool = True
    ) -> Iterator[np.ndarray]:
        """Sample numbers (batch,) of each batch of an epoch, from batch number `start` on.

        `epoch=None` is the order of the shards. The last, smaller batch is left out if `drop_last`.
        """
        waiting = np.empty(0, np.int64)
        for numbers in self.groups(epoch, start * batch_size):
            waiting = np.concatenate([waiting, numbers])
            whole = len(waiting) // batch_size * batch_size
            yield from waiting[:whole].reshape(-1, batch_size)
            waiting = waiting[whole:]
        if len(waiting) and not drop_last:
            yield waiting

    def groups(self, epoch: int | None, skip: int = 0) -> Iterator[np.ndarray]:
        """Sample numbers group by group, without the first `skip`; groups that are skipped whole are not made."""
        for number, shards in enumerate(self.shard_groups(epoch)):
            size = sum(self.counts[shard] for shard in shards)
            if skip >= size:
                skip -= size
                continue
            samples = np.concatenate([np.arange(self.counts[shard]) + self.first[shard] for shard in shards])
            if epoch is not None:
                self.generator(epoch, number + 1).shuffle(samples)
            yield samples[skip:]
            skip = 0

    def shard_groups(self, epoch: int | None) -> Iterator[list[int]]:
        """Shards that are shuffled together: as many as hold `buffer` samples, or what is left."""
        shards = np.arange(len(self.counts))
        if epoch is not None:
            self.generator(epoch, 0).shuffle(shards)
        group: list[int] = []
        held = 0
        for shard in shards.tolist():
            group.append(shard)
            held += self.counts[shard]
            if held >= self.buffer or epoch is None:
                yield group
                group, held = [], 0
        if group:
            yield group

    def generator(self, epoch: int, group: int) -> np.random.Generator:
        """Randomness of one group, or of the shards' order (group 0), that follows from seed and epoch alone."""
        return np.random.default_rng([self.seed, epoch, group])
