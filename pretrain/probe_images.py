"""The images that probes measure, decoded once.

What comes in: shards. What goes out: batches of their first images or clips, always the same, as `pretrain.stream`
makes them (`images`, or `video` and its `frames`, uint8; `sizes`, `index`, and `label` where there are labels). They
stay in memory as long as there is room; those beyond are decoded again for each probe. Of clips only the frames at
given times are decoded, and `times` says which each view shows.
"""

from collections.abc import Iterator

from torch import Tensor

from pretrain.clip_times import ShownTimes
from pretrain.shard_set import ShardSet
from pretrain.stream import EpochBatches, load_batches

BATCH = 256
KEPT = ("images", "video", "frames", "times", "sizes", "index", "label")


class ProbeImages:
    """The first images of some shards, of which decoded ones may take up to `keep_mib` MiB."""

    def __init__(self, shards: ShardSet, keep_mib: int, times: ShownTimes | None = None) -> None:
        self.shards = shards
        self.times = times
        self.room = keep_mib * 2**20
        self.kept: list[dict[str, Tensor]] = []

    def batches(self, limit: int) -> Iterator[dict[str, Tensor]]:
        """The first `limit` images, or all where there are fewer."""
        left = limit
        for batch in self.all_batches():
            yield {name: rows[:left] for name, rows in batch.items()}
            left -= len(batch["index"])
            if left <= 0:
                return

    def all_batches(self) -> Iterator[dict[str, Tensor]]:
        """All images: first those that were kept, then those that are decoded now, which are kept if they fit."""
        yield from list(self.kept)
        start = len(self.kept)
        if start * BATCH >= self.shards.samples:
            return
        rest = EpochBatches(self.shards, BATCH, start=start, drop_last=False, times=self.times)
        for number, batch in enumerate(load_batches(rest, workers=0), start):
            batch = {name: batch[name] for name in KEPT if name in batch}
            size = sum(rows.nbytes for rows in batch.values())
            # Without gaps, so that the number of those kept says where decoding goes on.
            if number == len(self.kept) and size <= self.room:
                self.kept.append(batch)
                self.room -= size
            yield batch
