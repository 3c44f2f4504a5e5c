"""Fits from recordings to run folders: what is learned and kept, resumed, handed on to other animals."""

import json
import signal
import time

import numpy as np
import pandas as pd
import pytest
import torch

from pretrain.checkpoint import load_trained_backbone, newest_checkpoint, read_checkpoint
from pretrain.core_backbone import core_weights
from pretrain.run import pretrain
from pretrain.shards import write_shards
from pretrain.sources import open_source
from ray_jobs.config import compose, compose_mapping
from tests.pretrain.runs import Crash, crash_at, start, tensors
from tests.transfer.fits import NEURONS, SMALL_CORE, tiny_fit, write_images, write_videos
from transfer.fit import fit
from transfer.fit_recordings import open_animals
from transfer.fitted import load_fitted

# Tensors change in the last bits with the number of threads.
torch.set_num_threads(1)

INPUTS = ("video", "behavior", "pupil_center")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("recordings") / "videos")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("recordings") / "images")


@pytest.fixture(scope="module")
def run(videos, tmp_path_factory):
    """The run folder of a finished tiny fit; tests only read it."""
    return fit(tiny_fit(videos, tmp_path_factory.mktemp("runs") / "run", epochs=4))


def final_state(folder):
    return tensors(read_checkpoint(newest_checkpoint(folder / "checkpoints")))


def metrics(folder):
    """All that was logged but the speed."""
    table = pd.read_csv(folder / "metrics.csv")
    return table.drop(columns=["samples_per_s", *table.filter(regex="_ms$").columns])


def require_equal(one, two):
    """Bit for bit; statistics per frame are NaN after the longest trial."""
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=0, equal_nan=True, msg=name)


def require_same(folder, other):
    one, two = final_state(folder), final_state(other)
    assert one.keys() == two.keys()
    require_equal(one, two)
    pd.testing.assert_frame_equal(metrics(folder), metrics(other), check_exact=True)


def test_a_run_folder_tells_what_was_fitted_and_how_well(run):
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "finished"
    assert status["animals"] == {"animal1": NEURONS, "animal2": NEURONS}
    assert status["scores"].keys() == {"animal1", "animal2"}
    assert status["score_options"]["response_space"] == "per_frame_std"
    table = metrics(run)
    best = table["single_trial_correlation"].max()
    assert status["best"]["single_trial_correlation"] == pytest.approx(best)
    assert np.mean(list(status["scores"].values())) == pytest.approx(best)


def test_training_lowers_the_loss(run):
    loss = metrics(run)["loss"].dropna()
    assert loss.iloc[-1] < loss.iloc[0]


def test_what_is_read_back_predicts_what_was_measured(run):
    """The score of the run, from predictions of whole trials by numpy: windows of 30 frames, whose last 24 count."""
    fitted = load_fitted(run)
    for animal, path in fitted.recordings.items():
        recording = open_animals([path])[animal].recording
        predicted, measured = [], []
        for row in np.flatnonzero(recording.trials["tier"] == "oracle"):
            length = int(recording.frames[row])
            trial = fitted.normalisations[animal].apply(recording.trial(int(row)), np.arange(length))
            whole = np.full((NEURONS, length), np.nan)
            for begin in [*range(0, length - 30, 24), length - 30]:
                window = {part: torch.from_numpy(trial[part][:, begin : begin + 30].copy())[None] for part in INPUTS}
                with torch.no_grad():
                    found = fitted.encoder(window.pop("video"), animal, **window)
                whole[:, begin + 6 : begin + 30] = found[0]
            predicted.append(whole[:, 10:])
            measured.append(trial["responses"][:, 10:])
        predicted, measured = np.concatenate(predicted, 1), np.concatenate(measured, 1)
        assert not np.isnan(predicted).any()
        centred = [each - each.mean(1, keepdims=True) for each in (predicted, measured)]
        deviations = [each.std(1) + 1e-8 for each in (predicted, measured)]
        scores = (centred[0] * centred[1]).mean(1) / deviations[0] / deviations[1]
        assert fitted.scores[animal] == pytest.approx(scores.mean(), abs=1e-6)


