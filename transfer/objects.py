"""HVM, objects on natural backgrounds: which object it is, and its position, pose and size.

What comes in: an HDF5 file with `images` (images, height, width[, 3]) and one array per property in `image_meta/`; as
published 5760 grey images of 64 objects in 8 categories. What goes out: `TaskData` with the targets of mouse-vision
(Nayebi, Kong et al. 2023, https://doi.org/10.1371/journal.pcbi.1011506): category, instance, identity within each
category, pose (three rotations), position (two translations) and size. Its splits are not published; a user's can be
given, else there are own ones, stratified by instance. Source of the images: Majaj et al. 2015,
https://doi.org/10.1523/JNEUROSCI.5181-14.2015.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import h5py
import numpy as np

from pretrain.progress import say
from transfer.task_data import Target, TaskData

# Each property with the field names by which it is known, the published one first where it is known.
FIELDS = {
    "category": ("category", "category_name"),
    "instance": ("object_name", "object", "obj", "object_id", "instance", "id"),
    "rotation_xy": ("rotation_xy", "rxy"),
    "rotation_xz": ("rotation_xz", "rxz"),
    "rotation_yz": ("rotation_yz", "ryz"),
    "translation_y": ("translation_y", "ty"),
    "translation_z": ("translation_z", "tz"),
    "size": ("size", "s"),
}
REGRESSIONS = {
    "pose": ("rotation_xy", "rotation_xz", "rotation_yz"),
    "position": ("translation_y", "translation_z"),
    "size": ("size",),
}
TARGETS = ("category", "instance", "identity", *REGRESSIONS)
CONVERT = (
    "convert it once, where you trust it: np.savez('splits.npz', **{f'{part}_{n}': split[part] for n, split in "
    "enumerate(np.load('old.npz', allow_pickle=True)['arr_0']) for part in ('train', 'test')})"
)


def open_objects(
    path: Path, targets: Sequence[str], split_file: str | None, own_splits: int, train_fraction: float, seed: int
) -> TaskData:
    """The images of an HDF5 file with the targets asked for; no targets stands for all.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no HDF5 file, lacks a field (those that it has are listed), or a split does not fit it.
    """
    file = open_hdf5(path)
    meta = read_meta(file, path)
    images = file["images"]
    check_images(images, meta, path)
    scale = 255.0 if images.dtype.kind == "f" and np.max(images[: min(len(images), 64)]) <= 1 else 1.0
    if scale != 1:
        say(f"{path}: images are taken as numbers from 0 to 1")
    made = tuple(target for name in targets or TARGETS for target in make_targets(name, meta, path))
    if split_file is None:
        splits = stratified_splits(instances(meta, path), own_splits, train_fraction, seed)
    else:
        splits = read_splits(Path(split_file).expanduser(), len(images))
    return TaskData(
        count=len(images),
        read=lambda row: np.asarray(images[row] * scale if scale != 1 else images[row]),
        targets=made,
        splits=splits,
        digest=content_digest(path, meta, splits),
    )


def open_hdf5(path: Path) -> h5py.File:
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} does not exist (the HDF5 file of HVM)")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path} cannot be read as HDF5: {error}") from error
    for name, kind in (("images", h5py.Dataset), ("image_meta", h5py.Group)):
        if not isinstance(file.get(name), kind):
            raise ValueError(f"{path} has no {kind.__name__.lower()} {name!r}; it has {', '.join(file) or 'nothing'}")
    return file


def read_meta(file: h5py.File, path: Path) -> dict[str, np.ndarray]:
    """Every array of `image_meta` with one entry per image; text as str."""
    meta = {}
    for name, data in file["image_meta"].items():
        if not isinstance(data, h5py.Dataset) or data.shape != file["images"].shape[:1]:
            continue
        meta[name] = data.asstr()[:] if h5py.check_string_dtype(data.dtype) else data[:]
        if meta[name].dtype.kind == "S":
            meta[name] = np.char.decode(meta[name], "utf-8")
    if not meta:
        raise ValueError(f"{path} has no array in image_meta with one entry for each of {len(file['images']):,} images")
    return meta


def check_images(images: h5py.Dataset, meta: dict[str, np.ndarray], path: Path) -> None:
    grey_or_colour = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)
    if not grey_or_colour or images.dtype.kind not in "uif":
        raise ValueError(
            f"{path}: images must be numbers (images, height, width) or (images, height, width, 3), "
            f"found {images.dtype} {images.shape}"
        )


def field(name: str, meta: dict[str, np.ndarray], path: Path) -> np.ndarray:
    """A property's array, under whichever of its names it is there."""
    for known in FIELDS[name]:
        if known in meta:
            return meta[known]
    raise ValueError(
        f"{path} has no {' or '.join(FIELDS[name])} in image_meta, which {name} is told by; found: {', '.join(meta)}"
    )


