"""SwAV: codes and loss written out, prototypes, queues and local views, exact resume, and two processes against one."""

import copy
import socket

import pytest
import timm
import torch
from lightly.loss.swav_loss import sinkhorn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from pretrain.models import create_model
from pretrain.models.sync_norm import convert_sync_batch_norm
from pretrain.objectives.swav import SwAV

TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}
LOCAL_VIEWS = 3


def small(seed: int = 0, **arguments: float) -> SwAV:
    """An objective around a small convolutional backbone with batch norm, of 8 x 8 and 4 x 4 images."""
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Conv2d(3, 24, 3), nn.BatchNorm2d(24), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    sizes = {"local_views": LOCAL_VIEWS, "hidden_dim": 16, "dim": 8, "prototypes": 10}
    return SwAV(backbone, input_size=8, **(sizes | arguments))


def random_batch(seed: int = 0, epoch: float = 2.0, images: int = 12) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    views = torch.randn(2, images, 3, 8, 8, generator=generator)
    local = torch.randn(LOCAL_VIEWS, images, 3, 4, 4, generator=generator)
    return {"views": views, "local_views": local, "epoch": torch.tensor(epoch)}


def random_projections(images: int = 6, seed: int = 1) -> list[Tensor]:
    return list(torch.randn(2 + LOCAL_VIEWS, images, 8, generator=torch.Generator().manual_seed(seed)) * 3)


def train_step(objective: SwAV, batch: dict[str, Tensor], lr: float = 0.1, decay: float = 0.0) -> float:
    """One step of plain SGD; returns the loss before it."""
    loss = objective(batch)["loss"]
    objective.zero_grad()
    loss.backward()
    with torch.no_grad():
        for weights in objective.parameters():
            weights -= lr * (weights.grad + decay * weights)
    objective.after_step()
    return loss.item()


def codes_written_out(scores: Tensor) -> Tensor:
    """Sinkhorn-Knopp in three rounds: over views for each prototype, then over prototypes for each view."""
    codes = (scores / 0.05).exp()
    for _ in range(3):
        codes = codes / codes.sum(0, keepdim=True) / codes.shape[1]
        codes = codes / codes.sum(1, keepdim=True) / codes.shape[0]
    return codes * codes.shape[0]


def loss_written_out(objective: SwAV, projections: list[Tensor], queues: tuple[Tensor, ...] = ()) -> float:
    """Every view predicts the codes of the whole views other than itself."""
    prototypes = objective.prototypes.weight.detach().double()
    scores = [F.normalize(view.double(), dim=1) @ prototypes.T for view in projections]
    total = 0.0
    for whole in range(2):
        earlier = queues[whole].double() @ prototypes.T if queues else scores[whole][:0]
        codes = codes_written_out(torch.cat([scores[whole], earlier]))[: len(scores[whole])]
        others = [view for view in range(len(scores)) if view != whole]
        for view in others:
            shares = (scores[view] / 0.1).exp()
            shares = shares / shares.sum(1, keepdim=True)
            total -= float((codes * shares.log()).sum(1).mean()) / len(others)
    return total / 2


def test_loss_is_the_cross_entropy_of_swapped_codes_written_out():
    objective, projections = small(), random_projections()
    found = objective.swap(projections, epoch=2.0)["loss"]
    assert found.ndim == 0
    assert found.item() == pytest.approx(loss_written_out(objective, projections), rel=1e-5)


