"""Checkpoints: damage is passed over and said, and weights come back as they were, ours and published ones."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pretrain.best import keep_as_best
from pretrain.checkpoint import (
    BackboneSpec,
    checkpoint_to_resume,
    list_checkpoints,
    load_matching,
    load_published,
    load_trained_backbone,
    newest_checkpoint,
    read_checkpoint,
    read_published,
    restore_training_state,
    save_checkpoint,
    training_state,
)
from pretrain.models import create_model, model_info
from pretrain.objectives import create_objective

NAME = "timm/test_resnet"


def make_training(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    backbone = create_model(NAME, num_classes=0)
    objective = create_objective("instance_recognition", backbone, num_samples=20, input_size=32, dim=4, negatives=5)
    return objective, torch.optim.SGD(objective.parameters(), lr=0.01, momentum=0.9)


def step(objective: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    objective({"views": torch.randn(1, 4, 3, 32, 32), "index": torch.tensor([3, 1, 4, 15])})["loss"].backward()
    optimizer.step()
    optimizer.zero_grad()
    objective.after_step()


def spec() -> BackboneSpec:
    info = model_info(NAME)
    return BackboneSpec(NAME, {"num_classes": 0}, 32, list(info.mean), list(info.std))


def equal_states(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, nn.Module]:
    """A run folder with checkpoints of steps 1, 2 and 3, and the objective after step 3."""
    objective, optimizer = make_training(0)
    for number in (1, 2, 3):
        step(objective, optimizer, number)
        state = training_state(objective, optimizer, spec(), epoch=number)
        save_checkpoint(tmp_path / "checkpoints", number, state, keep=3)
    return tmp_path, objective


def test_the_newest_are_kept(tmp_path):
    for number in range(1, 6):
        save_checkpoint(tmp_path / "c", number, {}, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path / "c")] == ["step-000000004.pt", "step-000000005.pt"]
    assert len(list((tmp_path / "c").iterdir())) == 4


def test_checkpoints_of_later_steps_do_not_count(tmp_path):
    for number in (1, 2, 8, 9, 3):
        save_checkpoint(tmp_path, number, {}, keep=9 if number > 3 else 2)
    assert [int(path.stem[5:]) for path in list_checkpoints(tmp_path)] == [2, 3, 8, 9]


def test_the_best_epochs_is_taken_where_no_other_is_intact(run, capsys):
    folder, _ = run
    checkpoints = folder / "checkpoints"
    keep_as_best(checkpoints / "step-000000001.pt")
    for number in (1, 2, 3):
        (checkpoints / f"step-{number:09d}.pt").unlink()
        (checkpoints / f"step-{number:09d}.pt").write_bytes(b"damaged")
    assert load_trained_backbone(folder).step == 1
    found, damaged = checkpoint_to_resume(checkpoints)
    assert (found, damaged) == (checkpoints / "best.pt", [])
    assert sorted(path.name for path in checkpoints.iterdir()) == [
        "best.pt", "best.pt.sha256", *(f"step-{number:09d}.pt.damaged" for number in (1, 2, 3)),
    ]  # fmt: skip
    (checkpoints / "best.pt").write_bytes(b"damaged")
    for _ in range(2):
        found, damaged = checkpoint_to_resume(checkpoints)
        assert found is None
        assert len(damaged) == 4


def test_training_goes_on_from_a_checkpoint_exactly(run):
    folder, objective = run
    restored, optimizer = make_training(99)
    restore_training_state(read_checkpoint(newest_checkpoint(folder / "checkpoints")), restored, optimizer)
    assert equal_states(restored, objective)
    original, its_optimizer = make_training(0)
    for number in (1, 2, 3, 4, 5):
        step(original, its_optimizer, number)
    for number in (4, 5):
        step(restored, optimizer, number)
    assert equal_states(restored, original)


def test_a_trained_backbone_comes_back_with_its_description(run):
    folder, objective = run
    trained = load_trained_backbone(folder)
    assert equal_states(trained.backbone, objective.backbone)
    assert trained.spec == spec()
    assert (trained.step, trained.epoch, trained.path.name) == (3, 3, "step-000000003.pt")
    assert not trained.backbone.training
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(trained.backbone(images), objective.backbone.eval()(images))
    assert load_trained_backbone(folder / "checkpoints" / "step-000000001.pt").step == 1


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def without_checksum(path: Path) -> None:
    path.with_name(path.name + ".sha256").unlink()


@pytest.mark.parametrize("harm", [cut, flip, without_checksum])
def test_a_damaged_checkpoint_is_said_and_passed_over(run, harm, capsys):
    folder, _ = run
    newest = folder / "checkpoints" / "step-000000003.pt"
    harm(newest)
    assert load_trained_backbone(folder).step == 2
    said = capsys.readouterr().err
    assert f"checkpoint {newest} is damaged" in said
    if harm is not without_checksum:
        with pytest.raises(ValueError, match="is damaged"):
            load_trained_backbone(newest)
    harm(folder / "checkpoints" / "step-000000002.pt")
    harm(folder / "checkpoints" / "step-000000001.pt")
    with pytest.raises(FileNotFoundError, match="no intact checkpoint in"):
        load_trained_backbone(folder)


def test_a_checkpoint_that_cannot_be_written_leaves_the_ones_before(run, monkeypatch):
    folder, _ = run
    before = sorted(path.name for path in (folder / "checkpoints").iterdir())

    def fail(state: object, file) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(folder / "checkpoints", 4, {}, keep=1)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == before


def test_what_is_no_checkpoint_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"checkpoint .*absent.* does not exist \(a run folder or a .pt file\)"):
        load_trained_backbone(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="no intact checkpoint"):
        load_trained_backbone(tmp_path)
    (tmp_path / "text.pt").write_text("not a checkpoint")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pt")
    for name, line in (("text.pt", "cannot be read as"), ("other.pt", "is not a checkpoint of `murine pretrain`")):
        with pytest.raises(ValueError, match=line) as error:
            load_trained_backbone(tmp_path / name)
        assert "\n" not in str(error.value)


def small_net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


def published(model: nn.Module, prefix: str = "module.") -> dict[str, Any]:
    """What mouse-vision's instance recognition writes of a model."""
    return {
        "epoch": 199,
        "results": {"losses": [np.float64(0.5)]},
        "model_state_dict": {prefix + name: value for name, value in model.state_dict().items()},
        "embedding_func": {"module.weight": torch.zeros(128, 4096)},
        "memory_bank": torch.zeros(9, 128),
    }


