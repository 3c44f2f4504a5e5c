"""Write and verify WebDataset shards of small images.

What comes in: a `Source` of images of any size. What goes out: a folder of `shard-000000.tar`, ... and `index.json`.
A sample is `<global index, nine digits>.jpg` (or `.npy`, raw uint8 (height, width, 3)), with its label in `.cls`, and
its depth map, of the same height and width, in `.depth.png` (grey, 8 or 16 bit, in the source's own values). The index
gives samples, bytes and SHA-256 of every shard, in the order of the global indices. Format of the tars: WebDataset
(Aizman et al. 2019, https://arxiv.org/abs/2001.01858).
"""

import hashlib
import io
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import webdataset as wds
from PIL import ExifTags, Image, ImageOps

from pretrain.config import ShardsConfig
from pretrain.durable import remove_leftovers, write_atomically
from pretrain.progress import progress, say
from pretrain.sources import Item, Source

INDEX = "index.json"
JOURNAL = "journal"
FORMAT = "murine-shards-1"
DEPTH = "depth.png"


@dataclass(frozen=True)
class Encoded:
    """An image, of this width and height, ready for a shard with its depth map, or why it could not be read."""

    extension: str = ""
    data: bytes = b""
    problem: str = ""
    size: tuple[int, int] = (0, 0)
    depth: bytes = b""


def write_shards(source: Source, config: ShardsConfig) -> dict:
    """Write the source's images as shards and return the index.

    Interrupted, it goes on with the first shard that is not complete. Unreadable images are left out, and listed in
    the index.

    Raises:
        FileExistsError: the folder holds shards made from something else.
        ValueError: more unreadable images than `config.max_unreadable` allows.
    """
    folder = Path(config.out)
    plan = shard_plan(source, config)
    if (folder / INDEX).exists():
        return finished_index(folder, plan)
    open_journal(folder, plan)
    remove_leftovers(folder)
    entries: list[dict] = []
    shards = range(0, source.count, config.shard_samples)
    done = completed_entries(folder, len(shards))
    items = source.items(len(done) * config.shard_samples)
    if done:
        say(f"going on after {len(done)} of {len(shards)} shards in {folder}")
    shown = progress("shards", source.count, min(len(done) * config.shard_samples, source.count))
    with shown as meter, ThreadPoolExecutor(os.cpu_count()) as pool:
        for number in range(len(shards)):
            if number < len(done):
                entries.append(done[number])
            else:
                first_index = sum(entry["samples"] for entry in entries)
                block = list(islice(items, config.shard_samples))
                entries.append(write_shard(folder, number, first_index, block, pool, config))
                meter.advance(len(block))
            check_unreadable(entries, source.count, config.max_unreadable)
    return finish(folder, plan, entries)


def shard_plan(source: Source, config: ShardsConfig) -> dict:
    """What the shards are made of; two runs with the same plan write the same bytes."""
    return {
        "format": FORMAT,
        # None and not False, so that shards written before there were depth maps have the same plan.
        "depth": wants_depth(config) or None,
        "source": hashlib.sha256(source.fingerprint.encode()).hexdigest(),
        "images": source.count,
        "size": config.size,
        "encoding": config.format,
        "quality": config.quality if config.format == "jpeg" else None,
        "shard_samples": config.shard_samples,
        "classes": list(source.classes) if source.classes else None,
    }


def wants_depth(config: ShardsConfig) -> bool:
    """Whether each image must come with a depth map."""
    return config.depth is not None or config.depth_column is not None


def finished_index(folder: Path, plan: dict) -> dict:
    index = read_index(folder)
    require_same_plan(folder, index["plan"], plan)
    say(f"{folder} is complete already: {index['samples']:,} images in {len(index['shards'])} shards")
    return index


def require_same_plan(folder: Path, found: dict, wanted: dict) -> None:
    for key in wanted:
        if found.get(key) != wanted[key]:
            raise FileExistsError(
                f"{folder} holds shards with {key}={found.get(key)!r}, not {wanted[key]!r}; choose another out="
            )


def open_journal(folder: Path, plan: dict) -> None:
    """Make the folder, or check that what an interrupted run left in it has the same plan."""
    plan_file = folder / JOURNAL / "plan.json"
    if plan_file.exists():
        require_same_plan(folder, json.loads(plan_file.read_text()), plan)
        return
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty and holds no shards; choose another out=")
    plan_file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(plan_file, lambda file: file.write(json.dumps(plan, indent=1).encode()))


