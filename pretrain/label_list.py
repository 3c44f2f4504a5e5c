"""Labels of images: numbers and class names, and lists of them in text files.

What comes in: labels as they were written, or a text file that has one of these on each line:

- a name and a label: `ILSVRC2012_val_00000001.JPEG 65`, `ILSVRC2012_val_00000001,n01751748`; of Kaggle's boxes after it
  (`ImageId,PredictionString`) only the class is used;
- a label alone, for the images in the order of their names: `n01751748`, `65`;
- ImageNet's own numbers (ILSVRC2012_validation_ground_truth.txt), which the development kit's meta.mat beside it turns
  into synsets.

What goes out: numbers from 0, and the classes' names where the labels are names, sorted, so that synsets are numbered
as everywhere.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from pretrain.items import suffix_of, without_suffix

GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
HEADER = "ImageId"


def number_labels(labels: Collection[int | str], where: str) -> tuple[dict[int | str, int], tuple[str, ...] | None]:
    """The number of each label, and the names: sorted names become 0, 1, ...; numbers stay, and have no names."""
    values = set(labels)
    if all(isinstance(value, int) and not isinstance(value, bool) and value >= 0 for value in values):
        return {value: value for value in values}, None
    if all(isinstance(value, str) for value in values):
        names = tuple(sorted(values))
        return {name: number for number, name in enumerate(names)}, names
    odd = next(value for value in values if not isinstance(value, int) or value < 0)
    raise ValueError(f"labels {where} must be whole numbers from 0 or names, found {odd!r}")


def read_label(text: str) -> int | str:
    text = text.strip()
    return int(text) if re.fullmatch(r"\d{1,18}", text) else text


def read_label_list(path: Path, names: Collection[str]) -> dict[str, int | str]:
    """The label of each image of `names`; raises one line where the list does not fit them."""
    if not path.is_file():
        raise FileNotFoundError(f"labels {str(path)!r} does not exist (a text file with a label on each line)")
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"labels {str(path)!r} is no text file: {error}") from error
    rows = [re.split(r"[,\s]+", line) for line in lines if line and not line.startswith(HEADER)]
    if all(len(row) == 1 for row in rows):
        return labels_in_order(path, [row[0] for row in rows], names)
    return labels_by_name(path, rows, names)


def labels_in_order(path: Path, labels: list[str], names: Collection[str]) -> dict[str, int | str]:
    if len(labels) != len(names):
        raise ValueError(f"{path.name} has {len(labels):,} labels for {len(names):,} images; it needs one for each")
    values: list[int | str] = [read_label(label) for label in labels]
    if path.name == GROUND_TRUTH:
        synsets = imagenet_synsets(path)
        values = [synsets[value] for value in values]
    return dict(zip(sorted(names), values, strict=True))


def labels_by_name(path: Path, rows: list[list[str]], names: Collection[str]) -> dict[str, int | str]:
    listed: Mapping[str, int | str] = {plain(row[0]): read_label(row[1]) for row in rows if len(row) > 1}
    missing = [name for name in names if plain(name) not in listed]
    if missing:
        raise ValueError(
            f"{path.name} has no label for {len(missing):,} of {len(names):,} images; the first: {missing[0]!r}"
        )
    return {name: listed[plain(name)] for name in names}


def plain(name: str) -> str:
    """A file's name without folder and suffix, as lists of labels may have it; other dots are part of the name."""
    name = name.rsplit("/", 1)[-1]
    return without_suffix(name) if re.fullmatch(r"\.[a-z]{3,4}", suffix_of(name)) else name


def imagenet_synsets(ground_truth: Path) -> dict[int, str]:
    """The synset of each of ImageNet's own class numbers, 1 to 1000, which are not in the synsets' sorted order."""
    from scipy.io import loadmat

    meta = ground_truth.with_name("meta.mat")
    if not meta.is_file():
        raise FileNotFoundError(
            f"{GROUND_TRUTH} has ImageNet's own class numbers, which only the development kit's meta.mat explains; put "
            f"it beside it, in {str(ground_truth.parent)!r}"
        )
    rows = loadmat(meta, squeeze_me=True)["synsets"]
    return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows if int(row["num_children"]) == 0}
