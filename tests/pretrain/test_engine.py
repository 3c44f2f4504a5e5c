"""What the engine does around the steps of a run: the disk fills, memory ends, averages, probes by step, profiles."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning_fabric import Fabric

from pretrain.checkpoint import load_trained_backbone, newest_checkpoint, read_checkpoint
from pretrain.config import PretrainConfig
from pretrain.loop import Training, TrainingStopped
from pretrain.run import pretrain
from ray_jobs.config import to_yaml
from tests.pretrain.runs import (
    ROOT,
    STEPS,
    Crash,
    crash_at,
    final_state,
    metrics,
    require_same_run,
    run_until_finished,
    saving_at_each_step,
    start,
)

MakeConfig = Callable[..., PretrainConfig]


def status_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "status.json").read_text())


@pytest.fixture
def small_disk():
    """Lets files grow to 1 MB and no further, as a disk that is full; returns what lifts the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(bytes: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft if bytes is None else bytes, hard))

    yield limit
    limit(None)


def test_a_full_disk_stops_the_run_with_the_last_checkpoint_intact(
    tiny_run, tiny_config, tmp_path, monkeypatch, small_disk
):
    original = Training.train_step

    def filling(self: Training, batch: dict) -> None:
        original(self, batch)
        if self.step == 8:
            small_disk(2**20)

    config = tiny_config(tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr(Training, "train_step", filling)
        line = (
            r"no space in .*run/checkpoints/step-000000012.pt at step 12 \(File too large\); make room, "
            r".* checkpoint is .*step-000000006.pt"
        )
        with pytest.raises(TrainingStopped, match=line):
            pretrain(config)
    small_disk(None)
    folder = tmp_path / "run" / "checkpoints"
    assert newest_checkpoint(folder).name == "step-000000006.pt"
    assert not list(folder.glob(".*"))
    pretrain(config)
    require_same_run(tiny_run, tmp_path / "run")


@pytest.mark.parametrize("trackers", [["tensorboard"], []])
@pytest.mark.parametrize("step", [6, 8])
def test_a_disk_that_takes_nothing_at_all_is_one_line(
    tiny_run, tiny_config, tmp_path, monkeypatch, small_disk, trackers, step
):
    """Where it is met: in metrics.csv, the trackers, a checkpoint or a picture; the status cannot be written either."""
    config = tiny_config(tmp_path / "run", {"logging.trackers": trackers})
    original = Training.train_step

    def filling(self: Training, batch: dict) -> None:
        original(self, batch)
        if self.step == step:
            small_disk(64)

    with monkeypatch.context() as patched:
        patched.setattr(Training, "train_step", filling)
        with pytest.raises(TrainingStopped, match=rf"no space in .* at step {step} .*make room, and the same command"):
            pretrain(config)
    small_disk(None)
    pretrain(config)
    require_same_run(tiny_run, tmp_path / "run")


def test_memory_that_ends_is_one_line_with_what_to_change(tiny_config, tmp_path, monkeypatch):
    def out_of_memory(self: Training, batch: dict) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB. GPU 0 has ...")

    monkeypatch.setattr(Training, "gradients", out_of_memory)
    with pytest.raises(TrainingStopped, match=r"no room for 3.00 GiB more with batch_size=8; set b") as raised:
        pretrain(tiny_config(tmp_path / "run"))
    assert "\n" not in str(raised.value)
    assert "auto" not in str(raised.value), "which is for a GPU"


def test_what_is_set_already_is_not_proposed_against_a_lack_of_memory(tiny_config, tmp_path, monkeypatch):
    def out_of_memory(self: Training, batch: dict) -> None:
        raise MemoryError("Unable to allocate")

    monkeypatch.setattr(Training, "gradients", out_of_memory)
    keys = {"accumulate": 2, "precision": "bf16-mixed"}
    line = r"set batch_size=4, or keep it with accumulate=4, activation_checkpointing=true or a smaller views.size; the"
    with pytest.raises(TrainingStopped, match=line):
        pretrain(tiny_config(tmp_path / "run", keys))


def test_memory_that_ends_before_the_first_step_is_one_line(tiny_config, tmp_path, monkeypatch):
    def out_of_memory(self: Fabric, *arguments: object) -> None:
        torch.empty(2**52)

    monkeypatch.setattr(Fabric, "setup", out_of_memory)
    with pytest.raises(TrainingStopped, match=r"no room for [\d,.]+ GiB more for the weights, the heads and what"):
        pretrain(tiny_config(tmp_path / "run"))
    assert status_of(tmp_path / "run")["state"] == "failed"


@pytest.mark.parametrize(
    ("keys", "steps"),
    [
        ({"log_every": 10}, [6, 10, 12]),  # an epoch has 6 steps
        ({"log_every": 5}, [5, 10, 12]),
        ({"log_every": 100, "epochs": 1}, [6]),
    ],
)
def test_a_row_is_logged_at_the_last_step_and_in_each_epoch(tiny_config, tmp_path, keys, steps):
    table = metrics(pretrain(tiny_config(tmp_path / "run", keys)))
    assert table[table["loss"].notna()]["step"].tolist() == steps


def test_why_a_run_failed_is_told_with_its_last_good_checkpoint_until_it_goes_on(tiny_config, tmp_path, monkeypatch):
    original = Training.gradients

    def breaking(self: Training, batch: dict) -> dict[str, torch.Tensor]:
        values = original(self, batch)
        return values | {"loss": values["loss"] * float("nan")} if self.step == 7 else values

    with monkeypatch.context() as patched:
        patched.setattr(Training, "gradients", breaking)
        with pytest.raises(TrainingStopped, match="the loss is nan at step 8") as raised:
            pretrain(tiny_config(tmp_path / "run"))
    status = status_of(tmp_path / "run")
    assert status["message"] == str(raised.value)
    assert status["message"].endswith("step-000000006.pt")
    pretrain(tiny_config(tmp_path / "run"))
    status = status_of(tmp_path / "run")
    assert status["state"] == "finished"
    assert "message" not in status


def test_the_end_is_told_once_when_all_steps_are_done(tiny_config, tmp_path, monkeypatch):
    original, told = Training.take_steps, []

    def with_end(self: Training) -> None:
        self.task.at_end = lambda: told.append(self.step)
        original(self)

    monkeypatch.setattr(Training, "take_steps", with_end)
    with monkeypatch.context() as patched:
        crash_at(patched, "train_step", {9})
        with pytest.raises(Crash):
            pretrain(tiny_config(tmp_path / "run"))
    assert told == []
    for _ in range(2):
        pretrain(tiny_config(tmp_path / "run"))
    assert told == [STEPS]


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    # Another file of that name, because the best epoch's may be the same one.
    path.unlink()
    path.write_bytes(data)


@pytest.mark.parametrize(("keep", "goes_on"), [(1, "best.pt"), (2, "step-000000009.pt")])
def test_a_damaged_checkpoint_does_not_count_as_one_that_is_kept(
    tiny_run, tiny_config, tmp_path, monkeypatch, capsys, keep, goes_on
):
    """Best is the first epoch, of 6 steps; a row and a checkpoint of each step from then on are written again."""
    config = saving_at_each_step(tiny_config(tmp_path / "run", {"checkpoint.keep": keep}))
    with monkeypatch.context() as patched:
        crash_at(patched, "save", {10})
        with pytest.raises(Crash):
            pretrain(config)
    folder = tmp_path / "run" / "checkpoints"
    damage(folder / "step-000000010.pt")
    capsys.readouterr()
    with monkeypatch.context() as patched:
        crash_at(patched, "save", {3})
        with pytest.raises(Crash):
            pretrain(config)
    assert f"going on from {folder / goes_on}" in capsys.readouterr().err
    newest = 9 if goes_on == "best.pt" else 12
    expected = [f"step-{step:09d}.pt" for step in range(newest - keep + 1, newest + 1)]
    assert sorted(path.name for path in folder.glob("step-*.pt")) == expected
    assert (folder / "step-000000010.pt.damaged").exists()
    pretrain(config)
    require_same_run(tiny_run, tmp_path / "run")


def test_a_run_of_which_no_checkpoint_is_intact_does_not_start_from_zero(tiny_config, tmp_path):
    config = tiny_config(tmp_path / "run", {"epochs": 1})
    folder = pretrain(config)
    for path in (folder / "checkpoints").glob("*.pt"):
        damage(path)
    rows = (folder / "metrics.csv").read_bytes()
    line = r"no checkpoint in .* is intact \(step-000000006.pt, best.pt\); to train from the start remove that folder"
    for _ in range(2):
        with pytest.raises(TrainingStopped, match=line) as raised:
            pretrain(config)
    assert "\n" not in str(raised.value)
    assert (folder / "metrics.csv").read_bytes() == rows
    assert status_of(folder)["state"] == "failed"


# The command with a loss that is no number at one step of one process; rank 0 is the one that starts the other.
BREAKING_COMMAND = """
import os
import sys
from pretrain.loop import Training
from ray_jobs.cli import main

original = Training.gradients

def breaking(self, batch):
    values = original(self, batch)
    if self.step == {step} - 1 and self.fabric.global_rank == {rank}:
        {fault}
    return values

Training.gradients = breaking
sys.exit(main())
"""


def breaking_run(config: PretrainConfig, folder: Path, step: int, rank: int, fault: str) -> tuple[int, list[str]]:
    """Exit code and lines of a run of two processes, one of which has a fault at a step."""
    (folder / "run.yaml").write_text(to_yaml(config))
    (folder / "murine.py").write_text(BREAKING_COMMAND.format(step=step, rank=rank, fault=fault))
    command = [sys.executable, str(folder / "murine.py"), "pretrain", f"recipe={folder / 'run.yaml'}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    return done.returncode, (done.stdout + done.stderr).splitlines()


NO_NUMBER = "values['loss'] = values['loss'] * float('nan')"


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "log_every"), [(1, 1), (1, 5), (0, 5)])
def test_two_processes_stop_at_the_first_loss_that_is_no_number_in_any(tiny_config, tmp_path, rank, log_every):
    keys = {"devices": 2, "log_every": log_every, "logging.trackers": []}
    code, lines = breaking_run(tiny_config(tmp_path / "run", keys), tmp_path, 8, rank, NO_NUMBER)
    status = status_of(tmp_path / "run")
    assert code == 1
    assert status["state"] == "failed"
    assert "the loss is nan at step 8, whose batch held index (4,)" in status["message"]
    assert status["message"].endswith("step-000000006.pt")
    assert [status["message"] in line for line in lines].count(True) == 1, lines
    assert not any("gloo/" in line or line.startswith("process") for line in lines), lines


