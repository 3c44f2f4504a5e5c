"""VICReg: the published values, each term against numpy, and the same training on one process and on two."""

import socket

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pretrain.models import create_model
from pretrain.models.sync_norm import convert_sync_batch_norm
from pretrain.objectives.vicreg import VICReg

TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


def small(seed: int = 0, **arguments: float) -> VICReg:
    """An objective around a small backbone with batch norm, of 4 x 4 images."""
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(48, 24), nn.BatchNorm1d(24), nn.ReLU())
    return VICReg(backbone, input_size=4, **({"hidden_dim": 16, "dim": 12} | arguments))


def without_head() -> VICReg:
    """The loss of outputs themselves."""
    objective = small()
    objective.head = nn.Identity()
    return objective


def random_views(batch: int = 12, seed: int = 0) -> Tensor:
    return torch.randn(2, batch, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_published_loss_and_gradient(mouse_vision):
    values = torch.load(mouse_vision / "losses" / "vicreg.pt", weights_only=True)
    weights = {key.removeprefix("projector."): value for key, value in values["state"].items()}
    hidden_dim, features = weights["0.weight"].shape
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(3, features))
    objective = VICReg(backbone, 1, hidden_dim, len(weights["6.weight"]))
    objective.head.layers.load_state_dict(weights)
    images = values["x"].clone().requires_grad_()
    loss = objective.compare(images.flatten(1), values["y"].flatten(1))["loss"]
    torch.testing.assert_close(loss, values["loss"], **TOLERANCE)
    loss.backward()
    torch.testing.assert_close(images.grad, values["grad_x"], **TOLERANCE)


@settings(deadline=None, max_examples=25)
@given(batch=st.integers(2, 20), dim=st.integers(2, 9), scale=st.floats(0.1, 3), seed=st.integers(0, 2**31))
def test_every_term_against_numpy(batch, dim, scale, seed):
    outputs = scale * torch.randn(2, batch, dim, generator=torch.Generator().manual_seed(seed))
    found = {name: value.item() for name, value in without_head().compare(*outputs).items()}
    first, second = outputs.double().numpy()
    covariances = [np.cov(views, rowvar=False) for views in (first, second)]
    gaps = [np.maximum(0, 1 - np.sqrt(np.diag(covariance) + 1e-4)).mean() for covariance in covariances]
    off_diagonal = ~np.eye(dim, dtype=bool)
    expected = {
        "invariance": ((first - second) ** 2).mean(),
        "variance": sum(gaps) / 2,
        "covariance": sum((covariance[off_diagonal] ** 2).sum() / dim for covariance in covariances),
    }
    expected["loss"] = 25 * expected["invariance"] + 25 * expected["variance"] + expected["covariance"]
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_weights_go_to_their_terms():
    objective = without_head()
    outputs = torch.randn(2, 10, 6, generator=torch.Generator().manual_seed(3))
    terms = objective.compare(*outputs)
    objective.weights = {"invariance": 2.0, "variance": 3.0, "covariance": 5.0}
    expected = 2 * terms["invariance"] + 3 * terms["variance"] + 5 * terms["covariance"]
    torch.testing.assert_close(objective.compare(*outputs)["loss"], expected)
    assert small(covariance_weight=7, variance_weight=6, invariance_weight=5).weights == {
        "invariance": 5,
        "variance": 6,
        "covariance": 7,
    }


def test_views_that_all_look_alike_cost_nearly_the_whole_variance():
    alike = torch.randn(1, 6).expand(10, 6)
    found = {name: value.item() for name, value in without_head().compare(alike, alike).items()}
    assert found == pytest.approx({"loss": 25 * 0.99, "invariance": 0, "variance": 0.99, "covariance": 0}, abs=1e-5)


def test_the_head_is_the_published_one():
    with torch.device("meta"):
        objective = VICReg(create_model("alexnet_bn", num_classes=0))
    published = 4096 * 8192 + 2 * 8192 * 8192 + 2 * 8192 + 4 * 8192
    assert sum(weights.numel() for weights in objective.head.parameters()) == published
    assert objective.weights == {"invariance": 25, "variance": 25, "covariance": 1}
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
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_the_loss_leaves_half_precision():
    objective, views = small(), random_views()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert objective.head(objective.features(views[0])).dtype == torch.bfloat16
        found = objective({"views": views})
    assert {value.dtype for value in found.values()} == {torch.float32}


def gradient(objective: VICReg) -> Tensor:
    """All gradients as one vector."""
    return torch.cat([weights.grad.flatten() for weights in objective.parameters()])


def averaged(values: Tensor) -> Tensor:
    """The mean over processes, which is what they train with."""
    torch.distributed.all_reduce(values)
    return values / torch.distributed.get_world_size()


def process(rank: int, world: int, port: int, folder: str) -> None:
    """One of `world` processes: forward and backward of its part of a batch; saves loss, terms and gradient."""
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    objective = convert_sync_batch_norm(small())
    found = objective({"views": random_views().chunk(world, dim=1)[rank]})
    found["loss"].backward()
    values = {name: value.detach() for name, value in found.items()}
    torch.save((values, averaged(gradient(objective))), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_train_as_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(process, (2, port, str(tmp_path)), nprocs=2)
    values, gradients = zip(*(torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)), strict=True)
    alone = small()
    expected = alone({"views": random_views()})
    expected["loss"].backward()
    for name, value in expected.items():
        torch.testing.assert_close((values[0][name] + values[1][name]) / 2, value.detach(), **TOLERANCE)
    scale = gradient(alone).abs().max()
    for found in gradients:
        torch.testing.assert_close(found / scale, gradient(alone) / scale, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"hidden_dim": 0}, "objective_args.hidden_dim must be above 0, found 0"),
        ({"dim": -1}, "objective_args.dim must be above 0, found -1"),
        ({"invariance_weight": -1}, "objective_args.invariance_weight must not be below 0, found -1"),
        ({"covariance_weight": float("nan")}, "objective_args.covariance_weight must not be below 0, found nan"),
    ],
)
def test_a_constant_out_of_range_is_one_line(arguments, line):
    with pytest.raises(ValueError, match=line):
        small(**arguments)
