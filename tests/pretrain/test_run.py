"""Whole pretrainings: interrupted anywhere and run again they give the same numbers, and mistakes leave nothing."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pretrain import run as run_module
from pretrain.checkpoint import load_trained_backbone, newest_checkpoint, read_checkpoint
from pretrain.config import PretrainConfig, ShardsConfig
from pretrain.loop import Training, TrainingStopped
from pretrain.run import draw_views, pretrain
from pretrain.shards import write_shards
from pretrain.sources import open_source
from ray_jobs.verbs import simulated_source
from tests.pretrain.runs import (
    STEPS,
    STEPS_PER_EPOCH,
    Crash,
    crash_at,
    final_state,
    metrics,
    require_same_run,
    run_until_finished,
    saving_at_each_step,
    start,
    tensors,
)

MakeConfig = Callable[..., PretrainConfig]


def test_a_finished_run_has_all_its_files(tiny_run):
    found = {path.name for path in tiny_run.iterdir()}
    assert found >= {
        "config.yaml",
        "metrics.csv",
        "status.json",
        "checkpoints",
        "tensorboard",
        "views.png",
        "filters.png",
    }
    status = json.loads((tiny_run / "status.json").read_text())
    assert (status["state"], status["step"], status["steps"], status["epoch"]) == ("finished", STEPS, STEPS, 2)
    assert status["knn_chance"] == 0.5
    assert status["images"] == 50
    table = metrics(tiny_run)
    losses = table[table["loss"].notna()]
    assert losses["step"].tolist() == list(range(1, STEPS + 1))
    assert losses["images_seen"].tolist() == [8 * step for step in range(1, STEPS + 1)]
    assert losses["epoch"].tolist() == [0] * 6 + [1] * 6
    assert losses["loss"].tolist() == pytest.approx((losses["data_loss"] + losses["noise_loss"]).tolist(), rel=1e-6)
    probes = table[table["rankme"].notna()]
    assert probes["step"].tolist() == [6, 12]
    assert probes["knn_accuracy"].between(0, 1).all()


def test_the_weights_have_moved_and_are_finite(tiny_run, tiny_config):
    trained = load_trained_backbone(tiny_run)
    config = tiny_config(tiny_run)
    train = run_module.open_shards(config.data.shards)
    fresh = run_module.build_objective(config, trained.spec, train).backbone.state_dict()
    moved = [not torch.equal(value, fresh[name]) for name, value in trained.backbone.state_dict().items()]
    assert sum(moved) > len(moved) / 2
    assert all(value.isfinite().all() for value in final_state(tiny_run).values())


def test_the_same_config_gives_the_same_numbers(tiny_run, tiny_config, tmp_path):
    again = pretrain(tiny_config(tmp_path / "again"))
    require_same_run(tiny_run, again)
    with_workers = pretrain(tiny_config(tmp_path / "workers", {"data.workers": 1}))
    require_same_run(tiny_run, with_workers)


def test_another_seed_gives_other_numbers(tiny_run, tiny_config, tmp_path):
    other = pretrain(tiny_config(tmp_path / "other", {"seed": 2, "epochs": 1}))
    assert metrics(other)["loss"][0] != metrics(tiny_run)["loss"][0]


@pytest.mark.parametrize(
    ("method", "before", "calls", "often"),
    [
        ("train_step", False, {1, 3, 9}, True),
        ("train_step", False, {6, 12}, True),
        ("train_step", False, {9}, False),
        ("show", False, {6}, True),
        ("save", False, {2, 7, 9}, True),
        ("save", True, {1, 6}, True),
        ("measure", False, {1, 2}, True),
        ("measure", True, {2}, False),
        ("finish_epoch", True, {1, 3}, True),
        ("log_step", False, {5, 11}, True),
    ],
)
def test_crashed_anywhere_and_run_again_gives_the_same_numbers(
    tiny_run, tiny_config, tmp_path, monkeypatch, method, before, calls, often
):
    config = tiny_config(tmp_path / "crashed")
    crash_at(monkeypatch, method, calls, before)
    stopped = run_until_finished(saving_at_each_step(config) if often else config)
    assert stopped == len(calls)
    require_same_run(tiny_run, tmp_path / "crashed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize("step", [4, 6])
def test_a_signal_saves_and_stops(tiny_run, tiny_config, tmp_path, monkeypatch, number, step):
    config, original = tiny_config(tmp_path / "stopped"), Training.train_step

    def with_signal(self: Training, batch: dict) -> None:
        if self.step == step - 1:
            os.kill(os.getpid(), number)
        original(self, batch)

    monkeypatch.setattr(Training, "train_step", with_signal)
    with pytest.raises(KeyboardInterrupt, match=f"stopped by {number.name}"):
        pretrain(config)
    assert newest_checkpoint(tmp_path / "stopped" / "checkpoints").name == f"step-{step:09d}.pt"
    pretrain(config)
    require_same_run(tiny_run, tmp_path / "stopped")


def test_a_finished_run_again_changes_nothing(tiny_config, tmp_path):
    config = tiny_config(tmp_path / "run", {"epochs": 1})
    folder = pretrain(config)
    kept = [*(folder / "checkpoints").iterdir(), folder / "metrics.csv", folder / "config.yaml", folder / "views.png"]
    before = {path: path.read_bytes() for path in kept}
    state = json.loads((folder / "status.json").read_text())["state"]
    assert pretrain(config) == folder
    assert {path: path.read_bytes() for path in kept} == before
    assert json.loads((folder / "status.json").read_text())["state"] == state == "finished"


def test_a_damaged_newest_checkpoint_costs_only_its_steps(tiny_run, tiny_config, tmp_path, monkeypatch, capsys):
    config = saving_at_each_step(tiny_config(tmp_path / "damaged"))
    crash_at(monkeypatch, "save", {8})
    with pytest.raises(Crash):
        pretrain(config)
    newest = newest_checkpoint(tmp_path / "damaged" / "checkpoints")
    os.truncate(newest, 1000)
    pretrain(config)
    said = capsys.readouterr().err
    assert f"checkpoint {newest} is damaged" in said
    assert "(step 7 of 12)" in said
    require_same_run(tiny_run, tmp_path / "damaged")


def test_another_config_in_the_same_folder_is_refused(tiny_run, tiny_config):
    before = (tiny_run / "config.yaml").read_bytes()
    with pytest.raises(FileExistsError, match=r"is a run with optimizer.lr=0.003, not 0.01; choose another out="):
        pretrain(tiny_config(tiny_run, {"optimizer.lr": 0.01, "seed": 3}))
    assert (tiny_run / "config.yaml").read_bytes() == before


LOSS_LINE = (
    r"the loss is (nan|inf|-inf) at step \d+, whose batch held index \(8,\), views \(1, 8, 3, 32, 32\) of the images "
    r"\d{9}(, \d{9})*; lower optimizer.lr, with another out=, or look at these images; the last good checkpoint is "
    r"(none yet|.*\.pt)"
)


@pytest.mark.parametrize("log_every", [1, 5])
@pytest.mark.parametrize("often", [True, False])
def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_saved(tiny_config, tmp_path, log_every, often):
    config = tiny_config(tmp_path / "nan", {"optimizer.lr": 1e30, "log_every": log_every})
    with pytest.raises(TrainingStopped, match=LOSS_LINE):
        pretrain(saving_at_each_step(config) if often else config)
    for path in (tmp_path / "nan" / "checkpoints").glob("*.pt"):
        assert all(value.isfinite().all() for value in tensors(read_checkpoint(path)).values())
    status = json.loads((tmp_path / "nan" / "status.json").read_text())
    assert status["state"] == "failed"
    assert "at step" in status["message"]
    losses = (
        pd.read_csv(tmp_path / "nan" / "metrics.csv")["loss"] if (tmp_path / "nan" / "metrics.csv").exists() else []
    )
    assert len(losses) < STEPS


@pytest.mark.parametrize("part", ["backbone", "embedding"])
def test_weights_that_are_not_finite_are_never_saved(tiny_config, tmp_path, monkeypatch, part):
    """A gradient can break the weights while the loss that it came from is fine."""
    original = Training.train_step

    def breaking(self: Training, batch: dict) -> None:
        original(self, batch)
        if self.step == 4:
            next(getattr(self.task.objective, part).parameters()).data.view(-1)[0] = float("nan")

    monkeypatch.setattr(Training, "train_step", breaking)
    line = r"'.*weight' is not finite at step 4; lower .*; the last good checkpoint is .*step-000000003.pt"
    with pytest.raises(TrainingStopped, match=line):
        pretrain(saving_at_each_step(tiny_config(tmp_path / "broken")))
    assert json.loads((tmp_path / "broken" / "status.json").read_text())["state"] == "failed"
    assert newest_checkpoint(tmp_path / "broken" / "checkpoints").name == "step-000000003.pt"


def test_probes_are_reported(tiny_config, tmp_path):
    reported = []
    pretrain(tiny_config(tmp_path / "run", {"epochs": 1}), report=reported.append)
    assert len(reported) == 1
    shape = {"rankme", "feature_std", "uniformity", "alignment"}
    assert reported[0].keys() == shape | {"knn_accuracy", "linear_accuracy"}


def test_without_probes_and_labels(tiny_config, tmp_path):
    folder = pretrain(tiny_config(tmp_path / "a", {"epochs": 1, "probe.every_epochs": 0}))
    assert "rankme" not in metrics(folder)
    folder = pretrain(tiny_config(tmp_path / "b", {"epochs": 1, "data.labelled": None}))
    assert "rankme" in metrics(folder)
    assert "knn_accuracy" not in metrics(folder)


@pytest.mark.parametrize(
    ("keys", "error", "line"),
    [
        ({"model": "alexnet_bm"}, ValueError, "unknown model 'alexnet_bm'; nearest: alexnet_bn"),
        ({"objective": "instance"}, ValueError, "unknown objective 'instance'"),
        ({"objective_args": {"temprature": 1}}, ValueError, "'objective_args.temprature'"),
        ({"model_args": {"nonsense": 1}}, ValueError, "does not take these arguments"),
        ({"batch_size": 51}, ValueError, "batch_size=51 is larger than the 50 images"),
        ({"data.shards": None}, ValueError, "data.shards is not set; make shards with"),
        ({"data.shards": "absent"}, FileNotFoundError, "absent' does not exist"),
        ({"data.labelled": "absent"}, FileNotFoundError, "absent' does not exist"),
        ({"views": {"crop_area_min": 0.9, "crop_area_max": 0.5}}, ValueError, "crop_area_min=0.9 is larger than"),
        ({"optimizer": {"warmup_epochs": 2}}, ValueError, "warmup_epochs=2 must be fewer than epochs=2"),
        ({"objective": "depth_prediction", "objective_args": {}}, ValueError, "wants a depth map of each image"),
        ({"initial_weights": "absent.pt"}, FileNotFoundError, "absent.pt"),
        ({"optimizer": {"name": "lars", "weight_decay": 0.0}}, ValueError, "lars needs optimizer.weight_decay"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_folder(tiny_config, tmp_path, keys, error, line):
    with pytest.raises(error, match=line) as raised:
        pretrain(tiny_config(tmp_path / "run", keys))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("accelerator", "module"), [("cuda", torch.cuda), ("mps", torch.backends.mps)])
def test_a_device_that_is_not_here_is_one_line(tiny_config, tmp_path, monkeypatch, accelerator, module):
    monkeypatch.setattr(module, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"^accelerator={accelerator}, and no such device is found here; set"):
        pretrain(tiny_config(tmp_path / "run", {"accelerator": accelerator}))
    assert not (tmp_path / "run").exists()


def test_memory_that_ends_before_training_is_one_line(tiny_config, tmp_path, monkeypatch):
    def exhausted(*arguments):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried "
                           "to allocate 1258291200 bytes. Error code 12")  # fmt: skip

    monkeypatch.setattr(run_module, "set_up_execution", exhausted)
    with pytest.raises(MemoryError, match=r"^the memory of the machine .* for 1.17 GiB .*take a smaller model"):
        pretrain(tiny_config(tmp_path / "run"))


@pytest.fixture(scope="session")
def unlabelled_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images without classes."""
    folder = tmp_path_factory.mktemp("unlabelled")
    rng = np.random.default_rng(3)
    (folder / "images").mkdir()
    for number in range(10):
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(folder / "images" / f"{number}.png")
    config = ShardsConfig(source=str(folder / "images"), out=str(folder / "shards"), size=40)
    write_shards(open_source(config), config)
    return folder / "shards"


