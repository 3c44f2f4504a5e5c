"""Checkpoints: damage is passed over and said, weights come back as they were, and no file runs code."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from pretrain.checkpoint import (
    BackboneSpec,
    list_checkpoints,
    load_published,
    load_trained_backbone,
    newest_checkpoint,
    read_checkpoint,
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


class Malicious:
    """Its pickle would make a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@pytest.mark.parametrize("plain", [True, False])
def test_a_file_with_code_in_it_is_refused_and_not_run(tmp_path, plain):
    path, mark = tmp_path / "evil.pt", tmp_path / "ran"
    state = {"format": "murine-checkpoint-1", "model_state_dict": Malicious(mark)}
    if plain:
        path.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, path)
    with pytest.raises(ValueError, match="cannot be read"):
        load_trained_backbone(path)
    with pytest.raises(ValueError, match="cannot be read"):
        load_published(nn.Linear(2, 2), path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Malicious(mark)))
    assert mark.exists(), "the file would have run code, were it unpickled"


def small_net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("key", ["model_state_dict", "state_dict", None])
@pytest.mark.parametrize("from_file", [True, False])
def test_published_weights_are_found_where_the_trainers_left_them(tmp_path, prefix, key, from_file):
    original, other = small_net(), nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    original[1].running_mean.fill_(5)
    state = {prefix + name: value for name, value in original.state_dict().items()}
    if key:
        state = {"epoch": 199, "optimizer": {"state": {}}, "results": {"losses": [1.0]}, key: state}
    if from_file:
        torch.save(state, tmp_path / "weights.pt")
    assert load_published(other, tmp_path / "weights.pt" if from_file else state) is other
    assert equal_states(other, original)


def test_an_instance_recognition_checkpoint_as_published(tmp_path):
    original = create_model("alexnet_bn", num_classes=0, pool_size=1)
    state = {f"module.{name}": value for name, value in original.state_dict().items()}
    head = {"module.weight": torch.zeros(128, 4096), "module.bias": torch.zeros(128)}
    published = {"model_state_dict": state, "embedding_func": head, "memory_bank": torch.zeros(9, 128), "epoch": 199}
    model = load_published(create_model("alexnet_bn", num_classes=0, pool_size=1), published)
    assert equal_states(model, original)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda state: state.pop("2.bias"), r"the file has no weights for '2.bias', shape \(2,\)"),
        (
            lambda state: state.update({"0.bias": torch.zeros(9)}),
            r"'0.bias' has shape \(9,\) in the file, \(4,\) in the",
        ),
        (
            lambda state: state.update({"3.weight": torch.zeros(1), "3.z": torch.zeros(1)}),
            "weights that the model does not: '3.weight' and 1 more",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(change, line):
    state, model = small_net().state_dict(), small_net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    change(state)
    with pytest.raises(ValueError, match=line):
        load_published(model, {"model_state_dict": state})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_that_are_none_are_one_line(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(ValueError, match="holds no weights by name, but Tensor"):
        load_published(small_net(), tmp_path / "tensor.pt")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_published(small_net(), tmp_path / "absent.pt")