@pytest.mark.slow
def test_what_ends_one_process_alone_is_said_by_it_and_noted(tiny_config, tmp_path):
    fault = "raise MemoryError('Tried to allocate 3.00 GiB')"
    keys = {"devices": 2, "logging.trackers": []}
    code, lines = breaking_run(tiny_config(tmp_path / "run", keys), tmp_path, 8, 1, fault)
    assert code == 1
    said = [line for line in lines if line.startswith("process 1: ")]
    assert len(said) == 1
    assert "has no room for 3.00 GiB more with batch_size=8" in said[0]
    status = status_of(tmp_path / "run")
    assert status["state"] == "failed"
    assert "another process of this training has ended, and its own line says why" in status["message"]


@pytest.mark.slow
def test_two_processes_say_each_line_once(tiny_config, tmp_path):
    config = tiny_config(tmp_path / "run", {"devices": 2, "epochs": 1, "logging.trackers": []})
    code, lines = breaking_run(config, tmp_path, 100, 0, "pass")
    assert (code, lines.count(str(tmp_path / "run"))) == (0, 1), lines
    damage(tmp_path / "run" / "checkpoints" / "step-000000006.pt")
    code, lines = breaking_run(config, tmp_path, 100, 0, "pass")
    assert (code, lines.count(f"{tmp_path / 'run'} is complete already")) == (0, 1), lines
    damage(tmp_path / "run" / "checkpoints" / "best.pt")
    code, lines = breaking_run(config, tmp_path, 100, 0, "pass")
    assert (code, ["is intact (best.pt, step-000000006.pt.damaged)" in line for line in lines].count(True)) == (1, 1)
    config.epochs = 2
    code, lines = breaking_run(config, tmp_path, 100, 0, "pass")
    assert (code, [line.startswith("murine pretrain: ") for line in lines].count(True)) == (2, 1), lines


