"""TiCo: the loss written out, the covariance and the slow teacher, exact resume, and two processes against one."""

import copy
import math
import socket

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pretrain.models import create_model
from pretrain.models.sync_norm import convert_sync_batch_norm
from pretrain.objectives.tico import TiCo

TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


def small(seed: int = 0, **arguments: float) -> TiCo:
    """An objective around a small backbone with batch norm, of 4 x 4 images."""
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(48, 24), nn.BatchNorm1d(24), nn.ReLU())
    return TiCo(backbone, input_size=4, **({"hidden_dim": 16, "dim": 8} | arguments))


def random_batch(seed: int = 0, progress: float = 0.25, images: int = 12) -> dict[str, Tensor]:
    views = torch.randn(2, images, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return {"views": views, "progress": torch.tensor(progress)}


def train_step(objective: TiCo, batch: dict[str, Tensor], lr: float = 0.05) -> float:
    """One step of plain SGD; returns the loss before it."""
    loss = objective(batch)["loss"]
    objective.zero_grad()
    loss.backward()
    with torch.no_grad():
        for weights in objective.parameters():
            if weights.requires_grad:
                weights -= lr * weights.grad
    objective.after_step()
    return loss.item()


def written_out(projected: Tensor, targets: Tensor, covariance: Tensor) -> tuple[float, Tensor]:
    """The loss with weight 5 and momentum 0.8, image by image, and the new covariance."""
    unit, target = (rows.double() / rows.double().norm(dim=1, keepdim=True) for rows in (projected, targets))
    moments = sum(torch.outer(row, row) for row in unit) / len(unit)
    covariance = 0.8 * covariance.double() + 0.2 * moments
    losses = [1 - a @ b + 5 * a @ covariance @ a for a, b in zip(unit, target, strict=True)]
    return float(sum(losses) / len(losses)), covariance


def test_loss_and_covariance_written_out_over_three_steps():
    objective = small(covariance_weight=5.0, covariance_momentum=0.8)
    covariance = torch.zeros(8, 8)
    for projected, targets in torch.randn(3, 2, 6, 8, generator=torch.Generator().manual_seed(1)) * 2:
        expected, moved = written_out(projected, targets, covariance)
        assert objective.compare(projected, targets)["loss"].item() == pytest.approx(expected, rel=1e-5)
        torch.testing.assert_close(objective.covariance, covariance.float())
        objective.momentum_now = 0.99
        objective.after_step()
        torch.testing.assert_close(objective.covariance.double(), moved, **TOLERANCE)
        covariance = moved


def test_projections_that_all_look_alike_cost_the_weight_of_the_covariance():
    objective = small(covariance_weight=5.0)
    alike = torch.ones(6, 8)
    objective.covariance.copy_(torch.full((8, 8), 1 / 8))
    assert objective.compare(alike, alike)["loss"].item() == pytest.approx(5, rel=1e-5)


def test_the_head_and_the_constants_are_the_published_ones():
    with torch.device("meta"):
        objective = TiCo(create_model("alexnet_bn", num_classes=0))
    published = 4096 * 4096 + 2 * 4096 + 4096 * 256 + 256
    assert sum(weights.numel() for weights in objective.projector.parameters()) == published
    assert (objective.criterion.rho, objective.criterion.beta, objective.wants.views) == (8.0, 0.9, 2)
    assert objective.covariance.shape == (256, 256)


def test_the_covariance_is_saved_and_changes_after_the_step_and_only_then():
    objective = small()
    assert "covariance" in objective.state_dict()
    assert "covariance" not in dict(objective.named_parameters())
    objective(random_batch())["loss"].backward()
    assert not objective.covariance.any()
    objective.after_step()
    # A mean of outer products of unit vectors has trace 1.
    assert objective.covariance.trace().item() == pytest.approx(0.1, rel=1e-5)
    before = objective.covariance.clone()
    objective.after_step()
    assert torch.equal(objective.covariance, before)


def test_the_teacher_follows_by_the_scheduled_momentum_and_no_gradient_reaches_it():
    objective = small(momentum=0.9)
    train_step(objective, random_batch(progress=0.0))
    before = copy.deepcopy([objective.teacher_backbone, objective.teacher_projector])
    train_step(objective, random_batch(1, progress=0.3), lr=0.0)
    kept = 1 - 0.1 * (math.cos(math.pi * 0.3) + 1) / 2
    networks = (objective.backbone, objective.projector)
    teachers = (objective.teacher_backbone, objective.teacher_projector)
    for network, teacher, old in zip(networks, teachers, before, strict=True):
        assert not any(weights.requires_grad or weights.grad is not None for weights in teacher.parameters())
        for now, slow, fast in zip(teacher.parameters(), old.parameters(), network.parameters(), strict=True):
            torch.testing.assert_close(now, kept * slow + (1 - kept) * fast, rtol=1e-6, atol=1e-7)


def test_the_first_views_go_through_the_network_and_the_second_through_the_teacher():
    objective, batch = small(), random_batch()
    batch["views"][1] += 3
    hidden = [objective.backbone[1](view.flatten(1)) for view in batch["views"]]
    objective(batch)
    torch.testing.assert_close(objective.backbone[2].running_mean, 0.1 * hidden[0].mean(0))
    torch.testing.assert_close(objective.teacher_backbone[2].running_mean, 0.1 * hidden[1].mean(0))


def test_a_run_that_goes_on_from_a_saved_state_is_the_same():
    objective = small()
    for step in range(3):
        train_step(objective, random_batch(step, step / 8))
    saved = copy.deepcopy(objective.state_dict())
    uninterrupted = [train_step(objective, random_batch(step, step / 8)) for step in range(3, 8)]
    restored = small(seed=9)
    restored.load_state_dict(saved)
    assert [train_step(restored, random_batch(step, step / 8)) for step in range(3, 8)] == uninterrupted
    assert all(map(torch.equal, restored.state_dict().values(), objective.state_dict().values()))


def test_validation_changes_nothing():
    objective = small()
    train_step(objective, random_batch())
    objective.eval()
    before = copy.deepcopy(objective.state_dict())
    assert objective(random_batch(1))["loss"].isfinite()
    objective.after_step()
    assert all(map(torch.equal, before.values(), objective.state_dict().values()))


def test_thirty_steps_on_one_batch_lower_the_loss():
    objective = small(covariance_momentum=0.0)
    losses = [train_step(objective, random_batch()) for _ in range(30)]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_the_loss_leaves_half_precision():
    objective, batch = small(), random_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert objective.projector(objective.features(batch["views"][0])).dtype == torch.bfloat16
        assert objective(batch)["loss"].dtype == torch.float32
    objective.after_step()
    assert objective.covariance.dtype == torch.float32


def gradient(objective: TiCo) -> Tensor:
    """All gradients as one vector."""
    return torch.cat([weights.grad.flatten() for weights in objective.parameters() if weights.requires_grad])


def two_steps(objective: TiCo, model: nn.Module, rank: int, world: int) -> dict[str, Tensor]:
    """Losses of two steps on this process's part, without an optimiser, the last gradient, and the covariance."""
    losses = []
    for step in range(2):
        batch = random_batch(step)
        loss = model(batch | {"views": batch["views"].chunk(world, dim=1)[rank]})["loss"]
        objective.zero_grad()
        loss.backward()
        objective.after_step()
        losses.append(loss.detach())
    return {"losses": torch.stack(losses), "gradient": gradient(objective), "covariance": objective.covariance}


def process(rank: int, world: int, port: int, folder: str) -> None:
    """One of `world` processes: saves what it finds."""
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    objective = convert_sync_batch_norm(small())
    parallel = DistributedDataParallel(objective, broadcast_buffers=False)
    torch.save(two_steps(objective, parallel, rank, world), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_train_as_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(process, (2, port, str(tmp_path)), nprocs=2)
    alone = small()
    expected = two_steps(alone, alone, 0, 1)
    scale = expected["gradient"].abs().max()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found["losses"], expected["losses"], **TOLERANCE)
        torch.testing.assert_close(found["covariance"], expected["covariance"], **TOLERANCE)
        torch.testing.assert_close(found["gradient"] / scale, expected["gradient"] / scale, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"hidden_dim": 0}, "objective_args.hidden_dim must be above 0, found 0"),
        ({"dim": 0}, "objective_args.dim must be above 0, found 0"),
        ({"covariance_weight": 0.0}, "objective_args.covariance_weight must be above 0, found 0.0"),
        ({"covariance_momentum": 1.0}, "objective_args.covariance_momentum must be from 0 to below 1, found 1.0"),
        ({"momentum": -0.1}, "objective_args.momentum must be from 0 to below 1, found -0.1"),
    ],
)
def test_a_constant_out_of_range_is_one_line(arguments, line):
    with pytest.raises(ValueError, match=line):
        small(**arguments)
