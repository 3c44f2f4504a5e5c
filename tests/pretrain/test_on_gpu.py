"""What only a GPU shows: views, sets and whole trainings on it, mixed precision, resuming, the largest batch."""

import json

import pandas as pd
import pytest
import torch

from pretrain.augment import draw_parameters, make_view
from pretrain.checkpoint import newest_checkpoint, read_checkpoint
from pretrain.config import ViewsConfig
from pretrain.largest_batch import explain_out_of_memory, is_out_of_memory
from pretrain.loop import Training
from pretrain.resident import open_resident
from pretrain.run import pretrain
from pretrain.shard_set import Damage, open_shards
from pretrain.stream import EpochBatches, load_batches

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and there is none"),
]

GPU = torch.device("cuda")
ON_GPU = {"accelerator": "cuda", "log_every": 3}


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_views_are_those_of_a_cpu_to_a_grey_level(interpolation):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(256, (64, 3, 6, 7), generator=generator).float()
    images = torch.nn.functional.interpolate(coarse, (60, 70), mode="bicubic").clamp(0, 255).byte()
    sizes = torch.tensor([[60, 70]]).expand(64, -1)
    config = ViewsConfig(
        interpolation=interpolation, jitter_probability=0.8, blur_probability=[0.5], brightness=0.2, contrast=0.2
    )
    drawn = draw_parameters(sizes, config, generator)
    mean, std = torch.zeros(3), torch.ones(3)
    expected = make_view(images, drawn, 32, mean, std) * 255
    found = make_view(images.to(GPU), drawn, 32, mean.to(GPU), std.to(GPU)).cpu() * 255
    difference = (found - expected).abs()
    assert difference.mean() < 0.5
    # Hue is steep where there is nearly no colour.
    assert (difference > 3).float().mean() < 0.005


def test_a_set_on_the_gpu_gives_the_readers_batches(tiny_shards):
    shards = open_shards(tiny_shards)
    held = open_resident(shards, GPU, 0.5, 0.0, 0, Damage(shards))
    assert held.pixels.values.device.type == "cuda"
    wanted = EpochBatches(shards, 8, seed=2, epoch=0, buffer=20, epochs=2)
    for found, expected in zip(held.batches(wanted), load_batches(wanted, 0), strict=True):
        assert found.keys() == expected.keys()
        for key in found:
            assert torch.equal(found[key].cpu(), expected[key]), key


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_trainings_run_in_every_precision(tiny_config, tmp_path, precision, accumulate):
    keys = ON_GPU | {"precision": precision, "accumulate": accumulate, "optimizer.clip_norm": 1.0}
    folder = pretrain(tiny_config(tmp_path / "run", keys))
    table = pd.read_csv(folder / "metrics.csv")
    rows = table[table["loss"].notna()]
    assert rows["step"].tolist() == [3, 6, 9, 12]
    assert (rows[["device_memory_mib", "forward_backward_ms", "optimizer_ms"]] > 0).all(axis=None)
    # Views of eight steps are made at a time.
    assert (rows["views_ms"].fillna(0) > 0).tolist() == [True, False, True, False]
    assert table["knn_accuracy"].max() > 0.5
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"


@pytest.mark.parametrize("keys", [{"channels_last": True}, {"activation_checkpointing": True}, {"average.decay": 0.9}])
def test_savers_of_memory_and_averages_train_to_the_end(tiny_config, tmp_path, keys):
    folder = pretrain(tiny_config(tmp_path / "run", ON_GPU | {"precision": "bf16-mixed"} | keys))
    state = read_checkpoint(newest_checkpoint(folder / "checkpoints"))
    assert state["step"] == 12
    assert (state["average"] is not None) == ("average.decay" in keys)


def test_a_run_in_half_precision_resumes_with_its_scale(tiny_config, tmp_path, monkeypatch):
    config = tiny_config(tmp_path / "run", ON_GPU | {"precision": "16-mixed"})
    original = Training.train_step

    def stopping(self, batch):
        original(self, batch)
        if self.step == 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Training, "train_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config)
    saved = read_checkpoint(newest_checkpoint(tmp_path / "run" / "checkpoints"))
    assert saved["step"] == 6
    assert saved["precision"]["scale"] > 0
    pretrain(config)
    assert read_checkpoint(newest_checkpoint(tmp_path / "run" / "checkpoints"))["step"] == 12


def test_the_largest_batch_is_found_once_and_kept(tiny_config, tmp_path, capsys):
    config = tiny_config(tmp_path / "run", ON_GPU | {"batch_size": "auto", "epochs": 1, "log_every": 1})
    folder = pretrain(config)
    found = json.loads((folder / "status.json").read_text())["batch_size"]
    assert found % 8 == 0
    assert 8 <= found <= 50
    capsys.readouterr()
    pretrain(config)
    said = capsys.readouterr().err
    assert "is complete already" in said
    assert "fits" not in said


def test_memory_that_is_exhausted_is_one_line():
    with pytest.raises(torch.OutOfMemoryError) as raised:
        torch.empty(2**50, dtype=torch.uint8, device=GPU)
    assert is_out_of_memory(raised.value)
    line = explain_out_of_memory(raised.value, 512, GPU)
    assert "batch_size=256" in line
    assert "\n" not in line


def test_a_profile_has_the_gpus_kernels(tiny_config, tmp_path):
    folder = pretrain(tiny_config(tmp_path / "run", ON_GPU | {"profile": True, "epochs": 4}))
    assert (folder / "trace.json.gz").stat().st_size > 1000
    assert "CUDA" in (folder / "profile.txt").read_text()