def test_features_that_are_no_numbers_stop_the_run_with_its_step(tiny_config, tmp_path, monkeypatch):
    """Running statistics can break in evaluation alone."""
    original = Training.train_step

    def breaking(self: Training, batch: dict) -> None:
        original(self, batch)
        if self.step == 6:
            next(b for n, b in self.task.objective.backbone.named_buffers() if n.endswith("running_var")).fill_(-1)

    monkeypatch.setattr(Training, "train_step", breaking)
    with pytest.raises(TrainingStopped, match=r"features of .* are not finite .* measured at step 6; the last good"):
        pretrain(tiny_config(tmp_path / "run"))


@pytest.mark.parametrize("workers", [0, 1])
def test_images_that_are_held_and_images_that_are_read_give_the_same_numbers(tiny_run, tiny_config, tmp_path, workers):
    keys = {"data.memory_share": 0.0, "data.device_share": 0.0, "data.workers": workers}
    require_same_run(tiny_run, pretrain(tiny_config(tmp_path / "read", keys)))


def test_an_average_is_measured_saved_and_resumes(tiny_config, tmp_path, monkeypatch):
    keys = {"average.decay": 0.9}
    whole = pretrain(tiny_config(tmp_path / "whole", keys))
    crash_at(monkeypatch, "train_step", {4, 9})
    assert run_until_finished(saving_at_each_step(tiny_config(tmp_path / "crashed", keys))) == 2
    require_same_run(whole, tmp_path / "crashed")
    assert any(name.startswith("/average/") for name in final_state(whole))
    newest = load_trained_backbone(whole).backbone.state_dict()
    averaged = load_trained_backbone(whole, averaged=True).backbone.state_dict()
    assert newest.keys() == averaged.keys()
    assert any(not torch.equal(newest[key], averaged[key]) for key in newest)


