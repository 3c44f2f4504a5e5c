"""MoCo v2: the published state before and after a step, the queue, the slow encoder, and two processes against one."""

import copy
import math
import socket

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models import create_model
from pretrain.models.sync_norm import convert_sync_batch_norm
from pretrain.objectives.moco import MoCoV2

TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}
PUBLISHED_LAYERS = {
    "encoder_q.0.1": "backbone.1",
    "encoder_q.1.mlp.0": "head.layers.0",
    "encoder_q.1.mlp.2": "head.layers.2",
    "encoder_k.0.1": "key_backbone.1",
    "encoder_k.1.mlp.0": "key_head.layers.0",
    "encoder_k.1.mlp.2": "key_head.layers.2",
}


def small(seed: int = 0, **arguments: float) -> MoCoV2:
    """An objective around a small backbone with batch norm, of 4 x 4 images."""
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(48, 24), nn.BatchNorm1d(24), nn.ReLU())
    return MoCoV2(backbone, input_size=4, **({"hidden_dim": 16, "dim": 8, "queue_size": 48} | arguments))


def random_views(batch: int = 12, seed: int = 0) -> Tensor:
    return torch.randn(2, batch, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def train_step(objective: MoCoV2, views: Tensor, lr: float = 0.1) -> dict[str, Tensor]:
    """One step of plain SGD; returns what the objective found before it."""
    found = objective({"views": views})
    objective.zero_grad()
    found["loss"].backward()
    with torch.no_grad():
        for weights in objective.parameters():
            if weights.grad is not None:
                weights -= lr * weights.grad
    objective.after_step()
    return found


def renamed(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """A published state under our names; its queue has one key per column."""
    state = {"queue": published["queue"].T, "oldest": published["queue_ptr"][0]}
    for theirs, ours in PUBLISHED_LAYERS.items():
        state |= {f"{ours}.{kind}": published[f"{theirs}.{kind}"] for kind in ("weight", "bias")}
    return state


def test_published_loss_gradient_and_state_after_the_step(mouse_vision):
    values = torch.load(mouse_vision / "losses" / "mocov2.pt", weights_only=True)
    before = renamed(values["before"])
    queue_size, dim = before["queue"].shape
    hidden_dim, features = before["head.layers.0.weight"].shape
    objective = MoCoV2(nn.Sequential(nn.Flatten(), nn.Linear(3, features)), 1, hidden_dim, dim, queue_size)
    # The published images have 24 channels, and a backbone of ours takes three.
    objective.backbone[1] = nn.Linear(24, features)
    objective.key_backbone[1] = nn.Linear(24, features).requires_grad_(False)
    objective.load_state_dict(before)
    views = values["img"].transpose(0, 1).clone().requires_grad_()
    found = objective({"views": views})
    for name in ("loss", "acc1", "acc5"):
        torch.testing.assert_close(found[name], values[name].squeeze(), **TOLERANCE)
    found["loss"].backward()
    torch.testing.assert_close(views.grad, values["grad_img"].transpose(0, 1), **TOLERANCE)
    objective.after_step()
    after = renamed(values["after"])
    for name, found in objective.state_dict().items():
        torch.testing.assert_close(found, after[name], **TOLERANCE)


def test_loss_is_the_cross_entropy_written_out_for_every_image():
    objective = small(temperature=0.3)
    queries, keys = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    keys = F.normalize(keys, dim=1)
    found = objective.contrast(queries, keys)
    total, first, among_five = 0.0, 0, 0
    for query, key in zip(queries.double(), keys.double(), strict=True):
        unit = query / query.norm()
        own, older = float(unit @ key), [float(unit @ row) for row in objective.queue.double()]
        weights = [math.exp(cosine / 0.3) for cosine in (own, *older)]
        total -= math.log(weights[0] / sum(weights))
        better = sum(cosine > own for cosine in older)
        first, among_five = first + (better == 0), among_five + (better < 5)
    assert found["loss"].item() == pytest.approx(total / 5, rel=1e-5)
    assert found["acc1"].item() == pytest.approx(first / 5)
    assert found["acc5"].item() == pytest.approx(among_five / 5)


def test_a_queue_full_of_the_own_key_gives_the_loss_of_guessing():
    objective = small(queue_size=96)
    key = F.normalize(torch.randn(1, 8), dim=1)
    objective.queue.copy_(key.expand(96, 8))
    found = objective.contrast(torch.randn(12, 8), key.expand(12, 8))
    torch.testing.assert_close(found["loss"], torch.tensor(97.0).log())
    own = objective.contrast(key.expand(12, 8), key.expand(12, 8))
    assert own["acc1"] == own["acc5"] == 0


def test_the_head_is_the_published_one():
    with torch.device("meta"):
        objective = MoCoV2(create_model("alexnet_bn", num_classes=0))
    published = 4096 * 2048 + 2048 + 2048 * 128 + 128
    assert sum(weights.numel() for weights in objective.head.parameters()) == published
    assert objective.queue.shape == (65_536, 128)
    assert (objective.momentum, objective.temperature, objective.wants.views) == (0.999, 0.2, 2)
    for layer in small(hidden_dim=400, dim=200).head.layers[::2]:
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / layer.in_features), rel=0.05)
        assert layer.weight.abs().max() > 3 * math.sqrt(2 / layer.in_features)
        assert not layer.bias.any()


