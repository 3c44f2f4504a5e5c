"""Instance recognition: the published values, a plain reference, and what the bank may and may not do."""

import copy
import math
import socket

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pretrain.objectives import create_objective, instance_recognition, list_objectives
from pretrain.objectives.instance_recognition import InstanceRecognition

TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}
PUBLISHED = {
    "instance_recognition", "simclr", "simsiam", "moco_v2", "barlow_twins", "vicreg", "rotnet", "relative_location",
    "autoencoding", "depth_prediction", "supervised", "linear_readout",
}  # fmt: skip
BEYOND = {"byol", "dino", "nnclr", "swav", "tico", "mae", "instance_recognition_queue"}
PATHS = {"whole bank": 10**9, "gathered rows": 0}


def small(num_samples: int = 40, seed: int = 0, **arguments: float) -> InstanceRecognition:
    """An objective around a linear backbone of 4 x 4 images."""
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(48, 24), nn.ReLU())
    defaults = {"dim": 8, "negatives": 16}
    return InstanceRecognition(backbone, num_samples, input_size=4, **(defaults | arguments))


def random_batch(size: int, num_samples: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(num_samples, generator=generator)[:size]
    return {"views": torch.randn(1, size, 3, 4, 4, generator=generator), "index": index}


@pytest.fixture
def published(mouse_vision):
    values = torch.load(mouse_vision / "losses" / "instance_discrimination.pt", weights_only=True)
    return values, values["feats"].clone().requires_grad_(), published_objective(values)


def published_objective(values: dict) -> InstanceRecognition:
    """The objective of the published values; they start from features, so the backbone only flattens."""
    weight, bank = values["embed"]["_embedding_func.weight"], values["memory_bank"]
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(3, weight.shape[1]))
    objective = InstanceRecognition(
        backbone, len(bank), input_size=1, dim=bank.shape[1], negatives=values["m"],
        temperature=values["tau"], momentum=values["gamma"],
    )  # fmt: skip
    objective.bank.copy_(bank)
    objective.embedding.load_state_dict({"weight": weight, "bias": values["embed"]["_embedding_func.bias"]})
    return objective


@pytest.mark.parametrize("path", PATHS)
def test_published_loss_gradients_and_rows(published, path, monkeypatch):
    values, features, objective = published
    monkeypatch.setattr(instance_recognition, "WHOLE_BANK_ROWS_PER_DRAW", PATHS[path])
    found = objective.contrast(features, values["indices"], values["noise_indices"])
    for name in ("loss", "data_loss", "noise_loss"):
        torch.testing.assert_close(found[name], values[name].squeeze(), **TOLERANCE)
    found["loss"].backward()
    torch.testing.assert_close(features.grad, values["grad_feats"], **TOLERANCE)
    torch.testing.assert_close(objective.embedding.weight.grad, values["grad_embed_weight"], **TOLERANCE)
    torch.testing.assert_close(objective.embedding.bias.grad, values["grad_embed_bias"], **TOLERANCE)
    objective.after_step()
    torch.testing.assert_close(objective.bank[values["indices"]], values["updated_entries"], **TOLERANCE)


def test_loss_is_the_sum_written_out_for_every_image_and_draw():
    objective = small(num_samples=30)
    features, index = torch.randn(5, 24), torch.tensor([3, 0, 29, 7, 11])
    noise = torch.randint(30, (5, 6))
    found = objective.contrast(features, index, noise)
    constant = 2876934.2 / 1281167 * 30
    share, data, drawn = 6 / 30, 0.0, 0.0
    embedded = F.normalize(objective.embedding(features), dim=1).detach()
    probability = (objective.bank.double() @ embedded.double().T / 0.07).exp() / constant
    for image in range(5):
        own = float(probability[index[image], image])
        data -= math.log(own / (own + share + 1e-7))
        drawn -= sum(math.log(share / (float(probability[row, image]) + share + 1e-7)) for row in noise[image])
    assert found["data_loss"].item() == pytest.approx(data / 5, rel=1e-5)
    assert found["noise_loss"].item() == pytest.approx(drawn / 5, rel=1e-5)
    assert found["loss"].item() == pytest.approx((data + drawn) / 5, rel=1e-5)


def test_both_paths_agree(monkeypatch):
    objective, batch = small(), random_batch(10, 40)
    losses = []
    for rows in PATHS.values():
        monkeypatch.setattr(instance_recognition, "WHOLE_BANK_ROWS_PER_DRAW", rows)
        torch.manual_seed(5)
        losses.append(objective(batch)["loss"])
    torch.testing.assert_close(*losses)


