"""Where images come from: folders and Parquet files, read lazily and in a fixed order.

What comes in: a path, and another of depth images where there are any. What goes out: a `Source`, whose `items(start)`
yields each image with its name, label and depth image: encoded bytes as they lie in the file, or arrays, uint8 (height,
width, 3) and, for depth, uint8 or uint16 (height, width).
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pretrain.config import ShardsConfig

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"))
IMAGE_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"RIFF", b"II*\x00", b"MM\x00*")
PARQUET_ROWS = 256


@dataclass(frozen=True)
class Item:
    """One image of a source: `image` is encoded bytes, a file's path, or uint8 (height, width, 3).

    `depth` is its depth image in the same forms, with one channel, 8 or 16 bit; None where there is none.
    """

    name: str
    image: bytes | Path | np.ndarray
    label: int | None = None
    depth: bytes | Path | np.ndarray | None = None


@dataclass(frozen=True)
class Source:
    """A fixed sequence of images.

    `items(start)` yields them from number `start` on; `fingerprint` changes whenever the sequence does, so that an
    interrupted job only goes on from the same source.
    """

    count: int
    items: Callable[[int], Iterator[Item]]
    fingerprint: str
    classes: tuple[str, ...] | None = None


def open_source(config: ShardsConfig) -> Source:
    """The folder or Parquet file that `config.source` names; raises with one line where it is neither."""
    path = Path(config.source).expanduser()
    if path.is_dir():
        if config.depth_column is not None:
            raise ValueError("depth_column is for Parquet files; with a folder of images say depth=<folder>")
        source = folder_source(path, config.seed)
        return source if config.depth is None else with_depth(source, path, Path(config.depth).expanduser())
    if path.suffix.lower() in (".parquet", ".pq") and path.is_file():
        if config.depth is not None:
            raise ValueError("depth=<folder> is for folders of images; with a Parquet file say depth_column=<name>")
        return parquet_source(path, config)
    if path.exists():
        raise ValueError(f"source {str(path)!r} is neither a folder nor a .parquet file")
    raise FileNotFoundError(f"source {str(path)!r} does not exist (a folder, a .parquet file, or `simulated`)")


def folder_source(folder: Path, seed: int) -> Source:
    """Images of a flat folder, without labels, or of class folders, whose sorted names are the labels 0, 1, ...

    Files that are not images by their suffix are left alone. The images are shuffled once, so that each shard holds
    a mixture of all classes; a shuffle buffer while training could not undo an order by class.
    """
    flat = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES)
    if flat:
        items = [Item(p.name, p) for p in flat]
        random.Random(seed).shuffle(items)
        return Source(len(items), lambda start: iter(items[start:]), listing_fingerprint(items))
    classes, items = [], []
    for subfolder in sorted(p for p in folder.iterdir() if p.is_dir()):
        images = sorted(p for p in subfolder.rglob("*") if p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES)
        if images:
            items += [Item(str(p.relative_to(folder)), p, len(classes)) for p in images]
            classes.append(subfolder.name)
    if not items:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise ValueError(f"no images in {str(folder)!r}, neither in it nor in class folders below it ({suffixes})")
    random.Random(seed).shuffle(items)
    return Source(len(items), lambda start: iter(items[start:]), listing_fingerprint(items), tuple(classes))


def listing_fingerprint(items: list[Item]) -> str:
    return "\n".join(f"{item.name}:{item.image.stat().st_size}" for item in items)


def with_depth(source: Source, images: Path, folder: Path) -> Source:
    """A folder's images with those of a depth folder that lie at the same place under the same name.

    Suffixes may differ. An image without a partner keeps none, and counts as unreadable when shards are written.
    """
    found = depth_images(folder)
    items = [replace(item, depth=found.get(without_suffix(item.name))) for item in source.items(0)]
    paired = [item for item in items if item.depth is not None]
    if not paired:
        raise ValueError(
            f"no depth image in {str(folder)!r} is named as an image of {str(images)!r}, such as "
            f"{without_suffix(items[0].name)!r}; the first depth image is {min(found)!r}"
        )
    sizes = "\n".join(f"{item.name}:{item.depth.stat().st_size}" for item in paired)
    fingerprint = f"{source.fingerprint}\ndepth\n{sizes}"
    return replace(source, items=lambda start: iter(items[start:]), fingerprint=fingerprint)


def depth_images(folder: Path) -> dict[str, Path]:
    """Images below a folder by their place in it, without suffix."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"depth {str(folder)!r} does not exist (a folder of depth images, or `simulated` with source=simulated)"
        )
    found: dict[str, Path] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES):
        other = found.setdefault(without_suffix(str(path.relative_to(folder))), path)
        if other is not path:
            raise ValueError(
                f"depth images {other.name!r} and {path.name!r} in {str(path.parent)!r} have one name; keep one"
            )
    if not found:
        raise ValueError(f"no images in the depth folder {str(folder)!r} ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return found


def without_suffix(name: str) -> str:
    return str(Path(name).with_suffix(""))


def parquet_source(path: Path, config: ShardsConfig) -> Source:
    """Rows of a Parquet file whose image column holds encoded bytes, or Hugging Face's struct with a `bytes` field."""
    file = open_parquet(path)
    columns = file.schema_arrow.names
    depth_column, where = config.depth_column, config.where
    image_column = config.image_column or find_image_column(file, path, besides=depth_column)
    label_column = config.label_column or ("label" if "label" in columns else None)
    for column in filter(None, (image_column, label_column, depth_column)):
        require_column(path, columns, column)
    wanted = rows_where(file, path, where)
    classes = class_names(file, label_column)
    to_class = {name: number for number, name in enumerate(classes)} if classes else None

    def items(start: int) -> Iterator[Item]:
        offset = 0
        selected = set(wanted[start:].tolist())
        read = [c for c in (image_column, label_column, depth_column) if c]
        for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=read):
            hits = [row for row in range(batch.num_rows) if offset + row in selected]
            for row in hits:
                label = batch.column(label_column)[row].as_py() if label_column else None
                yield Item(
                    f"row {offset + row}",
                    encoded_bytes(batch.column(image_column)[row].as_py()),
                    to_class[label] if to_class else label,
                    encoded_bytes(batch.column(depth_column)[row].as_py()) if depth_column else None,
                )
            offset += batch.num_rows

    fingerprint = f"{path.name}:{path.stat().st_size}:{image_column}:{label_column}:{where}"
    if depth_column:
        fingerprint += f":{depth_column}"
    return Source(len(wanted), items, fingerprint, classes)


