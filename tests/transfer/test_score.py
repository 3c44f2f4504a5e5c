"""Scores of predictions against plain transcriptions of the public programs, by tier, class and protocol."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neural_data.formats import read_recordings
from neural_data.simulate_videos import simulate_videos
from neural_data.write_simulation import write_simulation
from tests.transfer.fitted_runs import (
    DWISENEURO,
    FACTORIZED,
    STACKED,
    WINDOW,
    fitted_run,
    simulated_images,
    simulated_videos,
    video_config,
)
from transfer.predict import predict
from transfer.predict_config import PredictConfig, ScoreConfig
from transfer.prediction_folder import create_predictions, open_predictions
from transfer.response_space import response_precision
from transfer.score import score
from transfer.windows import WindowPlan

SKIP = 10


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mice whose folders say the class of each clip, as ViV1T's metadata do."""
    folder = simulated_videos(tmp_path_factory.mktemp("videos") / "mice", bonus_clips=2, lost_frames=0.2)
    for recording in read_recordings(folder):
        stimulus, tier = recording.trials["stimulus"].to_numpy(), recording.trials["tier"].to_numpy()
        np.save(Path(recording.source) / "meta/trials/stimulus_ids.npy", np.where(tier == "train", 0, 1 + stimulus % 2))
    return folder


