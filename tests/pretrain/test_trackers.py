"""Trackers: what each stores, that a resumed run is the same run, what is said where one is missing, away or broken."""

import json
import logging
import os
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

from pretrain import trackers
from pretrain.config import TRACKER_NAMES, PretrainConfig
from pretrain.log import Log
from pretrain.trackers import TRACKERS, MLflow, WeightsAndBiases, first_line, open_trackers, require_installed


@dataclass
class Inner:
    rate: float = 0.5


@dataclass
class Config:
    """Nested keys as a run has them."""

    name: str = "tiny"
    inner: Inner = field(default_factory=Inner)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}


def test_the_names_are_those_of_the_config():
    assert tuple(TRACKERS) == TRACKER_NAMES
    assert set(PretrainConfig().logging.trackers) <= set(TRACKERS)


def test_tensorboard_shows_each_step_once_after_resuming(tmp_path):
    (board,) = open_trackers(["tensorboard"], tmp_path, Config(), step=0)
    for step in (1, 2, 3):
        board.add(step, {"loss": step / 2, "lr": 0.25})
    board.close(failed=True)
    (board,) = open_trackers(["tensorboard"], tmp_path, Config(), step=1)
    board.add(2, {"loss": 8.0})
    board.close()
    shown = scalars(tmp_path / "tensorboard")
    assert shown["loss"] == [(1, 0.5), (2, 8.0)]
    assert shown["lr"] == [(1, 0.25)]


def test_a_name_given_twice_is_opened_once(tmp_path):
    assert len(open_trackers(["tensorboard", "tensorboard"], tmp_path, Config(), 0)) == 1


@pytest.mark.parametrize("folder_of_that_name", [False, True])
def test_what_is_not_installed_is_one_line_before_anything_is_opened(tmp_path, monkeypatch, folder_of_that_name):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "modules", {name: m for name, m in sys.modules.items() if name != "wandb"})
    if folder_of_that_name:
        (tmp_path / "wandb").mkdir()
    with pytest.raises(ValueError, match=r"names wandb, which is not installed; say pip install 'murine\[wandb\]', or"):
        open_trackers(["tensorboard", "wandb"], tmp_path / "run", Config(), 0)
    assert not (tmp_path / "run").exists()


def test_what_is_installed_is_not_complained_about():
    require_installed(["tensorboard"])


@dataclass
class Kept:
    """A tracker that keeps what it is given, and raises at one step and, where asked, at the end."""

    name: str
    breaks_at: int | None = None
    breaks_at_end: bool = False
    steps: list[int] = field(default_factory=list)
    ends: list[bool] = field(default_factory=list)

    def add(self, step: int, values: dict[str, float]) -> None:
        self.steps.append(step)
        if step == self.breaks_at:
            raise ConnectionResetError("Connection lost\nand more")

    def close(self, failed: bool = False) -> None:
        self.ends.append(failed)
        if self.breaks_at_end:
            raise TimeoutError("no answer")


def test_a_tracker_that_breaks_is_left_out_and_training_goes_on(tmp_path, capsys):
    good, broken = Kept("good"), Kept("W&B", breaks_at=2, breaks_at_end=True)
    log = Log(tmp_path, 0, [broken, good], "images")
    for step in (1, 2, 3, 4):
        log.add(step, 1, 8 * step, {"loss": 1.0})
    log.close(failed=False)
    assert (broken.steps, broken.ends) == ([1, 2], [True])
    assert (good.steps, good.ends) == ([1, 2, 3, 4], [False])
    assert list(pd.read_csv(tmp_path / "metrics.csv")["step"]) == [1, 2, 3, 4]
    assert capsys.readouterr().err == (
        "WARNING: W&B takes no more of this run (ConnectionResetError: Connection lost); metrics.csv has the figures\n"
    )


@pytest.mark.parametrize("failed", [False, True])
def test_a_tracker_that_breaks_at_the_end_does_not_end_the_training(tmp_path, capsys, failed):
    good, broken = Kept("good"), Kept("W&B", breaks_at_end=True)
    Log(tmp_path, 0, [broken, good], "images").close(failed)
    assert broken.ends == good.ends == [failed]
    assert capsys.readouterr().err.count("WARNING: W&B takes no more of this run (TimeoutError: no answer)") == 1


class LostRun:
    """A W&B run whose helper process has died."""

    def define_metric(self, *args: str, **options: str) -> None:
        """Was done before."""

    def finish(self, exit_code: int) -> None:
        raise ConnectionResetError("Connection lost")