def test_a_run_without_an_average_says_so(tiny_run):
    with pytest.raises(ValueError, match=r"holds no average of weights; train with average.decay"):
        load_trained_backbone(tiny_run, averaged=True)


def test_probes_have_an_interval_of_their_own(tiny_config, tmp_path):
    keys = {"probe.every_epochs": 0, "probe.every_steps": 4, "probe.measures": ["rankme", "knn"]}
    table = metrics(pretrain(tiny_config(tmp_path / "run", keys)))
    measured = table[table["rankme"].notna()]
    assert measured["step"].tolist() == [4, 8, 12]
    assert measured["epoch"].tolist() == [0, 1, 1]
    assert "linear_accuracy" not in table


def test_parts_of_a_batch_are_logged_as_the_whole_and_what_differs_is_said(tiny_config, tmp_path, capsys):
    folder = pretrain(tiny_config(tmp_path / "run", {"accumulate": 2, "epochs": 1}))
    assert metrics(folder)["loss"].notna().sum() == 6
    assert "accumulate=2 is not the large batch: batch norm's statistics are those of a part" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"batch_size=8 cannot be cut into equal parts for devices=1 and accumulate=3"):
        pretrain(tiny_config(tmp_path / "three", {"accumulate": 3}))


def test_the_time_of_a_step_is_told_by_its_parts(tiny_run):
    table = pd.read_csv(tiny_run / "metrics.csv")
    rows = table[table["loss"].notna()]
    parts = rows[["data_ms", "views_ms", "forward_backward_ms", "optimizer_ms"]].sum(axis=1)
    assert (parts > 0).all()
    # What is left is logging and drawing: the parts are most of a step, and never more.
    whole = 1000 * 8 / rows["images_per_s"]
    assert (parts <= whole * 1.01).all()
    assert (parts / whole).median() > 0.5