def test_labels_that_are_missing_are_said_before_training(tiny_config, tmp_path, unlabelled_shards):
    keys = {
        "objective": "supervised",
        "objective_args": {},
        "data": {"shards": str(unlabelled_shards)},
        "batch_size": 4,
    }
    with pytest.raises(
        ValueError, match=r"objective=supervised wants a class of each image, and .* has none; write shards"
    ):
        pretrain(tiny_config(tmp_path / "run", keys))
    assert not (tmp_path / "run").exists()


def test_classes_that_are_numbered_otherwise_in_the_held_out_set_are_one_line(tiny_config, tiny_shards, tmp_path):
    for path in tiny_shards.iterdir():
        (tmp_path / path.name).hardlink_to(path)
    index = json.loads((tmp_path / "index.json").read_text())
    second = index["classes"][1]
    (tmp_path / "index.json").unlink()
    (tmp_path / "index.json").write_text(json.dumps(index | {"classes": [second, "another"]}))
    with pytest.raises(ValueError, match=rf"class '{second}' has number 1 in data.shards=.* and 0 in data.labelled="):
        pretrain(tiny_config(tmp_path / "run", {"data.labelled": str(tmp_path)}))
    assert not (tmp_path / "run").exists()


def test_a_classifier_is_tested_on_held_out_images(tiny_config, tmp_path):
    folder = pretrain(tiny_config(tmp_path / "run", {"objective": "supervised", "objective_args": {}, "epochs": 4}))
    table = metrics(folder)
    assert table["top1"].dropna().between(0, 1).all()
    assert (table["top5"].dropna() == 1).all(), "there are two classes"
    best = json.loads((folder / "status.json").read_text())["best"]
    assert best["top1"] == pytest.approx(table["top1"].max())


