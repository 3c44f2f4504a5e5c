"""Barlow Twins: the published values, known answers, and the same training on one process and on two."""

import socket

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard
from torch import Tensor, nn

from pretrain.models import create_model
from pretrain.models.sync_norm import convert_sync_batch_norm
from pretrain.objectives.barlow_twins import BarlowTwins

TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


def small(seed: int = 0, **arguments: float) -> BarlowTwins:
    """An objective around a small backbone with batch norm, of 4 x 4 images."""
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(48, 24), nn.BatchNorm1d(24), nn.ReLU())
    return BarlowTwins(backbone, input_size=4, **({"hidden_dim": 16, "dim": 12} | arguments))


def without_head(**arguments: float) -> BarlowTwins:
    """The loss of outputs themselves."""
    objective = small(**arguments)
    objective.head = nn.Identity()
    return objective


def random_views(batch: int = 12, seed: int = 0) -> Tensor:
    return torch.randn(2, batch, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_published_loss_and_gradient(mouse_vision):
    values = torch.load(mouse_vision / "losses" / "barlow_twins.pt", weights_only=True)
    weights = {key.removeprefix("projector."): value for key, value in values["state"].items() if "projector" in key}
    hidden_dim, features = weights["0.weight"].shape
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(3, features))
    objective = BarlowTwins(backbone, 1, hidden_dim, len(weights["6.weight"]))
    objective.head.layers.load_state_dict(weights)
    images = values["y1"].clone().requires_grad_()
    loss = objective.compare(images.flatten(1), values["y2"].flatten(1))["loss"]
    torch.testing.assert_close(loss, values["loss"], **TOLERANCE)
    loss.backward()
    torch.testing.assert_close(images.grad, values["grad_y1"], **TOLERANCE)


@settings(deadline=None, max_examples=25)
@given(batch=st.integers(5, 30), dim=st.integers(2, 9), weight=st.floats(0.001, 2), seed=st.integers(0, 2**31))
def test_loss_is_made_of_correlations_between_the_views(batch, dim, weight, seed):
    first, second = torch.randn(2, batch, dim, generator=torch.Generator().manual_seed(seed))
    correlations = np.corrcoef(first.double().T, second.double().T)[:dim, dim:]
    same = np.eye(dim, dtype=bool)
    expected = ((1 - correlations[same]) ** 2).sum() + weight * (correlations[~same] ** 2).sum()
    found = without_head(redundancy_weight=weight).compare(3 * first + 2, 5 * second - 1)["loss"]
    assert found.item() == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_equal_views_without_redundancy_cost_nothing():
    outputs = torch.tensor(hadamard(8)[:, 1:], dtype=torch.float32)
    assert without_head().compare(outputs, outputs)["loss"] < 1e-8


def test_equal_views_whose_outputs_repeat_each_other_cost_one_weight_per_pair():
    outputs = torch.tensor([[-1.0], [1], [1], [-1]]).expand(4, 7)
    found = without_head(redundancy_weight=0.25).compare(outputs, outputs)["loss"]
    assert found.item() == pytest.approx(0.25 * 7 * 6, rel=1e-4)


def test_unrelated_views_without_redundancy_cost_one_per_output():
    columns = torch.tensor(hadamard(16), dtype=torch.float32)
    assert without_head().compare(columns[:, 1:8], columns[:, 8:15])["loss"].item() == pytest.approx(7, rel=1e-6)


def test_the_head_is_the_published_one():
    with torch.device("meta"):
        objective = BarlowTwins(create_model("alexnet_bn", num_classes=0))
    published = 4096 * 8192 + 2 * 8192 * 8192 + 4 * 8192
    assert sum(weights.numel() for weights in objective.head.parameters()) == published
    assert objective.redundancy_weight == 0.0051
    assert objective.wants.views == 2


def test_twenty_steps_on_one_batch_lower_the_loss():
    objective, views = small(), random_views(32)
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(20):
        loss = objective({"views": views})["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])


def test_the_loss_leaves_half_precision():
    objective, views = small(), random_views()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert objective.head(objective.features(views[0])).dtype == torch.bfloat16
        assert objective({"views": views})["loss"].dtype == torch.float32


def gradient(objective: BarlowTwins) -> Tensor:
    """All gradients as one vector."""
    return torch.cat([weights.grad.flatten() for weights in objective.parameters()])


def averaged(values: Tensor) -> Tensor:
    """The mean over processes, which is what they train with."""
    torch.distributed.all_reduce(values)
    return values / torch.distributed.get_world_size()


def process(rank: int, world: int, port: int, folder: str) -> None:
    """One of `world` processes: forward and backward of its part of a batch; saves loss and gradient."""
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    objective = convert_sync_batch_norm(small())
    loss = objective({"views": random_views().chunk(world, dim=1)[rank]})["loss"]
    loss.backward()
    torch.save((loss.detach(), averaged(gradient(objective))), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_train_as_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(process, (2, port, str(tmp_path)), nprocs=2)
    losses, gradients = zip(*(torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)), strict=True)
    alone = small()
    loss = alone({"views": random_views()})["loss"]
    loss.backward()
    scale = gradient(alone).abs().max()
    for found, slope in zip(losses, gradients, strict=True):
        torch.testing.assert_close(found, loss.detach(), **TOLERANCE)
        torch.testing.assert_close(slope / scale, gradient(alone) / scale, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["hidden_dim", "dim", "redundancy_weight"])
def test_a_constant_out_of_range_is_one_line(name):
    with pytest.raises(ValueError, match=f"objective_args.{name} must be above 0, found 0"):
        small(**{name: 0})
