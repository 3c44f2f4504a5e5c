"""Parts of Parquet data sets: order, splits, and the notes of Hugging Face. Single files: test_sources.py."""

import io
import json
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pretrain.config import ShardsConfig
from pretrain.items import Source
from pretrain.sources import open_source


def jpeg(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (10, 12), (value, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def table(first: int, rows: int, labels: str = "label", names: list[str] | None = None) -> pa.Table:
    """Rows as `datasets` writes them, with its notes in the schema."""
    numbers = range(first, first + rows)
    columns = {
        "id": [str(n) for n in numbers],
        "img": [{"bytes": jpeg(n), "path": f"{n}.jpg"} for n in numbers],
        labels: [n % 3 for n in numbers],
    }
    features = {
        "id": {"dtype": "string", "_type": "Value"},
        "img": {"_type": "Image"},
        labels: {"names": names or ["oak", "ash", "pine"], "_type": "ClassLabel"},
    }
    notes = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.table(columns).replace_schema_metadata(notes)


def write_parts(folder: Path, layout: str = "data/{split}-{n:05d}-of-00003.parquet", **keys: object) -> Path:
    for split, start in (("train", 0), ("test", 100)):
        for n in range(3):
            path = folder / layout.format(split=split, n=n)
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table(start + 10 * n, 10, **keys), path, row_group_size=4)
    (folder / "README.md").write_text("a data set")
    return folder


def opened(folder: Path | str, **keys: object) -> Source:
    return open_source(ShardsConfig(source=str(folder), **keys))


@pytest.mark.parametrize("layout", ["data/{split}-{n:05d}-of-00003.parquet", "default/{split}/{n:04d}.parquet"])
def test_the_parts_of_one_split_in_their_order(tmp_path, layout):
    folder = write_parts(tmp_path, layout)
    with pytest.raises(ValueError, match=r"of several splits; say where=split= and one of test, train"):
        opened(folder)
    with pytest.raises(ValueError, match=r"no part is of split 'valid'; splits found: test, train"):
        opened(folder, where="split=valid")
    for split, start in (("train", 0), ("test", 100)):
        source = opened(folder, where=f"split={split}")
        assert source.count == 30
        assert source.classes == ("oak", "ash", "pine")
        items = list(source.items(0))
        assert [item.image for item in items] == [jpeg(n) for n in range(start, start + 30)]
        assert [item.label for item in items] == [n % 3 for n in range(start, start + 30)]
        assert items[13].name == f"{layout.format(split=split, n=1)} row 3"
        for first in (0, 1, 9, 10, 17, 30):
            assert list(source.items(first)) == items[first:]


def test_a_condition_on_a_column_goes_over_all_parts(tmp_path):
    for n in range(3):
        pq.write_table(table(10 * n, 10), tmp_path / f"{n}.parquet")
    source = opened(tmp_path, where="label=1")
    assert [item.image for item in source.items(0)] == [jpeg(n) for n in range(30) if n % 3 == 1]
    assert [item.image for item in source.items(4)] == [jpeg(n) for n in range(30) if n % 3 == 1][4:]
    with pytest.raises(ValueError, match=r"no row of 3 parts has label = '9'; values found: 0, 1, 2"):
        opened(tmp_path, where="label=9")


def test_the_one_column_of_classes_is_the_label(tmp_path):
    pq.write_table(table(0, 9, labels="species"), tmp_path / "a.parquet")
    source = opened(tmp_path / "a.parquet")
    assert source.classes == ("oak", "ash", "pine")
    assert [item.label for item in source.items(0)] == [0, 1, 2] * 3


def test_labels_beyond_the_noted_names_and_broken_notes_are_one_line(tmp_path):
    pq.write_table(table(0, 9, names=["a", "b"]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="column 'label' has label 2, but only 2 class names are noted"):
        opened(tmp_path / "a.parquet")
    for notes in ("{", "[]", '{"info": 3}'):
        pq.write_table(table(0, 9).replace_schema_metadata({"huggingface": notes}), tmp_path / "a.parquet")
        with pytest.raises(ValueError, match=r"a.parquet: the notes of Hugging Face in its schema cannot be read"):
            opened(tmp_path / "a.parquet")


def test_the_fingerprint_changes_with_any_part(tmp_path):
    folder = write_parts(tmp_path)
    first = opened(folder, where="split=train").fingerprint
    assert opened(folder, where="split=train").fingerprint == first
    assert opened(folder, where="split=test").fingerprint != first
    pq.write_table(table(0, 11), folder / "data/train-00002-of-00003.parquet")
    assert opened(folder, where="split=train").fingerprint != first


def test_parts_behind_a_url(tmp_path):
    folder = write_parts(tmp_path)
    fsspec.filesystem("memory").put(str(folder / "data"), "/hub/data", recursive=True)
    local, remote = (list(opened(place, where="split=train").items(7)) for place in (folder, "memory://hub"))
    assert [(item.image, item.label) for item in local] == [(item.image, item.label) for item in remote]


def test_keys_for_other_sources_are_refused(tmp_path):
    pq.write_table(table(0, 9), tmp_path / "a.parquet")
    for keys in ({"clip_frames": 4}, {"frame_rate_hz": 30.0}, {"format": "encoded"}):
        with pytest.raises(ValueError, match="are for clips; Parquet files hold images"):
            opened(tmp_path / "a.parquet", **keys)
    with pytest.raises(ValueError, match=r"labels is for folders and archives; .* say label_column=<name>"):
        opened(tmp_path / "a.parquet", labels="x.txt")


@pytest.mark.parametrize("labels", [[-1] * 6, [None] * 6, [-1, None] * 3])
def test_rows_that_all_lack_labels_are_images_without_them(tmp_path, capsys, labels):
    columns = {"image": [jpeg(n) for n in range(6)], "label": pa.array(labels, pa.int64())}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    source = opened(tmp_path / "a.parquet")
    assert {item.label for item in source.items(0)} == {None}
    assert source.classes is None
    assert "column 'label' is -1 or empty in all rows, so that the images have no labels" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"column 'label' .*label_column=unlabelled for images without labels"):
        opened(tmp_path / "a.parquet", label_column="label")


@pytest.mark.parametrize("lacking", [-1, None])
def test_rows_that_are_not_wanted_may_lack_labels(tmp_path, lacking):
    columns = {"image": [jpeg(n) for n in range(6)], "label": [0, 2, 1, *[lacking] * 3], "split": [*"aaabbb"]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    found = {split: opened(tmp_path / "a.parquet", where=f"split={split}").items(0) for split in "ab"}
    assert [item.label for item in found["a"]] == [0, 2, 1]
    assert [item.label for item in found["b"]] == [None] * 3


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        ([True, False] * 3, "labels in column 'label' must be whole numbers from 0 or names, found (True|False); "),
        ([[1], [2, 3]] * 3, r"column 'label' holds list<.*>, not one label in each row; "),
        ([0, -1] * 3, "whole numbers from 0 or names, found -1; "),
        ([0, None] * 3, "column 'label' has 3 empty cells; "),
    ],
)
def test_labels_that_are_none_can_be_left_out(tmp_path, labels, line):
    pq.write_table(pa.table({"image": [jpeg(n) for n in range(6)], "label": labels}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=f"{line}say label_column=<name> for another, or label_column=unlabelled"):
        opened(tmp_path / "a.parquet")
    assert {item.label for item in opened(tmp_path / "a.parquet", label_column="unlabelled").items(0)} == {None}


def test_columns_that_hold_no_image_files_are_one_line(tmp_path):
    columns = {"image": [jpeg(0)], "text": ["a"], "place": [{"path": "a.jpg"}], "number": [{"bytes": 3}]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    for column, kind in (("text", "string"), ("place", "struct<path: string>"), ("number", "int64")):
        line = f"column '{column}' of a.parquet holds {kind}, not the bytes of image files"
        for key in ("image_column", "depth_column"):
            with pytest.raises(ValueError, match=line):
                opened(tmp_path / "a.parquet", **{key: column})


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary(len(jpeg(0)))])
def test_bytes_of_any_type_are_images(tmp_path, kind):
    pq.write_table(pa.table({"image": pa.array([jpeg(0)], kind)}), tmp_path / "a.parquet")
    assert [item.image for item in opened(tmp_path / "a.parquet").items(0)] == [jpeg(0)]


@pytest.mark.parametrize("column", ["image", "label"])
def test_a_damaged_page_is_one_line_that_names_the_file(tmp_path, column):
    path = tmp_path / "a.parquet"
    values = {"image": [bytes([255, 216, 255, *range(n, n + 99)]) for n in range(64)], "label": list(range(64))}
    pq.write_table(pa.table(values), path, use_dictionary=False)
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(list(values).index(column))
    data = bytearray(path.read_bytes())
    start, size = chunk.data_page_offset, chunk.total_compressed_size
    data[start + size // 2 : start + size] = bytes([255] * (size - size // 2))
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a.parquet' cannot be read as Parquet: ") as error:
        list(opened(path, image_column="image").items(0))
    assert "\n" not in str(error.value)
