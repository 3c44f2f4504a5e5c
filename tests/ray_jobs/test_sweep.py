"""Sweeps: the grid's mistakes, the table, and one real sweep with Ray that does not train twice."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from pretrain.config import PretrainConfig
from ray_jobs.config import SweepConfig, compose_mapping
from ray_jobs.sweep import sweep, trial_table, with_absolute_paths
from ray_jobs.trainable import point_name
from tests.transfer.fits import TINY, write_images

LR = "pretrain.optimizer.lr"


def result(config: dict[str, object], rows: list[dict[str, float]] | None) -> SimpleNamespace:
    """What Ray gives for a trial."""
    return SimpleNamespace(config=config, metrics_dataframe=None if rows is None else pd.DataFrame(rows), error=None)


def test_the_table_has_a_row_for_each_point_best_first():
    results = [
        result({LR: 0.1}, [{"rankme": 2.0, "knn_accuracy": 0.2}, {"rankme": 3.0, "knn_accuracy": 0.3}]),
        result({LR: 0.2}, [{"rankme": 5.0}, {"predictivity": 0.4, "neurons": 9}]),
        result({LR: 0.3}, None),
        result({LR: 0.4}, [{"rankme": 5.0}, {"rankme": 6.0}, {"predictivity": 0.7, "neurons": 9}]),
    ]
    table = trial_table(results, [LR], "predictivity")
    assert table[LR].tolist()[:2] == [0.4, 0.2]
    assert set(table[LR]) == {0.1, 0.2, 0.3, 0.4}
    assert table["predictivity"].tolist()[:2] == [0.7, 0.4]
    assert table["predictivity"].isna().sum() == 2
    assert table.set_index(LR)["rankme"].to_dict() == pytest.approx(
        {0.4: 6, 0.2: 5, 0.1: 3, 0.3: math.nan}, nan_ok=True
    )


def test_a_table_of_failures_has_a_score_column():
    table = trial_table([result({LR: 0.1}, None)], [LR], "predictivity")
    assert table["predictivity"].isna().all()


def test_points_have_names_that_tell_them():
    assert point_name({LR: 0.01, "pretrain.epochs": 2}) == "epochs=2,optimizer.lr=0.01"
    assert point_name({"pretrain.model": "timm/test_resnet"}) == "model=timm-test_resnet"
    assert point_name({"pretrain.optimizer.decay_epochs": [1, 2]}) == "optimizer.decay_epochs=[1,2]"
    assert point_name({}) == "all-defaults"


def test_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = compose_mapping("sweep", {"pretrain": {"data": {"shards": "s"}}, "predictivity": {"recording": "~/r"}})
    found = with_absolute_paths(config)
    assert found.pretrain.data.shards == str(tmp_path / "s")
    assert found.predictivity.recording == str(Path.home() / "r")
    assert found.pretrain.data.labelled is None


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({}, "grid is empty; for example grid.pretrain.optimizer.lr="),
        ({"grid": {LR: [1.0]}}, "pretrain.data.shards is not set; make shards with"),
        ({"grid": {LR: [1.0]}, "pretrain": {"data": {"shards": "s"}}}, "predictivity.recording is not set"),
        ({"grid": {LR: [1.0]}, "stage": "fit"}, f"grid.{LR} changes nothing with stage=fit"),
        ({"grid": {"fit.optimizer.lr": [1.0]}}, "grid.fit.optimizer.lr changes nothing with stage=pretrain"),
        ({"grid": {"fit.optimizer.lr": [1.0]}, "stage": "fit"}, "fit.recording is not set; make one with"),
    ],
)
def test_a_sweep_that_lacks_something_is_one_line(keys, line):
    with pytest.raises(ValueError, match=line):
        sweep(compose_mapping("sweep", keys))


@pytest.fixture
def config(tiny_config: Callable[..., PretrainConfig], tiny_recording: Path, tmp_path: Path) -> SweepConfig:
    tiny = tiny_config(tmp_path / "unused", {"epochs": 1})
    tiny.out = None
    measured = {"splits": 2, "halvings": 4, "components": 5, "layers": ["layer1", "layer4"], "baselines": False}
    values = {"recording": str(tiny_recording), "stimulus_view": "whole", "accelerator": "cpu", **measured}
    config = compose_mapping(
        "sweep", {"grid": {LR: [0.003, 0.01]}, "predictivity": values, "out": str(tmp_path / "sweep")}
    )
    config.pretrain = tiny
    return config


@pytest.mark.slow
def test_a_real_sweep_scores_each_point_and_does_not_train_twice(config, tmp_path):
    folder, table = sweep(config)
    assert folder == tmp_path / "sweep"
    assert set(table[LR]) == {0.003, 0.01}
    assert table["predictivity"].notna().all()
    assert table["predictivity"].is_monotonic_decreasing
    assert table["rankme"].notna().all()
    pd.testing.assert_frame_equal(pd.read_csv(folder / "trials.csv")[[LR, "predictivity"]], table[[LR, "predictivity"]])
    steps = "trials/*/pretrain/checkpoints/step-*.pt"
    checkpoints = {path: path.stat().st_mtime_ns for path in folder.glob(steps)}
    assert len(checkpoints) == 2
    again_folder, again = sweep(config)
    assert again_folder == folder
    pd.testing.assert_frame_equal(again, table)
    assert {path: path.stat().st_mtime_ns for path in folder.glob(steps)} == checkpoints
    config.grid = {LR: [0.003]}
    with pytest.raises(FileExistsError, match="is a run with grid"):
        sweep(config)


@pytest.mark.slow
def test_a_failed_trial_is_named_and_runs_again(config, tmp_path):
    config.grid = {"pretrain.batch_size": [8, 51]}
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"1 of 2 trials failed: batch_size=51; see .*ray"):
            sweep(config)
    table = pd.read_csv(tmp_path / "sweep" / "trials.csv")
    assert table["predictivity"].notna().tolist() == [True, False]
    assert table["pretrain.batch_size"].tolist() == [8, 51]


@pytest.mark.slow
def test_a_sweep_of_fits_is_ranked_by_their_validation(tmp_path):
    fits = TINY | {"recording": str(write_images(tmp_path / "images")), "model": "sensorium2022_cnn", "epochs": 1}
    fits |= {"core": {"args": {"channels": 4, "layers": 2}}, "window": {}, "batch_size": 16}
    lr = "fit.optimizer.lr"
    folder, table = sweep(
        compose_mapping(
            "sweep", {"stage": "fit", "fit": fits, "grid": {lr: [1e-5, 0.01]}, "out": str(tmp_path / "out")}
        )
    )
    assert set(table[lr]) == {1e-5, 0.01}
    assert table["single_trial_correlation"].is_monotonic_decreasing
    assert len(list(folder.glob("trials/*/fit/checkpoints/best.pt"))) == 2
