"""Files of Sensorium 2023: as pandas writes and reads the official ones, in bounded memory, and what is refused."""

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from transfer.submission_2023 import TrialRow, check_2023, read_2023, write_2023

MOUSE = "dynamic29515-10-12-Video-9b4f6a1a067fe51e15306b9628efea20"
IDS = np.array([1, 3, 4, 6])


def rows_of(count: int = 3, frames: int = 5) -> list[TrialRow]:
    rng = np.random.default_rng(0)
    return [TrialRow(MOUSE, 10 * n, rng.normal(size=(4, frames)).astype(np.float32), IDS) for n in range(count)]


def as_the_starter_kit_does(rows: list[TrialRow]) -> pd.DataFrame:
    """ecker-lab/sensorium_2023 `generate_submission`: Python lists in a table."""
    columns = {
        "mouse": [row.mouse for row in rows],
        "trial_indices": [row.trial for row in rows],
        "prediction": [row.prediction.tolist() for row in rows],
        "neuron_ids": [row.neuron_ids.tolist() for row in rows],
    }
    return pd.DataFrame(columns)


def test_columns_and_types_are_those_that_pandas_writes(tmp_path):
    ours, theirs = tmp_path / "ours.parquet.brotli", tmp_path / "theirs.parquet.brotli"
    write_2023(ours, rows_of(), 5)
    as_the_starter_kit_does(rows_of()).to_parquet(theirs, compression="brotli", engine="pyarrow", index=False)
    found, expected = pq.read_schema(ours), pq.read_schema(theirs)
    assert found.names == expected.names
    assert [str(kind).replace("large_", "") for kind in expected.types] == [str(kind) for kind in found.types]
    frames = pd.read_parquet(ours), pd.read_parquet(theirs)
    for name in frames[0]:
        for ours_, theirs_ in zip(frames[0][name], frames[1][name], strict=True):
            np.testing.assert_array_equal(np.array(list(ours_)), np.array(list(theirs_))) if name in (
                "prediction", "neuron_ids",
            ) else np.testing.assert_equal(ours_, theirs_)  # fmt: skip
    assert check_2023(theirs) == check_2023(ours).replace("ours", "theirs")


def test_rows_come_back_from_row_groups_of_their_own(tmp_path):
    path = tmp_path / "file.parquet.brotli"
    rows = rows_of() + rows_of(1, frames=3)
    rows[-1] = TrialRow("another", 0, rows[-1].prediction, IDS)
    assert write_2023(path, iter(rows)) == 4
    assert pq.ParquetFile(path).num_row_groups == 4
    for found, expected in zip(read_2023(path), rows, strict=True):
        assert (found.mouse, found.trial) == (expected.mouse, expected.trial)
        np.testing.assert_array_equal(found.prediction, expected.prediction)
        np.testing.assert_array_equal(found.neuron_ids, expected.neuron_ids)
    assert check_2023(path).endswith("2 mice, 4 trials, 3 or 5 frames of each, 8 neurons")


def test_a_row_is_written_before_the_next_one_is_made(tmp_path):
    """Memory holds one trial: its row group is in the file when the next one is asked for."""
    path, sizes = tmp_path / "file.parquet.brotli", []

    def rows():
        for row in rows_of(4, frames=2000):
            sizes.append(sum(file.stat().st_size for file in tmp_path.iterdir()))
            yield row

    write_2023(path, rows())
    assert (np.diff(sizes) > 10_000).all()


def wrong(table: pd.DataFrame, column: str, value: object) -> pd.DataFrame:
    table = table.copy()
    table[column] = table[column].astype(object)
    table.at[1, column] = value
    return table


@pytest.mark.parametrize(
    ("column", "value", "line"),
    [
        ("trial_indices", 0, "trial 0: is there twice"),
        ("prediction", [[1.0, 2.0]] * 3, "3 lists of predictions and 4 neuron_ids, expected as many"),
        ("prediction", [[1.0], [1.0], [1.0, 2.0], [1.0]], "lists of 1 to 2 frames, expected one length"),
        ("prediction", [[1.0], [1.0], [np.inf], [1.0]], "the prediction of neuron 4 is not finite"),
        ("prediction", [], "lists of 0 to 0 frames"),
        ("prediction", None, "row 1: no prediction"),
        ("neuron_ids", [1, 3, 4, 4], "a neuron id is there twice"),
        ("neuron_ids", [1, 3, 4, 5], "neuron_ids are others than in the mouse's first row"),
    ],
)
def test_wrong_rows_are_refused(tmp_path, column, value, line):
    path = tmp_path / "file.parquet.brotli"
    table = wrong(as_the_starter_kit_does(rows_of()), column, value)
    table = table.astype({"trial_indices": "int64"})
    table.to_parquet(path, compression="brotli", engine="pyarrow", index=False)
    with pytest.raises(ValueError, match=line):
        check_2023(path)


def test_wrong_tables_are_refused(tmp_path):
    path, table = tmp_path / "file.parquet.brotli", as_the_starter_kit_does(rows_of())
    for changed, options, line in (
        (table[["trial_indices", "mouse", "prediction", "neuron_ids"]], {}, "columns are trial_indices, mouse"),
        (table.drop(columns="neuron_ids"), {}, "expected mouse, trial_indices, prediction, neuron_ids in this order"),
        (table.astype({"trial_indices": str}), {}, "column trial_indices is string, expected int64"),
        (table, {"compression": "snappy"}, "is compressed with snappy, expected brotli"),
        (table.iloc[:0].astype({"mouse": str}), {}, "column prediction is|has no rows"),
    ):
        changed.to_parquet(path, **({"compression": "brotli", "engine": "pyarrow", "index": False} | options))
        with pytest.raises(ValueError, match=line):
            check_2023(path)
    path.write_bytes(b"PK not a parquet file")
    with pytest.raises(ValueError, match="is no parquet file"):
        check_2023(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        check_2023(tmp_path / "none.parquet.brotli")


def test_nothing_is_left_of_a_file_that_failed(tmp_path):
    rows = rows_of()
    rows[2].prediction[1, 1] = np.nan
    with pytest.raises(ValueError, match="trial 20: a prediction is not finite"):
        write_2023(tmp_path / "file.parquet.brotli", rows)
    assert not list(tmp_path.iterdir())
