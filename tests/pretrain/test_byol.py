"""BYOL: the loss written out, the slow teacher, exact resume, and two processes against one."""

import copy
import math
import socket

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pretrain.models import create_model
from pretrain.models.sync_norm import convert_sync_batch_norm
from pretrain.objectives.byol import BYOL, teacher_momentum

TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


def small(seed: int = 0, **arguments: float) -> BYOL:
    """An objective around a small backbone with batch norm, of 4 x 4 images."""
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(48, 24), nn.BatchNorm1d(24), nn.ReLU())
    return BYOL(backbone, input_size=4, **({"hidden_dim": 16, "dim": 8} | arguments))


def random_batch(seed: int = 0, progress: float = 0.25, images: int = 12) -> dict[str, Tensor]:
    views = torch.randn(2, images, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return {"views": views, "progress": torch.tensor(progress)}


def train_step(objective: BYOL, batch: dict[str, Tensor], lr: float = 0.05) -> float:
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


def pairs(objective: BYOL) -> list[tuple[nn.Module, nn.Module]]:
    """Each network with its teacher."""
    return [
        (objective.backbone, objective.teacher_backbone),
        (objective.projector, objective.teacher_projector),
    ]


def test_loss_is_the_squared_distance_of_unit_vectors_written_out():
    predictions, targets = torch.randn(2, 2, 5, 8, generator=torch.Generator().manual_seed(1)) * 3
    found = small().compare(list(predictions), list(targets))["loss"]
    total = 0.0
    for image in range(5):
        for predicting, predicted in ((0, 1), (1, 0)):
            guess, target = predictions[predicting, image].double(), targets[predicted, image].double()
            total += float(((guess / guess.norm() - target / target.norm()) ** 2).sum())
    assert found.item() == pytest.approx(total / 5, rel=1e-5)


def test_the_loss_is_0_where_predictions_fit_and_8_where_they_are_opposite():
    objective, targets = small(), list(torch.randn(2, 5, 8))
    swapped = [2 * targets[1], 3 * targets[0]]
    assert objective.compare(swapped, targets)["loss"].item() == pytest.approx(0, abs=1e-5)
    assert objective.compare([-view for view in swapped], targets)["loss"].item() == pytest.approx(8, abs=1e-5)


@given(start=st.floats(0, 0.9999), early=st.floats(0, 1), later=st.floats(0, 1))
def test_the_momentum_rises_from_its_start_to_1(start, early, later):
    early, later = sorted((early, later))
    assert start - 1e-12 <= teacher_momentum(early, start) <= teacher_momentum(later, start) + 1e-12 <= 1 + 2e-12
    assert teacher_momentum(0, start) == pytest.approx(start)
    assert teacher_momentum(0.5, start) == pytest.approx((1 + start) / 2)
    assert teacher_momentum(1, start) == 1


def test_the_heads_are_the_published_ones():
    with torch.device("meta"):
        objective = BYOL(create_model("alexnet_bn", num_classes=0))
    projector = 4096 * 4096 + 2 * 4096 + 4096 * 256 + 256
    predictor = 256 * 4096 + 2 * 4096 + 4096 * 256 + 256
    for head, published in ((objective.projector, projector), (objective.predictor, predictor)):
        assert sum(weights.numel() for weights in head.parameters()) == published
    assert (objective.momentum, objective.wants.views) == (0.996, 2)


def test_the_teacher_starts_as_a_copy_that_no_gradient_reaches():
    objective = small()
    for network, teacher in pairs(objective):
        assert all(map(torch.equal, network.state_dict().values(), teacher.state_dict().values()))
    objective(random_batch())["loss"].backward()
    assert all(weights.grad is not None for weights in objective.predictor.parameters())
    for network, teacher in pairs(objective):
        assert all(weights.grad is not None for weights in network.parameters())
        assert not any(weights.requires_grad or weights.grad is not None for weights in teacher.parameters())


@pytest.mark.parametrize("progress", [0.0, 0.25, 1.0])
def test_the_teacher_follows_by_the_scheduled_momentum_after_the_step_and_only_then(progress):
    objective = small(momentum=0.9)
    train_step(objective, random_batch(progress=0.0))
    before = [copy.deepcopy(teacher) for _, teacher in pairs(objective)]
    objective(random_batch(1, progress))["loss"].backward()
    kept = 1 - 0.1 * (math.cos(math.pi * progress) + 1) / 2
    for (_, teacher), old in zip(pairs(objective), before, strict=True):
        assert all(map(torch.equal, teacher.parameters(), old.parameters()))
    for _ in range(2):
        objective.after_step()
    for (network, teacher), old in zip(pairs(objective), before, strict=True):
        expected = [
            kept * slow + (1 - kept) * fast for slow, fast in zip(old.parameters(), network.parameters(), strict=True)
        ]
        torch.testing.assert_close(list(teacher.parameters()), expected, rtol=1e-6, atol=1e-7)


def test_each_view_is_normalised_on_its_own_and_the_teacher_keeps_its_own_statistics():
    objective, batch = small(), random_batch()
    batch["views"][1] += 3
    hidden = [objective.backbone[1](view.flatten(1)) for view in batch["views"]]
    objective(batch)
    expected = 0.9 * 0.1 * hidden[0].mean(0) + 0.1 * hidden[1].mean(0)
    for backbone in (objective.backbone, objective.teacher_backbone):
        torch.testing.assert_close(backbone[2].running_mean, expected)
    train_step(objective, batch)
    assert not torch.equal(objective.backbone[2].running_mean, expected)
    before = objective.teacher_backbone[2].running_mean.clone()
    objective.momentum_now = 0.0
    objective.after_step()
    assert torch.equal(objective.teacher_backbone[2].running_mean, before)


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
    objective = small()
    losses = [train_step(objective, random_batch(), lr=0.1) for _ in range(30)]
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])


def test_the_loss_leaves_half_precision():
    objective, batch = small(), random_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert objective.projector(objective.features(batch["views"][0])).dtype == torch.bfloat16
        assert objective(batch)["loss"].dtype == torch.float32


def gradient(objective: BYOL) -> Tensor:
    """All gradients as one vector."""
    return torch.cat([weights.grad.flatten() for weights in objective.parameters() if weights.requires_grad])


def process(rank: int, world: int, port: int, folder: str) -> None:
    """One of `world` processes: forward and backward of its part of a batch; saves loss and gradient."""
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    objective, batch = convert_sync_batch_norm(small()), random_batch()
    parallel = DistributedDataParallel(objective, broadcast_buffers=False)
    loss = parallel(batch | {"views": batch["views"].chunk(world, dim=1)[rank]})["loss"]
    loss.backward()
    torch.save((loss.detach(), gradient(objective)), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_train_as_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(process, (2, port, str(tmp_path)), nprocs=2)
    losses, gradients = zip(*(torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)), strict=True)
    alone = small()
    loss = alone(random_batch())["loss"]
    loss.backward()
    torch.testing.assert_close(sum(losses) / 2, loss.detach(), **TOLERANCE)
    scale = gradient(alone).abs().max()
    for found in gradients:
        torch.testing.assert_close(found / scale, gradient(alone) / scale, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"hidden_dim": 0}, "objective_args.hidden_dim must be above 0, found 0"),
        ({"dim": 0}, "objective_args.dim must be above 0, found 0"),
        ({"momentum": 1.0}, "objective_args.momentum must be from 0 to below 1, found 1.0"),
    ],
)
def test_a_constant_out_of_range_is_one_line(arguments, line):
    with pytest.raises(ValueError, match=line):
        small(**arguments)
