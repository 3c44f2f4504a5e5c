"""What the engine does around the steps of a run: the disk fills, memory ends, averages, probes by step, profiles."""

import os
import resource
import signal
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch

from pretrain.checkpoint import load_trained_backbone, newest_checkpoint, read_checkpoint
from pretrain.config import PretrainConfig
from pretrain.loop import Training, TrainingStopped
from pretrain.run import pretrain
from tests.pretrain.runs import (
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
        line = r"no space for the checkpoint of step 12 in .*; the last good checkpoint is .*step-000000006.pt"
        with pytest.raises(TrainingStopped, match=line):
            pretrain(config)
    small_disk(None)
    folder = tmp_path / "run" / "checkpoints"
    assert newest_checkpoint(folder).name == "step-000000006.pt"
    assert not list(folder.glob(".*"))
    pretrain(config)
    require_same_run(tiny_run, tmp_path / "run")


def test_memory_that_ends_is_one_line_with_what_to_change(tiny_config, tmp_path, monkeypatch):
    def out_of_memory(self: Training, batch: dict) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB. GPU 0 has ...")

    monkeypatch.setattr(Training, "gradients", out_of_memory)
    with pytest.raises(TrainingStopped, match=r"no room for 3.00 GiB more with batch_size=8; set b") as raised:
        pretrain(tiny_config(tmp_path / "run"))
    assert "\n" not in str(raised.value)


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
