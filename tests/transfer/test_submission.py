"""From predictions to files of either competition, and checks of these against the recordings."""

import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neural_data.formats import read_recordings
from tests.transfer.fitted_runs import DWISENEURO, STACKED, WINDOW, fitted_run, simulated_images, simulated_videos
from transfer.predict import predict
from transfer.predict_config import PredictConfig, SubmissionConfig
from transfer.prediction_folder import open_predictions
from transfer.response_space import response_precision
from transfer.submission import check, submission
from transfer.submission_2022 import read_2022
from transfer.submission_2023 import TrialRow, read_2023, write_2023
from transfer.windows import WindowPlan

SKIP = 10


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated_videos(tmp_path_factory.mktemp("videos") / "mice", bonus_clips=1, lost_frames=0.0)


@pytest.fixture(scope="module")
def predicted(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predicted")
    run = fitted_run(folder / "dwise", videos, DWISENEURO, "dwiseneuro", WINDOW)
    tiers = ["live_test_main", "final_test_main", "live_test_bonus", "final_test_bonus"]
    return predict(PredictConfig(runs=[str(run)], out=str(folder / "out"), accelerator="cpu", tiers=tiers))


@pytest.fixture(scope="module")
def written(predicted: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Trials have 50 frames here, so that fewer than the competition's 50 are left out."""
    out = tmp_path_factory.mktemp("submission")
    return submission(SubmissionConfig(predictions=str(predicted), out=str(out), first_frame=SKIP))


def test_files_of_2023(written, predicted, videos):
    names = [path.name for path in written]
    assert names == [
        "predictions_live_main.parquet.brotli", "predictions_final_main.parquet.brotli",
        "predictions_live_test_bonus_ood.parquet.brotli", "predictions_final_test_bonus_ood.parquet.brotli",
        "predictions_main.zip", "predictions_live_bonus.zip", "predictions_final_bonus.zip",
    ]  # fmt: skip
    with zipfile.ZipFile(written[4]) as archive:
        assert archive.namelist() == names[:2]
    recordings = {recording.name: recording for recording in read_recordings(videos)}
    predictions, rows = open_predictions(predicted), list(read_2023(written[0]))
    expected = sum((each.trials["tier"] == "live_test_main").sum() for each in recordings.values())
    assert len(rows) == expected
    for row in rows:
        recording = recordings[row.mouse]
        assert recording.trials["tier"].iat[row.trial] == "live_test_main"
        assert [str(number) for number in row.neuron_ids] == recording.neurons["neuron_id"].tolist()
        precision = response_precision(recording.statistics["responses/all/std"])[:, SKIP:49]
        own = predictions.animals[recording.animals[0]].trial(row.trial)[:, SKIP:49]
        np.testing.assert_allclose(row.prediction, own * precision, rtol=1e-6)


def test_checks_against_the_recordings(written, videos, tmp_path):
    for path in written[:4]:
        (line,) = check(SubmissionConfig(check=str(path), recording=str(videos)))
        assert "2 mice" in line
    rows = list(read_2023(written[0]))
    path = tmp_path / written[0].name

    def refused(changed: list[TrialRow], line: str) -> None:
        write_2023(path, changed)
        with pytest.raises(ValueError, match=line):
            check(SubmissionConfig(check=str(path), recording=str(videos)))

    first = rows[0]
    refused(rows[1:], "lacks 1 of 6 trials, such as")
    refused([row for row in rows if row.mouse == first.mouse], "lacks 6 of 6 trials")
    refused([TrialRow("mouse", first.trial, first.prediction, first.neuron_ids)], "mouse mouse is none of")
    refused([TrialRow(first.mouse, 999, first.prediction, first.neuron_ids)], "the recording has trials 0 to")
    refused(list(read_2023(written[1])), "is of tier final_test_main, expected live_test_main")
    others = first.neuron_ids + 1000
    refused([TrialRow(first.mouse, first.trial, first.prediction, others)], "12 neuron_ids are not in both")
    longer = np.ones((6, 60))
    refused([TrialRow(first.mouse, first.trial, longer, first.neuron_ids)], "60 frames, the trial has 50")


def test_files_of_2022(tmp_path):
    mice = simulated_images(tmp_path / "images")
    run = fitted_run(tmp_path / "run", mice, STACKED, "sensorium2022", WindowPlan())
    folder = predict(PredictConfig(runs=[str(run)], out=str(tmp_path / "out"), accelerator="cpu"))
    (path,) = submission(SubmissionConfig(predictions=str(folder)))
    assert path == folder / "submission" / "submission_file_live_test.csv"
    recording, predictions = read_recordings(mice)[0], open_predictions(folder)
    rows = list(read_2022(path))
    known = recording.trials.assign(row=range(len(recording.trials)))
    known = known[known["tier"] == "test"]
    assert len(rows) == len(known)
    own = predictions.animals[recording.animals[0]]
    for row, (_, trial) in zip(rows, known.iterrows(), strict=True):
        assert str(row.trial) == trial["trial_id"]
        assert row.image == trial["image_id"]
        np.testing.assert_allclose(row.values, own.trial(trial["row"])[:, 0], rtol=1e-6)
    (line,) = check(SubmissionConfig(check=str(path), recording=str(mice)))
    assert line.endswith(f"{len(known)} trials of {known['image_id'].nunique()} images, 6 neurons")
    truth = tmp_path / "truth.csv"
    table = pd.read_csv(path).rename(columns={"prediction": "responses"})
    table.to_csv(truth, index=False)
    assert "Single Trial Correlation: 0.9999" in check(SubmissionConfig(check=str(path), truth=str(truth)))[1]


def test_mistakes_are_named(predicted, videos, tmp_path):
    with pytest.raises(ValueError, match="predictions is not set"):
        submission(SubmissionConfig())
    with pytest.raises(ValueError, match="'oracle' is none of the competition's"):
        submission(SubmissionConfig(predictions=str(predicted), tiers=["oracle"], first_frame=SKIP))
