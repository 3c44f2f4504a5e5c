"""Describable Textures: 5640 photographs of 47 textures, with ten published splits.

What comes in: the folder `dtd` as it is unpacked, `images/<class>/*.jpg` and `labels/{train,val,test}<split>.txt` with
a line `<class>/<file>` for each image. What goes out: `TaskData` with one target, the class; of each split, train and
validation images together are the train images, as mouse-vision has it. Source: Cimpoi et al. 2014, CVPR,
https://www.robots.ox.ac.uk/~vgg/data/dtd.
"""

import hashlib
import re
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from transfer.task_data import Target, TaskData

PARTS = ("train", "val", "test")


def open_textures(folder: Path) -> TaskData:
    """All images that any split names, with their class and the splits.

    Raises:
        FileNotFoundError: the folder, a list or an image is missing.
        ValueError: a list has something else than images in it, or an image is on both sides of a split.
    """
    lists = read_lists(folder)
    names = sorted({name for split in lists.values() for part in split.values() for name in part})
    rows = {name: row for row, name in enumerate(names)}
    sizes = [image_size(folder, name) for name in names]
    classes, numbers = np.unique([name.split("/")[0] for name in names], return_inverse=True)
    target = Target("texture", ("texture",), numbers, np.arange(len(names)))
    splits = {}
    for number, split in lists.items():
        train, test = split["train"] + split["val"], split["test"]
        if both := sorted(set(train) & set(test)):
            raise ValueError(f"split {number} of {folder} has {both[0]} both to train and to test")
        splits[number] = tuple(np.array([rows[name] for name in side]) for side in (train, test))
    listing = repr((list(zip(names, sizes, strict=True)), lists, list(classes)))
    return TaskData(
        count=len(names),
        read=lambda row: read_image(folder / "images" / names[row]),
        targets=(target,),
        splits=splits,
        digest=hashlib.sha256(listing.encode()).hexdigest(),
    )


def read_lists(folder: Path) -> dict[int, dict[str, list[str]]]:
    """Image names by split and part."""
    labels = folder / "labels"
    if not labels.is_dir():
        raise FileNotFoundError(f"{folder} is not the folder of DTD: it has no labels/ (nor images/ and labels/ below)")
    numbers = sorted(
        int(found[1]) for path in labels.iterdir() if (found := re.fullmatch(r"train(\d+).txt", path.name))
    )
    if not numbers:
        raise FileNotFoundError(f"{labels} has no train1.txt, val1.txt, test1.txt to train2.txt, ...")
    return {number: {part: read_list(labels / f"{part}{number}.txt") for part in PARTS} for number in numbers}


def read_list(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; a split has {', '.join(PARTS)}")
    names = path.read_text(encoding="utf-8").split()
    for name in names:
        # Only names below images/ are read, whatever the list says.
        if not re.fullmatch(r"[^/\\]+/[^/\\]+", name) or ".." in name.split("/"):
            raise ValueError(f"{path} has {name!r}, where <class>/<file> is expected")
    return names


def image_size(folder: Path, name: str) -> int:
    """Length of an image's file in bytes."""
    path = folder / "images" / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, and a list in {folder / 'labels'} names it")
    return path.stat().st_size


def read_image(path: Path) -> np.ndarray:
    """An image file as uint8 (height, width, 3)."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error