def test_the_key_encoder_starts_as_a_copy_that_no_gradient_reaches():
    objective = small()
    pairs = ((objective.backbone, objective.key_backbone), (objective.head, objective.key_head))
    for queries, keys in pairs:
        assert all(map(torch.equal, queries.state_dict().values(), keys.state_dict().values()))
    objective({"views": random_views()})["loss"].backward()
    for queries, keys in pairs:
        assert all(weights.grad is not None for weights in queries.parameters())
        assert not any(weights.requires_grad or weights.grad is not None for weights in keys.parameters())


def test_the_key_encoder_follows_before_it_makes_keys():
    objective = small(momentum=0.75)
    train_step(objective, random_views())
    old, new = objective.key_head.layers[2].weight.clone(), objective.head.layers[2].weight.clone()
    assert not torch.equal(old, new)
    reference = copy.deepcopy(objective)
    objective({"views": random_views(seed=1)})
    torch.testing.assert_close(objective.key_head.layers[2].weight, 0.75 * old + 0.25 * new)
    reference.update_key_encoder()
    torch.testing.assert_close(objective.new_keys[0], reference.keys(random_views(seed=1)[1]))


def test_batch_norm_statistics_of_the_key_encoder_are_its_own():
    objective, views = small(), random_views()
    views[1] += 3
    hidden = [objective.backbone[1](view.flatten(1)) for view in views]
    objective({"views": views})
    torch.testing.assert_close(objective.backbone[2].running_mean, 0.1 * hidden[0].mean(0))
    torch.testing.assert_close(objective.key_backbone[2].running_mean, 0.1 * hidden[1].mean(0))


def test_the_queue_starts_with_unit_rows_and_is_saved_and_no_parameter():
    objective = small(queue_size=480)
    torch.testing.assert_close(objective.queue.norm(dim=1), torch.ones(480))
    assert objective.queue.mean(0).abs().max() < 0.1
    assert {"queue", "oldest"} <= objective.state_dict().keys()
    assert "queue" not in dict(objective.named_parameters())


def test_the_oldest_keys_are_replaced_after_the_step_and_only_then():
    objective = small()
    expected = objective.queue.clone()
    for step in range(6):
        objective({"views": random_views(seed=step)})["loss"].backward()
        assert torch.equal(objective.queue, expected)
        oldest = 12 * (step % 4)
        expected[oldest : oldest + 12] = objective.new_keys[0]
        objective.after_step()
        torch.testing.assert_close(objective.queue, expected)
        torch.testing.assert_close(objective.queue.norm(dim=1), torch.ones(48))
    objective.after_step()
    assert torch.equal(objective.queue, expected)


def test_after_a_change_of_batch_keys_that_pass_the_end_go_on_at_the_start():
    objective = small()
    for batch in (12, 16, 16, 16):
        objective({"views": random_views(batch)})
        keys = objective.new_keys[0]
        objective.after_step()
    torch.testing.assert_close(objective.queue[44:], keys[:4])
    torch.testing.assert_close(objective.queue[:12], keys[4:])
    assert objective.oldest == 12


def test_a_run_that_goes_on_from_a_saved_state_is_the_same():
    objective = small()
    for step in range(3):
        train_step(objective, random_views(seed=step))
    saved = copy.deepcopy(objective.state_dict())
    uninterrupted = [train_step(objective, random_views(seed=step))["loss"].item() for step in range(3, 8)]
    restored = small(seed=9)
    restored.load_state_dict(saved)
    resumed = [train_step(restored, random_views(seed=step))["loss"].item() for step in range(3, 8)]
    assert resumed == uninterrupted
    assert all(map(torch.equal, restored.state_dict().values(), objective.state_dict().values()))