def test_a_fit_is_read_back_as_it_was(run, videos):
    fitted = load_fitted(run)
    assert fitted.animals == ["animal1", "animal2"]
    assert not fitted.encoder.training
    assert (fitted.plan.frames, fitted.response_space, fitted.averaged) == (30, "per_frame_std", False)
    animals = open_animals([str(videos)])
    assert fitted.names == {name: animal.recording.name for name, animal in animals.items()}
    assert fitted.neuron_ids == {name: animal.neuron_ids for name, animal in animals.items()}


def test_the_same_command_finds_its_run_complete(run, videos, capsys):
    before = final_state(run)
    assert fit(tiny_fit(videos, run, epochs=4)) == run
    assert "is complete already" in capsys.readouterr().err
    require_equal(before, final_state(run))


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"batching": "one", "schedule__name": "plateau", "schedule__patience": 1, "schedule__reductions": 2},
        {"batching": "mixed", "loss": "dwiseneuro", "cutmix__probability": 0.5, "average__decay": 0.9},
        {"optimizer__name": "schedule_free_adamw", "optimizer__autoclip": 10.0, "micro_batch": 2},
    ],
    ids=["all", "plateau", "mixed", "schedule_free"],
)
def test_a_fit_that_was_stopped_anywhere_gives_the_same_numbers(videos, tmp_path, monkeypatch, keys):
    """Crashes after the second step of the first run, and after the second step of the next one."""
    whole = fit(tiny_fit(videos, tmp_path / "whole", **keys))
    config = tiny_fit(videos, tmp_path / "stopped", **keys)
    config.checkpoint.every_minutes = 1e-9
    crash_at(monkeypatch, "train_step", {2, 4})
    stops = 0
    for _ in range(5):
        try:
            fit(config)
            break
        except Crash:
            stops += 1
    assert stops == 2
    require_same(whole, tmp_path / "stopped")


@pytest.mark.slow
def test_a_fit_killed_at_a_random_step_gives_the_same_numbers(videos, tmp_path):
    whole = fit(tiny_fit(videos, tmp_path / "whole", epochs=12))
    config = tiny_fit(videos, tmp_path / "killed", epochs=12, checkpoint__every_minutes=0.001)
    process = start(config, tmp_path, verb="fit")
    log = tmp_path / "killed" / "metrics.csv"
    while not (log.exists() and len(log.read_text().splitlines()) > 6):
        time.sleep(0.05)
        assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert json.loads((tmp_path / "killed" / "status.json").read_text())["state"] == "running"
    require_same(whole, fit(config))


def test_a_new_animal_takes_over_the_core(run, videos, tmp_path):
    others = write_videos(tmp_path / "three", animals=3)
    config = tiny_fit(
        others, tmp_path / "tuned", model=None, core={"freeze": True}, initial=str(run), animals=["animal1", "animal3"],
        window={"frames": 0},
    )  # fmt: skip
    tuned, first = load_fitted(fit(config)), load_fitted(run)
    assert tuned.animals == ["animal1", "animal3"]
    assert tuned.plan == first.plan
    require_equal(first.encoder.core.state_dict(), tuned.encoder.core.state_dict())
    moved = first.encoder.readouts["animal1"]._features - tuned.encoder.readouts["animal1"]._features
    lr, steps = config.optimizer.lr, 2 * 2
    assert 0 < moved.abs().max() < 2 * lr * steps


def test_an_animal_with_other_neurons_is_refused(run, videos, tmp_path):
    initial = tiny_fit(write_videos(tmp_path / "same"), tmp_path / "out", initial=str(run))
    ids = next((tmp_path / "same").glob("dynamicanimal1*/meta/neurons/unit_ids.npy"))
    np.save(ids, np.load(ids) + 1)
    with pytest.raises(ValueError, match="animal 'animal1' has other neurons there"):
        fit(initial)


def test_a_pretrained_backbone_is_a_core(tiny_run, images, tmp_path):
    """Frozen, so that its weights are those of the pretraining afterwards, while the norm behind it learns."""
    keys = {"core": {"checkpoint": str(tiny_run), "layer": "layer2", "freeze": True}, "readout__args": {}}
    config = tiny_fit(images, tmp_path / "run", model="sensorium2022_cnn", loss="sensorium", batch_size=16, **keys)
    fitted = load_fitted(fit(config))
    pretrained = read_checkpoint(newest_checkpoint(tiny_run / "checkpoints"))["backbone"]
    core = fitted.encoder.core.state_dict()
    taken = [name for name in core if name.startswith("backbone.")]
    assert taken
    require_equal({name: core[name] for name in taken}, {f"backbone.{name}": pretrained[name] for name in pretrained})
    assert core["norm.running_mean"].abs().max() > 0
    assert fitted.response_space == "per_neuron_std"