def completed_entries(folder: Path, shards: int) -> list[dict]:
    """Journal entries of the leading shards that lie complete in the folder."""
    entries = []
    for number in range(shards):
        entry_file = folder / JOURNAL / f"{shard_name(number)}.json"
        if not entry_file.exists():
            break
        entry = json.loads(entry_file.read_text())
        shard = folder / entry["file"]
        if not shard.exists() or shard.stat().st_size != entry["bytes"]:
            break
        entries.append(entry)
    return entries


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def write_shard(
    folder: Path,
    number: int,
    first_index: int,
    items: list[Item],
    pool: ThreadPoolExecutor,
    config: ShardsConfig,
) -> dict:
    """Write one shard and its journal entry."""
    samples, unreadable = 0, []
    labels = set()

    def write(file: io.BufferedIOBase) -> None:
        nonlocal samples
        with wds.TarWriter(file, mtime=0) as tar:
            for item, encoded in zip(items, pool.map(lambda item: encode(item, config), items), strict=True):
                if encoded.problem:
                    unreadable.append(f"{item.name}: {encoded.problem}")
                    continue
                sample = {"__key__": f"{first_index + samples:09d}", encoded.extension: encoded.data}
                if encoded.depth:
                    sample[DEPTH] = encoded.depth
                if item.label is not None:
                    sample["cls"] = str(item.label).encode()
                    labels.add(item.label)
                tar.write(sample)
                samples += 1

    path = folder / shard_name(number)
    digest = write_atomically(path, write)
    entry = {
        "file": path.name,
        "samples": samples,
        "bytes": path.stat().st_size,
        "sha256": digest,
        "labels": sorted(labels),
        "unreadable": unreadable,
    }
    journal = folder / JOURNAL / f"{path.name}.json"
    write_atomically(journal, lambda file: file.write(json.dumps(entry).encode()))
    return entry


def encode(item: Item, config: ShardsConfig) -> Encoded:
    """One image, and its depth map where the config wants one, as a shard has them; or what is wrong with either."""
    try:
        encoded, original_size = encode_image(item.image, config)
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes; the image is listed
        return Encoded(problem=one_line(error))
    if not wants_depth(config):
        return encoded
    try:
        return replace(encoded, depth=encode_depth(item.depth, original_size, encoded.size))
    except Exception as error:
        return Encoded(problem=f"depth: {one_line(error)}")


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".replace("\n", " ")


def encode_image(image: bytes | Path | np.ndarray, config: ShardsConfig) -> tuple[Encoded, tuple[int, int]]:
    """Resize an image to the chosen short side and encode it; a JPEG that has that size already is kept as it is.

    Returns it with the width and height that it had, standing upright.
    """
    image, data = open_image(image)
    fits = min(image.size) == config.size and image.format == "JPEG" and image.mode in ("RGB", "L")
    upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    if fits and upright and config.format == "jpeg":
        image.load()
        return Encoded("jpg", data, size=image.size), image.size
    image = ImageOps.exif_transpose(eight_bit(image))
    resized = resize_short_side(image, config.size)
    buffer = io.BytesIO()
    if config.format == "raw":
        np.save(buffer, np.asarray(resized.convert("RGB")))
        return Encoded("npy", buffer.getvalue(), size=resized.size), image.size
    resized.save(buffer, "JPEG", quality=config.quality)
    return Encoded("jpg", buffer.getvalue(), size=resized.size), image.size


def open_image(image: bytes | Path | np.ndarray) -> tuple[Image.Image, bytes | np.ndarray]:
    """An item's image for Pillow, not decoded yet, and what it was made from."""
    data = image.read_bytes() if isinstance(image, Path) else image
    return Image.fromarray(data) if isinstance(data, np.ndarray) else Image.open(io.BytesIO(data)), data


def encode_depth(depth: bytes | Path | np.ndarray | None, image_size: tuple[int, int], size: tuple[int, int]) -> bytes:
    """A depth map as grey PNG of width and height `size`, by nearest neighbour: a mean of two depths is the depth of
    neither.

    Raises ValueError where there is none, or where its aspect is not that of its image, whose width and height are
    `image_size`.
    """
    if depth is None or (isinstance(depth, bytes) and not depth):
        raise ValueError("the image has none, neither by its name nor in its row")
    values = grey_values(ImageOps.exif_transpose(open_image(depth)[0]))
    height, width = values.shape
    # A depth map of lower resolution may have been rounded to whole pixels.
    if abs(width * image_size[1] - height * image_size[0]) > max(image_size):
        raise ValueError(f"{width} x {height} pixels are not the shape of the image, {image_size[0]} x {image_size[1]}")
    rows, columns = (
        (2 * np.arange(side) + 1) * length // (2 * side)
        for side, length in zip((size[1], size[0]), values.shape, strict=True)
    )
    buffer = io.BytesIO()
    Image.fromarray(values[rows[:, None], columns]).save(buffer, "PNG")
    return buffer.getvalue()