def test_the_best_epoch_is_kept(tiny_run):
    table = metrics(tiny_run)
    accuracies = table["knn_accuracy"].dropna().tolist()
    best = json.loads((tiny_run / "status.json").read_text())["best"]
    assert best == {"epoch": accuracies.index(max(accuracies)) + 1, "knn_accuracy": max(accuracies)}
    trained = load_trained_backbone(tiny_run / "checkpoints" / "best.pt")
    assert trained.step == best["epoch"] * STEPS_PER_EPOCH


def test_training_can_start_from_other_weights(tiny_run, tiny_config, tmp_path):
    """With a learning rate of 0 the weights stay what they were at the start."""
    keys = {
        "initial_weights": str(tiny_run),
        "objective": "simclr",
        "objective_args": {},
        "epochs": 1,
        "optimizer.lr": 0.0,
    }
    folder = pretrain(tiny_config(tmp_path / "run", keys))
    before = dict(load_trained_backbone(tiny_run).backbone.named_parameters())
    for name, parameter in load_trained_backbone(folder).backbone.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_a_frozen_backbone_stays_as_it_was(tiny_run, tiny_config, tmp_path):
    keys = {"initial_weights": str(tiny_run), "objective": "linear_readout", "objective_args": {}, "optimizer.lr": 0.1}
    folder = pretrain(tiny_config(tmp_path / "run", keys))
    before = load_trained_backbone(tiny_run).backbone.state_dict()
    after = load_trained_backbone(folder).backbone.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert "top1" in metrics(folder)


