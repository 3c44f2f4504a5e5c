"""Prediction from run folders: every frame, ensembles, resuming, images, and mistakes."""

from pathlib import Path

import numpy as np
import pytest

from neural_data.formats import read_recordings
from tests.transfer.fitted_runs import (
    DWISENEURO,
    FACTORIZED,
    STACKED,
    WINDOW,
    fitted_run,
    simulated_images,
    simulated_videos,
)
from transfer.fitted import load_fitted
from transfer.predict import predict
from transfer.predict_config import PredictConfig
from transfer.prediction_folder import open_predictions
from transfer.trial_prediction import TrialPredictor
from transfer.windows import WindowPlan


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated_videos(tmp_path_factory.mktemp("videos") / "mice")


@pytest.fixture(scope="module")
def runs(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        "dwiseneuro": fitted_run(folder / "dwise", videos, DWISENEURO, "dwiseneuro", WINDOW),
        "factorized": fitted_run(folder / "factorized", videos, FACTORIZED, "sensorium2023", WindowPlan(20)),
    }


def config_of(runs: list[Path], out: Path, **keys) -> PredictConfig:
    return PredictConfig(runs=[str(run) for run in runs], out=str(out), accelerator="cpu", **keys)


def test_every_frame_of_every_trial_is_predicted(runs, videos, tmp_path):
    found = open_predictions(predict(config_of([runs["dwiseneuro"]], tmp_path / "out")))
    assert found.response_space == "raw"
    for recording in read_recordings(videos):
        animal = found.animals[recording.animals[0]]
        usable = np.flatnonzero((recording.trials["tier"] != "none").to_numpy())
        np.testing.assert_array_equal(animal.trials["row"], usable)
        assert set(recording.trials["tier"][recording.withheld]) <= set(animal.trials["tier"])
        assert animal.neuron_ids == recording.neurons["neuron_id"].tolist()
        for row in usable:
            predicted = animal.trial(int(row))
            assert predicted.shape == (6, recording.frames[row])
            assert np.isfinite(predicted).all()


def test_an_encoder_of_whole_trials_gives_the_last_frames(runs, videos, tmp_path):
    """Its two layers of 5 and 3 frames leave 6 frames at the start without a prediction."""
    found = open_predictions(predict(config_of([runs["factorized"]], tmp_path / "out", tiers=["oracle"])))
    fitted = load_fitted(runs["factorized"])
    recording = next(iter(read_recordings(videos)))
    name = recording.animals[0]
    assert set(found.animals[name].trials["tier"]) == {"oracle"}
    for row in found.animals[name].trials["row"]:
        predicted = found.animals[name].trial(int(row))
        assert np.isnan(predicted[:, :6]).all()
        frames = np.arange(recording.frames[row])
        trial = fitted.normalisations[name].apply(recording.trial(int(row)), frames)
        (expected,) = TrialPredictor(fitted.encoder).video(name, [trial])
        np.testing.assert_allclose(predicted, expected, rtol=1e-5, atol=1e-6)


def test_an_ensemble_is_the_weighted_mean_in_one_space(runs, tmp_path):
    both = [runs["dwiseneuro"], runs["factorized"]]
    keys = {"tiers": ["oracle"], "response_space": "per_frame_std"}
    alone = [open_predictions(predict(config_of([run], tmp_path / run.name, **keys))) for run in both]
    found = open_predictions(predict(config_of(both, tmp_path / "both", weights=[3, 1], **keys)))
    assert found.facts["weights"] == [0.75, 0.25]
    for name, animal in found.animals.items():
        for row in animal.trials["row"]:
            first, second = (np.asarray(each.animals[name].trial(row)) for each in alone)
            expected = 0.75 * first + 0.25 * second
            np.testing.assert_allclose(animal.trial(row), expected, rtol=1e-5, atol=1e-6)


def test_predictions_go_on_where_they_were(runs, tmp_path, monkeypatch):
    both, keys = [runs["dwiseneuro"], runs["factorized"]], {"tiers": ["oracle"], "response_space": "raw"}
    whole = open_predictions(predict(config_of(both, tmp_path / "whole", **keys)))
    calls = {"left": 9}
    unbroken = TrialPredictor.video

    def broken(self, animal, trials):
        calls["left"] -= 1
        if calls["left"] < 0:
            raise KeyboardInterrupt
        return unbroken(self, animal, trials)

    monkeypatch.setattr(TrialPredictor, "video", broken)
    for left in (9, 12):
        calls["left"] = left
        try:
            predict(config_of(both, tmp_path / "broken", **keys))
        except KeyboardInterrupt:
            with pytest.raises(ValueError, match="are missing; the same `murine predict` goes on"):
                open_predictions(tmp_path / "broken")
    calls["left"] = 1000
    found = open_predictions(predict(config_of(both, tmp_path / "broken", **keys)))
    assert 1000 - calls["left"] < 24
    for name, animal in found.animals.items():
        assert not list(animal.folder.glob("*.1.npy"))
        for row in animal.trials["row"]:
            np.testing.assert_array_equal(animal.trial(row), whole.animals[name].trial(row))


def test_images(tmp_path):
    mice = simulated_images(tmp_path / "images")
    run = fitted_run(tmp_path / "run", mice, STACKED, "sensorium2022", WindowPlan())
    found = open_predictions(predict(config_of([run], tmp_path / "out", batch_size=7)))
    fitted, recording = load_fitted(run), read_recordings(mice)[0]
    name = recording.animals[0]
    rows = found.animals[name].trials["row"].tolist()
    assert not found.dynamic
    assert len(rows) == len(recording.trials)
    trials = [fitted.normalisations[name].apply(recording.trial(row)) for row in rows]
    expected = TrialPredictor(fitted.encoder).images(name, trials)
    np.testing.assert_allclose(found.animals[name].images(rows), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.animals[name].trial(rows[3])[:, 0], found.animals[name].images(rows)[3])


def test_mistakes_are_named(runs, videos, tmp_path):
    for keys, line in (
        ({"weights": [1, 2]}, "expected 1 of them, one per run"),
        ({"animals": ["animal9"]}, "has no 'animal9'; it has"),
        ({"tiers": ["exam"]}, "no animal has a trial of these"),
    ):
        with pytest.raises(ValueError, match=line):
            predict(config_of([runs["dwiseneuro"]], tmp_path / "out", **keys))
    with pytest.raises(FileNotFoundError, match="absent"):
        predict(config_of([runs["dwiseneuro"], tmp_path / "absent"], tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="runs is not set"):
        predict(PredictConfig())
    other = simulated_videos(tmp_path / "other", neurons=5)
    with pytest.raises(ValueError, match="has 5 neurons that are not those of"):
        predict(config_of([runs["dwiseneuro"]], tmp_path / "out", recording=str(other)))
    with pytest.raises(FileNotFoundError, match="expected a run folder of `murine predict`"):
        open_predictions(tmp_path)
