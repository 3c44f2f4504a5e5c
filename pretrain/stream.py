"""Read shards as batches, in an order that is a pure function of (seed, epoch).

What comes in: a folder of shards with its index. What goes out: dictionaries `images` uint8 (batch, 3, height, width),
padded at the right and bottom to the largest of the batch, `sizes` (batch, 2) true heights and widths in pixels,
`index` (batch,) global indices, and `label` (batch,) where the shards have labels.

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

from pretrain.shards import read_index

IMAGE_EXTENSIONS = ("jpg", "npy")


@dataclass(frozen=True)
class ShardSet:
    """A folder of shards: where the tars are, how many samples they hold, and which labels occur."""

    folder: Path
    urls: tuple[str, ...]
    samples: int
    labels: tuple[int, ...]

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
    return ShardSet(folder, tuple(urls), index["samples"], tuple(index["labels"]))


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


def decode(sample: dict) -> tuple[np.ndarray, int, int | None]:
    """Encoded sample to (uint8 (height, width, 3), global index, label or None)."""
    extension = next((e for e in IMAGE_EXTENSIONS if e in sample), None)
    try:
        if extension == "jpg":
            pixels = np.asarray(Image.open(io.BytesIO(sample["jpg"])).convert("RGB"))
        else:
            pixels = np.load(io.BytesIO(sample[extension]), allow_pickle=False)
        label = int(sample["cls"]) if "cls" in sample else None
        return pixels, int(sample["__key__"]), label
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        raise ValueError(
            f"sample {sample['__key__']} of {sample['__url__']} cannot be decoded ({type(error).__name__}: {error}); "
            f"check the shards with `murine shards verify={Path(sample['__url__']).parent}`"
        ) from error


def collate(samples: list[tuple[np.ndarray, int, int | None]]) -> dict[str, Tensor]:
    """Samples of any sizes to one batch."""
    sizes = torch.tensor([pixels.shape[:2] for pixels, _, _ in samples])
    height, width = sizes.amax(0).tolist()
    images = torch.zeros(len(samples), height, width, 3, dtype=torch.uint8)
    for image, (pixels, _, _) in zip(images, samples, strict=True):
        image[: pixels.shape[0], : pixels.shape[1]] = torch.from_numpy(np.array(pixels))
    batch = {
        "images": images.permute(0, 3, 1, 2).contiguous(),
        "sizes": sizes,
        "index": torch.tensor([index for _, index, _ in samples]),
    }
    if all(label is not None for _, _, label in samples):
        batch["label"] = torch.tensor([label for _, _, label in samples])
    return batch
