"""Read shards as batches, in an order that is a pure function of (seed, epoch).

What comes in: a folder of shards with its index. What goes out: dictionaries `images` uint8 (batch, 3, height, width),
padded at the right and bottom to the largest of the batch, `sizes` (batch, 2) true heights and widths in pixels,
`index` (batch,) global indices, `label` (batch,) where the shards have labels, and `depth` (batch, 1, height, width)
where they have depth maps, padded likewise, in the maps' own units: uint8, or int32 where one has 16 bits.

The whole order is known beforehand (`pretrain/order.py`), so each process reads and decodes only the samples of its own
batches. The order does not depend on the number of workers or devices, no sample is lost or repeated within an epoch,
every device gets the same number of batches, and a run goes on at any batch without reading what came before.

A sample that is missing or cannot be decoded is named, and the next good one of its batch takes its place, so that
batches keep their size; above a share of the data the run stops.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pretrain.order import Order
from pretrain.progress import say
from pretrain.shard_reader import OpenShard, ShardReader
from pretrain.shards import DEPTH, read_index

DAMAGED_SHARE = 0.001
PROBLEMS = "problems"
NAMED_AT_ONCE = 5
# Batches that each worker reads ahead.
PREFETCH = 4
# What a sample that is missing or damaged raises.
UNREADABLE = (OSError, KeyError, ValueError)


@dataclass(frozen=True)
class ShardSet:
    """A folder of shards: where the tars are, how many samples they should hold, which labels occur, if there is depth.

    `counts` are the samples of each shard; `readable` those of its first samples that lie there, fewer where a shard is
    missing or cut short, as `problems` says. At most `damaged_share` of all may be missing or damaged.
    """

    folder: Path
    urls: tuple[str, ...]
    counts: tuple[int, ...]
    labels: tuple[int, ...]
    depth: bool = False
    readable: tuple[int, ...] = ()
    problems: tuple[str, ...] = ()
    damaged_share: float = DAMAGED_SHARE

    @property
    def samples(self) -> int:
        return sum(self.counts)

    @property
    def classes(self) -> int:
        """One more than the largest label; 0 without labels."""
        return max(self.labels) + 1 if self.labels else 0

    @cached_property
    def first(self) -> np.ndarray:
        """Global index of each shard's first sample."""
        return np.concatenate([[0], np.cumsum(self.counts)])[:-1]

    def order(self, seed: int, buffer: int) -> Order:
        """The order of the samples that are there."""
        return Order(self.readable or self.counts, self.first.tolist(), seed, buffer)

    def shard_of(self, index: int) -> str:
        """The shard that holds a sample."""
        return self.urls[int(np.searchsorted(self.first, index, side="right")) - 1]


def open_shards(folder: Path | str, key: str = "data.shards", damaged_share: float = DAMAGED_SHARE) -> ShardSet:
    """The shards of a folder; missing shards and ones cut short are said and left out.

    Raises:
        ValueError, FileNotFoundError: one line, naming the config's `key`, where there are none, or more than
            `damaged_share` of the samples are missing.
    """
    if folder is None:
        raise ValueError(f"{key} is not set; make shards with `murine shards source=... out=...`")
    folder = Path(folder).expanduser().resolve()
    index = read_index(folder)
    urls, readable, problems = [], [], []
    for entry in index["shards"]:
        if Path(entry["file"]).name != entry["file"] or not entry["file"].endswith(".tar"):
            raise ValueError(f"the index of {folder} names {entry['file']!r}, which is not a shard beside it")
        urls.append(str(folder / entry["file"]))
        there, problem = readable_samples(folder / entry["file"], entry)
        readable.append(there)
        problems += [problem] if problem else []
    counts = tuple(entry["samples"] for entry in index["shards"])
    shards = ShardSet(
        folder,
        tuple(urls),
        counts,
        tuple(index["labels"]),
        index.get("depth", False),
        tuple(readable),
        tuple(problems),
        damaged_share,
    )
    lost = shards.samples - sum(readable)
    if problems:
        require_few(lost, shards, problems)
        say(f"WARNING: {lost:,} of {shards.samples:,} samples of {folder} are left out: {listed(problems)}")
    return shards