def test_a_core_that_was_pretrained_on_clips(videos, tmp_path):
    """Frozen under fresh readouts, its weights are those of the pretraining, and the shards' clips were all it saw."""
    np.save(tmp_path / "clips.npy", np.random.default_rng(0).integers(0, 256, (24, 12, 24, 32), np.uint8))
    config = compose(
        "shards", [f"source={tmp_path}/clips.npy", "frame_rate_hz=30", "size=24", f"out={tmp_path}/shards"]
    )
    write_shards(open_source(config), config)
    keys = {
        "model": "factorized3d", "model_args": SMALL_CORE, "objective": "simclr",
        "views": {"size": 24, "clip_frames": 8}, "objective_args": {"hidden_dim": 16, "dim": 8},
        "data": {"shards": f"{tmp_path}/shards", "workers": 0},
        "batch_size": 8, "epochs": 1, "accelerator": "cpu", "out": f"{tmp_path}/pretrained",
    }  # fmt: skip
    pretrained = pretrain(compose_mapping("pretrain", keys))
    core = {"checkpoint": str(pretrained), "freeze": True, "args": {}}
    fitted = load_fitted(fit(tiny_fit(videos, tmp_path / "run", core=core, epochs=1)))
    backbone = read_checkpoint(newest_checkpoint(pretrained / "checkpoints"))["backbone"]
    require_equal(core_weights(backbone), fitted.encoder.core.state_dict())


def test_a_fit_is_no_backbone_and_a_backbone_is_no_fit(run, tiny_run):
    with pytest.raises(ValueError, match="holds an encoder of `murine fit`, expected a backbone"):
        load_trained_backbone(run)
    with pytest.raises(ValueError, match="is a backbone of `murine pretrain`, expected a run of `murine fit`"):
        load_fitted(tiny_run)


def test_a_core_of_a_fit_under_fresh_readouts(run, videos, tmp_path):
    config = tiny_fit(videos, tmp_path / "run", core={"checkpoint": str(run), "freeze": True}, epochs=1)
    core, before = (load_fitted(path).encoder.core.state_dict() for path in (fit(config), run))
    require_equal(before, core)


def test_distillation_from_an_earlier_fit(videos, tmp_path):
    keys = {"batching": "mixed", "loss": "dwiseneuro", "normalisation": "dwiseneuro", "epochs": 1}
    teacher = fit(tiny_fit(videos, tmp_path / "teacher_0", **keys))
    assert load_fitted(teacher).response_space == "raw"
    student = tiny_fit(
        videos, tmp_path / "student", distillation={"teacher": str(tmp_path / "teacher_{fold}"), "share": 0.36}, **keys
    )
    assert load_fitted(fit(student)).scores.keys() == {"animal1", "animal2"}


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"model": None}, "model is not set; name a published encoder"),
        ({"model": "viv2t"}, "there is no published encoder 'viv2t'; nearest: viv1t"),
        ({"loss": "possion"}, "loss='possion'; nearest: poisson"),
        ({"normalisation": "sensorium"}, "normalisation='sensorium'; nearest: sensorium2023"),
        ({"core": {"args": {"chanels": [4]}}}, "core 'factorized3d' does not take these arguments"),
        ({"window__frames": 61}, "animal 'animal1' has no trial with responses in trials.train_tiers"),
        ({"animals": ["animal9"]}, "animals: no 'animal9'; there are animal1, animal2"),
        ({"schedule__name": "plateau"}, "schedule.patience=0 and schedule.reductions=3 must be at least 1"),
        ({"core": {"name": "full3d", "checkpoint": "x"}}, "core.name=full3d and core.checkpoint exclude each other"),
        ({"activation__name": "without"}, "activation.name=without: only shifters and modulators"),
        ({"distillation__teacher": "x"}, "distillation fills mixed batches, and batching=all"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_folder(videos, tmp_path, keys, line):
    with pytest.raises(ValueError, match=line) as caught:
        fit(tiny_fit(videos, tmp_path / "out", **keys))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