@pytest.mark.parametrize("end", [ConnectionResetError, SystemExit])
def test_wandb_whose_helper_died_leaves_nothing_for_the_end_of_the_process(tmp_path, monkeypatch, end):
    torn_down: list[bool] = []

    def teardown() -> None:
        torn_down.append(True)
        raise end

    wandb: Any = ModuleType("wandb")
    wandb.init, wandb.Settings, wandb.Error = lambda **options: LostRun(), dict, RuntimeError
    wandb.teardown = teardown
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    tracker = WeightsAndBiases(tmp_path, Config(), 0)
    with pytest.raises(ConnectionResetError, match="Connection lost"):
        tracker.close()
    assert torn_down == [True]


@pytest.fixture
def offline(monkeypatch) -> Iterator[None]:
    """W&B that writes files only."""
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield
    wandb.teardown()  # it reads its environment once


def wandb_messages(data: bytes) -> Iterator[bytes]:
    """The messages of an offline run's file: LevelDB's log format, blocks of 32 KiB, behind 7 bytes of W&B's own.

    A piece has 4 bytes of checksum, 2 of length and 1 that says whether it is whole (1), first (2), middle or last (4).
    """
    place, message = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        message += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield message
            message = b""


def wandb_records(run_folder: Path) -> list:
    """All records of the offline runs, in their order."""
    from wandb.proto.wandb_internal_pb2 import Record

    files = sorted(run_folder.glob("wandb/offline-run-*/*.wandb"))
    return [Record.FromString(message) for path in files for message in wandb_messages(path.read_bytes())]


def test_wandb_logs_to_the_same_run_after_resuming(tmp_path, offline):
    for first, loss in ((1, 4.0), (2, 2.0)):
        (tracker,) = open_trackers(["wandb"], tmp_path, Config(), first - 1)
        tracker.add(first, {"loss": loss})
        tracker.close()
        # Their names have whole seconds, which two trainings of a person would not share.
        (files,) = (tmp_path / "wandb").glob("offline-run-*-????????")
        files.rename(files.with_name(f"offline-run-{first}"))
    records = wandb_records(tmp_path)
    runs = [record.run for record in records if record.HasField("run")]
    stored = json.loads((tmp_path / "trackers.json").read_text())["wandb"]
    assert {run.run_id for run in runs} == {stored}
    assert {(run.project, run.display_name) for run in runs} == {("murine", tmp_path.name)}
    config = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert (config["name"], config["inner"]) == ("tiny", {"rate": 0.5})
    rows = [
        {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 4.0), (2, 2.0)]


def test_wandb_without_a_user_is_one_line(tmp_path, offline, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("NETRC", raising=False)
    with pytest.raises(ValueError, match=r"W&B does not start \(.*\); say `wandb login`, set WANDB_MODE=offline, or"):
        open_trackers(["wandb"], tmp_path, Config(), 0)


class LostClient:
    """An MLflow client whose server takes no figures; it keeps how often MLflow was told to try by itself."""

    def __init__(self, uri: str) -> None:
        self.retries = os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES")

    def update_run(self, identity: str, status: str) -> None:
        """Was there at the start."""

    def log_batch(self, identity: str, metrics: list[Any]) -> None:
        raise TypeError("the answer is a web page")


@pytest.fixture
def lost(tmp_path, monkeypatch) -> Path:
    """A run folder whose MLflow server takes no figures."""
    mlflow, entities, exceptions = (ModuleType(f"mlflow{part}") for part in ("", ".entities", ".exceptions"))
    for module in (mlflow, entities, exceptions):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    vars(mlflow).update(
        MlflowClient=LostClient, is_tracking_uri_set=lambda: True, get_tracking_uri=lambda: "http://127.0.0.1:9"
    )
    vars(entities)["Metric"], vars(exceptions)["MlflowException"] = lambda *parts: parts, RuntimeError
    (tmp_path / "trackers.json").write_text(json.dumps({"mlflow": "0" * 32}))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")  # so that it is put back
    return tmp_path


def test_mlflow_tries_twice_more_by_itself_unless_told_otherwise(lost, monkeypatch):
    assert MLflow(lost, Config(), 0).client.retries == "7"
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    assert MLflow(lost, Config(), 0).client.retries == "2"


def test_figures_wait_for_mlflow_whatever_it_raises(lost, capsys):
    tracker = MLflow(lost, Config(), 0)
    tracker.add(1, {"loss": 4.0})
    tracker.add(2, {"loss": 3.0})
    tracker.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "takes no figures (the answer is a web page); they wait" in lines[0]
    assert lines[1] == "WARNING: 2 figures did not reach MLflow at http://127.0.0.1:9; metrics.csv has them"


def test_tracebacks_of_the_database_are_not_printed(lost):
    MLflow(lost, Config(), 0)
    assert not logging.getLogger("mlflow.store.db.utils").isEnabledFor(logging.ERROR)


def test_the_line_that_is_quoted_says_what_happened():
    hint = "(raised as a result of Query-invoked autoflush; consider using a session.no_autoflush block)"
    assert first_line(ValueError(f"{hint}\n(sqlite3.OperationalError) disk I/O error\n[SQL: ...]")) == (
        "(sqlite3.OperationalError) disk I/O error"
    )
    assert first_line(ValueError()) == "ValueError"


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory) -> Path:
    """MLflow's database without runs, whose tables take seconds to make."""
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    pytest.importorskip("sqlalchemy", reason="sqlalchemy, which MLflow keeps local runs with, is not installed")
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def folder(tmp_path, empty_store, monkeypatch) -> Path:
    """A run folder beside MLflow's database, without a server."""
    monkeypatch.setattr("mlflow.is_tracking_uri_set", lambda: False)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def history(tracker: MLflow, name: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in tracker.client.get_metric_history(tracker.identity, name)]