def readable_samples(path: Path, entry: dict[str, Any]) -> tuple[int, str]:
    """How many samples of a shard can be read, and what is wrong with it, if anything."""
    size = path.stat().st_size if path.is_file() else None
    if size == entry["bytes"]:
        return entry["samples"], ""
    found = "nothing" if size is None else f"{size:,} bytes"
    problem = f"{path.name} should have {entry['bytes']:,} bytes, found {found}"
    if size is None or size > entry["bytes"]:
        return 0, problem
    shard = OpenShard(path)
    shard.close()
    # The last sample of a tar that is cut may have lost a member, so it is not counted on.
    return min(max(len(shard.samples) - 1, 0), entry["samples"]), problem


def require_few(lost: int, shards: ShardSet, problems: list[str]) -> None:
    """Stop where more samples than the allowed share are missing or damaged, with the list."""
    if lost > shards.damaged_share * shards.samples:
        raise ValueError(
            f"{lost:,} of {shards.samples:,} samples of {shards.folder} are missing or damaged, more than "
            f"data.damaged_share={shards.damaged_share:g}: {listed(problems)}; write the shards again, or find "
            f"all damage with `murine shards verify={shards.folder}`"
        )


def listed(problems: list[str]) -> str:
    """The first few problems and the number of the others."""
    others = len(problems) - NAMED_AT_ONCE
    return "; ".join(problems[:NAMED_AT_ONCE]) + (f"; and {others:,} more" if others > 0 else "")


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
        collate: Callable[[list["Sample"]], dict[str, Tensor]] | None = None,
    ) -> None:
        self.shards, self.batch_size = shards, batch_size
        self.order = shards.order(seed, buffer)
        self.epoch, self.epochs, self.start = epoch, epochs, start
        self.rank, self.world, self.drop_last = rank, world, drop_last
        self.collate = collate

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        reader = ShardReader()
        for position, numbers in enumerate(self.numbers()):
            # The loader takes batches from its workers in turn, so that this deal restores the order.
            if position % workers == number:
                yield self.read(reader, numbers)

    def numbers(self) -> Iterator[np.ndarray]:
        """Sample numbers (batch / world,) of this device's part of each batch."""
        for epoch in range(self.epochs):
            which = None if self.epoch is None else self.epoch + epoch
            start = 0 if epoch else self.start
            for batch in self.order.batches(which, self.batch_size, start, self.drop_last):
                yield batch[self.rank :: self.world]

    def read(self, reader: ShardReader, numbers: np.ndarray) -> dict[str, Any]:
        """One batch; `problems` lists the samples that others had to stand in for."""
        samples, problems = [], []
        for index in numbers.tolist():
            try:
                samples.append(decode(reader.read(self.shards.shard_of(index), f"{index:09d}")))
            except UNREADABLE as error:
                samples.append(None)
                problems.append(one_line(error))
        good = substitutes([sample is not None for sample in samples])
        if good is None:
            raise ValueError(f"no sample of a whole batch of {self.shards.folder} can be read: {listed(problems)}")
        if self.collate is None:
            batch = collate([samples[place] for place in good])
        else:
            batch = self.collate([sample for sample in samples if sample is not None])
        return batch | {PROBLEMS: problems} if problems else batch


def one_line(error: Exception) -> str:
    return str(error.args[0] if isinstance(error, KeyError) else error)


def substitutes(intact: list[bool]) -> list[int] | None:
    """For each place of a batch its own number, or that of the next intact place, round the end; None without any."""
    places = [place for place, good in enumerate(intact) if good]
    if len(places) == len(intact):
        return places
    if not places:
        return None
    following = np.searchsorted(places, np.arange(len(intact))) % len(places)
    return [places[number] for number in following]


@dataclass
class Damage:
    """Counts the samples of a set that could not be read, names each once, and stops above the allowed share."""

    shards: ShardSet
    named: dict[str, None] = field(default_factory=dict)

    def note(self, problems: list[str]) -> None:
        """Raises ValueError with the list where they have become too many."""
        new = [problem for problem in problems if problem not in self.named]
        self.named |= dict.fromkeys(new)
        lost = self.shards.samples - sum(self.shards.readable) + len(self.named)
        require_few(lost, self.shards, [*self.shards.problems, *self.named])
        for problem in new:
            say(f"WARNING: left out: {problem}")