def test_codes_are_shares_that_use_every_prototype_evenly():
    scores = torch.rand(60, 10, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.testing.assert_close(sinkhorn(scores).double(), codes_written_out(scores.double()), **TOLERANCE)
    codes = sinkhorn(scores, iterations=200)
    torch.testing.assert_close(codes.sum(1), torch.ones(60))
    torch.testing.assert_close(codes.sum(0), torch.full((10,), 6.0), rtol=1e-3, atol=0)


def test_without_local_views_the_two_whole_ones_predict_each_other():
    objective, batch = small(local_views=0), random_batch()
    del batch["local_views"]
    assert objective.wants.local_views == 0
    projections = objective.projector(objective.features(batch["views"].flatten(0, 1))).detach().chunk(2)
    expected = loss_written_out(objective, list(projections))
    assert objective(batch)["loss"].item() == pytest.approx(expected, rel=1e-4)


def test_views_of_one_size_go_through_the_backbone_together_and_all_through_the_head():
    objective, batch = small(), random_batch()
    batch["local_views"] += 3
    hidden = [objective.backbone[0](batch[key].flatten(0, 1)).mean((0, 2, 3)) for key in ("views", "local_views")]
    seen = []
    objective.projector.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    objective(batch)
    torch.testing.assert_close(objective.backbone[1].running_mean, 0.9 * 0.1 * hidden[0] + 0.1 * hidden[1])
    assert seen == [(2 + LOCAL_VIEWS) * 12]


def test_head_and_prototypes_are_the_published_ones():
    with torch.device("meta"):
        objective = SwAV(create_model("alexnet_bn", num_classes=0))
    published = 4096 * 2048 + 2 * 2048 + 2048 * 128 + 128
    assert sum(weights.numel() for weights in objective.projector.parameters()) == published
    assert [tuple(weights.shape) for weights in objective.prototypes.parameters()] == [(3000, 128)]
    criterion = objective.criterion
    assert (criterion.temperature, criterion.sinkhorn_epsilon, criterion.sinkhorn_iterations) == (0.1, 0.05, 3)
    assert (objective.wants.views, objective.wants.local_views, len(objective.queues)) == (2, 6, 0)


def test_prototypes_have_unit_length_from_the_start_and_after_every_step():
    objective = small()
    start = objective.prototypes.weight.clone()
    for step in range(3):
        torch.testing.assert_close(objective.prototypes.weight.norm(dim=1), torch.ones(10))
        train_step(objective, random_batch(step), lr=1.0)
    torch.testing.assert_close(objective.prototypes.weight.norm(dim=1), torch.ones(10))
    assert (objective.prototypes.weight - start).abs().max() > 0.01


def test_prototypes_stay_as_they_are_in_the_first_epoch_under_weight_decay_too():
    objective = small()
    start = objective.prototypes.weight.clone()
    for step in range(3):
        train_step(objective, random_batch(step, epoch=0.3 * step), decay=0.5)
        assert torch.equal(objective.prototypes.weight, start)
        assert not objective.prototypes.weight.grad.any()
    train_step(objective, random_batch(3, epoch=1.0))
    assert not torch.equal(objective.prototypes.weight, start)


def test_freezing_the_prototypes_changes_no_other_gradient():
    gradients = []
    for epoch in (0.5, 2.0):
        objective = small()
        objective(random_batch(epoch=epoch))["loss"].backward()
        gradients.append([weights.grad for name, weights in objective.named_parameters() if "prototypes" not in name])
    assert all(map(torch.equal, *gradients))


def test_the_queue_takes_part_in_codes_from_its_epoch_on():
    objective, projections = small(queue_size=20, queue_from_epoch=5.0), random_projections()
    before = objective.swap(projections, epoch=4.9)["loss"].item()
    assert before == pytest.approx(loss_written_out(objective, projections), rel=1e-5)
    used = objective.swap(projections, epoch=5.0)["loss"].item()
    rows = tuple(queue.rows for queue in objective.queues)
    assert used == pytest.approx(loss_written_out(objective, projections, rows), rel=1e-5)
    assert used != pytest.approx(before, rel=1e-3)


def test_each_queue_takes_one_of_the_whole_views_after_the_step_and_only_then():
    objective, projections = small(queue_size=20), random_projections()
    before = [queue.rows.clone() for queue in objective.queues]
    objective.swap(projections, epoch=0.0)
    for queue, rows in zip(objective.queues, before, strict=True):
        assert torch.equal(queue.rows, rows)
    for _ in range(2):
        objective.after_step()
        for queue, rows, view in zip(objective.queues, before, projections[:2], strict=True):
            torch.testing.assert_close(queue.rows[:6], F.normalize(view, dim=1))
            assert torch.equal(queue.rows[6:], rows[6:])


def test_a_run_that_goes_on_from_a_saved_state_is_the_same():
    objective = small(queue_size=20, queue_from_epoch=0.5)
    for step in range(3):
        train_step(objective, random_batch(step, step / 4))
    saved = copy.deepcopy(objective.state_dict())
    uninterrupted = [train_step(objective, random_batch(step, step / 4)) for step in range(3, 8)]
    restored = small(seed=9, queue_size=20, queue_from_epoch=0.5)
    restored.load_state_dict(saved)
    assert [train_step(restored, random_batch(step, step / 4)) for step in range(3, 8)] == uninterrupted
    assert all(map(torch.equal, restored.state_dict().values(), objective.state_dict().values()))


def test_validation_changes_nothing():
    objective = small(queue_size=20)
    train_step(objective, random_batch())
    objective.eval()
    before = copy.deepcopy(objective.state_dict())
    assert objective(random_batch(1))["loss"].isfinite()
    objective.after_step()
    assert all(map(torch.equal, before.values(), objective.state_dict().values()))


def test_forty_steps_on_one_batch_lower_the_loss():
    objective = small()
    losses = [train_step(objective, random_batch(), lr=0.5) for _ in range(40)]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_the_loss_leaves_half_precision():
    objective, batch = small(queue_size=20, queue_from_epoch=0.0), random_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert objective.projector(objective.features(batch["views"][0])).dtype == torch.bfloat16
        assert objective(batch)["loss"].dtype == torch.float32
    assert {view.dtype for view in objective.newest[0]} == {torch.float32}


def test_a_backbone_that_does_not_take_the_local_size_is_one_line():
    fixed = timm.create_model("test_vit3", num_classes=0, img_size=32)
    objective = SwAV(fixed, input_size=32, local_views=1, hidden_dim=16, dim=8, prototypes=10)
    batch = {"views": torch.zeros(2, 2, 3, 32, 32), "local_views": torch.zeros(1, 2, 3, 16, 16)}
    line = (
        "does not take local views of 16 pixels .*set objective_args.local_views=0, .*model_args.dynamic_img_size=true"
    )
    with pytest.raises(ValueError, match=line):
        objective(batch | {"epoch": torch.tensor(0.0)})


def test_a_backbone_with_other_features_for_the_local_size_is_one_line():
    objective = SwAV(nn.Conv2d(3, 2, 3), input_size=8, local_views=LOCAL_VIEWS, hidden_dim=16, dim=8, prototypes=10)
    line = "gives 8 features for local views of 4 pixels, and 72 for whole views; set objective_args.local_views=0"
    with pytest.raises(ValueError, match=line):
        objective(random_batch())


def gradient(objective: SwAV) -> Tensor:
    """All gradients as one vector."""
    return torch.cat([weights.grad.flatten() for weights in objective.parameters()])


def two_steps(objective: SwAV, model: nn.Module, rank: int, world: int) -> dict[str, Tensor]:
    """Losses of a frozen step and one with the queue on this process's part, the last gradient, and a queue."""
    losses = []
    for step in range(2):
        batch = random_batch(step, epoch=step)
        parts = {key: batch[key].chunk(world, dim=1)[rank] for key in ("views", "local_views")}
        loss = model(batch | parts)["loss"]
        objective.zero_grad()
        loss.backward()
        objective.after_step()
        losses.append(loss.detach())
    return {"losses": torch.stack(losses), "gradient": gradient(objective), "rows": objective.queues[1].rows}


def process(rank: int, world: int, port: int, folder: str) -> None:
    """One of `world` processes: saves what it finds, and what a queue that cannot be shared says."""
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    objective = convert_sync_batch_norm(small(queue_size=20, queue_from_epoch=1.0))
    parallel = DistributedDataParallel(objective, broadcast_buffers=False)
    torch.save(two_steps(objective, parallel, rank, world), f"{folder}/{rank}.pt")
    with pytest.raises(ValueError, match="queue_size=21 must be a multiple of the 2 devices"):
        small(queue_size=21, queue_from_epoch=1.0).swap(random_projections(), epoch=1.0)
    torch.distributed.destroy_process_group()


def test_two_processes_train_as_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(process, (2, port, str(tmp_path)), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    alone = small(queue_size=20, queue_from_epoch=1.0)
    expected = two_steps(alone, alone, 0, 1)
    torch.testing.assert_close((found[0]["losses"] + found[1]["losses"]) / 2, expected["losses"], **TOLERANCE)
    assert torch.equal(found[0]["rows"], found[1]["rows"])
    scale = expected["gradient"].abs().max()
    for one in found:
        torch.testing.assert_close(one["rows"], expected["rows"], **TOLERANCE)
        torch.testing.assert_close(one["gradient"] / scale, expected["gradient"] / scale, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"local_views": -1}, "objective_args.local_views must be 0 or more, found -1"),
        ({"dim": 0}, "objective_args.dim must be above 0, found 0"),
        ({"prototypes": 0}, "objective_args.prototypes must be above 0, found 0"),
        ({"epsilon": 0.0}, "objective_args.epsilon must be above 0, found 0.0"),
        ({"sinkhorn_iterations": 0}, "objective_args.sinkhorn_iterations must be above 0, found 0"),
        ({"queue_size": -1}, "objective_args.queue_size must be 0 or more, found -1"),
        ({"frozen_epochs": -1.0}, "objective_args.frozen_epochs must be 0 or more, found -1.0"),
    ],
)
def test_a_constant_out_of_range_is_one_line(arguments, line):
    with pytest.raises(ValueError, match=line):
        small(**arguments)