def test_a_profile_can_be_asked_of_a_run_that_began_without(tiny_config, tmp_path, monkeypatch):
    keys = {"epochs": 5}
    with monkeypatch.context() as patched:
        crash_at(patched, "train_step", {7})
        with pytest.raises(Crash):
            pretrain(tiny_config(tmp_path / "run", keys))
    folder = pretrain(tiny_config(tmp_path / "run", keys | {"profile": True, "logging.trackers": []}))
    assert (folder / "trace.json.gz").stat().st_size > 1000
    assert "forward_backward" in (folder / "profile.txt").read_text()


def test_trackers_are_chosen(tiny_config, tmp_path):
    folder = pretrain(tiny_config(tmp_path / "run", {"epochs": 1, "logging.trackers": []}))
    assert not (folder / "tensorboard").exists()


@pytest.mark.parametrize(
    "keys",
    [
        {"channels_last": True},
        {"activation_checkpointing": True},
        {"optimizer.schedule": "cosine", "optimizer.schedule_by": "step"},
        {"optimizer.name": "timm/lamb"},
        {"precision": "bf16-mixed"},
    ],
)
def test_ways_to_run_train_to_the_end(tiny_config, tmp_path, keys):
    table = metrics(pretrain(tiny_config(tmp_path / "run", keys)))
    assert table["loss"].dropna().between(0, 100).all()
    if "optimizer.schedule_by" in keys:
        assert table["lr"].dropna().nunique() > 2


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"batch_size": "auto"}, "batch_size=auto looks for what fits on a GPU, and this run is on cpu"),
        ({"optimizer.name": "timm/lambb"}, "unknown optimizer.name=timm/lambb; nearest: timm/lamb"),
        ({"optimizer.schedule_args": {"cycle_limit": 2}}, "optimizer.schedule=step is not one"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_folder(tiny_config, tmp_path, keys, line):
    with pytest.raises(ValueError, match=line) as raised:
        pretrain(tiny_config(tmp_path / "run", keys))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_damaged_image_is_named_and_the_run_goes_on(tiny_shards, tiny_config, tmp_path, capsys):
    for path in tiny_shards.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shard = tmp_path / "shard-000001.tar"
    data = bytearray(shard.read_bytes())
    place = data.index(b"\xff\xd8\xff")
    data[place : place + 40] = bytes(40)
    shard.write_bytes(data)
    keys = {"data.shards": str(tmp_path), "data.labelled": None}
    with pytest.raises(ValueError, match=r"1 of 50 samples .* data.damaged_share=0.001: sample 000000016"):
        pretrain(tiny_config(tmp_path / "strict", keys))
    pretrain(tiny_config(tmp_path / "run", keys | {"data.damaged_share": 0.02}))
    assert "left out: sample 000000016" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_two_processes_killed_at_a_random_step_resume_to_the_same_numbers(tiny_config, tmp_path, seed):
    keys = {"devices": 2, "checkpoint.every_minutes": 0.001, "epochs": 4, "probe.every_epochs": 0}
    whole = start(tiny_config(tmp_path / "whole", keys), tmp_path)
    assert whole.wait(timeout=300) == 0, whole.stderr.read()
    config = tiny_config(tmp_path / "killed", keys)
    rows = int(np.random.default_rng(seed).integers(2, 20))
    process = start(config, tmp_path)
    path, deadline = tmp_path / "killed" / "metrics.csv", time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b"\n") > rows:
            # The first process has started the second, which lives in its session.
            os.killpg(process.pid, signal.SIGKILL)
            break
        time.sleep(0.002)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    again = start(config, tmp_path)
    said = again.communicate(timeout=300)[1]
    assert again.returncode == 0, said
    one, two = (read_checkpoint(newest_checkpoint(tmp_path / name / "checkpoints")) for name in ("whole", "killed"))
    assert one["step"] == two["step"] == 2 * STEPS
    for key, value in one["backbone"].items():
        assert torch.equal(value, two["backbone"][key]), key
    pd.testing.assert_frame_equal(metrics(tmp_path / "whole"), metrics(tmp_path / "killed"), check_exact=True)
