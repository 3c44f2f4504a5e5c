"""SimCLR: the published values, the loss written out, and the same training on one process and on two."""

import socket

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pretrain.models import create_model
from pretrain.models.sync_norm import convert_sync_batch_norm
from pretrain.objectives.simclr import SimCLR

TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}
PUBLISHED_LAYERS = {"fc0": "layers.0", "bn0": "layers.1", "fc1": "layers.3", "bn1": "layers.4"}


def small(seed: int = 0, **arguments: float) -> SimCLR:
    """An objective around a small backbone with batch norm, of 4 x 4 images."""
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(48, 24), nn.BatchNorm1d(24), nn.ReLU())
    return SimCLR(backbone, input_size=4, **({"hidden_dim": 16, "dim": 8} | arguments))


def without_head(temperature: float = 0.1) -> SimCLR:
    """The loss of projections themselves."""
    objective = small(temperature=temperature)
    objective.head = nn.Identity()
    return objective


def random_views(batch: int = 12, seed: int = 0) -> Tensor:
    return torch.randn(2, batch, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_published_loss_and_gradient(mouse_vision):
    values = torch.load(mouse_vision / "losses" / "simclr.pt", weights_only=True)
    weights = values["neck"]
    hidden_dim, features = weights["fc0.weight"].shape
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(3, features))
    objective = SimCLR(backbone, 1, hidden_dim, len(weights["fc1.weight"]), values["temperature"])
    renamed = {f"{PUBLISHED_LAYERS[key.split('.')[0]]}.{key.split('.')[1]}": value for key, value in weights.items()}
    objective.head.load_state_dict(renamed)
    images = values["x"].clone().requires_grad_()
    loss = objective.contrast(images.transpose(0, 1).flatten(0, 1).flatten(1))["loss"]
    torch.testing.assert_close(loss, values["loss"], **TOLERANCE)
    loss.backward()
    torch.testing.assert_close(images.grad, values["grad_x"], **TOLERANCE)


def test_loss_is_the_cross_entropy_written_out_for_every_view():
    projected = torch.randn(10, 6, generator=torch.Generator().manual_seed(1))
    found = without_head(temperature=0.3).contrast(projected)["loss"]
    unit = projected.double() / projected.double().norm(dim=1, keepdim=True)
    total = 0.0
    for view in range(10):
        others = [other for other in range(10) if other != view]
        weights = {other: (unit[view] @ unit[other] / 0.3).exp() for other in others}
        total -= (weights[(view + 5) % 10] / sum(weights.values())).log()
    torch.testing.assert_close(found.double(), total / 10, **TOLERANCE)


@settings(deadline=None, max_examples=25)
@given(
    batch=st.integers(2, 9),
    scales=st.lists(st.floats(0.01, 100), min_size=18, max_size=18),
    seed=st.integers(0, 2**31),
)
def test_neither_the_order_of_images_nor_the_length_of_projections_matters(batch, scales, seed):
    objective, generator = without_head(), torch.Generator().manual_seed(seed)
    projected = torch.randn(2, batch, 6, generator=generator)
    order = torch.randperm(batch, generator=generator)
    stretched = projected[:, order] * torch.tensor(scales[: 2 * batch]).view(2, batch, 1)
    losses = [objective.contrast(views.flatten(0, 1))["loss"] for views in (projected, stretched, projected.flip(0))]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(losses[0], losses[2], rtol=1e-4, atol=1e-4)


def test_views_that_all_look_alike_give_the_loss_of_guessing():
    alike = without_head().contrast(torch.ones(12, 6))["loss"]
    torch.testing.assert_close(alike, torch.tensor(11.0).log())


def test_batch_norm_sees_both_views_together():
    objective, views = small(), random_views()
    views[1] += 3
    hidden = objective.backbone[1](views.flatten(0, 1).flatten(1))
    objective({"views": views})
    torch.testing.assert_close(objective.backbone[2].running_mean, 0.1 * hidden.mean(0))


def test_the_head_is_the_published_one():
    with torch.device("meta"):
        objective = SimCLR(create_model("alexnet_bn", num_classes=0))
    published = 4096 * 2048 + 2 * 2048 + 2048 * 128 + 2 * 128
    assert sum(weights.numel() for weights in objective.head.parameters()) == published
    assert objective.criterion.temperature == 0.1
    assert objective.wants.views == 2
    weights = small(hidden_dim=400, dim=200).head.layers[3].weight
    assert weights.std().item() == pytest.approx(0.01, rel=0.02)
    assert weights.abs().max() > 0.035


def test_twenty_steps_on_one_batch_lower_the_loss():
    objective, views = small(), random_views()
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1, momentum=0.9)
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


def gradient(objective: SimCLR) -> Tensor:
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
    torch.testing.assert_close(sum(losses) / 2, loss.detach(), **TOLERANCE)
    scale = gradient(alone).abs().max()
    for found in gradients:
        torch.testing.assert_close(found / scale, gradient(alone) / scale, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["hidden_dim", "dim", "temperature"])
def test_a_constant_out_of_range_is_one_line(name):
    with pytest.raises(ValueError, match=f"objective_args.{name} must be above 0, found 0"):
        small(**{name: 0})
