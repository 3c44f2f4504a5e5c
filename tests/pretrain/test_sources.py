"""Sources: folders and Parquet files as fixed sequences of images."""

import io
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pretrain.config import ShardsConfig
from pretrain.sources import Item, beside, open_source
from pretrain.storage import RemoteFile


def jpeg(value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (10, 12), (value, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_parquet(path: Path, **columns: list) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=7)
    return path


def read(path: Path, start: int = 0, **keys: object) -> list[Item]:
    return list(open_source(ShardsConfig(source=str(path), **keys)).items(start))


def test_a_flat_folder_has_images_without_labels(tmp_path):
    for name in ("b.JPG", "a.png", "c.jpeg", "notes.txt"):
        (tmp_path / name).write_bytes(jpeg())
    source = open_source(ShardsConfig(source=str(tmp_path)))
    items = list(source.items(0))
    assert source.count == 3
    assert sorted(item.name for item in items) == ["a.png", "b.JPG", "c.jpeg"]
    assert {item.label for item in items} == {None}
    assert source.classes is None


def test_class_folders_are_labels_in_sorted_order(tmp_path):
    for name in ("zebra/1.jpg", "ant/deep/2.jpg", "ant/3.jpg", "empty/readme.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(jpeg())
    source = open_source(ShardsConfig(source=str(tmp_path)))
    assert source.classes == ("ant", "zebra")
    assert {item.name: item.label for item in source.items(0)} == {
        "ant/deep/2.jpg": 0,
        "ant/3.jpg": 0,
        "zebra/1.jpg": 1,
    }


def test_a_folder_is_shuffled_by_its_seed_alone(class_folder):
    orders = [[item.name for item in read(class_folder, seed=seed)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])
    # All classes lie mixed: neither half of the sequence lacks one.
    halves = [item.label for item in read(class_folder)]
    assert set(halves[:25]) == set(halves[25:]) == {0, 1}


@pytest.mark.parametrize("start", [0, 1, 17, 50])
def test_items_from_a_start_are_the_rest_of_the_sequence(class_folder, start):
    assert read(class_folder, start) == read(class_folder)[start:]


def test_the_fingerprint_changes_with_the_content(tmp_path):
    def fingerprint() -> str:
        return open_source(ShardsConfig(source=str(tmp_path))).fingerprint

    (tmp_path / "a.jpg").write_bytes(jpeg())
    first = fingerprint()
    assert fingerprint() == first
    (tmp_path / "b.jpg").write_bytes(jpeg())
    second = fingerprint()
    (tmp_path / "b.jpg").write_bytes(jpeg() + b"more")
    assert len({first, second, fingerprint()}) == 3


def test_parquet_finds_its_image_column_and_labels(tmp_path):
    images = [jpeg(i) for i in range(20)]
    path = write_parquet(
        tmp_path / "a.parquet", name=[f"n{i}" for i in range(20)], picture=images, label=[i % 3 for i in range(20)]
    )
    items = read(path)
    assert [item.image for item in items] == images
    assert [item.label for item in items] == [i % 3 for i in range(20)]
    assert items[4].name == "row 4"


def test_parquet_with_hugging_faces_struct_and_text_labels(tmp_path):
    images = [{"bytes": jpeg(i), "path": None} for i in range(9)]
    path = write_parquet(tmp_path / "a.parquet", image=images, label=["pine", "ash", "oak"] * 3)
    source = open_source(ShardsConfig(source=str(path)))
    assert source.classes == ("ash", "oak", "pine")
    assert [item.image for item in source.items(0)] == [cell["bytes"] for cell in images]
    assert [item.label for item in source.items(0)] == [2, 0, 1] * 3


def test_an_empty_cell_is_an_image_without_bytes(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", image=[jpeg(), None], label=[0, 1])
    assert [item.image for item in read(path)] == [jpeg(), b""]


def test_parquet_without_a_column_named_label_has_no_labels(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", image=[jpeg()], kind=["x"])
    assert read(path)[0].label is None
    assert read(path, label_column="kind")[0].label == 0


@settings(deadline=None, max_examples=25)
@given(
    rows=st.integers(1, 600), start=st.integers(0, 20), kept=st.sampled_from(["a", "b", None]), seed=st.integers(0, 99)
)
def test_where_keeps_rows_and_a_start_skips_kept_ones(tmp_path_factory, rows, start, kept, seed):
    split = np.random.default_rng(seed).choice(["a", "b"], rows).tolist()
    split[0] = kept or "a"
    path = tmp_path_factory.mktemp("parquet") / "a.parquet"
    write_parquet(path, image=[b"\xff\xd8\xff" + str(i).encode() for i in range(rows)], split=split)
    expected = [i for i in range(rows) if kept is None or split[i] == kept]
    config = ShardsConfig(source=str(path), where=kept and f"split={kept}")
    source = open_source(config)
    assert source.count == len(expected)
    assert [item.name for item in source.items(start)] == [f"row {i}" for i in expected[start:]]
    assert [item.image[3:] for item in source.items(start)] == [str(i).encode() for i in expected[start:]]


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"image_column": "img"}, "a.parquet has no column 'img'; its columns: image, label, split"),
        ({"label_column": "kind"}, "no column 'kind'"),
        ({"where": "split"}, "where='split' must be column=value"),
        ({"where": "part=x"}, "no column 'part'"),
        ({"where": "split=test"}, "no row of a.parquet has split = 'test'; values found: train"),
    ],
)
def test_a_wrong_parquet_key_is_one_line(tmp_path, keys, line):
    path = write_parquet(tmp_path / "a.parquet", image=[jpeg()], label=[0], split=["train"])
    with pytest.raises(ValueError, match=line):
        open_source(ShardsConfig(source=str(path), **keys))