def test_validation_changes_nothing():
    objective = small()
    train_step(objective, random_views())
    objective.eval()
    before = copy.deepcopy(objective.state_dict())
    found = objective({"views": random_views(7, seed=1)})
    objective.after_step()
    assert found["loss"].isfinite()
    assert all(map(torch.equal, before.values(), objective.state_dict().values()))


@pytest.mark.parametrize(("batch", "nearest"), [(20, 40), (96, 96)])
def test_a_queue_that_holds_no_whole_number_of_batches_is_one_line(batch, nearest):
    line = rf"objective_args.queue_size=48 must be a multiple of the batch of {batch} images.*nearest: {nearest}$"
    objective = small()
    before = copy.deepcopy(objective.state_dict())
    with pytest.raises(ValueError, match=line):
        objective({"views": random_views(batch)})
    assert all(map(torch.equal, before.values(), objective.state_dict().values()))


def test_thirty_steps_on_one_batch_lower_the_loss():
    objective, views = small(queue_size=480, momentum=0.9), random_views()
    queue = objective.queue.clone()
    losses = []
    for _ in range(30):
        losses.append(train_step(objective, views)["loss"].item())
        # With one batch over and over, the queue would fill with the own keys.
        objective.queue.copy_(queue)
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])


def test_the_loss_leaves_half_precision():
    objective, views = small(), random_views()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert objective.head(objective.features(views[0])).dtype == torch.bfloat16
        found = objective({"views": views})
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert objective.new_keys[0].dtype == torch.float32


def gradient(objective: MoCoV2) -> Tensor:
    """All gradients as one vector."""
    return torch.cat([weights.grad.flatten() for weights in objective.parameters() if weights.requires_grad])


def averaged(values: Tensor) -> Tensor:
    """The mean over processes, which is what they train with."""
    torch.distributed.all_reduce(values)
    return values / torch.distributed.get_world_size()


def process(rank: int, world: int, port: int, folder: str) -> None:
    """One of `world` processes: two steps on its part of a batch; saves what it found, and the images of its keys."""
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    objective = convert_sync_batch_norm(small())
    key_images = []
    objective.key_backbone.register_forward_hook(lambda module, images, output: key_images.append(images[0]))
    # The processes of a run have different seeds within a step.
    torch.manual_seed(rank)
    losses = []
    for step in range(2):
        loss = objective({"views": random_views(seed=step).chunk(world, dim=1)[rank]})["loss"]
        objective.zero_grad()
        loss.backward()
        objective.after_step()
        losses.append(loss.detach())
    found = {"losses": torch.stack(losses), "gradient": averaged(gradient(objective)), "queue": objective.queue}
    torch.save(found | {"key_images": key_images[0]}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_train_as_one_on_shuffled_keys(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(process, (2, port, str(tmp_path)), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    alone, losses = small(), []
    for step in range(2):
        loss = alone({"views": random_views(seed=step)})["loss"]
        alone.zero_grad()
        loss.backward()
        alone.after_step()
        losses.append(loss.detach())
    torch.testing.assert_close((found[0]["losses"] + found[1]["losses"]) / 2, torch.stack(losses), **TOLERANCE)
    assert torch.equal(found[0]["queue"], found[1]["queue"])
    torch.testing.assert_close(found[0]["queue"], alone.queue, **TOLERANCE)
    scale = gradient(alone).abs().max()
    for one in found:
        torch.testing.assert_close(one["gradient"] / scale, gradient(alone) / scale, rtol=1e-5, atol=1e-5)
    own = {tuple(image.flatten().tolist()) for image in random_views()[1]}
    seen = [{tuple(image.flatten().tolist()) for image in one["key_images"]} for one in found]
    assert seen[0] | seen[1] == own
    assert seen[0] != {tuple(image.flatten().tolist()) for image in random_views()[1, :6]}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"hidden_dim": 0}, "objective_args.hidden_dim must be above 0, found 0"),
        ({"dim": 0}, "objective_args.dim must be above 0, found 0"),
        ({"queue_size": 0}, "objective_args.queue_size must be above 0, found 0"),
        ({"temperature": 0.0}, "objective_args.temperature must be above 0, found 0.0"),
        ({"momentum": 1.0}, "objective_args.momentum must be from 0 to below 1, found 1.0"),
    ],
)
def test_a_constant_out_of_range_is_one_line(arguments, line):
    with pytest.raises(ValueError, match=line):
        small(**arguments)