def grey_values(image: Image.Image) -> np.ndarray:
    """Depths uint8 or uint16 (height, width) of a grey image; raises ValueError where it has colours."""
    if is_sixteen_bit(image):
        return np.asarray(image).astype(np.uint16)
    channels = np.asarray(eight_bit(image).convert("RGB"))
    if (channels != channels[..., :1]).any():
        raise ValueError("it has colours; save depth as grey with 8 or 16 bits")
    return channels[..., 0]


def is_sixteen_bit(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")


def eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey by its upper byte, which Pillow would clip at 255; raises ValueError where no range is known."""
    if is_sixteen_bit(image):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode!r} have no fixed range; save the image with 8 or 16 bits")
    return image


def resize_short_side(image: Image.Image, size: int) -> Image.Image:
    """Antialiased bilinear resize that keeps the aspect; grey stays grey, everything else becomes RGB."""
    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    return image if (width, height) == image.size else image.resize((width, height), Image.Resampling.BILINEAR)


def check_unreadable(entries: list[dict], images: int, allowed: float) -> None:
    unreadable = [line for entry in entries for line in entry["unreadable"]]
    if len(unreadable) > allowed * images:
        raise ValueError(
            f"{len(unreadable):,} of {images:,} images cannot be read, more than {allowed:.1%}; the first: "
            f"{'; '.join(unreadable[:3])}; run again with max_unreadable=<share> to leave them out"
        )


def finish(folder: Path, plan: dict, entries: list[dict]) -> dict:
    """Write the index and remove the journal."""
    unreadable = [line for entry in entries for line in entry["unreadable"]]
    labels = sorted({label for entry in entries for label in entry["labels"]})
    index = {
        "format": FORMAT,
        "samples": sum(entry["samples"] for entry in entries),
        "labels": labels,
        "classes": plan["classes"],
        "depth": plan["depth"] is True,
        "shards": [{key: entry[key] for key in ("file", "samples", "bytes", "sha256")} for entry in entries],
        "unreadable": unreadable,
        "plan": plan,
    }
    if not index["samples"]:
        raise ValueError(f"none of the {plan['images']:,} images could be read; the first: {unreadable[0]}")
    write_atomically(folder / INDEX, lambda file: file.write(json.dumps(index, indent=1).encode()))
    for file in (folder / JOURNAL).iterdir():
        file.unlink()
    (folder / JOURNAL).rmdir()
    if unreadable:
        say(f"{len(unreadable):,} unreadable images left out, listed in {folder / INDEX}; first: {unreadable[0]}")
    return index


def read_index(folder: Path | str) -> dict:
    """The index of a folder of shards; one line where there is none or it is not ours."""
    path = Path(folder) / INDEX
    if not path.parent.is_dir():
        raise FileNotFoundError(f"folder of shards {str(folder)!r} does not exist; make it with `murine shards`")
    if not path.is_file():
        interrupted = (path.parent / JOURNAL).exists()
        reason = "their writing was interrupted; run it again" if interrupted else "make shards with `murine shards`"
        raise FileNotFoundError(f"no {INDEX} in {str(folder)!r}: {reason}")
    try:
        index = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise ValueError(f"{path} has no format {FORMAT!r}; it was not written by `murine shards`")
    return index


def verify_shards(folder: Path | str) -> list[str]:
    """Check that every shard of the index is there with its size and checksum; returns one line per problem."""
    folder, index = Path(folder), read_index(folder)
    problems = list(unlisted_shards(folder, index))
    with progress("verify", len(index["shards"])) as meter:
        for entry in index["shards"]:
            problems += shard_problems(folder / entry["file"], entry)
            meter.advance()
    return problems


def unlisted_shards(folder: Path, index: dict) -> Iterator[str]:
    listed = {entry["file"] for entry in index["shards"]}
    for path in sorted(folder.glob("*.tar")):
        if path.name not in listed:
            yield f"{path.name}: not in the index"


def shard_problems(path: Path, entry: dict) -> list[str]:
    if not path.is_file():
        return [f"{path.name}: missing"]
    if path.stat().st_size != entry["bytes"]:
        return [f"{path.name}: {path.stat().st_size:,} bytes, the index says {entry['bytes']:,}"]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != entry["sha256"]:
        return [f"{path.name}: SHA-256 {digest[:12]}…, the index says {entry['sha256'][:12]}…"]
    return []
