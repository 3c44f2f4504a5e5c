"""DINO: the loss written out, centre, schedules, frozen layer, slow teacher, exact resume, and two processes."""

import copy
import math
import socket
import warnings

import pytest
import timm
import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pretrain.models.sync_norm import convert_sync_batch_norm
from pretrain.objectives.dino import DINO

TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}
LOCAL_VIEWS = 3


def small(seed: int = 0, **arguments: float) -> DINO:
    """An objective around a small convolutional backbone with batch norm, of 8 x 8 and 4 x 4 images."""
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Conv2d(3, 24, 3), nn.BatchNorm2d(24), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    sizes = {"local_views": LOCAL_VIEWS, "hidden_dim": 16, "bottleneck_dim": 8, "dim": 12}
    return DINO(backbone, input_size=8, **(sizes | arguments))


def random_batch(seed: int = 0, epoch: float = 2.0, progress: float = 0.25, images: int = 12) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    views = torch.randn(2, images, 3, 8, 8, generator=generator)
    local = torch.randn(LOCAL_VIEWS, images, 3, 4, 4, generator=generator)
    scalars = {"epoch": torch.tensor(epoch), "progress": torch.tensor(progress)}
    return {"views": views, "local_views": local, **scalars}


def train_step(objective: DINO, batch: dict[str, Tensor], optimizer: torch.optim.Optimizer | None = None) -> float:
    """One step of the optimiser, or of plain SGD; returns the loss before it."""
    trained = [weights for weights in objective.parameters() if weights.requires_grad]
    optimizer = optimizer or torch.optim.SGD(trained, lr=0.1)
    loss = objective(batch)["loss"]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    objective.after_step()
    return loss.item()


def random_outputs(views: int, images: int = 6, seed: int = 1) -> tuple[Tensor, ...]:
    return tuple(torch.randn(views, images, 12, generator=torch.Generator().manual_seed(seed)))


def written_out(targets: tuple[Tensor, ...], outputs: tuple[Tensor, ...], center: Tensor, temperature: float) -> float:
    """The mean cross-entropy over images and over pairs of a whole view and another view."""
    losses = []
    for whole, target in enumerate(targets):
        wanted = ((target.double() - center.double()) / temperature).exp()
        wanted = wanted / wanted.sum(1, keepdim=True)
        for view, output in enumerate(outputs):
            if view != whole:
                shares = (output.double() / 0.1).exp()
                shares = shares / shares.sum(1, keepdim=True)
                losses.append(float(-(wanted * shares.log()).sum(1).mean()))
    return sum(losses) / len(losses)