def test_a_contact_sheet_is_drawn_without_training(tiny_config, tmp_path):
    path = draw_views(tiny_config(tmp_path / "run"), tmp_path / "sheet.png")
    assert Image.open(path).width > 300
    assert not (tmp_path / "run").exists()


# What every objective needs to be small, beside its name.
SMALL = {
    "instance_recognition": {"dim": 16, "negatives": 20},
    "simclr": {"hidden_dim": 32, "dim": 16},
    "simsiam": {"hidden_dim": 32, "dim": 16, "predictor_dim": 8},
    "moco_v2": {"hidden_dim": 32, "dim": 16, "queue_size": 24},
    "barlow_twins": {"hidden_dim": 32, "dim": 16},
    "vicreg": {"hidden_dim": 32, "dim": 16},
    "rotnet": {},
    "relative_location": {"hidden_dim": 32},
    "autoencoding": {"code_dim": 16},
    "depth_prediction": {"code_dim": 16},
    "supervised": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("rows", [2, 8])
def test_killed_and_run_again_gives_the_same_numbers(tiny_run, tiny_config, tmp_path, rows):
    config = tiny_config(tmp_path / "killed", {"checkpoint.every_minutes": 0.001})
    process = start(config, tmp_path)
    path, deadline = tmp_path / "killed" / "metrics.csv", time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b"\n") > rows:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    again = start(config, tmp_path)
    said = again.communicate()[1]
    assert again.returncode == 0, said
    require_same_run(tiny_run, tmp_path / "killed")


