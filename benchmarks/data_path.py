"""Images per second and core from shards to two SimCLR views of 64 pixels, ours beside what is used elsewhere.

Comes in: `--images`, a folder of full-size JPEGs (without it, photographs are simulated); `--quick` takes fewer. Goes
out: a table and one line of JSON. On one thread of one process, in turn:

- murine: shards of 96 pixels, read, decoded, and made into views for whole batches.
- lightly, JPEG: lightly's SimCLR transform, image by image, on the full-size files, as its users have it.
- lightly, shards: the same transform on the images of the same shards of 96 pixels.
- torchvision v2: its transforms on uint8 tensors of those shards, image by image.
- kornia: its augmentations for whole batches of floats, of those shards cut to squares.

All have the same ranges: crops of 8 to 100 % of the area, jitter of strength 1, grey with 0.2, blur with 0.5. The
limits are named by the time that reading and decoding the shards alone take, and reading alone.
"""

import argparse
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from lightly.transforms import SimCLRTransform
from PIL import Image
from timing import median_seconds, rounded
from torch import Tensor
from torchvision_views import simclr_transform

from neural_data.natural_images import image_samples
from pretrain.checkpoint import BackboneSpec
from pretrain.config import ShardsConfig, ViewsConfig
from pretrain.objectives.objective import Wants
from pretrain.shard_set import ShardSet, open_shards
from pretrain.shards import write_shards
from pretrain.sources import open_source
from pretrain.stream import EpochBatches, load_batches
from pretrain.views import ViewMaker