@pytest.fixture(scope="module")
def predicted(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predicted")
    run = fitted_run(folder / "dwise", videos, DWISENEURO, "dwiseneuro", WINDOW)
    return predict(PredictConfig(runs=[str(run)], out=str(folder / "out"), accelerator="cpu"))


def scored(predicted: Path, out: Path, **keys) -> tuple[pd.DataFrame, pd.DataFrame]:
    folder = score(ScoreConfig(predictions=str(predicted), out=str(out), **keys))
    return pd.read_csv(folder / "scores.csv"), pd.read_csv(folder / "neurons.csv", dtype={"neuron_id": str})


def pairs(videos: Path, predicted: Path, tier: str, space: str) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """By animal, responses and predictions of the trials of a tier in a space, from the folder itself."""
    found, predictions = {}, open_predictions(predicted)
    for recording in read_recordings(videos):
        animal, std = recording.animals[0], recording.statistics["responses/all/std"]
        scale = response_precision(std) if space == "per_frame_std" else np.ones_like(std)
        found[animal] = []
        for row in np.flatnonzero((recording.trials["tier"] == tier).to_numpy()):
            frames = slice(SKIP, recording.frames[row])
            both = recording.responses[row, :, frames], predictions.animals[animal].trial(row)[:, frames]
            found[animal].append(tuple(each * scale[:, frames] for each in both))
    return found


def corr(a, b, axis=-1):
    """ecker-lab/sensorium_2023, as all of them have it."""
    a = (a - a.mean(axis=axis, keepdims=True)) / (a.std(axis=axis, keepdims=True) + 1e-8)
    b = (b - b.mean(axis=axis, keepdims=True)) / (b.std(axis=axis, keepdims=True) + 1e-8)
    return (a * b).mean(axis=axis)


def test_the_organisers_single_trial_correlation(videos, predicted, tmp_path):
    table, neurons = scored(predicted, tmp_path / "out", first_frame=SKIP)
    of_animal = {
        animal: corr(*(np.concatenate(side, axis=1) for side in zip(*trials, strict=True)))
        for animal, trials in pairs(videos, predicted, "oracle", "per_frame_std").items()
    }
    rows = table[(table["tier"] == "oracle") & (table["metric"] == "single_trial_correlation")]
    whole = rows[(rows["animal"] == "all") & (rows["stimulus_class"] == "all")].iloc[0]
    assert whole["value"] == pytest.approx(np.concatenate(list(of_animal.values())).mean(), abs=1e-7)
    assert whole["protocol_name"] == "organisers+"
    assert (whole["first_frame"], whole["response_space"], whole["average"]) == (SKIP, "per_frame_std", "neurons")
    for animal, expected in of_animal.items():
        own = neurons[(neurons["animal"] == animal) & (neurons["tier"] == "oracle")]
        found = own[own["stimulus_class"] == "all"]["single_trial_correlation"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7)


def test_the_winners_mean_of_mice_in_raw_space(videos, predicted, tmp_path):
    table, _ = scored(predicted, tmp_path / "out", protocol="dwiseneuro", first_frame=SKIP, tiers=["train"])
    expected = [
        corr(*(np.concatenate([each[:, :-1] for each in side], axis=1) for side in zip(*trials, strict=True))).mean()
        for trials in pairs(videos, predicted, "train", "raw").values()
    ]
    found = table[(table["metric"] == "single_trial_correlation") & (table["stimulus_class"] == "all")]
    assert found[found["animal"] == "all"]["value"].item() == pytest.approx(np.mean(expected), abs=1e-7)
    assert set(table["metric"]) == {"single_trial_correlation", "per_trial_correlation"}


def test_tiers_classes_and_what_is_withheld(predicted, tmp_path):
    table, neurons = scored(predicted, tmp_path / "out", first_frame=SKIP)
    assert set(table["tier"]) == {"train", "oracle", "live_test_bonus", "final_test_bonus"}
    bonus = table[table["tier"] == "final_test_bonus"]
    assert set(bonus["stimulus_class"]) == {"all", "directional pink noise", "gaussian dots"}
    assert set(table["metric"]) == {
        "single_trial_correlation", "per_trial_correlation", "correlation_to_average", "normalized_correlation",
        "feve", "oracle_jackknife", "oracle_conservative", "single_trial_ceiling",
    }  # fmt: skip
    assert (neurons["protocol"] == "organisers+").all()
    every = bonus[(bonus["animal"] == "all") & (bonus["stimulus_class"] == "all")].iloc[0]
    assert (every["neurons"], every["trials"], every["stimuli"]) == (12, 12, 4)
    assert (every["undefined"], every["without_score"]) == ("zero", 0)
    options = json.loads((tmp_path / "out" / "protocol.json").read_text())
    assert options["name"] == "organisers+"


def test_blocks_of_neurons_change_nothing(predicted, tmp_path):
    whole, _ = scored(predicted, tmp_path / "whole", first_frame=SKIP)
    blocks, _ = scored(predicted, tmp_path / "blocks", first_frame=SKIP, memory_gb=0.001)
    np.testing.assert_allclose(blocks["value"], whole["value"], rtol=1e-6)


def test_perfect_predictions_reach_the_ceiling(videos, predicted, tmp_path):
    """A prediction that is the mean over repeats correlates with the mean perfectly."""
    folder = tmp_path / "perfect"
    shutil.copytree(predicted, folder)
    predictions = open_predictions(folder)
    for recording in read_recordings(videos):
        own = predictions.animals[recording.animals[0]]
        oracle = recording.trials[recording.trials["tier"] == "oracle"]
        for _, repeats in oracle.groupby("stimulus"):
            frames = recording.frames[repeats.index].min()
            mean = np.mean([recording.responses[row, :, :frames] for row in repeats.index], axis=0)
            for row in repeats.index:
                piece = own.trials.set_index("row")["piece"][row]
                values = np.array(own.trial(row))
                values[:, :frames] = mean
                np.save(own.piece_file(piece), values)
    keys = {"first_frame": SKIP, "tiers": ["oracle"], "response_space": "raw", "classes": False}
    table, _ = scored(folder, tmp_path / "out", **keys)
    value = table[table["animal"] == "all"].set_index("metric")["value"]
    assert value["correlation_to_average"] == pytest.approx(1, abs=1e-3)
    assert value["single_trial_correlation"] > value["single_trial_ceiling"] > 0


def test_the_truth_scores_what_the_simulator_says(tmp_path):
    """Expected responses as predictions, of 12 neurons in 40 trials: single-trial correlation, CC norm, ceiling."""
    config = video_config(tmp_path / "mice", 1, 12, test_clips=4, repeats=10, lost_frames=0.0, gaze_shift=0.0, width=32)
    write_simulation(config)
    ((recording, truth),) = simulate_videos(config)
    (animal,), rows = recording.animals, np.flatnonzero((recording.trials["tier"] == "oracle").to_numpy())
    table = pd.DataFrame({"row": rows, "tier": "oracle", "frames": recording.frames[rows]})
    place = {"recording": str(tmp_path / "mice"), "name": recording.name}
    facts = {"response_space": "raw", "dynamic": True, "runs": ["truth"], "weights": [1.0], "animals": {animal: place}}
    (tmp_path / "predicted").mkdir()
    ids = recording.neurons["neuron_id"].tolist()
    own = create_predictions(tmp_path / "predicted", facts, {animal: table}, {animal: ids}).animals[animal]
    for piece, (row,) in own.pieces():
        own.add(piece, truth.expected_of_trial(int(row)), 0)
    keys = {"first_frame": 0, "response_space": "raw", "undefined": "omit"}
    scores, neurons = scored(tmp_path / "predicted", tmp_path / "out", **keys)
    expected = truth.noise_ceiling()["single_trial_correlation"].to_numpy()
    np.testing.assert_allclose(neurons["single_trial_correlation"], expected, rtol=0, atol=0.1)
    value = scores[scores["animal"] == "all"].set_index("metric")["value"]
    assert value["single_trial_correlation"] == pytest.approx(expected.mean(), abs=0.03)
    assert value["normalized_correlation"] == pytest.approx(1, abs=0.05)
    assert value["oracle_jackknife"] < value["single_trial_ceiling"] < value["oracle_conservative"]


def test_frames_that_were_not_predicted_cannot_count(videos, tmp_path):
    run = fitted_run(tmp_path / "factorized", videos, FACTORIZED, "sensorium2023", WindowPlan(20))
    config = PredictConfig(runs=[str(run)], out=str(tmp_path / "out"), accelerator="cpu", tiers=["oracle"])
    folder = predict(config)
    with pytest.raises(ValueError, match="no prediction for frames before 6, and frame 2 counts; choose first_frame=6"):
        scored(folder, tmp_path / "early", first_frame=2)
    table, _ = scored(folder, tmp_path / "later", first_frame=6)
    assert table["value"].notna().all()


def test_images(tmp_path):
    mice = simulated_images(tmp_path / "images")
    run = fitted_run(tmp_path / "run", mice, STACKED, "sensorium2022", WindowPlan())
    folder = predict(PredictConfig(runs=[str(run)], out=str(tmp_path / "out"), accelerator="cpu"))
    table, neurons = scored(folder, tmp_path / "scores")
    recording, predictions = read_recordings(mice)[0], open_predictions(folder)
    precision = response_precision(recording.statistics["responses/all/std"])
    rows = np.flatnonzero((recording.trials["tier"] == "test").to_numpy() & ~recording.withheld)
    predicted = predictions.animals[recording.animals[0]].images(rows.tolist())
    expected = corr(predicted.astype(float), recording.responses[rows] * precision, axis=0)
    own = neurons[(neurons["tier"] == "test") & (neurons["stimulus_class"] == "all")]
    np.testing.assert_allclose(own["single_trial_correlation"], expected, rtol=0, atol=1e-7)
    assert set(table["protocol_name"]) == {"sensorium2022"}
    assert set(table[table["tier"] == "test"]["metric"]) >= {"correlation_to_average", "single_trial_ceiling"}


def test_mistakes_are_named(predicted, tmp_path):
    for keys, line in (
        (
            {"tiers": ["live_test_main"], "first_frame": 9},
            "no trial of tiers=.'live_test_main'. has responses to score with",
        ),
        ({"animals": ["nobody"]}, "animal 'nobody' was not predicted"),
        ({}, "no frame counts of a trial of"),
    ):
        with pytest.raises(ValueError, match=line):
            scored(predicted, tmp_path / "out", **keys)
    with pytest.raises(ValueError, match="predictions is not set"):
        score(ScoreConfig())
