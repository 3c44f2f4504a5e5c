"""HVM: fields under their several names, targets, own and given splits, and files in which something is wrong."""

import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from transfer.objects import FIELDS, open_objects
from transfer.task_data import TaskData

IMAGES = 48


def meta() -> dict[str, Any]:
    """Two categories of two objects with 12 images each."""
    rng = np.random.default_rng(0)
    names = ["bear", "dog", "yacht", "ferry"]
    objects = [names[number // 12] for number in range(IMAGES)]
    numbers = {name: rng.normal(size=IMAGES) for name in FIELDS if name not in ("category", "instance")}
    return {
        "category": ["Animals" if name in names[:2] else "Boats" for name in objects],
        "object_name": objects,
        "id": [f"{number:05d}" for number in range(IMAGES)],
        "background": np.zeros((3, 2)),
        **numbers,
    }


def written(path: Path, fields: dict[str, Any], images: np.ndarray | None = None) -> Path:
    if images is None:
        images = np.random.default_rng(1).integers(0, 256, (IMAGES, 10, 10), np.uint8)
    with h5py.File(path, "w") as file:
        file["images"] = images
        for name, values in fields.items():
            file[f"image_meta/{name}"] = values
    return path


def opened(path: Path, **keys: Any) -> TaskData:
    return open_objects(
        path,
        **({"targets": [], "split_file": None, "own_splits": 3, "train_fraction": 0.75, "seed": 0} | keys),
    )


def test_all_targets_of_the_published_fields(tmp_path):
    fields = meta()
    data = opened(written(tmp_path / "hvm.h5", fields))
    found = {(target.name, target.variables): target for target in data.targets}
    assert list(found) == [
        ("category", ("category",)),
        ("instance", ("instance",)),
        ("identity", ("Animals",)),
        ("identity", ("Boats",)),
        ("pose", ("rotation_xy", "rotation_xz", "rotation_yz")),
        ("position", ("translation_y", "translation_z")),
        ("size", ("size",)),
    ]
    category, instance, animals, boats, pose, position, size = data.targets
    assert [target.classes for target in data.targets] == [2, 4, 2, 2, 0, 0, 0]
    assert np.array_equal(category.values, np.repeat([0, 1], 24))
    assert np.array_equal(instance.values, np.repeat([0, 1, 3, 2], 12))
    assert np.array_equal(animals.rows, np.arange(24))
    assert np.array_equal(boats.rows, np.arange(24, 48))
    for target in (pose, position, size):
        assert np.array_equal(target.values, np.stack([fields[name] for name in target.variables], 1))
        assert len(target.rows) == IMAGES


@pytest.mark.parametrize("bytes_text", [True, False])
def test_fields_are_found_under_their_other_names(tmp_path, bytes_text):
    """HVM goes round with short names too, and with text of fixed length."""
    fields = meta()
    expected = opened(written(tmp_path / "hvm.h5", fields))
    for name, other in (("rotation_xy", "rxy"), ("translation_y", "ty"), ("size", "s"), ("object_name", "obj")):
        fields[other] = fields.pop(name)
    if bytes_text:
        fields["category"] = np.array(fields["category"], "S")
    found = opened(written(tmp_path / "short.h5", fields))
    for one, other in zip(found.targets, expected.targets, strict=True):
        assert (one.name, one.variables) == (other.name, other.variables)
        assert np.array_equal(one.values, other.values)


@pytest.mark.parametrize("shape", [(IMAGES, 10, 12), (IMAGES, 10, 12, 3)])
@pytest.mark.parametrize("kind", ["uint8", "0 to 255", "0 to 1"])
def test_images_come_as_they_are_stored(tmp_path, shape, kind, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    stored = {"uint8": pixels, "0 to 255": pixels.astype(np.float32), "0 to 1": (pixels / 255).astype(np.float32)}[kind]
    data = opened(written(tmp_path / "hvm.h5", meta(), stored), targets=["size"])
    assert data.count == IMAGES
    assert np.array_equal(np.round(data.read(7)), pixels[7])
    assert ("are taken as numbers from 0 to 1" in capsys.readouterr().err) == (kind == "0 to 1")


def test_own_splits_are_stratified_and_follow_the_seed(tmp_path):
    path = written(tmp_path / "hvm.h5", meta())
    data = opened(path)
    assert list(data.splits) == [0, 1, 2]
    objects = np.repeat(np.arange(4), 12)
    for train, test in data.splits.values():
        assert sorted([*train, *test]) == list(range(IMAGES))
        assert np.bincount(objects[train]).tolist() == [9] * 4
        assert (np.diff(train) < 0).any(), "folds are cut from the rows as they come, so their order must be random"
    assert not np.array_equal(data.splits[0][0], data.splits[1][0])
    again, other = opened(path), opened(path, seed=1)
    assert np.array_equal(data.splits[2][1], again.splits[2][1])
    assert not np.array_equal(data.splits[2][1], other.splits[2][1])
    assert data.digest == again.digest != other.digest


def test_given_splits_are_used_as_they_are(tmp_path):
    path = written(tmp_path / "hvm.h5", meta())
    rows = np.random.default_rng(0).permutation(IMAGES)
    arrays = {"train_0": rows[:30], "test_0": rows[30:], "train_7": rows[20:], "test_7": rows[:20], "note": [1]}
    np.savez(tmp_path / "splits.npz", **arrays)
    data = opened(path, split_file=str(tmp_path / "splits.npz"))
    assert list(data.splits) == [0, 7]
    for number, (train, test) in data.splits.items():
        assert np.array_equal(train, arrays[f"train_{number}"])
        assert np.array_equal(test, arrays[f"test_{number}"])


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        ({"train_0": [0, 1]}, "has train_0 without test_0"),
        ({"train": [0], "test": [1]}, "has no train_0, test_0, ...; found: train, test"),
        ({"train_0": [0, 1], "test_0": [48]}, "test_0 has rows 48 to 48 of 48 images"),
        ({"train_0": [-1, 1], "test_0": [4]}, "train_0 has rows -1 to 1 of 48 images"),
        ({"train_0": [0, 1], "test_0": [2, 1]}, "image 1 is both in train_0 and in test_0"),
        ({"train_0": [0.5], "test_0": [2]}, "train_0 must be a list of rows, found float64"),
        ({"train_0": [[1]], "test_0": [2]}, r"train_0 must be a list of rows, found int64 \(1, 1\)"),
        ({"train_0": np.zeros(0, int), "test_0": [2]}, r"train_0 must be a list of rows, found int64 \(0,\)"),
    ],
)
def test_splits_that_do_not_fit_are_one_line(tmp_path, arrays, line):
    np.savez(tmp_path / "splits.npz", **arrays)
    with pytest.raises(ValueError, match=line) as error:
        opened(written(tmp_path / "hvm.h5", meta()), split_file=str(tmp_path / "splits.npz"))
    assert "\n" not in str(error.value)


def test_pickled_splits_are_refused_and_the_advice_converts_them(tmp_path, monkeypatch):
    """The layout that mouse-vision reads is an array of dictionaries, which only unpickling opens."""
    path = written(tmp_path / "hvm.h5", meta())
    splits = [{"train": np.arange(30), "test": np.arange(30, 48)}, {"train": np.arange(9), "test": np.arange(9, 20)}]
    monkeypatch.chdir(tmp_path)
    np.savez("old.npz", np.array(splits))
    with pytest.raises(ValueError, match="cannot be read without running code that it may hold; convert it") as error:
        opened(path, split_file="old.npz")
    advice = str(error.value).partition("where you trust it: ")[2]
    exec(advice, {"np": np})
    found = opened(path, split_file="splits.npz").splits
    for number, split in enumerate(splits):
        assert np.array_equal(found[number][0], split["train"])
        assert np.array_equal(found[number][1], split["test"])
    (tmp_path / "plain.npz").write_bytes(pickle.dumps(splits))
    with pytest.raises(ValueError, match="cannot be read without"):
        opened(path, split_file="plain.npz")


def without(*names: str) -> dict[str, Any]:
    return {name: values for name, values in meta().items() if name not in names}


@pytest.mark.parametrize(
    ("fields", "images", "targets", "line"),
    [
        (
            without("rotation_xz"),
            None,
            [],
            r"has no rotation_xz or rxz in image_meta, .*; found: category, id, object_name",
        ),
        (without("category"), None, ["identity"], "has no category or category_name in image_meta"),
        (without("object_name"), None, ["size"], "the field of objects has 48 values in 48 images"),
        (without("object_name", "id"), None, ["size"], "has no object_name or object or obj"),
        (meta(), None, ["colour"], "targets has 'colour'; HVM has category, instance, identity, pose, position, size"),
        (meta(), np.zeros((IMAGES, 4, 4, 2), np.uint8), [], r"found uint8 \(48, 4, 4, 2\)"),
        (meta(), np.zeros((IMAGES, 4, 4), bool), [], r"found bool \(48, 4, 4\)"),
        ({"size": np.zeros(3)}, None, [], "no array in image_meta with one entry for each of 48 images"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path, fields, images, targets, line):
    with pytest.raises(ValueError, match=line) as error:
        opened(written(tmp_path / "hvm.h5", fields, images), targets=targets)
    assert "\n" not in str(error.value)


def test_what_is_no_such_file_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        opened(tmp_path / "absent.h5")
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(ValueError, match="cannot be read as HDF5"):
        opened(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["pictures"] = np.zeros(3)
    with pytest.raises(ValueError, match="has no dataset 'images'; it has pictures"):
        opened(tmp_path / "other.h5")