SIZE, SHARD_SIZE, BATCH = 64, 96, 256
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# lightly's blur has up to 2 pixels of the view; ours counts in pixels of a view of 224.
BLUR = ViewsConfig(blur_sigma_min=0.1 * 224 / SIZE, blur_sigma_max=2 * 224 / SIZE)
VIEWS = ViewsConfig(
    size=SIZE,
    crop_area_min=0.08,
    grayscale_first=False,
    jitter_probability=0.8,
    brightness=0.8,
    contrast=0.8,
    saturation=0.8,
    hue=0.2,
    blur_probability=[0.5],
    blur_sigma_min=BLUR.blur_sigma_min,
    blur_sigma_max=BLUR.blur_sigma_max,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of full-size JPEGs (default: simulated photographs)")
    parser.add_argument("--quick", action="store_true", help="64 images and 3 rounds instead of all and 5")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.images or simulated_photographs(Path(scratch) / "photographs", 64 if options.quick else 200)
        measure(folder, Path(scratch), options.quick)


def measure(folder: Path, scratch: Path, quick: bool) -> None:
    """Time all ways on a folder's images and print what came out."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))[
        : 64 if quick else None
    ]
    config = ShardsConfig(source=str(folder), out=str(scratch / "shards"), size=SHARD_SIZE)
    write_shards(open_source(config), config)
    shards = open_shards(scratch / "shards")
    jobs: dict[str, Callable[[], int]] = {
        "murine": partial(ours, shards),
        "lightly, JPEG": partial(lightly_on_files, files),
        "lightly, shards": partial(lightly_on_shards, shards),
        "torchvision v2, shards": partial(torchvision_on_shards, shards),
        **kornia_job(shards),
        "read and decode alone": partial(decoded, shards),
        "read alone": partial(read, shards),
    }
    images = {name: job() for name, job in jobs.items()}
    seconds = median_seconds(jobs, 3 if quick else 5)
    speed = {name: images[name] / seconds[name] for name in jobs}
    full = np.mean([Image.open(file).size for file in files], axis=0).round().astype(int)
    print(
        f"{len(files)} JPEGs, {full[0]} x {full[1]} pixels on average; shards of {SHARD_SIZE}; two views of {SIZE}; "
        "1 thread"
    )
    for name, images_per_s in speed.items():
        print(
            f"{name:>24}  {images_per_s:9,.0f} images/s   murine is {speed['murine'] / images_per_s:6.2f} times as fast"
        )
    figures = {
        "speedup_vs_lightly_jpeg": speed["murine"] / speed["lightly, JPEG"],
        "speedup_vs_lightly_shards": speed["murine"] / speed["lightly, shards"],
        "speedup_vs_torchvision_shards": speed["murine"] / speed["torchvision v2, shards"],
        "speedup_vs_kornia_shards": speed["murine"] / speed["kornia, shards"] if "kornia, shards" in speed else None,
        "images_per_s_per_core": speed["murine"],
        "decode_limit": speed["read and decode alone"],
    }
    print(json.dumps(rounded(figures)))


def simulated_photographs(folder: Path, count: int) -> Path:
    """JPEGs of 500 x 375 pixels, about the size of ImageNet's."""
    folder.mkdir()
    for name, image, _ in image_samples(count, 375, seed=0, split="train"):
        wide = Image.fromarray(image).resize((500, 375))
        wide.save(folder / f"{name.replace('/', '-').replace(' ', '-')}.jpg", quality=90)
    return folder


def ours(shards: ShardSet, epochs: int = 4) -> int:
    """Both views of every image, as training makes them; returns the number of images."""
    maker = ViewMaker(VIEWS, BackboneSpec("any", {}, SIZE, MEAN, STD), Wants(views=2), 0, torch.device("cpu"))
    seen = 0
    batches = EpochBatches(shards, min(BATCH, shards.samples), epoch=0, epochs=epochs, drop_last=False)
    for step, batch in enumerate(load_batches(batches, workers=0)):
        seen += maker.training(batch, step)["views"].shape[1]
    return seen


def lightly_transform() -> SimCLRTransform:
    return SimCLRTransform(input_size=SIZE)


def lightly_on_files(files: list[Path]) -> int:
    transform = lightly_transform()
    for file in files:
        transform(Image.open(file).convert("RGB"))
    return len(files)


def encoded(shards: ShardSet) -> Iterator[bytes]:
    """The JPEGs of the shards."""
    reader = shards.reader()
    for index in range(shards.samples):
        yield shards.read(reader, index)["jpg"]


def lightly_on_shards(shards: ShardSet) -> int:
    transform = lightly_transform()
    for data in encoded(shards):
        transform(Image.open(io.BytesIO(data)).convert("RGB"))
    return shards.samples


def torchvision_on_shards(shards: ShardSet) -> int:
    transform = simclr_transform(SIZE, MEAN, STD)
    for data in encoded(shards):
        image = torch.from_numpy(simplejpeg.decode_jpeg(data)).permute(2, 0, 1)
        for _ in range(2):
            transform(image)
    return shards.samples


def kornia_job(shards: ShardSet) -> dict[str, Callable[[], int]]:
    """kornia's way, where it is installed."""
    try:
        import kornia.augmentation as kornia
    except ImportError:
        print("kornia is left out: it is not installed (pip install kornia)")
        return {}
    transform = kornia.AugmentationSequential(
        kornia.RandomResizedCrop((SIZE, SIZE), scale=(0.08, 1.0)),
        kornia.RandomHorizontalFlip(),
        kornia.ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8),
        kornia.RandomGrayscale(p=0.2),
        kornia.RandomGaussianBlur((5, 5), (0.1, 2.0), p=0.5),
        kornia.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    )

    def run() -> int:
        for images in squares(shards):
            for _ in range(2):
                transform(images.float() / 255)
        return shards.samples

    return {"kornia, shards": run}


def squares(shards: ShardSet) -> Iterator[Tensor]:
    """Batches uint8 (batch, 3, 96, 96): the corners of the images."""
    batches = EpochBatches(shards, min(BATCH, shards.samples), drop_last=False)
    for batch in load_batches(batches, workers=0):
        yield batch["images"][:, :, :SHARD_SIZE, :SHARD_SIZE]


def decoded(shards: ShardSet) -> int:
    return sum(len(images) for images in squares(shards))


def read(shards: ShardSet) -> int:
    return sum(1 for _ in encoded(shards))


if __name__ == "__main__":
    main()