def instances(meta: dict[str, np.ndarray], path: Path) -> np.ndarray:
    """Number of the object in each image."""
    objects, numbers = np.unique(field("instance", meta, path), return_inverse=True)
    if len(objects) > len(numbers) // 2:
        raise ValueError(
            f"{path}: the field of objects has {len(objects):,} values in {len(numbers):,} images, so it does not say "
            f"which object is seen; name it {FIELDS['instance'][0]}"
        )
    return numbers


def make_targets(name: str, meta: dict[str, np.ndarray], path: Path) -> Iterable[Target]:
    """The target of that name; identity is one for each category."""
    everything = np.arange(len(next(iter(meta.values()))))
    if name in REGRESSIONS:
        columns = [field(variable, meta, path).astype(np.float64) for variable in REGRESSIONS[name]]
        yield Target(name, REGRESSIONS[name], np.stack(columns, 1), everything)
    elif name == "instance":
        yield Target(name, (name,), instances(meta, path), everything)
    elif name in ("category", "identity"):
        categories, numbers = np.unique(field("category", meta, path), return_inverse=True)
        if name == "category":
            yield Target(name, (name,), numbers, everything)
            return
        objects = instances(meta, path)
        for number, category in enumerate(categories):
            yield Target(name, (str(category),), objects, np.flatnonzero(numbers == number))
    else:
        raise ValueError(f"targets has {name!r}; HVM has {', '.join(TARGETS)}")


def stratified_splits(
    objects: np.ndarray, count: int, train_fraction: float, seed: int
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Random splits with the same share of every object's images, in random order, as unshuffled folds need."""
    from sklearn.model_selection import StratifiedShuffleSplit

    draw = StratifiedShuffleSplit(count, train_size=train_fraction, random_state=seed)
    return dict(enumerate(draw.split(objects, objects)))


def read_splits(path: Path, images: int) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Splits from an .npz file with integer arrays `train_<number>` and `test_<number>`, rows of the images."""
    if not path.is_file():
        raise FileNotFoundError(f"split_file {str(path)!r} does not exist")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, TypeError, AttributeError) as error:
        raise ValueError(
            f"split_file {path} cannot be read without running code that it may hold; {CONVERT}"
        ) from error
    numbers = sorted(int(name[6:]) for name in arrays if name.startswith("train_") and name[6:].isdigit())
    if not numbers:
        raise ValueError(f"split_file {path} has no train_0, test_0, ...; found: {', '.join(arrays) or 'nothing'}")
    return {number: check_split(path, number, arrays, images) for number in numbers}


def check_split(path: Path, number: int, arrays: dict[str, np.ndarray], images: int) -> tuple[np.ndarray, np.ndarray]:
    if f"test_{number}" not in arrays:
        raise ValueError(f"split_file {path} has train_{number} without test_{number}")
    train, test = arrays[f"train_{number}"], arrays[f"test_{number}"]
    for name, rows in (("train", train), ("test", test)):
        if rows.ndim != 1 or rows.dtype.kind not in "ui" or not len(rows):
            raise ValueError(
                f"split_file {path}: {name}_{number} must be a list of rows, found {rows.dtype} {rows.shape}"
            )
        if rows.min() < 0 or rows.max() >= images:
            raise ValueError(
                f"split_file {path}: {name}_{number} has rows {rows.min()} to {rows.max()} of {images:,} images"
            )
    if both := np.intersect1d(train, test).tolist():
        raise ValueError(f"split_file {path}: image {both[0]} is both in train_{number} and in test_{number}")
    return train, test


def content_digest(path: Path, meta: dict[str, np.ndarray], splits: dict[int, tuple[np.ndarray, np.ndarray]]) -> str:
    """SHA-256 of the properties and splits, and of the file's length, which stands for its images."""
    digest = hashlib.sha256(str(path.stat().st_size).encode())
    for name, values in sorted(meta.items()):
        digest.update(f"{name} {values.tolist()!r}".encode())
    for number, (train, test) in splits.items():
        digest.update(f"{number} {train.tolist()!r} {test.tolist()!r}".encode())
    return digest.hexdigest()
