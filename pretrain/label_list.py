"""Labels of images: numbers and class names, and lists of them in text files.

What comes in: labels as they were written, or a text file that has one of these on each line:

- a name and a label: `ILSVRC2012_val_00000001.JPEG 65`, `ILSVRC2012_val_00000001,n01751748`; the label stands behind
  the last comma, or behind the last space where there is no comma; of Kaggle's boxes after it
  (`ImageId,PredictionString`) only the class is used;
- a label alone, for the images in the order of their names: `n01751748`, `65`;
- ImageNet's own numbers (ILSVRC2012_validation_ground_truth.txt), which the development kit's meta.mat beside it turns
  into synsets.

A name in a list is the image's place in the source. Folder and suffix may be left out or differ where only one image
and one label can be meant.

What goes out: numbers from 0, and the classes' names where the labels are names, sorted, so that synsets are numbered
as everywhere.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path

from pretrain.items import suffix_of, without_suffix

GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
HEADER = "ImageId"
BOXES = re.compile(r"(\S+)(?:\s+-?\d+){4}(?:\s|$)")  # Kaggle's: a class and four corners, once or more


def number_labels(labels: Collection[int | str], where: str) -> tuple[dict[int | str, int], tuple[str, ...] | None]:
    """The number of each label, and the names: sorted names become 0, 1, ...; numbers stay, and have no names."""
    values = set(labels)
    if all(is_number(value) for value in values):
        return {value: value for value in values}, None
    if all(isinstance(value, str) for value in values):
        names = tuple(sorted(values))
        return {name: number for number, name in enumerate(names)}, names
    odd = next(value for value in values if not is_number(value))
    raise ValueError(f"labels {where} must be whole numbers from 0 or names, found {odd!r}")


def is_number(label: object) -> bool:
    return isinstance(label, int) and not isinstance(label, bool) and label >= 0


def read_label(text: str) -> int | str:
    text = text.strip()
    return int(text) if re.fullmatch(r"\d{1,18}", text) else text


def read_label_list(path: Path, names: Collection[str]) -> dict[str, int | str]:
    """The label of each image of `names`; raises one line where the list does not fit them."""
    if not path.is_file():
        raise FileNotFoundError(f"labels {str(path)!r} does not exist (a text file with a label on each line)")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"labels {str(path)!r} is no text file: {error}") from error
    lines = [line for line in lines if line and not line.startswith(HEADER)]
    if not any(re.search(r"[,\s]", line) for line in lines):
        return labels_in_order(path, lines, names)
    return labels_by_name(path, [name_and_label(line) for line in lines], names)


def name_and_label(line: str) -> tuple[str, int | str]:
    name, _, label = line.rpartition(",") if "," in line else line.replace("\t", " ").rpartition(" ")
    boxes = BOXES.match(label.strip())
    return name.strip(), read_label(boxes[1] if boxes else label)


def labels_in_order(path: Path, labels: list[str], names: Collection[str]) -> dict[str, int | str]:
    if len(labels) != len(names):
        raise ValueError(f"{path.name} has {len(labels):,} labels for {len(names):,} images; it needs one for each")
    values: list[int | str] = [read_label(label) for label in labels]
    if path.name == GROUND_TRUTH:
        synsets = imagenet_synsets(path.with_name("meta.mat"))
        odd = next((value for value in values if value not in synsets), None)
        if odd is not None:
            raise ValueError(
                f"{path.name} has {odd!r}, which is none of ImageNet's {len(synsets):,} classes in meta.mat"
            )
        values = [synsets[value] for value in values]
    return dict(zip(sorted(names), values, strict=True))


def labels_by_name(path: Path, rows: list[tuple[str, int | str]], names: Collection[str]) -> dict[str, int | str]:
    """The label of each image by its whole name in the list, or else by what is left of both without their folders."""
    found: dict[str, int | str] = {}
    for form in (whole, without_media_suffix, plain):
        left = [name for name in names if name not in found]
        if left:
            found |= labels_by_form(path, rows, names, left, form)
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(
            f"{path.name} has no label for {len(missing):,} of {len(names):,} images; the first: {missing[0]!r}"
        )
    return found


def labels_by_form(
    path: Path, rows: list[tuple[str, int | str]], names: Collection[str], left: list[str], form: Callable[[str], str]
) -> dict[str, int | str]:
    """Labels of those of the images `left` whose names are listed, by this form of a name.

    Raises one line where one form stands for several of the images `names`, or for several labels.
    """
    listed: dict[str, int | str] = {}
    unclear: set[str] = set()
    for written, label in rows:
        key = form(written)
        if listed.setdefault(key, label) != label:
            unclear.add(key)
    unclear.update(key for key, count in Counter(map(form, names)).items() if count > 1)
    found = {name: listed[form(name)] for name in left if form(name) in listed}
    doubtful = next((name for name in found if form(name) in unclear), None)
    if doubtful is not None:
        raise ValueError(
            f"{path.name}: {form(doubtful)!r} stands for several images or labels, so that the label of {doubtful!r} "
            "is not known; list each image once, by its name with its folder"
        )
    return found


def whole(name: str) -> str:
    return name.removeprefix("./")


def without_media_suffix(name: str) -> str:
    """A name without its suffix, as lists of labels may have it; other dots are part of the name."""
    name = whole(name)
    return without_suffix(name) if re.fullmatch(r"\.[a-z]{3,4}", suffix_of(name)) else name


def plain(name: str) -> str:
    """A file's name without folder and suffix."""
    return without_media_suffix(name.rsplit("/", 1)[-1])


def imagenet_synsets(meta: Path) -> dict[int, str]:
    """The synset of each of ImageNet's own class numbers, 1 to 1000, which are not in the synsets' sorted order."""
    from scipy.io import loadmat

    if not meta.is_file():
        raise FileNotFoundError(
            f"{GROUND_TRUTH} has ImageNet's own class numbers, which only the development kit's meta.mat explains; put "
            f"it beside it, in {str(meta.parent)!r}"
        )
    try:
        rows = loadmat(meta, squeeze_me=True)["synsets"]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows if int(row["num_children"]) == 0}
    except Exception as error:  # scipy's reader raises nearly anything on what is no .mat file
        what = f"{type(error).__name__}: {error}".replace("\n", " ")
        raise ValueError(
            f"{str(meta)!r} is not the meta.mat of ImageNet's development kit ({what}); put the kit's own there"
        ) from error
