"""NNCLR: neighbours and loss written out, the support set, exact resume, and two processes against one."""

import copy
import math
import socket

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from pretrain.models import create_model
from pretrain.models.sync_norm import convert_sync_batch_norm
from pretrain.objectives.nnclr import NNCLR

TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


def small(seed: int = 0, **arguments: float) -> NNCLR:
    """An objective around a small backbone with batch norm, of 4 x 4 images."""
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(48, 24), nn.BatchNorm1d(24), nn.ReLU())
    sizes = {"hidden_dim": 16, "dim": 8, "predictor_hidden_dim": 20, "queue_size": 30}
    return NNCLR(backbone, input_size=4, **(sizes | arguments))


def random_batch(seed: int = 0, images: int = 12) -> dict[str, Tensor]:
    return {"views": torch.randn(2, images, 3, 4, 4, generator=torch.Generator().manual_seed(seed))}


def train_step(objective: NNCLR, batch: dict[str, Tensor], lr: float = 0.05) -> float:
    """One step of plain SGD; returns the loss before it."""
    loss = objective(batch)["loss"]
    objective.zero_grad()
    loss.backward()
    with torch.no_grad():
        for weights in objective.parameters():
            weights -= lr * weights.grad
    objective.after_step()
    return loss.item()


def unit(vector: Tensor) -> Tensor:
    return vector.double() / vector.double().norm()


def test_the_neighbour_is_the_row_at_the_smallest_angle():
    objective = small()
    projected = torch.randn(6, 8, generator=torch.Generator().manual_seed(1)) * 5
    for view, found in zip(projected, objective.neighbours(projected), strict=True):
        angles = [math.acos(float(unit(view) @ unit(row))) for row in objective.queue.rows]
        assert torch.equal(found, objective.queue.rows[angles.index(min(angles))])


def test_loss_is_the_cross_entropy_written_out_for_neighbours_and_predictions():
    objective = small(temperature=0.3)
    projections, predictions = torch.randn(2, 2, 5, 8, generator=torch.Generator().manual_seed(1)) * 2
    found = objective.contrast(list(projections), list(predictions))["loss"]
    losses = []
    for view in range(2):
        near = [unit(row) for row in objective.neighbours(projections[view])]
        all_vectors = near + [unit(row) for row in predictions[1 - view]]
        for one in range(10):
            others = [other for other in range(10) if other != one]
            weights = {other: math.exp(float(all_vectors[one] @ all_vectors[other]) / 0.3) for other in others}
            losses.append(-math.log(weights[(one + 5) % 10] / sum(weights.values())))
    assert found.item() == pytest.approx(sum(losses) / 20, rel=1e-5)


def test_neighbours_are_constants_and_predictions_are_not():
    objective = small()
    projections, predictions = (torch.randn(2, 6, 8).requires_grad_() for _ in range(2))
    objective.contrast(list(projections), list(predictions))["loss"].backward()
    assert projections.grad is None
    assert (predictions.grad.abs().sum(-1) > 0).all()


def test_heads_and_support_set_are_the_published_ones():
    with torch.device("meta"):
        objective = NNCLR(create_model("alexnet_bn", num_classes=0))
    projector = 4096 * 2048 + 2048 * 2048 + 2048 * 256 + 2 * (2048 + 2048 + 256)
    predictor = 256 * 4096 + 2 * 4096 + 4096 * 256 + 256
    for head, published in ((objective.projector, projector), (objective.predictor, predictor)):
        assert sum(weights.numel() for weights in head.parameters()) == published
    assert objective.queue.rows.shape == (65_536, 256)
    assert (objective.criterion.temperature, objective.wants.views) == (0.1, 2)


def test_first_views_enter_the_support_set_after_the_step_and_only_then():
    objective, batch = small(), random_batch()
    before = objective.queue.rows.clone()
    objective(batch)["loss"].backward()
    assert torch.equal(objective.queue.rows, before)
    expected = F.normalize(objective.projector(objective.backbone(batch["views"][0])), dim=1)
    for _ in range(2):
        objective.after_step()
        torch.testing.assert_close(objective.queue.rows[:12], expected)
        assert torch.equal(objective.queue.rows[12:], before[12:])


def test_the_support_set_is_saved_and_no_parameter():
    objective = small()
    assert {"queue.rows", "queue.oldest"} <= objective.state_dict().keys()
    assert not any("queue" in name for name, _ in objective.named_parameters())


def test_each_view_is_normalised_on_its_own():
    objective, batch = small(), random_batch()
    batch["views"][1] += 3
    hidden = [objective.backbone[1](view.flatten(1)) for view in batch["views"]]
    objective(batch)
    expected = 0.9 * 0.1 * hidden[0].mean(0) + 0.1 * hidden[1].mean(0)
    torch.testing.assert_close(objective.backbone[2].running_mean, expected)


def test_a_run_that_goes_on_from_a_saved_state_is_the_same():
    objective = small()
    for step in range(3):
        train_step(objective, random_batch(step))
    saved = copy.deepcopy(objective.state_dict())
    uninterrupted = [train_step(objective, random_batch(step)) for step in range(3, 8)]
    restored = small(seed=9)
    restored.load_state_dict(saved)
    assert [train_step(restored, random_batch(step)) for step in range(3, 8)] == uninterrupted
    assert all(map(torch.equal, restored.state_dict().values(), objective.state_dict().values()))


def test_validation_changes_nothing():
    objective = small()
    train_step(objective, random_batch())
    objective.eval()
    before = copy.deepcopy(objective.state_dict())
    assert objective(random_batch(1))["loss"].isfinite()
    objective.after_step()
    assert all(map(torch.equal, before.values(), objective.state_dict().values()))


def test_fifty_steps_on_one_batch_lower_the_loss():
    objective = small(temperature=0.3)
    losses = [train_step(objective, random_batch()) for _ in range(50)]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])


def test_the_loss_leaves_half_precision():
    objective, batch = small(), random_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert objective.predictor.layers[0](torch.randn(3, 8)).dtype == torch.bfloat16
        assert objective(batch)["loss"].dtype == torch.float32
    assert objective.newest[0].dtype == torch.float32


def gradient(objective: NNCLR) -> Tensor:
    """All gradients as one vector."""
    return torch.cat([weights.grad.flatten() for weights in objective.parameters()])


def two_steps(objective: NNCLR, model: nn.Module, rank: int, world: int) -> dict[str, Tensor]:
    """Losses of two steps on this process's part, without an optimiser, the last gradient, and the support set."""
    losses = []
    for step in range(2):
        loss = model({"views": random_batch(step)["views"].chunk(world, dim=1)[rank]})["loss"]
        objective.zero_grad()
        loss.backward()
        objective.after_step()
        losses.append(loss.detach())
    return {"losses": torch.stack(losses), "gradient": gradient(objective), "rows": objective.queue.rows}


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
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    alone = small()
    expected = two_steps(alone, alone, 0, 1)
    torch.testing.assert_close((found[0]["losses"] + found[1]["losses"]) / 2, expected["losses"], **TOLERANCE)
    assert torch.equal(found[0]["rows"], found[1]["rows"])
    scale = expected["gradient"].abs().max()
    for one in found:
        torch.testing.assert_close(one["rows"], expected["rows"], **TOLERANCE)
        torch.testing.assert_close(one["gradient"] / scale, expected["gradient"] / scale, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["hidden_dim", "dim", "predictor_hidden_dim", "queue_size", "temperature"])
def test_a_constant_out_of_range_is_one_line(name):
    with pytest.raises(ValueError, match=f"objective_args.{name} must be above 0, found 0"):
        small(**{name: 0})