def test_mlflow_logs_to_the_same_run_after_resuming(folder):
    (tracker,) = open_trackers(["mlflow"], folder, Config(), 0)
    tracker.add(1, {"loss": 4.0, "lr": 0.5})
    tracker.close(failed=True)
    assert tracker.client.get_run(tracker.identity).info.status == "FAILED"
    (resumed,) = open_trackers(["mlflow"], folder, Config(), 1)
    assert resumed.client.get_run(tracker.identity).info.status == "RUNNING"
    resumed.add(2, {"loss": 2.0})
    resumed.close()
    run = resumed.client.get_run(tracker.identity)
    assert resumed.identity == tracker.identity
    assert history(resumed, "loss") == [(1, 4.0), (2, 2.0)]
    assert run.data.params == {"name": "tiny", "inner.rate": "0.5"}
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    assert resumed.uri == f"sqlite:///{folder.parent / 'mlflow.db'}"


def test_the_whole_config_of_a_pretraining_fits_into_mlflow(folder, monkeypatch):
    monkeypatch.setattr(trackers, "MOST_PARAMS", 40)
    tracker = MLflow(folder, PretrainConfig(), 0)
    params = tracker.client.get_run(tracker.identity).data.params
    assert params["optimizer.lr"] == "0.003"
    assert len(params) > 40


def test_figures_that_mlflow_does_not_take_are_sent_later(folder, monkeypatch, capsys):
    tracker = MLflow(folder, Config(), 0)
    send = tracker.client.log_batch

    def away(*args, **kwargs):
        raise ConnectionError("the server is away\nfor a while")

    tracker.client.log_batch = away
    tracker.add(1, {"loss": 4.0})
    monkeypatch.setattr(trackers, "RETRY_AFTER_S", -1.0)
    tracker.add(2, {"loss": 3.0})
    assert capsys.readouterr().err.count("takes no figures (the server is away); they wait to be sent later") == 1
    tracker.client.log_batch = send
    monkeypatch.setattr(trackers, "RETRY_AFTER_S", 1000.0)
    tracker.add(3, {"loss": 2.0})
    assert history(tracker, "loss") == []
    tracker.close()
    assert history(tracker, "loss") == [(1, 4.0), (2, 3.0), (3, 2.0)]
    assert capsys.readouterr().err == ""


def test_a_database_that_breaks_is_two_lines(folder, capfd):
    tracker = MLflow(folder, Config(), 0)
    with sqlite3.connect(folder.parent / "mlflow.db") as database:
        database.executescript("drop table metrics; drop table latest_metrics")
    capfd.readouterr()
    tracker.add(1, {"loss": 4.0})
    tracker.close()
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "takes no figures ((sqlite3.OperationalError) no such table: metrics); they wait" in lines[0]
    assert "1 figures did not reach MLflow" in lines[1]


def test_more_figures_than_mlflow_takes_at_once(folder, monkeypatch):
    monkeypatch.setattr(trackers, "MOST_METRICS", 3)
    tracker = MLflow(folder, Config(), 0)
    tracker.add(1, {f"figure{number}": float(number) for number in range(7)})
    assert tracker.client.get_run(tracker.identity).data.metrics == {f"figure{n}": float(n) for n in range(7)}


def test_a_run_that_mlflow_does_not_know_is_one_line(folder):
    (folder / "trackers.json").write_text(json.dumps({"mlflow": "0" * 32}))
    with pytest.raises(ValueError, match=r"MLflow at sqlite:.*does not start \(.*0000.*\); set MLFLOW_TRACKING_URI"):
        open_trackers(["mlflow"], folder, Config(), 0)
