"""Run folders: one config each, complete enough to run again, and metrics that survive a kill."""

import csv
import json
from pathlib import Path

import pytest
import yaml

from pretrain.config import PretrainConfig
from pretrain.run_folder import MetricsFile, open_run
from ray_jobs.config import compose


def config(out: Path | None, **keys: object) -> PretrainConfig:
    return PretrainConfig(out=out and str(out), **keys)


def test_the_config_in_the_folder_is_complete_and_runs_again(tmp_path):
    original = config(tmp_path / "run", epochs=7, model_args={"pool_size": 1})
    original.optimizer.decay_epochs = [3, 5]
    run = open_run(original, "pretrain", "x")
    assert compose("pretrain", [f"recipe={run.path / 'config.yaml'}"]) == original
    assert [path.name for path in run.path.iterdir()] == ["config.yaml"]


def test_the_same_config_opens_the_same_folder_by_its_hash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = open_run(config(None), "pretrain", "timm/net-loss").path
    assert first.parent == tmp_path / "runs"
    assert first.name.startswith("timm-net-loss-")
    assert open_run(config(None), "pretrain", "timm/net-loss").path == first
    assert open_run(config(None, seed=2), "pretrain", "timm/net-loss").path != first


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"epochs": 9, "seed": 5}, "epochs=200, not 9"),
        ({"model_args": {"pool_size": 1}}, "model_args.pool_size=None, not 1"),
        ({"precision": "bf16-mixed"}, "precision='32-true', not 'bf16-mixed'"),
    ],
)
def test_another_config_is_refused_by_its_first_difference(tmp_path, keys, line):
    out = tmp_path / "run"
    open_run(config(out), "pretrain", "x")
    before = (out / "config.yaml").read_bytes()
    with pytest.raises(FileExistsError, match=f"{line}.*choose another out=, or the same config to resume it"):
        open_run(config(out, **keys), "pretrain", "x")
    assert (out / "config.yaml").read_bytes() == before


def test_a_nested_difference_is_named_in_full(tmp_path):
    open_run(config(tmp_path / "run"), "pretrain", "x")
    other = config(tmp_path / "run")
    other.optimizer.lr = 1.0
    with pytest.raises(FileExistsError, match=r"optimizer.lr=0.003, not 1.0"):
        open_run(other, "pretrain", "x")


def test_a_run_that_is_older_than_a_key_had_its_default(tmp_path):
    file = open_run(config(tmp_path / "run", epochs=7), "pretrain", "x").path / "config.yaml"
    older = yaml.safe_load(file.read_text())
    del older["average"]["initial"], older["compile"]
    file.write_text(yaml.safe_dump(older))
    assert open_run(config(tmp_path / "run", epochs=7), "pretrain", "x").path == file.parent
    with pytest.raises(FileExistsError, match="compile=False, not True"):
        open_run(config(tmp_path / "run", epochs=7, compile=True), "pretrain", "x")


def test_a_moved_run_folder_is_still_its_configs(tmp_path):
    open_run(config(tmp_path / "run"), "pretrain", "x")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert open_run(config(tmp_path / "moved"), "pretrain", "x").path == tmp_path / "moved"


def test_what_is_no_run_folder_is_refused_and_an_empty_folder_taken(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "a.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name in ("thesis", "file"):
        with pytest.raises(FileExistsError, match="exists and is not a run folder; choose another out="):
            open_run(config(tmp_path / name), "pretrain", "x")
    assert open_run(config(tmp_path / "empty"), "pretrain", "x").path == tmp_path / "empty"


def test_a_kill_while_the_config_was_written_does_not_block_the_folder(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.yaml.77.tmp").write_text("model: al")
    run = open_run(config(tmp_path / "run"), "pretrain", "x")
    assert [path.name for path in run.path.iterdir()] == ["config.yaml"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".notes.tmp").write_text("x")
    with pytest.raises(FileExistsError, match="is not a run folder"):
        open_run(config(tmp_path / "other"), "pretrain", "x")
    assert (tmp_path / "other" / ".notes.tmp").exists()


def test_why_a_run_stopped_is_forgotten_when_it_goes_on(tmp_path):
    open_run(config(tmp_path / "run"), "pretrain", "x").status(state="failed", message="the loss is nan")
    open_run(config(tmp_path / "run"), "pretrain", "x").status(state="finished")
    assert "message" not in json.loads((tmp_path / "run" / "status.json").read_text())


def test_status_adds_up_and_keeps_the_first_start(tmp_path):
    run = open_run(config(tmp_path / "run"), "pretrain", "x")
    run.status(images=5)
    first = json.loads((run.path / "status.json").read_text())
    assert first["kind"] == "pretrain"
    assert first["state"] == "running"
    assert first["versions"].keys() > {"murine", "torch", "numpy", "python"}
    (run.path / "status.json").write_text(json.dumps(first | {"started": "2000-01-01T00:00:00+00:00"}))
    again = open_run(config(tmp_path / "run"), "pretrain", "x")
    again.status(state="finished")
    second = json.loads((run.path / "status.json").read_text())
    assert (second["state"], second["images"], second["started"][:4]) == ("finished", 5, "2000")


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_have_columns_in_order_of_appearance(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.csv", 0)
    metrics.add({"step": 1, "loss": 0.5})
    metrics.add({"step": 2, "knn": 0.1})
    metrics.add({"step": 3, "loss": 0.25})
    assert (tmp_path / "metrics.csv").read_text().split() == ["step,loss,knn", "1,0.5,", "2,,0.1", "3,0.25,"]


def test_metrics_opened_at_a_step_forget_what_came_later(tmp_path):
    path = tmp_path / "metrics.csv"
    metrics = MetricsFile(path, 0)
    for step in range(1, 6):
        metrics.add({"step": step, "loss": step / 2})
    assert [row["step"] for row in table(path)] == list("12345")
    again = MetricsFile(path, 3)
    again.add({"step": 4, "loss": 7.0})
    assert [(row["step"], row["loss"]) for row in table(path)] == [
        ("1", "0.5"),
        ("2", "1.0"),
        ("3", "1.5"),
        ("4", "7.0"),
    ]


@pytest.mark.parametrize("cut", range(1, 24))
def test_metrics_cut_short_by_a_kill_are_taken_up_again(tmp_path, cut):
    path = tmp_path / "metrics.csv"
    metrics = MetricsFile(path, 0)
    for step in (8, 9):
        metrics.add({"step": step, "loss": 0.5, "lr": 0.125})
    whole = path.read_bytes()
    metrics.add({"step": 10, "loss": 0.5, "lr": 0.125})
    path.write_bytes(path.read_bytes()[: max(len(whole), path.stat().st_size - cut)])
    # The row of step 10 was written after the checkpoint of step 9, from which the run goes on.
    MetricsFile(path, 9).add({"step": 10, "loss": 0.25, "lr": 0.125})
    assert [row["loss"] for row in table(path)] == ["0.5", "0.5", "0.25"]


def test_an_empty_metrics_file_is_taken_up(tmp_path):
    (tmp_path / "metrics.csv").write_bytes(b"")
    MetricsFile(tmp_path / "metrics.csv", 4).add({"step": 5, "loss": 1.0})
    assert table(tmp_path / "metrics.csv") == [{"step": "5", "loss": "1.0"}]


def test_config_yaml_is_plain_yaml(tmp_path):
    run = open_run(config(tmp_path / "run"), "pretrain", "x")
    values = yaml.safe_load((run.path / "config.yaml").read_text())
    assert values["optimizer"]["lr"] == 0.003
    assert values["out"] == str(tmp_path / "run")
