"""Files of Sensorium 2022: the published scorer, round trips, and files that are refused."""

import numpy as np
import pandas as pd
import pytest

from transfer.submission_2022 import ImageRow, check_2022, evaluate_2022, read_2022, write_2022


@pytest.fixture(scope="module")
def published(shared):
    return shared / "reference/values/static/metrics"


def rows_of(count: int = 4, neurons: int = 5) -> list[ImageRow]:
    rng, ids = np.random.default_rng(0), np.array([7, 3, 11, 2, 40])[:neurons]
    return [ImageRow(f"a{n}" if n % 2 else n, n // 2, rng.normal(size=neurons), ids) for n in range(count)]


def test_the_published_scorer(published):
    found = evaluate_2022(published / "submission_file_live_test.csv", published / "ground_truth_file_test.csv")
    with np.load(published / "competition.npz", allow_pickle=False) as stored:
        for name, value in found.items():
            assert value == pytest.approx(float(stored[f"out/csv_{name.replace(' ', '_')}"]), abs=1e-9)


def test_the_published_file_is_accepted(published):
    assert check_2022(published / "submission_file_live_test.csv").endswith("72 trials of 12 images, 9 neurons")


def test_a_published_file_is_written_again_to_the_letter(published, tmp_path):
    path = published / "submission_file_live_test.csv"
    write_2022(tmp_path / "again.csv", read_2022(path))
    assert (tmp_path / "again.csv").read_text() == path.read_text()


def test_rows_come_back(tmp_path):
    path = tmp_path / "file.csv"
    assert write_2022(path, rows_of()) == 4
    table = pd.read_csv(path)
    assert table.columns.tolist() == ["trial_indices", "image_ids", "prediction", "neuron_ids"]
    for found, expected in zip(read_2022(path), rows_of(), strict=True):
        assert (found.trial, found.image) == (expected.trial, expected.image)
        np.testing.assert_array_equal(found.values, expected.values)
        np.testing.assert_array_equal(found.neuron_ids, expected.neuron_ids)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("prediction", "predictions", "columns are trial_indices, image_ids, predictions, neuron_ids, expected"),
        ("[7, 3, 11, 2, 40]", "[7, 3, 11, 2]", "5 values of prediction and 4 neuron_ids, expected as many"),
        ("[7, 3, 11, 2, 40]", "[7, 3, 11, 2, 2]", "a neuron id is there twice"),
        ("[7, 3, 11, 2, 40]", "[7, 3, 11, 2, 'x']", "neuron_ids is .* expected a list of integers"),
        ("[0.1257", "[nan, 0.1257", "prediction is .* expected a list of finite numbers"),
        ("a1,0", "0,0", "trial 0 is there twice"),
        ("a1,0", "a1,mouse", "image_ids is 'mouse', expected an integer"),
        ("[7, 3, 11, 2, 40]", "[3, 7, 11, 2, 40]", "neuron_ids are others than in the first row"),
    ],
)
def test_wrong_files_are_refused(tmp_path, old, new, line):
    path = tmp_path / "file.csv"
    write_2022(path, rows_of())
    text = path.read_text()
    assert old in text
    first, rest = text[: text.index(old)], text[text.index(old) :]
    path.write_text(first + rest.replace(old, new, 1))
    with pytest.raises(ValueError, match=line):
        check_2022(path)


def test_what_is_no_table_is_refused(tmp_path):
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "rows.csv").write_text("trial_indices,image_ids,prediction,neuron_ids\n")
    with pytest.raises(ValueError, match="is no csv file"):
        check_2022(tmp_path / "empty.csv")
    with pytest.raises(ValueError, match="has no rows"):
        check_2022(tmp_path / "rows.csv")
    with pytest.raises(FileNotFoundError, match="no such file"):
        check_2022(tmp_path / "none.csv")
    rows = [ImageRow(1, 1, np.array([np.nan]), np.array([1]))]
    with pytest.raises(ValueError, match="trial 1: a prediction is not finite"):
        write_2022(tmp_path / "nan.csv", rows)
    assert not (tmp_path / "nan.csv").exists()


def test_other_trials_than_the_truth(tmp_path, published):
    rows = list(read_2022(published / "submission_file_live_test.csv"))
    write_2022(tmp_path / "fewer.csv", rows[1:])
    with pytest.raises(ValueError, match="trials are not those of"):
        evaluate_2022(tmp_path / "fewer.csv", published / "ground_truth_file_test.csv")
