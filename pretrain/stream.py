"""Read shards as batches, in an order that is a pure function of (seed, epoch).

What comes in: a folder of shards with its index. What goes out: dictionaries `images` uint8 (batch, 3, height, width),
padded at the right and bottom to the largest of the batch, `sizes` (batch, 2) true heights and widths in pixels,
`index` (batch,) global indices, `label` (batch,) where the shards have labels, and `depth` (batch, 1, height, width)
where they have depth maps, padded likewise, in the maps' own units: uint8, or int32 where one has 16 bits.

Every process walks the same shuffled sequence of encoded samples and decodes only its own batches. So the order does
not depend on the number of workers or devices, no sample is lost or repeated within an epoch, every device gets the
same number of batches, and resuming skips without decoding. The price is that each worker reads all encoded bytes.
"""

import io
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import webdataset as wds
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pretrain.shards import DEPTH, read_index

IMAGE_EXTENSIONS = ("jpg", "npy")


@dataclass(frozen=True)
class ShardSet:
    """A folder of shards: where the tars are, how many samples they hold, which labels occur, and if there is depth."""

    folder: Path
    urls: tuple[str, ...]
    samples: int
    labels: tuple[int, ...]
    depth: bool = False

    @property
    def classes(self) -> int:
        """One more than the largest label; 0 without labels."""
        return max(self.labels) + 1 if self.labels else 0


def open_shards(folder: Path | str, key: str = "data.shards") -> ShardSet:
    """The shards of a folder; raises one line, naming the config's `key`, where they are missing or incomplete."""
    if folder is None:
        raise ValueError(f"{key} is not set; make shards with `murine shards source=... out=...`")
    folder = Path(folder).expanduser().resolve()
    index = read_index(folder)
    urls = []
    for entry in index["shards"]:
        if Path(entry["file"]).name != entry["file"] or not entry["file"].endswith(".tar"):
            raise ValueError(f"the index of {folder} names {entry['file']!r}, which is not a shard beside it")
        path = folder / entry["file"]
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            found = f"{path.stat().st_size:,} bytes" if path.is_file() else "nothing"
            raise ValueError(f"shard {path} should have {entry['bytes']:,} bytes, found {found}; write it again")
        urls.append(str(path))
    return ShardSet(folder, tuple(urls), index["samples"], tuple(index["labels"]), index.get("depth", False))


class EpochBatches(IterableDataset):
    """The batches of one epoch that one device sees, from batch number `start` on.

    Args:
        shards: where to read.
        batch_size: samples in a batch over all devices; a last, smaller batch is dropped if `drop_last`.
        seed, epoch: determine the order; `epoch=None` keeps the order of the shards.
        buffer: encoded samples held to shuffle within.
        start: batches of this epoch that are skipped without decoding.
        rank, world: which of how many devices; each takes an equal slice of every batch.
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
    ) -> None:
        self.shards, self.batch_size = shards, batch_size
        self.seed, self.epoch, self.buffer, self.start = seed, epoch, buffer, start
        self.rank, self.world, self.drop_last = rank, world, drop_last

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        for position, samples in enumerate(self.encoded_batches()):
            # The loader takes batches from its workers in turn, so that this deal restores the order.
            if position >= self.start and (position - self.start) % workers == number:
                yield collate([decode(sample) for sample in samples[self.rank :: self.world]])

    def encoded_batches(self) -> Iterator[list[dict]]:
        samples = self.encoded_samples()
        batch: list[dict] = []
        for sample in samples:
            batch.append(sample)
            if len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch and not self.drop_last:
            yield batch

    def encoded_samples(self) -> Iterator[dict]:
        urls = list(self.shards.urls)
        stages = [wds.tarfile_to_samples()]
        if self.epoch is not None:
            rng = random.Random(f"{self.seed} {self.epoch}")
            rng.shuffle(urls)
            stages.append(wds.shuffle(self.buffer, initial=self.buffer, rng=rng))
        found = 0
        for sample in wds.DataPipeline(wds.SimpleShardList(urls), *stages):
            found += 1
            yield sample
        # A tar ends at its first empty block, so that damage can also hide the samples behind it.
        if found != self.shards.samples:
            raise ValueError(
                f"{self.shards.folder} gave {found:,} samples, its index says {self.shards.samples:,}; "
                f"check the shards with `murine shards verify={self.shards.folder}`"
            )


def load_batches(batches: EpochBatches, workers: int, pin: bool = False) -> Iterator[dict[str, Tensor]]:
    """Iterate batches, decoded in `workers` processes beside this one (0: in this one)."""
    return iter(DataLoader(batches, batch_size=None, num_workers=workers, pin_memory=pin))


@dataclass(frozen=True)
class Sample:
    """A decoded sample: `pixels` uint8 (height, width, 3), and `depth`, uint8 or int32 (height, width)."""

    pixels: np.ndarray
    index: int
    label: int | None
    depth: np.ndarray | None


def decode(sample: dict) -> Sample:
    """An encoded sample's pixels, global index, label and depth map; raises one line where it is damaged."""
    extension = next((e for e in IMAGE_EXTENSIONS if e in sample), None)
    try:
        if extension == "jpg":
            pixels = np.asarray(Image.open(io.BytesIO(sample["jpg"])).convert("RGB"))
        else:
            pixels = np.load(io.BytesIO(sample[extension]), allow_pickle=False)
        label = int(sample["cls"]) if "cls" in sample else None
        depth = decode_depth(sample[DEPTH], pixels.shape[:2]) if DEPTH in sample else None
        return Sample(pixels, int(sample["__key__"]), label, depth)
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        raise ValueError(
            f"sample {sample['__key__']} of {sample['__url__']} cannot be decoded ({type(error).__name__}: {error}); "
            f"check the shards with `murine shards verify={Path(sample['__url__']).parent}`"
        ) from error


def decode_depth(png: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Depths uint8, or int32 for 16 bits, of a grey PNG; raises ValueError where it has not the image's shape."""
    depth = np.asarray(Image.open(io.BytesIO(png), formats=("PNG",)))
    if depth.shape != shape:
        raise ValueError(f"its depth map has shape {depth.shape}, the image {shape}")
    return depth if depth.dtype == np.uint8 else depth.astype(np.int32)


def collate(samples: list[Sample]) -> dict[str, Tensor]:
    """Samples of any sizes to one batch."""
    sizes = torch.tensor([sample.pixels.shape[:2] for sample in samples])
    batch = {
        "images": padded([sample.pixels for sample in samples], np.uint8, 3).permute(0, 3, 1, 2).contiguous(),
        "sizes": sizes,
        "index": torch.tensor([sample.index for sample in samples]),
    }
    if all(sample.label is not None for sample in samples):
        batch["label"] = torch.tensor([sample.label for sample in samples])
    if all(sample.depth is not None for sample in samples):
        maps = [sample.depth for sample in samples]
        batch["depth"] = padded(maps, np.result_type(*maps))[:, None]
    return batch


def padded(arrays: list[np.ndarray], dtype: np.dtype | type, *channels: int) -> Tensor:
    """Arrays (height, width, *channels) of any sizes, with zeros to the right and below up to the largest of each."""
    height, width = (max(array.shape[side] for array in arrays) for side in (0, 1))
    whole = np.zeros((len(arrays), height, width, *channels), dtype)
    for place, array in zip(whole, arrays, strict=True):
        place[: array.shape[0], : array.shape[1]] = array
    return torch.from_numpy(whole)