@pytest.mark.parametrize(
    ("labels", "line"), [([0, None], "1 empty cells"), ([-1, 2], "whole numbers from 0"), ([0.5, 1.5], "whole numbers")]
)
def test_labels_that_are_no_classes_are_refused(tmp_path, labels, line):
    path = write_parquet(tmp_path / "a.parquet", image=[jpeg(), jpeg()], label=labels)
    with pytest.raises(ValueError, match=line):
        open_source(ShardsConfig(source=str(path)))


def write_depth_pairs(folder: Path, images: tuple[str, ...], depths: tuple[str, ...]) -> tuple[Path, Path]:
    """A folder of images and one of depth images, of these names, in the layout of PBRNet."""
    for part, names in (("train/data", images), ("train_depth/data", depths)):
        for name in names:
            path = folder / part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg())
    return folder / "train/data", folder / "train_depth/data"


def test_depth_images_are_found_by_name_whatever_their_suffix(tmp_path):
    images, depths = write_depth_pairs(
        tmp_path, ("a.png", "b.JPG", "c.v1.png", "alone.png"), ("a.png", "b.tif", "c.v1.PNG", "c.png", "spare.png")
    )
    items = read(images, depth=str(depths))
    assert {item.name: item.depth and item.depth.name for item in items} == {
        "a.png": "a.png",
        "b.JPG": "b.tif",
        "c.v1.png": "c.v1.PNG",
        "alone.png": None,
    }
    assert [replace(item, depth=None) for item in items] == read(images)
    assert read(images, 2, depth=str(depths)) == items[2:]


def test_depth_images_of_class_folders_lie_at_the_same_place(tmp_path):
    images, depths = write_depth_pairs(tmp_path, ("ant/1.jpg", "bee/1.jpg"), ("bee/1.png", "ant/1.png"))
    items = read(images, depth=str(depths))
    assert {(item.label, str(item.depth.relative_to(depths))) for item in items} == {(0, "ant/1.png"), (1, "bee/1.png")}


def test_the_fingerprint_changes_with_the_depth_images(tmp_path):
    images, depths = write_depth_pairs(tmp_path, ("a.png", "b.png"), ("a.png",))

    def fingerprint(**keys: str) -> str:
        return open_source(ShardsConfig(source=str(images), **keys)).fingerprint

    plain, first = fingerprint(), fingerprint(depth=str(depths))
    assert fingerprint(depth=str(depths)) == first
    (depths / "b.png").write_bytes(jpeg())
    second = fingerprint(depth=str(depths))
    (depths / "b.png").write_bytes(jpeg() + b"more")
    assert len({plain, first, second, fingerprint(depth=str(depths))}) == 4
    assert fingerprint() == plain


def test_parquet_reads_depth_from_its_column_and_never_takes_it_for_the_image(tmp_path):
    images, depths = [jpeg(i) for i in range(9)], [{"bytes": jpeg(100 + i), "path": None} for i in range(8)] + [None]
    path = write_parquet(tmp_path / "a.parquet", distance=depths, picture=images)
    items = read(path, 1, depth_column="distance")
    assert [item.image for item in items] == images[1:]
    assert [item.depth for item in items] == [*(cell["bytes"] for cell in depths[1:8]), b""]
    assert {item.depth for item in read(path, image_column="picture")} == {None}
    fingerprints = {
        open_source(ShardsConfig(source=str(path), image_column="picture", depth_column=column)).fingerprint
        for column in (None, "distance")
    }
    assert len(fingerprints) == 2


