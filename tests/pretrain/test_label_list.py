"""Labels: numbers and names, and text files of them in the forms they come in."""

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from pretrain.label_list import number_labels, read_label_list

NAMES = [f"ILSVRC2012_val_{n:08d}.JPEG" for n in (1, 2, 3)]


def listed(tmp_path: Path, text: str, name: str = "labels.txt") -> Path:
    (tmp_path / name).write_text(text)
    return tmp_path / name


def test_numbers_stay_and_names_are_numbered_in_sorted_order():
    assert number_labels([3, 0, 3], "here") == ({0: 0, 3: 3}, None)
    assert number_labels(["oak", "ash", "oak"], "here") == ({"ash": 0, "oak": 1}, ("ash", "oak"))
    for wrong in ([1, "oak"], [-1], [0.5], [True, 2.5], [True, False]):
        with pytest.raises(ValueError, match="labels here must be whole numbers from 0 or names, found"):
            number_labels(wrong, "here")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("n02\nn01\nn02\n", ["n02", "n01", "n02"]),
        ("65\n970\n230", [65, 970, 230]),
        (f"{NAMES[2]} 5\n{NAMES[0]} 7\n{NAMES[1]} 6\n", [7, 6, 5]),
        (
            "ILSVRC2012_val_00000002,n02\nILSVRC2012_val_00000001,n01\nILSVRC2012_val_00000003,n03",
            ["n01", "n02", "n03"],
        ),
        (
            "ImageId,PredictionString\nILSVRC2012_val_00000003,n03 1 2 3 4 \nILSVRC2012_val_00000001,n01 1 2 3 4 n01 5 "
            "6 7 8\nILSVRC2012_val_00000002,n02 9 9 9 9",
            ["n01", "n02", "n03"],
        ),
        (f"val/{NAMES[0]}\tcat\nval/{NAMES[1]}\tdog\nval/{NAMES[2]}\tcat", ["cat", "dog", "cat"]),
    ],
)
def test_lists_of_labels(tmp_path, text, expected):
    shuffled = [NAMES[1], NAMES[2], NAMES[0]]
    assert read_label_list(listed(tmp_path, text), shuffled) == dict(zip(NAMES, expected, strict=True))


def test_imagenets_own_numbers_become_synsets(tmp_path):
    path = listed(tmp_path, "2\n1\n2\n", "ILSVRC2012_validation_ground_truth.txt")
    with pytest.raises(FileNotFoundError, match=r"ImageNet's own class numbers, which only .* meta.mat explains"):
        read_label_list(path, NAMES)
    # As in the development kit: the synsets of the 1000 classes first, then those that have children.
    kinds = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "f8")]
    rows = np.array([(1, "n09", "a", "a", 0), (2, "n01", "b", "b", 0), (3, "n05", "c", "c", 2)], dtype=kinds)
    savemat(tmp_path / "meta.mat", {"synsets": rows})
    assert list(read_label_list(path, NAMES).values()) == ["n01", "n09", "n01"]


@pytest.mark.parametrize("lines", ["a/1.jpg 0\na/2.jpg 1\nb/1.jpg 2\nb/2.jpg 3", "a/1,0\n./a/2,1\nb/1,2\n./b/2,3"])
def test_images_of_one_name_in_several_folders_have_the_labels_of_their_folders(tmp_path, lines):
    names = ["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"]
    assert read_label_list(listed(tmp_path, lines), names[::-1]) == dict(zip(names, range(4), strict=True))


@pytest.mark.parametrize(
    ("lines", "names", "doubtful"),
    [
        ("1.jpg 0\n2.jpg 1", ["a/1.jpg", "b/1.jpg", "a/2.jpg"], "'1' stands for .* label of 'a/1.jpg' is not known"),
        ("c/1.jpg 0\nd/1.jpg 1", ["a/1.jpg"], "'1' stands for .* label of 'a/1.jpg'"),
        ("b/1.jpg 3", ["a/1.jpg", "b/1.jpg"], "'1' stands for .* label of 'a/1.jpg'"),
        ("a/1.jpg 0\na/1.jpg 1", ["a/1.jpg"], "'a/1.jpg' stands for"),
        ("a/1 0\na/2.jpg 1", ["a/1.jpg", "a/1.png", "a/2.jpg"], "'a/1' stands for"),
    ],
)
def test_a_name_that_may_mean_several_images_or_labels_is_one_line(tmp_path, lines, names, doubtful):
    with pytest.raises(ValueError, match=f"labels.txt: {doubtful}.*list each image once, by its name with its folder"):
        read_label_list(listed(tmp_path, lines), names)


def test_folders_may_differ_where_one_image_can_be_meant(tmp_path):
    assert read_label_list(listed(tmp_path, "val/1.jpg 4\nval/2.jpg 5\nval/2.jpg 5"), ["x/2.png", "1.jpg"]) == {
        "x/2.png": 5,
        "1.jpg": 4,
    }


@pytest.mark.parametrize(
    ("line", "name", "label"),
    [
        ("my file.jpg 3", "my file.jpg", 3),
        ("my file.jpg\t3", "my file.jpg", 3),
        ("my file.jpg, 3", "my file.jpg", 3),
        ("cat, asleep.jpg,3", "cat, asleep.jpg", 3),
        ("dog.jpg,golden retriever", "dog.jpg", "golden retriever"),
        ("two  blanks.jpg  3", "two  blanks.jpg", 3),
    ],
)
def test_names_and_labels_with_spaces(tmp_path, line, name, label):
    assert read_label_list(listed(tmp_path, line), [name]) == {name: label}


def test_a_mark_of_the_byte_order_is_no_part_of_the_first_name_or_label(tmp_path):
    for text, names in (("a.jpg 1\nb.jpg 2", ["a.jpg", "b.jpg"]), ("1\n2", ["a.jpg", "b.jpg"])):
        (tmp_path / "labels.txt").write_bytes(text.encode("utf-8-sig"))
        assert list(read_label_list(tmp_path / "labels.txt", names).values()) == [1, 2]


def test_what_imagenets_development_kit_does_not_explain_is_one_line(tmp_path):
    path = listed(tmp_path, "2\n9\n1\n", "ILSVRC2012_validation_ground_truth.txt")
    (tmp_path / "meta.mat").write_bytes(b"no matlab file")
    with pytest.raises(ValueError, match=r"meta.mat' is not the meta.mat of .*; put the kit's own") as error:
        read_label_list(path, NAMES)
    assert "\n" not in str(error.value)
    kinds = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("num_children", "f8")]
    savemat(tmp_path / "meta.mat", {"synsets": np.array([(1, "n09", 0), (2, "n01", 0)], dtype=kinds)})
    with pytest.raises(ValueError, match=r"ground_truth.txt has 9, which is none of ImageNet's 2 classes in meta.mat"):
        read_label_list(path, NAMES)


def test_lists_that_do_not_fit_are_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"labels.txt has 2 labels for 3 images; it needs one for each"):
        read_label_list(listed(tmp_path, "1\n2"), NAMES)
    with pytest.raises(ValueError, match=r"has no label for 2 of 3 images; the first: 'ILSVRC2012_val_00000002.JPEG'"):
        read_label_list(listed(tmp_path, f"{NAMES[0]} 1\nother.JPEG 2"), NAMES)
    with pytest.raises(FileNotFoundError, match=r"absent.txt' does not exist"):
        read_label_list(tmp_path / "absent.txt", NAMES)
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is no text file"):
        read_label_list(tmp_path / "binary.txt", NAMES)
