"""Peak memory of the reader at 10 and at 1,000 shards, and that of webdataset's own reader beside it.

Comes in: nothing; `--quick` takes 100 shards instead of 1,000. Goes out: a table and one line of JSON. Each measurement
is a process of its own that reads one epoch of shards of 200 images of 96 pixels, shuffled within 10,000 samples, in
batches of 256, and reports its largest resident size beyond what it had before it opened the shards. The limit is the
largest batch, decoded: what any reader must hold.
"""

import argparse
import io
import json
import multiprocessing
import resource
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import webdataset as wds
from PIL import Image
from timing import rounded

from neural_data.natural_images import image_samples
from pretrain.config import ShardsConfig
from pretrain.samples import collate, decode
from pretrain.shard_set import open_shards
from pretrain.shards import write_shards
from pretrain.sources import Item, Source
from pretrain.stream import EpochBatches, load_batches

SIDE, SAMPLES_OF_A_SHARD, BATCH, BUFFER = 96, 200, 256, 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10 and 100 shards")
    few, many = (10, 100) if parser.parse_args().quick else (10, 1000)
    with tempfile.TemporaryDirectory() as scratch:
        figures = {}
        for count in (few, many):
            folder = write(Path(scratch) / str(count), count)
            for reader in (murine, webdataset):
                figures[f"{reader.__name__}_mib_at_{count}_shards"] = peak_mib(reader, folder)
    for name, mib in figures.items():
        print(f"{name.replace('_', ' '):>32}  {mib:8.1f} MiB")
    limit = BATCH * SIDE * SIDE * 3 / 2**20
    print(f"{'one batch, decoded':>32}  {limit:8.1f} MiB")
    growth = figures[f"murine_mib_at_{many}_shards"] - figures[f"murine_mib_at_{few}_shards"]
    print(json.dumps(rounded({**figures, "growth_mib": growth, "batch_mib": limit})))


def write(folder: Path, shards: int) -> Path:
    """Shards of the same few images again and again."""
    encoded = list(jpegs(64))

    def items(start: int) -> Iterator[Item]:
        for number in range(start, shards * SAMPLES_OF_A_SHARD):
            yield Item(str(number), encoded[number % len(encoded)])

    source = Source(shards * SAMPLES_OF_A_SHARD, items, f"{shards} shards")
    write_shards(source, ShardsConfig(out=str(folder), size=SIDE, shard_samples=SAMPLES_OF_A_SHARD))
    return folder


def jpegs(count: int) -> Iterator[bytes]:
    for _, image, _ in image_samples(count, SIDE, seed=0, split="train"):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=95)
        yield buffer.getvalue()


def peak_mib(reader: object, folder: Path) -> float:
    """What a new process needs for one epoch, in MiB."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(measured, (reader, folder))


def measured(reader: object, folder: Path) -> float:
    # One image is decoded before, so that the libraries are loaded.
    for data in islice(jpegs(1), 1):
        decode({"jpg": data, "__key__": "0", "__url__": ""})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reader(folder)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def murine(folder: Path) -> None:
    for _ in load_batches(EpochBatches(open_shards(folder), BATCH, epoch=0, buffer=BUFFER), workers=0):
        pass


def webdataset(folder: Path) -> None:
    """Samples through webdataset's shuffle buffer, which holds them encoded."""
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    stages = wds.tarfile_to_samples(), wds.shuffle(BUFFER, initial=BUFFER), wds.map(decode)
    samples = iter(wds.DataPipeline(wds.SimpleShardList(urls), *stages))
    while some := list(islice(samples, BATCH)):
        collate(some)


if __name__ == "__main__":
    main()
