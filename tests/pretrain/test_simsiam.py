"""SimSiam: the published values, where the gradient stops, and the same training on one process and on two."""

import math
import socket

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pretrain.models import create_model
from pretrain.models.sync_norm import convert_sync_batch_norm
from pretrain.objectives.simsiam import SimSiam

TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}
PUBLISHED_LAYERS = {
    "projection_mlp.layer1.0": "projector.layers.0",
    "projection_mlp.layer1.1": "projector.layers.1",
    "projection_mlp.layer2.0": "projector.layers.3",
    "projection_mlp.layer2.1": "projector.layers.4",
    "projection_mlp.layer3.0": "projector.layers.6",
    "projection_mlp.layer3.1": "projector.layers.7",
    "prediction_mlp.layer1.0": "predictor.layers.0",
    "prediction_mlp.layer1.1": "predictor.layers.1",
    "prediction_mlp.layer2": "predictor.layers.3",
}


class Constant(nn.Module):
    """A predictor whose predictions, one parameter, do not depend on the projections."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.output = nn.Parameter(torch.linspace(-1, 1, dim))

    def forward(self, projected: Tensor) -> Tensor:
        return self.output.expand_as(projected)


def small(seed: int = 0, **arguments: int) -> SimSiam:
    """An objective around a small backbone with batch norm, of 4 x 4 images."""
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(48, 24), nn.BatchNorm1d(24), nn.ReLU())
    return SimSiam(backbone, input_size=4, **({"hidden_dim": 16, "dim": 12, "predictor_dim": 6} | arguments))


def random_views(batch: int = 12, seed: int = 0) -> Tensor:
    return torch.randn(2, batch, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_published_loss_and_gradients(mouse_vision):
    values = torch.load(mouse_vision / "losses" / "simsiam.pt", weights_only=True)
    weights = values["neck"]
    hidden_dim, features = weights["projection_mlp.layer1.0.weight"].shape
    dim, predictor_dim = weights["prediction_mlp.layer2.weight"].shape
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(3, features))
    objective = SimSiam(backbone, 1, hidden_dim, dim, predictor_dim)
    renamed = {}
    for key, value in weights.items():
        layer, kind = key.rsplit(".", 1)
        renamed[f"{PUBLISHED_LAYERS[layer]}.{kind}"] = value
    heads = {key for key in objective.state_dict() if not key.startswith("backbone.")}
    assert heads == renamed.keys()
    objective.load_state_dict(renamed, strict=False)
    first, second = (values[name].clone().requires_grad_() for name in ("x1", "x2"))
    loss = objective.compare(first.flatten(1), second.flatten(1))["loss"]
    torch.testing.assert_close(loss, values["loss"], **TOLERANCE)
    loss.backward()
    torch.testing.assert_close(first.grad, values["grad_x1"], **TOLERANCE)
    torch.testing.assert_close(second.grad, values["grad_x2"], **TOLERANCE)


def test_loss_is_the_mean_cosine_written_out_for_every_pair():
    objective, views = small(), random_views(5)
    found = objective({"views": views})["loss"]
    with torch.no_grad():
        projected = [objective.projector(objective.backbone(view)) for view in views]
        predicted = [objective.predictor(projection) for projection in projected]
    total = 0.0
    for there, back in ((0, 1), (1, 0)):
        for p, z in zip(predicted[there].double(), projected[back].double(), strict=True):
            total -= float(p @ z) / math.sqrt(float(p @ p) * float(z @ z))
    assert found.item() == pytest.approx(total / 10, rel=1e-5)


def test_no_gradient_flows_through_the_projections_that_are_predicted():
    objective = small()
    objective.predictor = Constant(12)
    objective({"views": random_views()})["loss"].backward()
    assert objective.predictor.output.grad.abs().max() > 0
    assert all(weights.grad is None for weights in objective.projector.parameters())


@settings(deadline=None, max_examples=25)
@given(batch=st.integers(2, 9), scale=st.floats(0.01, 100), seed=st.integers(0, 2**31))
def test_the_loss_is_a_cosine(batch, scale, seed):
    objective, generator = small(), torch.Generator().manual_seed(seed)
    objective.projector = objective.predictor = nn.Identity()
    first, second = torch.randn(2, batch, 12, generator=generator)
    order = torch.randperm(batch, generator=generator)
    loss = objective.compare(first, second)["loss"]
    assert -1 - 1e-5 <= loss <= 1 + 1e-5
    torch.testing.assert_close(objective.compare(scale * first, second)["loss"], loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(objective.compare(second[order], first[order])["loss"], loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(objective.compare(first, scale * first)["loss"], torch.tensor(-1.0))
    torch.testing.assert_close(objective.compare(first, -scale * first)["loss"], torch.tensor(1.0))


def test_output_std_tells_collapse_from_random_directions():
    objective = small()
    objective.projector = objective.predictor = nn.Identity()
    alike = torch.randn(1, 64).expand(500, 64)
    assert objective.compare(alike, alike)["output_std"] < 1e-6
    spread = objective.compare(*torch.randn(2, 500, 64))["output_std"]
    assert spread.item() == pytest.approx(1 / 8, rel=0.02)
    assert not spread.requires_grad


def test_batch_norm_sees_each_view_on_its_own():
    objective, views = small(), random_views()
    views[1] += 3
    hidden = [objective.backbone[1](view.flatten(1)) for view in views]
    objective({"views": views})
    expected = 0.9 * 0.1 * hidden[0].mean(0) + 0.1 * hidden[1].mean(0)
    torch.testing.assert_close(objective.backbone[2].running_mean, expected)
    within = 0.9 * (0.9 + 0.1 * hidden[0].var(0)) + 0.1 * hidden[1].var(0)
    torch.testing.assert_close(objective.backbone[2].running_var, within)


def test_the_heads_are_the_published_ones():
    with torch.device("meta"):
        objective = SimSiam(create_model("alexnet_bn", num_classes=0))
    norm = 2 * 2048
    projector = (4096 * 2048 + 2048 + norm) + 2 * (2048 * 2048 + 2048 + norm)
    predictor = (2048 * 512 + 512 + 2 * 512) + (512 * 2048 + 2048)
    assert sum(weights.numel() for weights in objective.projector.parameters()) == projector
    assert sum(weights.numel() for weights in objective.predictor.parameters()) == predictor
    assert objective.wants.views == 2


def test_thirty_steps_on_one_batch_lower_the_loss():
    objective, views = small(), random_views()
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.3, momentum=0.9)
    losses = []
    for _ in range(30):
        loss = objective({"views": views})["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < sum(losses[:3]) - 1.5


def test_the_loss_leaves_half_precision():
    objective, views = small(), random_views()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert objective.predictor(objective.projector(objective.features(views[0]))).dtype == torch.bfloat16
        found = objective({"views": views})
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert found["output_std"] > 0


def gradient(objective: SimSiam) -> Tensor:
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


@pytest.mark.parametrize("name", ["hidden_dim", "dim", "predictor_dim"])
def test_a_constant_out_of_range_is_one_line(name):
    with pytest.raises(ValueError, match=f"objective_args.{name} must be above 0, found 0"):
        small(**{name: 0})