@pytest.mark.parametrize("from_file", [True, False])
def test_published_weights_are_loaded_and_accounted_for(tmp_path, capsys, from_file):
    original, other = small_net(), nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    original[1].running_mean.fill_(5)
    source = published(original)
    if from_file:
        torch.save(source, tmp_path / "weights.pt")
        source = tmp_path / "weights.pt"
    assert load_published(other, source) is other
    assert equal_states(other, original)
    lines = capsys.readouterr().err.splitlines()
    origin = str(source) if from_file else "the state dict"
    assert lines == [
        f"{origin}: 9 tensors from `model_state_dict`: module.0.weight, module.0.bias, module.1.weight, module.1.bias "
        "and 5 more",
        "  renamed: module.0.weight -> 0.weight, module.0.bias -> 0.bias, module.1.weight -> 1.weight, "
        "module.1.bias -> 1.bias and 5 more",
        "  not used: epoch, results, embedding_func, memory_bank",
    ]


def test_reading_loads_nothing(capsys):
    model = small_net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    source = {name: value + 1 for name, value in before.items()}
    found = read_published(model, source)
    assert all(torch.equal(found.weights[name], source[name]) for name in before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert capsys.readouterr().err == ""


def test_what_fits_is_loaded_and_the_rest_stays_and_is_said(capsys):
    model, other = small_net(), small_net()
    source = {name: value + 1 for name, value in other.state_dict().items()}
    source["2.weight"], source["decoder.weight"] = torch.zeros(5, 5), torch.zeros(1)
    found = load_matching(model, {"epoch": 3, "state_dict": source})
    assert "2.weight" not in found.weights
    assert found.ignored == ("2.weight", "decoder.weight", "epoch")
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name] if name == "2.weight" else source[name])
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("the state dict: 8 tensors from `state_dict`: 0.weight, 0.bias")
    assert said[1:] == ["  not used: 2.weight, decoder.weight, epoch", "  stay as they were: 2.weight"]


def test_a_run_folder_gives_its_newest_backbone_to_another_model(run):
    folder, objective = run
    model = create_model(NAME, num_classes=0)
    load_published(model, folder)
    assert equal_states(model, objective.backbone)
    wider = create_model(NAME, num_classes=7)
    found = load_matching(wider, str(folder / "checkpoints" / "step-000000003.pt"))
    assert (found.place, found.renamed) == ("backbone", {})
    assert wider.state_dict().keys() - found.weights.keys() == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("named", [True, False])
def test_a_published_file_becomes_a_trained_backbone(tmp_path, named):
    """The file's name says its network, or `model` does; its last linear layer is not the backbone's."""
    torch.manual_seed(1)
    original = create_model("alexnet_bn", num_classes=10)
    path = tmp_path / ("alexnet_bn.pt" if named else "checkpoint.pt")
    torch.save(published(original), path)
    trained = load_trained_backbone(path, None if named else "alexnet_bn")
    weights = trained.backbone.state_dict()
    assert set(original.state_dict()) - set(weights) == {"classifier.8.weight", "classifier.8.bias"}
    assert all(torch.equal(value, original.state_dict()[name]) for name, value in weights.items())
    info = model_info("alexnet_bn")
    assert trained.spec == BackboneSpec("alexnet_bn", {"num_classes": 0}, 64, list(info.mean), list(info.std))
    assert (trained.step, trained.epoch, trained.path) == (0, 199, path.resolve())
    assert not trained.backbone.training


def test_a_network_that_is_not_known_is_asked_for(tmp_path, run):
    torch.save(published(small_net()), tmp_path / "model_best.pt")
    with pytest.raises(ValueError, match=r"with model=<name> \(unknown model 'model_best'"):
        load_trained_backbone(tmp_path / "model_best.pt")
    with pytest.raises(ValueError, match=r"^unknown model 'alexnet_bm'; nearest: alexnet_bn"):
        load_trained_backbone(tmp_path / "model_best.pt", "alexnet_bm")
    with pytest.raises(
        ValueError, match=r"has no weights for 'features.0.weight', shape \(64, 3, 11, 11\), nor for any"
    ):
        load_trained_backbone(tmp_path / "model_best.pt", "alexnet_bn")
    folder, _ = run
    assert load_trained_backbone(folder, NAME).spec.name == NAME
    with pytest.raises(ValueError, match="says itself that it is timm/test_resnet, not model=alexnet; leave model out"):
        load_trained_backbone(folder, "alexnet")