def load_batches(
    batches: EpochBatches, workers: int, pin: bool = False, damage: Damage | None = None
) -> Iterator[dict[str, Tensor]]:
    """Iterate batches, decoded in `workers` processes beside this one (0: in this one).

    `damage` counts what could not be read, over all that is iterated with it.
    """
    damage = damage or Damage(batches.shards)
    ahead = PREFETCH if workers else None
    for batch in DataLoader(batches, batch_size=None, num_workers=workers, pin_memory=pin, prefetch_factor=ahead):
        damage.note(batch.pop(PROBLEMS, []))
        yield batch


@dataclass(frozen=True)
class Sample:
    """A decoded sample: `pixels` uint8 (height, width, 3), and `depth`, uint8 or int32 (height, width)."""

    pixels: Tensor
    index: int
    label: int | None
    depth: Tensor | None


def decode(sample: dict[str, Any]) -> Sample:
    """An encoded sample's pixels, global index, label and depth map; raises one line where it is damaged."""
    try:
        pixels = decode_image(sample)
        label = int(sample["cls"]) if "cls" in sample else None
        depth = decode_depth(sample[DEPTH], pixels.shape[:2]) if DEPTH in sample else None
        return Sample(pixels, int(sample["__key__"]), label, depth)
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        what = f"{type(error).__name__}: {error}".split("\n")[0]
        raise ValueError(f"sample {sample['__key__']} of {sample['__url__']} cannot be decoded ({what})") from error


def decode_image(sample: dict[str, Any]) -> Tensor:
    """Pixels uint8 (height, width, 3); JPEGs by libjpeg-turbo directly, whose pixels are Pillow's in half the time."""
    if "jpg" in sample:
        return torch.from_numpy(simplejpeg.decode_jpeg(sample["jpg"], colorspace="RGB"))
    if "npy" in sample:
        pixels = np.load(io.BytesIO(sample["npy"]), allow_pickle=False)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f"its .npy holds {pixels.dtype} {pixels.shape}, not uint8 (height, width, 3)")
        return torch.from_numpy(pixels)
    raise ValueError(f"it has no .jpg or .npy, but {', '.join(sorted(k for k in sample if k[0] != '_')) or 'nothing'}")


def decode_depth(png: bytes, shape: tuple[int, ...]) -> Tensor:
    """Depths uint8, or int32 for 16 bits, of a grey PNG; raises ValueError where it has not the image's shape."""
    depth = np.asarray(Image.open(io.BytesIO(png), formats=("PNG",)))
    if depth.shape != tuple(shape):
        raise ValueError(f"its depth map has shape {depth.shape}, the image {tuple(shape)}")
    return torch.from_numpy(depth.copy() if depth.dtype == np.uint8 else depth.astype(np.int32))


def collate(samples: list[Sample]) -> dict[str, Tensor]:
    """Samples of any sizes to one batch; images lie in memory with their channels last, as they were decoded."""
    batch = {
        "images": padded([sample.pixels for sample in samples]).permute(0, 3, 1, 2),
        "sizes": torch.tensor([sample.pixels.shape[:2] for sample in samples]),
        "index": torch.tensor([sample.index for sample in samples]),
    }
    if all(sample.label is not None for sample in samples):
        batch["label"] = torch.tensor([sample.label for sample in samples])
    if all(sample.depth is not None for sample in samples):
        batch["depth"] = padded([sample.depth for sample in samples])[:, None]
    return batch


def padded(arrays: list[Tensor]) -> Tensor:
    """Arrays (height, width, ...) of any sizes, with zeros to the right and below up to the largest of each."""
    height, width = (max(array.shape[side] for array in arrays) for side in (0, 1))
    dtype = max((array.dtype for array in arrays), key=lambda one: one.itemsize)
    make = torch.empty if all(array.shape[:2] == (height, width) for array in arrays) else torch.zeros
    whole = make(len(arrays), height, width, *arrays[0].shape[2:], dtype=dtype)
    for place, array in zip(whole, arrays, strict=True):
        place[: array.shape[0], : array.shape[1]] = array
    return whole
