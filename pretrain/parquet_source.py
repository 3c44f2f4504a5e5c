"""Images of Parquet files: one file, or the parts of a data set as Hugging Face's hub has them.

What comes in: a file, or a folder with parts such as `data/train-00000-of-00004.parquet`, whose image column holds
encoded bytes, or Hugging Face's struct with a `bytes` field. What goes out: a `Source` of the rows in their order.
Which column holds images, and the classes' names, are read from the `huggingface` notes in the schema, if it has any
(https://huggingface.co/docs/datasets/about_dataset_features).
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pretrain.config import ShardsConfig
from pretrain.items import Item, Source, byte_count, open_stored
from pretrain.label_list import number_labels
from pretrain.progress import say
from pretrain.storage import RemoteFile

IMAGE_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"RIFF", b"II*\x00", b"MM\x00*")
PARQUET_ROWS = 256
UNLABELLED = "unlabelled"  # instead of a column with labels
NO_LABELS = {None, -1}  # as in test splits whose labels are not published
OTHER_LABELS = f"say label_column=<name> for another, or label_column={UNLABELLED} for images without labels"
HOLD_BYTES = (
    pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view,
    pa.types.is_null,
)  # fmt: skip
SPLIT = re.compile(r"([^/]+)-\d+-of-\d+\.(?:parquet|pq)$|([^/]+)/\d+\.(?:parquet|pq)$")


@dataclass(frozen=True)
class Part:
    """One file of a data set, and its name in the folder."""

    file: Path | RemoteFile
    name: str

    @cached_property
    def opened(self) -> pq.ParquetFile:
        with self.one_line_when_damaged():
            return pq.ParquetFile(self.file if isinstance(self.file, Path) else open_stored(self.file))

    @contextmanager
    def one_line_when_damaged(self) -> Iterator[None]:
        """Raises ValueError with the file's name where what is read in it cannot be read."""
        try:
            yield
        except Exception as error:  # Arrow raises many kinds, none of which names the file
            place = self.file if isinstance(self.file, Path) else self.file.url
            what = str(error).replace("\n", " ")
            raise ValueError(
                f"{str(place)!r} cannot be read as Parquet: {what}; bring the file again, or take it out of the source"
            ) from error

    def column(self, name: str) -> pa.ChunkedArray:
        with self.one_line_when_damaged():
            return self.opened.read(columns=[name]).column(0)

    def batches(self, **chosen: list) -> Iterator[pa.RecordBatch]:
        """The rows, a few hundred at a time, of the `row_groups` and `columns` that are chosen."""
        with self.one_line_when_damaged():
            yield from self.opened.iter_batches(batch_size=PARQUET_ROWS, **chosen)

    @property
    def columns(self) -> list[str]:
        return self.opened.schema_arrow.names

    @property
    def split(self) -> str | None:
        """`train` of `data/train-00000-of-00004.parquet` and of `default/train/0000.parquet`."""
        found = SPLIT.search(self.name)
        return found and (found[1] or found[2])


@dataclass(frozen=True)
class Columns:
    """The columns that are read, and the number of each label."""

    image: str
    label: str | None
    depth: str | None
    number: dict[int | str, int] | None


def parquet_source(files: dict[str, Path | RemoteFile], config: ShardsConfig) -> Source:
    """Rows of all parts, one part after the other."""
    parts, where = split_parts([Part(file, name) for name, file in files.items()], config.where)
    first, depth = parts[0], config.depth_column
    features = hugging_face_features(first)
    image = config.image_column or find_image_column(first, features, besides=depth)
    wanted = wanted_rows(parts, where)
    label = find_label_column(parts, wanted, features) if config.label_column is None else config.label_column
    label = None if label == UNLABELLED else label
    for part in parts:
        for column in filter(None, (image, label, depth)):
            require_column(part, column)
        for column in filter(None, (image, depth)):
            require_image_bytes(part, column)
    numbers, classes = number_of_labels(parts, wanted, label, features.get(label, {}).get("names"))
    columns = Columns(image, label, depth, numbers)

    def items(start: int) -> Iterator[Item]:
        for part, rows in zip(parts, wanted, strict=True):
            prefix = f"{part.name} " if len(parts) > 1 else ""
            for item in part_items(part, rows[start:], columns):
                yield replace(item, name=prefix + item.name)
            start = max(0, start - len(rows))

    suffix = f":{image}:{label}:{where}" + (f":{depth}" if depth else "")
    fingerprint = "\n".join(f"{part.name}:{byte_count(part.file)}{suffix}" for part in parts)
    return Source(sum(map(len, wanted)), items, fingerprint, classes)


