"""The search for the largest batch: a tried step holds in memory what a step of training does."""

import pytest
import torch
from lightning_fabric import Fabric

from pretrain import batch_size
from pretrain.average import WeightAverage
from pretrain.batch_size import STEPS, TIMES, fitting_batch_size, repeated, require_gpu
from pretrain.run import backbone_spec
from pretrain.shard_set import open_shards
from pretrain.views import ViewMaker


@pytest.fixture
def tried(tiny_config, tiny_shards, tmp_path, monkeypatch):
    """Runs a try with 16 images as if a CPU were a GPU that makes the views of two steps at a time."""

    def run(keys: dict) -> int:
        config = tiny_config(tmp_path / "run", keys)
        monkeypatch.setattr(batch_size, "require_gpu", lambda device: None)
        monkeypatch.setattr(batch_size, "largest_batch", lambda try_step, start, most: try_step(16) or 16)
        monkeypatch.setattr(ViewMaker, "at_once", 2)
        fabric = Fabric(accelerator="cpu", devices=1)
        return fitting_batch_size(config, backbone_spec(config), open_shards(tiny_shards), fabric, most=50)

    return run


def test_views_are_made_of_as_many_steps_at_once_as_in_training(tried, monkeypatch):
    made, stepped = [], []
    training, train_step = ViewMaker.training, batch_size.train_step

    def noted(self, batch, step, steps=1):
        made.append((len(batch["images"]), steps))
        return training(self, batch, step, steps)

    def counted(objective, optimizer, fabric, batch, parts):
        stepped.append((batch["views"].shape[1], parts))
        train_step(objective, optimizer, fabric, batch, parts)

    monkeypatch.setattr(ViewMaker, "training", noted)
    monkeypatch.setattr(batch_size, "train_step", counted)
    assert tried({"accumulate": 2}) == 16
    assert made == [(2 * 16, 2)] * TIMES
    assert stepped == [(16, 2)] * (TIMES * STEPS)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_average_is_there_where_training_has_one(tried, monkeypatch, decay):
    updates = []
    monkeypatch.setattr(WeightAverage, "update", lambda self, backbone, step: updates.append(step))
    tried({"average.decay": decay})
    assert len(updates) == (TIMES * STEPS if decay else 0)


def test_a_batch_is_the_same_few_images_again_and_again():
    batch = {"index": torch.arange(3), "images": torch.arange(3).view(3, 1)}
    assert repeated(batch, 5)["images"][:, 0].tolist() == [0, 1, 2, 0, 1]


def test_without_a_gpu_it_is_one_line():
    with pytest.raises(ValueError, match="batch_size=auto looks for what fits on a GPU, and this run is on cpu"):
        require_gpu(torch.device("cpu"))