def test_a_wrong_depth_key_is_one_line(tmp_path):
    images, depths = write_depth_pairs(tmp_path, ("a.png", "b.png"), ("x.png", "y.png"))
    (tmp_path / "empty").mkdir()
    path = write_parquet(tmp_path / "a.parquet", image=[jpeg()])
    for source, keys, error, line in (
        (images, {"depth": str(depths)}, ValueError, r"no depth image in .* is named .* such as '[ab]'; .* is 'x'"),
        (images, {"depth": str(tmp_path / "absent")}, FileNotFoundError, "absent' does not exist .a folder of depth"),
        (images, {"depth": "simulated"}, FileNotFoundError, "`simulated` with source=simulated"),
        (images, {"depth": str(tmp_path / "empty")}, ValueError, "no images in the depth folder"),
        (images, {"depth_column": "depth"}, ValueError, "depth_column is for Parquet files.*say depth=<folder>"),
        (path, {"depth": str(depths)}, ValueError, "with a Parquet file say depth_column=<name>"),
        (path, {"depth_column": "z"}, ValueError, "a.parquet has no column 'z'; its columns: image"),
    ):
        with pytest.raises(error, match=line):
            open_source(ShardsConfig(source=str(source), **keys))
    (depths / "a.png").write_bytes(jpeg())
    (depths / "a.jpg").write_bytes(jpeg())
    with pytest.raises(ValueError, match=r"depth images 'a.jpg' and 'a.png' in .* have one name; keep one"):
        read(images, depth=str(depths))


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"image_column": "img"}, "image_column is for Parquet files, and .*kind' is none"),
        ({"label_column": "y"}, "label_column is for Parquet files, .*; with images in files say labels=<file>"),
        ({"where": "split=train"}, "where is for Parquet files, and .*kind' is none"),
        ({"images": 5}, "images=5 is for source=simulated"),
    ],
)
def test_keys_of_other_kinds_of_source_are_one_line(tmp_path, keys, line):
    (tmp_path / "kind").mkdir()
    (tmp_path / "kind" / "a.jpg").write_bytes(jpeg())
    with pytest.raises(ValueError, match=line):
        read(tmp_path / "kind", **keys)
    (tmp_path / "kind" / "a.jpg").unlink()
    np.save(tmp_path / "kind" / "a.npy", np.zeros((2, 4, 4), np.uint8))
    with pytest.raises(ValueError, match=line):
        read(tmp_path / "kind", **keys)


def test_a_folder_of_images_has_no_frame_rate(class_folder):
    with pytest.raises(ValueError, match=r"frame_rate_hz is for .npy stacks of clips; .* holds images"):
        read(class_folder, frame_rate_hz=30.0)


def test_what_is_hidden_in_a_folder_is_left_alone(tmp_path):
    images, depths = write_depth_pairs(tmp_path, ("ant/1.jpg", "bee/2.jpg"), ("ant/1.png", "bee/2.png"))
    for name in ("ant/._1.jpg", ".ipynb_checkpoints/1.jpg", "._3.jpg"):
        for folder in (images, depths):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"shadow")
    (depths / "ant" / ".1.jpg").write_bytes(b"shadow")
    source = open_source(ShardsConfig(source=str(images), depth=str(depths)))
    assert source.classes == ("ant", "bee")
    assert sorted(item.name for item in source.items(0)) == ["ant/1.jpg", "bee/2.jpg"]


def test_arrays_beside_a_file_are_its_signals_and_labels_here_and_behind_a_url(tmp_path):
    system = fsspec.filesystem("memory")
    mine = {"walk.gaze.npy", "walk.npz", "labels.npy"}
    for name in (*mine, "walk.mp4", "walk2.gaze.npy", "walk.txt", "run.npz"):
        (tmp_path / name).write_bytes(name.encode())
        system.pipe_file(f"/beside/{name}", name.encode())
    for file in (tmp_path / "walk.mp4", RemoteFile("memory://beside/walk.mp4", 8)):
        assert {name: found.read_bytes() for name, found in beside(file).items()} == {n: n.encode() for n in mine}


def test_what_is_no_source_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "photo.jpg").write_bytes(jpeg())
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    write_parquet(tmp_path / "numbers.parquet", x=[1, 2])
    for name, error, line in (
        ("absent", FileNotFoundError, "does not exist"),
        ("empty", ValueError, "no images in"),
        ("photo.jpg", ValueError, "neither a folder nor a .parquet file"),
        ("broken.parquet", ValueError, "cannot be read as Parquet"),
        ("numbers.parquet", ValueError, "no column of encoded images; its columns: x; say image_column=<name>"),
    ):
        with pytest.raises(error, match=line):
            open_source(ShardsConfig(source=str(tmp_path / name)))