def split_parts(parts: list[Part], where: str | None) -> tuple[list[Part], str | None]:
    """The parts of the split that `where=split=<name>` names, and the condition on rows that is left."""
    splits = sorted({part.split for part in parts if part.split} if len(parts) > 1 else ())
    wanted = where.removeprefix("split=") if where and where.startswith("split=") else None
    if wanted is not None and splits and "split" not in parts[0].columns:
        kept = [part for part in parts if part.split == wanted]
        if not kept:
            raise ValueError(f"no part is of split {wanted!r}; splits found: {', '.join(splits)}")
        return kept, None
    if len(splits) > 1 and where is None:
        raise ValueError(f"these parts are of several splits; say where=split= and one of {', '.join(splits)}")
    return parts, where


def hugging_face_features(part: Part) -> dict[str, dict]:
    """Notes on the columns, by name; empty where the file was not written by Hugging Face's `datasets`."""
    notes = (part.opened.schema_arrow.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(notes)["info"]["features"] if notes else {}
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{part.name}: the notes of Hugging Face in its schema cannot be read: {error!r}") from error


def find_image_column(part: Part, features: dict[str, dict], besides: str | None = None) -> str:
    """The first column, `besides` apart, that is noted as images, or whose first cell begins like an image file."""
    noted = [name for name, feature in features.items() if feature.get("_type") == "Image" and name != besides]
    if noted:
        return noted[0]
    first = next(part.batches(), None)
    for name in part.columns if first is not None else ():
        if name == besides:
            continue
        cell = next((c for c in (cell.as_py() for cell in first.column(name)) if c), None)
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if isinstance(data, bytes) and data.startswith(IMAGE_MAGIC):
            return name
    names = ", ".join(part.columns)
    raise ValueError(f"{part.name} has no column of encoded images; its columns: {names}; say image_column=<name>")


def find_label_column(parts: Sequence[Part], wanted: Sequence[np.ndarray], features: dict[str, dict]) -> str | None:
    """`label`, or the one column that is noted as classes; None where no wanted row of it has a label."""
    noted = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    found = "label" if "label" in parts[0].columns else noted[0] if len(noted) == 1 else None
    if found is None or not all(
        found in part.columns and has_no_labels(part.column(found).take(rows))
        for part, rows in zip(parts, wanted, strict=True)
    ):
        return found
    say(f"column {found!r} is -1 or empty in all rows, so that the images have no labels")
    return None


def has_no_labels(labels: pa.ChunkedArray) -> bool:
    """Whether all cells are empty, or -1."""
    if labels.null_count == len(labels):
        return True
    return pa.types.is_integer(labels.type) and pc.all(pc.equal(labels, -1)).as_py()


def require_column(part: Part, column: str) -> None:
    if column not in part.columns:
        raise ValueError(f"{part.name} has no column {column!r}; its columns: {', '.join(part.columns)}")


def require_image_bytes(part: Part, column: str) -> None:
    """Raises one line where a column can hold no encoded images: bytes, or Hugging Face's struct with them."""
    kind = part.opened.schema_arrow.field(column).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not any(is_kind(kind) for is_kind in HOLD_BYTES):
        raise ValueError(
            f"column {column!r} of {part.name} holds {kind}, not the bytes of image files; its columns: "
            f"{', '.join(part.columns)}"
        )


def number_of_labels(
    parts: Sequence[Part], wanted: Sequence[np.ndarray], column: str | None, noted: list[str] | None
) -> tuple[dict[int | str, int] | None, tuple[str, ...] | None]:
    """The number of each label, and the classes' names: those noted, or the sorted labels where these are text.

    Rows that are not wanted count among the classes, so that splits are numbered alike, but may lack labels.
    """
    if column is None:
        return None, None
    values: set[int | str] = set()
    for part, rows in zip(parts, wanted, strict=True):
        labels = part.column(column)
        if pa.types.is_nested(labels.type):
            raise ValueError(f"column {column!r} holds {labels.type}, not one label in each row; {OTHER_LABELS}")
        of_wanted = labels.take(rows)
        if of_wanted.null_count:
            raise ValueError(f"column {column!r} has {of_wanted.null_count:,} empty cells; {OTHER_LABELS}")
        values |= set(labels.unique().to_pylist()) - NO_LABELS | set(of_wanted.unique().to_pylist())
    try:
        numbers, classes = number_labels(values, f"in column {column!r}")
    except ValueError as error:
        raise ValueError(f"{error}; {OTHER_LABELS}") from error
    if noted and classes is None:
        if max(numbers, default=0) >= len(noted):
            raise ValueError(f"column {column!r} has label {max(numbers)}, but only {len(noted)} class names are noted")
        classes = tuple(noted)
    return numbers, classes


def wanted_rows(parts: Sequence[Part], where: str | None) -> list[np.ndarray]:
    """Row numbers of each part that `column=value` keeps, compared as text; all rows without a condition."""
    if where is None:
        return [np.arange(part.opened.metadata.num_rows) for part in parts]
    column, equals, value = where.partition("=")
    if not equals:
        raise ValueError(f"where={where!r} must be column=value, for example where=split=train")
    found: set[str] = set()
    wanted = []
    for part in parts:
        require_column(part, column)
        cells = part.column(column).to_pandas().astype(str).to_numpy()
        found |= set(cells)
        wanted.append(np.flatnonzero(cells == value))
    if not sum(map(len, wanted)):
        names = parts[0].name if len(parts) == 1 else f"{len(parts)} parts"
        raise ValueError(f"no row of {names} has {column} = {value!r}; values found: {', '.join(sorted(found)[:10])}")
    return wanted


def part_items(part: Part, rows: np.ndarray, columns: Columns) -> Iterator[Item]:
    """Items of these rows, which are sorted; row groups without any of them are not read."""
    if not len(rows):
        return
    read = [column for column in (columns.image, columns.label, columns.depth) if column]
    selected, offset = set(rows.tolist()), 0
    for group in range(part.opened.num_row_groups):
        count = part.opened.metadata.row_group(group).num_rows
        first, end = np.searchsorted(rows, (offset, offset + count))
        if first < end:
            yield from group_items(part, group, offset, selected, columns, read)
        offset += count


def group_items(
    part: Part, group: int, offset: int, selected: set[int], columns: Columns, read: list[str]
) -> Iterator[Item]:
    """Items of the selected rows of a row group whose first row has number `offset`."""
    for batch in part.batches(row_groups=[group], columns=read):
        for row in (row for row in range(batch.num_rows) if offset + row in selected):
            yield Item(
                f"row {offset + row}",
                encoded_bytes(batch.column(columns.image)[row].as_py()),
                columns.number[batch.column(columns.label)[row].as_py()] if columns.label else None,
                encoded_bytes(batch.column(columns.depth)[row].as_py()) if columns.depth else None,
            )
        offset += batch.num_rows


def encoded_bytes(cell: bytes | dict | None) -> bytes:
    """The image's bytes; a missing cell becomes no bytes, which counts as an unreadable image."""
    return (cell.get("bytes") if isinstance(cell, dict) else cell) or b""