@pytest.mark.slow
def test_two_processes_share_a_batch(tiny_config, tmp_path):
    config = tiny_config(tmp_path / "two", {"devices": 2, "checkpoint.every_minutes": 5.0})
    process = start(config, tmp_path)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    table = metrics(tmp_path / "two")
    assert table["loss"].notna().sum() == STEPS
    assert all(value.isfinite().all() for value in final_state(tmp_path / "two").values())


@pytest.mark.slow
@pytest.mark.parametrize(("share", "code"), [(0.07, 2), (0.09, 0)])
def test_two_processes_count_together_what_cannot_be_read(tiny_config, tiny_shards, tmp_path, share, code):
    for path in tiny_shards.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shard = tmp_path / "shard-000001.tar"
    data = bytearray(shard.read_bytes())
    for _ in range(4):
        start_of_image = data.index(b"\xff\xd8\xff")
        data[start_of_image : start_of_image + 40] = bytes(40)
    shard.write_bytes(data)
    keys = {
        "devices": 2,
        "epochs": 1,
        "data.shards": str(tmp_path),
        "data.damaged_share": share,
        "probe.every_epochs": 0,
    }
    process = start(tiny_config(tmp_path / "two", keys), tmp_path)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == code, said
    assert (f"more than data.damaged_share={share}" in said) == bool(code)


@pytest.mark.slow
def test_two_processes_train_as_one_does(tiny_config, tmp_path):
    """The same images, views and, with batch statistics over both processes, losses."""
    keys = {"objective": "simclr", "objective_args": SMALL["simclr"], "sync_batch_norm": True, "optimizer.lr": 1e-4}
    process = start(tiny_config(tmp_path / "two", keys | {"devices": 2}), tmp_path)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    one = metrics(pretrain(tiny_config(tmp_path / "one", keys)))
    two = metrics(tmp_path / "two")
    assert two["loss"].dropna().tolist() == pytest.approx(one["loss"].dropna().tolist(), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("objective", SMALL)
def test_every_published_objective_resumes_to_the_same_numbers(
    tiny_config, tmp_path, monkeypatch, objective, depth_shards
):
    keys = {"objective": objective, "objective_args": SMALL[objective], "data.labelled": None}
    if objective == "depth_prediction":
        keys["data.shards"] = str(depth_shards)
    whole = pretrain(tiny_config(tmp_path / "whole", keys))
    with monkeypatch.context() as patched:
        crash_at(patched, "train_step", {5})
        assert run_until_finished(saving_at_each_step(tiny_config(tmp_path / "killed", keys))) == 1
    one, two = final_state(whole), final_state(tmp_path / "killed")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="session")
def depth_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty simulated images with their depth maps."""
    out = tmp_path_factory.mktemp("depth") / "shards"
    config = ShardsConfig(source="simulated", depth="simulated", images=50, size=40, out=str(out))
    write_shards(simulated_source(config), config)
    return out