def test_the_bank_starts_with_unit_rows_and_is_no_parameter():
    objective = small(num_samples=500)
    torch.testing.assert_close(objective.bank.norm(dim=1), torch.ones(500))
    assert "bank" in objective.state_dict()
    assert "bank" not in dict(objective.named_parameters())


def test_only_the_rows_of_the_batch_change_and_only_after_the_step():
    objective, batch = small(), random_batch(10, 40)
    before = objective.bank.clone()
    objective(batch)["loss"].backward()
    assert torch.equal(objective.bank, before)
    objective.after_step()
    touched = (objective.bank != before).any(1)
    assert set(touched.nonzero()[:, 0].tolist()) == set(batch["index"].tolist())
    torch.testing.assert_close(objective.bank.norm(dim=1), torch.ones(40))
    embedded = F.normalize(objective.embedding(objective.backbone(batch["views"][0])), dim=1)
    expected = F.normalize(0.5 * before[batch["index"]] + 0.5 * embedded, dim=1)
    torch.testing.assert_close(objective.bank[batch["index"]], expected)


def test_a_second_after_step_changes_nothing():
    objective = small()
    objective(random_batch(10, 40))
    objective.after_step()
    before = objective.bank.clone()
    objective.after_step()
    assert torch.equal(objective.bank, before)


def test_noise_follows_torchs_generator():
    objective, batch = small(), random_batch(10, 40)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(objective(batch)["loss"].item())
    assert losses[0] == losses[1] != losses[2]


def test_twenty_steps_on_one_batch_lower_the_loss():
    objective, batch = small(num_samples=200, dim=64), random_batch(20, 200)
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.003, momentum=0.9)
    losses = []
    for step in range(20):
        torch.manual_seed(step)
        found = objective(batch)
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
        objective.after_step()
        losses.append(found["loss"].item())
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3])


def test_the_loss_leaves_half_precision():
    objective, batch = small(), random_batch(10, 40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = objective(batch)
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert objective.updated[0][1].dtype == torch.float32


NOISE = torch.randint(40, (10, 16), generator=torch.Generator().manual_seed(4))


def step_on(objective: InstanceRecognition, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient of some rows of a batch, with noise draws that are given; the bank is updated."""
    batch = random_batch(10, 40)
    features = objective.features(batch["views"][0, rows])
    loss = objective.contrast(features, batch["index"][rows], NOISE[rows])["loss"]
    loss.backward()
    objective.after_step()
    return loss.detach(), objective.embedding.weight.grad


def process(rank: int, world: int, port: int, folder: str) -> None:
    """One of `world` processes: a step on its own half of a batch; saves loss, gradient and bank."""
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    objective = small()
    loss, gradient = step_on(objective, slice(rank, None, world))
    torch.save({"loss": loss, "gradient": gradient, "bank": objective.bank}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_loss_the_gradient_and_the_bank_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(process, (2, port, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    alone = small()
    loss, gradient = step_on(alone, slice(None))
    torch.testing.assert_close((first["loss"] + second["loss"]) / 2, loss, **TOLERANCE)
    torch.testing.assert_close((first["gradient"] + second["gradient"]) / 2, gradient, **TOLERANCE)
    assert torch.equal(first["bank"], second["bank"])
    torch.testing.assert_close(first["bank"], alone.bank)


def test_names_and_arguments():
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(48, 24))
    assert set(list_objectives()) == PUBLISHED | BEYOND
    objective = create_objective("instance_recognition", copy.deepcopy(backbone), num_samples=9, input_size=4, dim=5)
    assert objective.bank.shape == (9, 5)
    with pytest.raises(ValueError, match="unknown objective 'instance'; nearest: instance_recognition"):
        create_objective("instance", backbone)
    with pytest.raises(ValueError, match=r"'objective_args.temprature'.*nearest: temperature \(allowed: dim"):
        create_objective("instance_recognition", backbone, num_samples=9, temprature=1)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"num_samples": 1}, "at least 2 training images, found 1"),
        ({"dim": 0}, "objective_args.dim must be above 0, found 0"),
        ({"negatives": 0}, "objective_args.negatives must be above 0"),
        ({"temperature": 0.0}, "objective_args.temperature must be above 0"),
        ({"momentum": 1.0}, "objective_args.momentum must be from 0 to below 1"),
    ],
)
def test_a_constant_out_of_range_is_one_line(arguments, line):
    with pytest.raises(ValueError, match=line):
        small(**arguments)