def open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except Exception as error:
        raise ValueError(f"{str(path)!r} cannot be read as Parquet: {error}") from error


def require_column(path: Path, columns: list[str], column: str) -> None:
    if column not in columns:
        raise ValueError(f"{path.name} has no column {column!r}; its columns: {', '.join(columns)}")


def encoded_bytes(cell: bytes | dict | None) -> bytes:
    """The image's bytes; a missing cell becomes no bytes, which counts as an unreadable image."""
    return (cell.get("bytes") if isinstance(cell, dict) else cell) or b""


def find_image_column(file: pq.ParquetFile, path: Path, besides: str | None = None) -> str:
    """The first column, `besides` apart, whose first non-empty cell begins like an image file."""
    first = next(file.iter_batches(batch_size=PARQUET_ROWS), None)
    for name in file.schema_arrow.names if first is not None else ():
        if name == besides:
            continue
        cells = (cell.as_py() for cell in first.column(name))
        cell = next((c for c in cells if c), None)
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if isinstance(data, bytes) and data.startswith(IMAGE_MAGIC):
            return name
    names = ", ".join(file.schema_arrow.names)
    raise ValueError(f"{path.name} has no column of encoded images; its columns: {names}; say image_column=<name>")


def rows_where(file: pq.ParquetFile, path: Path, where: str | None) -> np.ndarray:
    """Row numbers that `column=value` keeps, compared as text; all rows without a condition."""
    if where is None:
        return np.arange(file.metadata.num_rows)
    column, equals, value = where.partition("=")
    if not equals:
        raise ValueError(f"where={where!r} must be column=value, for example where=split=train")
    require_column(path, file.schema_arrow.names, column)
    cells = file.read(columns=[column]).column(0).to_pandas().astype(str).to_numpy()
    rows = np.flatnonzero(cells == value)
    if not len(rows):
        found = ", ".join(sorted(set(cells))[:10])
        raise ValueError(f"no row of {path.name} has {column} = {value!r}; values found: {found}")
    return rows


def class_names(file: pq.ParquetFile, label_column: str | None) -> tuple[str, ...] | None:
    """Sorted names where labels are text, which become 0, 1, ...; None where labels already are numbers."""
    if label_column is None:
        return None
    labels = file.read(columns=[label_column]).column(0)
    if labels.null_count:
        raise ValueError(f"column {label_column!r} has {labels.null_count:,} empty cells; say label_column=<name>")
    values = labels.unique().to_pylist()
    if all(isinstance(value, int) and value >= 0 for value in values):
        return None
    if all(isinstance(value, str) for value in values):
        return tuple(sorted(values))
    raise ValueError(f"labels in column {label_column!r} must be whole numbers from 0 or names, found {values[0]!r}")
