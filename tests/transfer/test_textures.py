"""Describable Textures: the official folder, its splits, and folders in which something is wrong."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transfer.textures import open_textures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of four images of two sizes, and splits 1 and 2."""
    rng = np.random.default_rng(0)
    for name in ("dotted", "banded"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 256, (20 + number, 30, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{name}_{number:04d}.jpg")
    (tmp_path / "labels").mkdir()
    for split, order in ((1, "0123"), (2, "3201")):
        for part, numbers in (("train", order[:1]), ("val", order[1]), ("test", order[2:])):
            lines = [f"{name}/{name}_{int(number):04d}.jpg\n" for name in ("banded", "dotted") for number in numbers]
            (tmp_path / "labels" / f"{part}{split}.txt").write_text("".join(lines))
    (tmp_path / "labels" / "labels_joint_anno.txt").write_text("banded/banded_0000.jpg banded dotted\n")
    return tmp_path


def test_the_official_layout(folder):
    data = open_textures(folder)
    assert (data.count, list(data.splits)) == (8, [1, 2])
    (target,) = data.targets
    assert (target.name, target.classes, target.values.tolist()) == ("texture", 2, [0] * 4 + [1] * 4)
    assert [side.tolist() for side in data.splits[1]] == [[0, 4, 1, 5], [2, 3, 6, 7]]
    assert [side.tolist() for side in data.splits[2]] == [[3, 7, 2, 6], [0, 1, 4, 5]]
    image = data.read(6)
    assert (image.shape, image.dtype) == ((22, 30, 3), np.uint8)
    assert np.array_equal(image, np.asarray(Image.open(folder / "images" / "dotted" / "dotted_0002.jpg")))


def test_grey_files_become_colour(folder):
    path = folder / "images" / "banded" / "banded_0001.jpg"
    Image.fromarray(np.full((9, 9), 77, np.uint8)).save(path)
    assert (open_textures(folder).read(1) == 77).all()
    assert open_textures(folder).read(1).shape == (9, 9, 3)


def test_the_digest_follows_images_and_lists(folder):
    digest = open_textures(folder).digest
    assert open_textures(folder).digest == digest
    labels = folder / "labels" / "val2.txt"
    text = labels.read_text()
    labels.write_text(text.splitlines()[0])
    assert open_textures(folder).digest != digest
    labels.write_text(text)
    Image.new("RGB", (50, 50)).save(folder / "images" / "banded" / "banded_0000.jpg")
    assert open_textures(folder).digest != digest


@pytest.mark.parametrize(
    ("change", "error", "line"),
    [
        (
            lambda f: (f / "labels").rename(f / "other"),
            FileNotFoundError,
            "is not the folder of DTD: it has no labels/",
        ),
        (
            lambda f: (f / "labels" / "val2.txt").unlink(),
            FileNotFoundError,
            "val2.txt is missing; a split has train, val",
        ),
        (
            lambda f: (f / "images" / "banded" / "banded_0003.jpg").unlink(),
            FileNotFoundError,
            "banded_0003.jpg is missing, and a list in",
        ),
        (
            lambda f: [path.unlink() for path in (f / "labels").glob("train*")],
            FileNotFoundError,
            "labels has no train1.txt, val1.txt, test1.txt to",
        ),
        (
            lambda f: (f / "labels" / "test1.txt").write_text("banded/banded_0000.jpg"),
            ValueError,
            "split 1 of .* has banded/banded_0000.jpg both to train and to test",
        ),
        (lambda f: (f / "labels" / "test1.txt").write_text("banded"), ValueError, "'banded', where <class>/<file> is"),
        (
            lambda f: (f / "labels" / "test1.txt").write_text("../secret"),
            ValueError,
            "'../secret', where <class>/<file>",
        ),
    ],
)
def test_what_is_wrong_with_a_folder_is_one_line(folder, change, error, line):
    change(folder)
    with pytest.raises(error, match=line) as caught:
        open_textures(folder)
    assert "\n" not in str(caught.value)


def test_an_image_that_cannot_be_read_is_named(folder):
    path = folder / "images" / "dotted" / "dotted_0000.jpg"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"dotted_0000.jpg cannot be read as an image"):
        open_textures(folder).read(4)