@pytest.mark.parametrize(
    ("epoch", "temperature"), [(0.0, 0.04), (15.0, 0.055), (29.5, 0.0695), (30.0, 0.07), (99, 0.07)]
)
def test_loss_is_the_cross_entropy_written_out_with_centre_and_temperature_of_the_epoch(epoch, temperature):
    objective, outputs, targets = small(), random_outputs(2 + LOCAL_VIEWS), random_outputs(2, seed=2)
    objective.criterion.center.copy_(torch.randn(1, 1, 12, generator=torch.Generator().manual_seed(3)))
    expected = written_out(targets, outputs, objective.criterion.center[0], temperature)
    assert objective.match(outputs, targets, epoch)["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_the_centre_follows_the_mean_of_the_teachers_outputs_and_is_saved():
    objective, targets = small(center_momentum=0.8), random_outputs(2)
    before = torch.randn(1, 1, 12)
    objective.criterion.center.copy_(before)
    objective.match(random_outputs(5, seed=2), targets, epoch=0.0)
    assert torch.equal(objective.criterion.center, before), "not before the step"
    objective.momentum_now = 0.99
    objective.after_step()
    expected = 0.8 * before[0, 0] + 0.2 * torch.cat(targets).mean(0)
    torch.testing.assert_close(objective.criterion.center[0, 0], expected)
    assert "criterion.center" in objective.state_dict()


def test_the_network_sees_all_views_and_the_teacher_the_whole_ones():
    objective, batch, seen = small(), random_batch(), {"network": [], "teacher": []}
    objective.backbone.register_forward_hook(lambda m, images, out: seen["network"].append(tuple(images[0].shape)))
    objective.teacher_backbone.register_forward_hook(lambda m, images, out: seen["teacher"].append(images[0]))
    objective(batch)
    # Once more for the check that the backbone takes the size of the local views.
    assert seen["network"] == [(24, 3, 8, 8), (1, 3, 4, 4), (12 * LOCAL_VIEWS, 3, 4, 4)]
    assert len(seen["teacher"]) == 1
    assert torch.equal(seen["teacher"][0], batch["views"].flatten(0, 1))


def test_forward_is_the_loss_of_the_two_networks_outputs():
    for epoch in (0.5, 2.0):
        objective, batch = small(), random_batch(epoch=epoch)
        whole, local = (objective.features(batch[key].flatten(0, 1)) for key in ("views", "local_views"))
        outputs = objective.head(torch.cat([whole, local])).detach().chunk(2 + LOCAL_VIEWS)
        targets = objective.teacher_head(objective.teacher_backbone(batch["views"].flatten(0, 1))).chunk(2)
        expected = written_out(targets, outputs, torch.zeros(1, 12), 0.04 + epoch * 0.001)
        assert objective(batch)["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_without_local_views_each_whole_one_matches_the_other():
    objective, batch = small(local_views=0), random_batch()
    del batch["local_views"]
    assert objective.wants.local_views == 0
    assert objective(batch)["loss"].isfinite()


def test_head_and_constants_are_the_published_ones():
    # Meta tensors cannot tell whether the truncated normal start of lightly's head fits, so this one is real.
    objective = DINO(nn.Sequential(nn.Flatten(), nn.Linear(48, 384)), input_size=4)
    published = 384 * 2048 + 2048 + 2048 * 2048 + 2048 + 2048 * 256 + 256 + 256 * 65_536 + 65_536
    assert sum(weights.numel() for weights in objective.head.parameters()) == published
    assert (objective.momentum, objective.criterion.student_temp, objective.criterion.center_momentum) == (
        0.996,
        0.1,
        0.9,
    )
    assert (objective.wants.views, objective.wants.local_views) == (2, 6)
    assert objective.criterion.center.numel() == 65_536


@pytest.mark.parametrize("norm_last_layer", [True, False])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_the_last_layer_stays_in_the_first_epoch_under_weight_decay_too(kind, norm_last_layer):
    objective = small(norm_last_layer=norm_last_layer)
    trained = [weights for weights in objective.parameters() if weights.requires_grad]
    optimizer = kind(trained, lr=0.01, weight_decay=0.1)
    start = copy.deepcopy(objective.head.state_dict())
    for step in range(3):
        train_step(objective, random_batch(step, epoch=0.3 * step), optimizer)
        for name, weights in objective.head.state_dict().items():
            assert torch.equal(weights, start[name]) == ("last_layer" in name)
    assert not objective.head.last_layer.weight_v.grad.any()
    train_step(objective, random_batch(3, epoch=1.0), optimizer)
    assert not torch.equal(objective.head.last_layer.weight_v, start["last_layer.weight_v"])
    assert torch.equal(objective.head.last_layer.weight_g, start["last_layer.weight_g"]) == norm_last_layer


def test_freezing_the_last_layer_changes_no_other_gradient():
    gradients = []
    for frozen_epochs in (0.0, 1.0):
        objective = small(frozen_epochs=frozen_epochs)
        objective(random_batch(epoch=0.5))["loss"].backward()
        others = [w.grad for name, w in objective.named_parameters() if w.requires_grad and "last_layer" not in name]
        gradients.append(others)
    for free, frozen in zip(*gradients, strict=True):
        torch.testing.assert_close(free, frozen, rtol=1e-4, atol=1e-7)


def test_the_rows_of_the_last_layer_keep_unit_length():
    objective = small()
    for step in range(3):
        train_step(objective, random_batch(step))
    outputs = objective.head.last_layer(torch.eye(8))
    torch.testing.assert_close(outputs.norm(dim=0), torch.ones(12))


def test_the_teacher_starts_as_a_copy_and_follows_by_the_scheduled_momentum():
    objective = small(momentum=0.9)
    networks, teachers = (objective.backbone, objective.head), (objective.teacher_backbone, objective.teacher_head)
    for network, teacher in zip(networks, teachers, strict=True):
        assert all(map(torch.equal, network.state_dict().values(), teacher.state_dict().values()))
        assert not any(weights.requires_grad for weights in teacher.parameters())
    train_step(objective, random_batch(progress=0.0))
    before = [[weights.clone() for weights in teacher.parameters()] for teacher in teachers]
    train_step(objective, random_batch(1, progress=0.3))
    kept = 1 - 0.1 * (math.cos(math.pi * 0.3) + 1) / 2
    for network, teacher, old in zip(networks, teachers, before, strict=True):
        for now, slow, fast in zip(teacher.parameters(), old, network.parameters(), strict=True):
            torch.testing.assert_close(now, kept * slow + (1 - kept) * fast, rtol=1e-6, atol=1e-7)
    after = copy.deepcopy(objective.state_dict())
    objective.after_step()
    assert all(map(torch.equal, after.values(), objective.state_dict().values()))


def test_the_teacher_drops_nothing_and_the_network_still_does():
    backbone = nn.Sequential(nn.Dropout(0.5), DropPath(0.3), nn.Flatten(), nn.Linear(48, 6))
    objective = DINO(backbone, input_size=4, local_views=0, hidden_dim=16, bottleneck_dim=8, dim=12)
    images = torch.randn(2, 5, 3, 4, 4)
    assert torch.equal(objective.targets(images), objective.targets(images))
    assert not torch.equal(objective.features(images[0]), objective.features(images[0]))
    assert (objective.backbone[0].p, objective.backbone[1].drop_prob) == (0.5, 0.3)


def test_the_head_is_made_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small()


def test_a_run_that_goes_on_from_a_saved_state_is_the_same():
    objective = small(batch_norm=True)
    for step in range(3):
        train_step(objective, random_batch(step, step / 4, step / 8))
    saved = copy.deepcopy(objective.state_dict())
    uninterrupted = [train_step(objective, random_batch(step, step / 4, step / 8)) for step in range(3, 8)]
    restored = small(seed=9, batch_norm=True)
    restored.load_state_dict(saved)
    assert [train_step(restored, random_batch(step, step / 4, step / 8)) for step in range(3, 8)] == uninterrupted
    assert all(map(torch.equal, restored.state_dict().values(), objective.state_dict().values()))


def test_validation_changes_nothing():
    objective = small()
    train_step(objective, random_batch())
    objective.eval()
    before = copy.deepcopy(objective.state_dict())
    assert objective(random_batch(1))["loss"].isfinite()
    objective.after_step()
    assert all(map(torch.equal, before.values(), objective.state_dict().values()))


def test_forty_steps_towards_a_teacher_that_stays_lower_the_loss():
    # The loss is relative to teacher and centre; only where both stay, it must fall.
    objective = small(center_momentum=0.9999)
    trained = [weights for weights in objective.parameters() if weights.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01)
    losses = [train_step(objective, random_batch(progress=1.0), optimizer) for _ in range(40)]
    assert losses[-1] < 0.7 * losses[0]


def test_the_loss_leaves_half_precision():
    for epoch in (0.0, 2.0):
        objective, batch = small(), random_batch(epoch=epoch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert objective.head(objective.features(batch["views"][0])).dtype == torch.bfloat16
            assert objective(batch)["loss"].dtype == torch.float32
        assert objective.criterion.center.dtype == torch.float32


def test_a_vision_transformer_takes_both_sizes_where_its_size_is_dynamic():
    for dynamic in (True, False):
        backbone = timm.create_model("test_vit", num_classes=0, img_size=32, dynamic_img_size=dynamic)
        objective = DINO(backbone, input_size=32, local_views=1, hidden_dim=16, bottleneck_dim=8, dim=12)
        batch = {"views": torch.randn(2, 2, 3, 32, 32), "local_views": torch.randn(1, 2, 3, 16, 16)}
        batch |= {"epoch": torch.tensor(0.0), "progress": torch.tensor(0.0)}
        if dynamic:
            assert objective(batch)["loss"].isfinite()
        else:
            with pytest.raises(ValueError, match=r"local views of 16 pixels .*set objective_args.local_views=0"):
                objective(batch)


def gradient(objective: DINO) -> Tensor:
    """All gradients as one vector."""
    return torch.cat([weights.grad.flatten() for weights in objective.parameters() if weights.requires_grad])


def two_steps(objective: DINO, model: nn.Module, rank: int, world: int) -> dict[str, Tensor]:
    """Losses of a frozen step and one after it on this process's part, the last gradient, and the centre."""
    losses = []
    for step in range(2):
        batch = random_batch(step, epoch=step)
        parts = {key: batch[key].chunk(world, dim=1)[rank] for key in ("views", "local_views")}
        loss = model(batch | parts)["loss"]
        objective.zero_grad()
        loss.backward()
        objective.after_step()
        losses.append(loss.detach())
    return {"losses": torch.stack(losses), "gradient": gradient(objective), "center": objective.criterion.center}


def process(rank: int, world: int, port: int, folder: str) -> None:
    """One of `world` processes: saves what it finds."""
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    objective = convert_sync_batch_norm(small(batch_norm=True))
    parallel = DistributedDataParallel(objective, broadcast_buffers=False)
    torch.save(two_steps(objective, parallel, rank, world), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_train_as_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(process, (2, port, str(tmp_path)), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    alone = small(batch_norm=True)
    expected = two_steps(alone, alone, 0, 1)
    torch.testing.assert_close((found[0]["losses"] + found[1]["losses"]) / 2, expected["losses"], **TOLERANCE)
    scale = expected["gradient"].abs().max()
    for one in found:
        torch.testing.assert_close(one["center"], expected["center"], **TOLERANCE)
        torch.testing.assert_close(one["gradient"] / scale, expected["gradient"] / scale, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"local_views": -1}, "objective_args.local_views must be 0 or more, found -1"),
        ({"dim": 0}, "objective_args.dim must be above 0, found 0"),
        ({"student_temperature": 0.0}, "objective_args.student_temperature must be above 0, found 0.0"),
        (
            {"teacher_temperature": 0.03},
            "warmup_teacher_temperature must be above 0 and at most teacher_temperature=0.03, found 0.04",
        ),
        ({"warmup_teacher_epochs": -1.0}, "objective_args.warmup_teacher_epochs must be 0 or more, found -1.0"),
        ({"frozen_epochs": -1.0}, "objective_args.frozen_epochs must be 0 or more, found -1.0"),
        ({"center_momentum": 1.0}, "objective_args.center_momentum must be from 0 to below 1, found 1.0"),
        ({"momentum": 1.0}, "objective_args.momentum must be from 0 to below 1, found 1.0"),
    ],
)
def test_a_constant_out_of_range_is_one_line(arguments, line):
    with pytest.raises(ValueError, match=line):
        small(**arguments)
