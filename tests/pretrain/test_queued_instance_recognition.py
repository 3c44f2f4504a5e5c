"""Instance recognition with a queue: the loss written out, the queue, exact resume, and two processes against one."""

import copy
import math
import socket

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from pretrain.models.sync_norm import convert_sync_batch_norm
from pretrain.objectives.queued_instance_recognition import Queue, QueuedInstanceRecognition

TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


def small(seed: int = 0, **arguments: float) -> QueuedInstanceRecognition:
    """An objective around a small backbone with batch norm, of 4 x 4 images."""
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(48, 24), nn.BatchNorm1d(24), nn.ReLU())
    return QueuedInstanceRecognition(backbone, input_size=4, **({"dim": 8, "queue_size": 40} | arguments))


def random_batch(seed: int = 0, images: int = 12) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    views = torch.randn(2, images, 3, 4, 4, generator=generator)
    return {"views": views, "index": torch.randperm(30, generator=generator)[:images]}


def train_step(objective: QueuedInstanceRecognition, batch: dict[str, Tensor], lr: float = 0.05) -> float:
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


def test_loss_is_the_cross_entropy_written_out_for_every_image_without_rows_of_itself():
    objective = small(temperature=0.3)
    objective.queue_index[:10] = torch.tensor([0, 1, 2, 3, 4, 5, 1, 7, 8, 1])
    embedded, keys = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1)) * 3
    keys = F.normalize(keys, dim=1)
    index = torch.tensor([1, 20, 4, 21, 8])
    found = objective.contrast(embedded, keys, index)
    total, nearest = 0.0, 0
    for view, key, number in zip(embedded.double(), keys.double(), index, strict=True):
        rows = objective.queue.rows[objective.queue_index != number].double()
        assert len(rows) == 40 - {1: 3, 4: 1, 8: 1}.get(int(number), 0)
        own, *others = (float(view @ row / view.norm()) for row in (key, *rows))
        total -= math.log(math.exp(own / 0.3) / sum(math.exp(cosine / 0.3) for cosine in (own, *others)))
        nearest += own > max(others)
    assert found["loss"].item() == pytest.approx(total / 5, rel=1e-5)
    assert found["acc1"].item() == pytest.approx(nearest / 5)


def test_a_queue_full_of_the_own_key_gives_the_loss_of_guessing():
    objective = small()
    alike = F.normalize(torch.ones(6, 8), dim=1)
    objective.queue.rows.copy_(alike[:1].expand(40, 8))
    found = objective.contrast(alike, alike, torch.arange(6))
    torch.testing.assert_close(found["loss"], torch.tensor(41.0).log())
    assert found["acc1"] == 0


def test_a_queue_of_nothing_but_the_own_image_costs_nothing():
    objective = small()
    objective.queue_index.fill_(7)
    embedded, key = torch.randn(2, 1, 8)
    assert objective.contrast(embedded, key, torch.tensor([7]))["loss"] == 0


@settings(deadline=None, max_examples=30)
@given(size=st.integers(1, 20), batches=st.lists(st.integers(1, 25), min_size=1, max_size=6))
def test_the_queue_holds_the_newest_rows_of_all_that_came(size, batches):
    queue, came = Queue(size, 1), torch.empty(0)
    for number in batches:
        # The rows of the start are 1 or -1.
        new = torch.arange(len(came), len(came) + number) + 10.0
        places = queue.add(new[:, None])
        assert queue.rows[places, 0].tolist() == new[-size:].tolist()
        came = torch.cat([came, new])
        assert sorted(row for row in queue.rows[:, 0].tolist() if row >= 10) == came[-size:].tolist()


def test_the_queue_starts_with_unit_rows_of_nobody_and_is_saved_and_no_parameter():
    objective = small(queue_size=480)
    torch.testing.assert_close(objective.queue.rows.norm(dim=1), torch.ones(480))
    assert objective.queue.rows.mean(0).abs().max() < 0.1
    assert (objective.queue_index == -1).all()
    assert {"queue.rows", "queue.oldest", "queue_index"} <= objective.state_dict().keys()
    assert not any("queue" in name for name, _ in objective.named_parameters())


def test_the_oldest_rows_are_replaced_by_keys_of_second_views_after_the_step_and_only_then():
    objective = small()
    rows, index = objective.queue.rows.clone(), objective.queue_index.clone()
    for step in range(5):
        batch = random_batch(step)
        # The key network gives them twice the same, because it normalises with the batch's own statistics.
        keys = F.normalize(objective.key_embedding(objective.key_backbone(batch["views"][1])), dim=1)
        objective(batch)["loss"].backward()
        assert torch.equal(objective.queue.rows, rows)
        assert torch.equal(objective.queue_index, index)
        places = (12 * step + torch.arange(12)) % 40
        rows[places], index[places] = keys, batch["index"]
        objective.after_step()
        torch.testing.assert_close(objective.queue.rows, rows)
        assert torch.equal(objective.queue_index, index)
    objective.after_step()
    torch.testing.assert_close(objective.queue.rows, rows)


def test_the_key_network_starts_as_a_copy_that_no_gradient_reaches_and_follows_after_the_step():
    objective = small(momentum=0.75)
    networks = (objective.backbone, objective.embedding)
    key_networks = (objective.key_backbone, objective.key_embedding)
    for network, keys in zip(networks, key_networks, strict=True):
        assert all(map(torch.equal, network.state_dict().values(), keys.state_dict().values()))
    before = [[weights.clone() for weights in keys.parameters()] for keys in key_networks]
    train_step(objective, random_batch())
    for network, keys, old in zip(networks, key_networks, before, strict=True):
        for now, slow, fast in zip(keys.parameters(), old, network.parameters(), strict=True):
            assert now.grad is None
            assert not torch.equal(slow, fast)
            torch.testing.assert_close(now, 0.75 * slow + 0.25 * fast)


def test_batch_norm_statistics_of_the_key_network_are_its_own():
    objective, batch = small(), random_batch()
    batch["views"][1] += 3
    hidden = [objective.backbone[1](view.flatten(1)) for view in batch["views"]]
    train_step(objective, batch)
    torch.testing.assert_close(objective.backbone[2].running_mean, 0.1 * hidden[0].mean(0))
    torch.testing.assert_close(objective.key_backbone[2].running_mean, 0.1 * hidden[1].mean(0))


def test_a_batch_longer_than_the_queue_leaves_its_last_images():
    objective, batch = small(queue_size=5), random_batch()
    train_step(objective, batch)
    assert set(objective.queue_index.tolist()) == set(batch["index"][-5:].tolist())


def test_the_constants_are_those_of_instance_recognition():
    objective = QueuedInstanceRecognition(nn.Sequential(nn.Flatten(), nn.Linear(48, 24)), input_size=4)
    assert objective.queue.rows.shape == (65_536, 128)
    assert (objective.momentum, objective.temperature, objective.wants.views) == (0.999, 0.07, 2)


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


def test_thirty_steps_on_one_batch_lower_the_loss():
    objective = small(queue_size=400, momentum=0.9)
    losses = [train_step(objective, random_batch(), lr=0.05) for _ in range(30)]
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])


def test_the_loss_leaves_half_precision():
    objective, batch = small(), random_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert objective.embedding(objective.features(batch["views"][0])).dtype == torch.bfloat16
        found = objective(batch)
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert objective.newest[0][0].dtype == torch.float32


def gradient(objective: QueuedInstanceRecognition) -> Tensor:
    """All gradients as one vector."""
    return torch.cat([weights.grad.flatten() for weights in objective.parameters() if weights.requires_grad])


def two_steps(objective: QueuedInstanceRecognition, model: nn.Module, rank: int, world: int) -> dict[str, Tensor]:
    """Losses of two steps on this process's part, without an optimiser, the last gradient, and the queue."""
    losses = []
    for step in range(2):
        batch = random_batch(step)
        part = {"views": batch["views"].chunk(world, dim=1)[rank], "index": batch["index"].chunk(world)[rank]}
        loss = model(part)["loss"]
        objective.zero_grad()
        loss.backward()
        objective.after_step()
        losses.append(loss.detach())
    found = {"losses": torch.stack(losses), "gradient": gradient(objective)}
    return found | {"rows": objective.queue.rows, "index": objective.queue_index}


def process(rank: int, world: int, port: int, folder: str) -> None:
    """One of `world` processes: saves what it finds, and the images that its first keys are made of."""
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    objective, key_images = convert_sync_batch_norm(small()), []
    objective.key_backbone.register_forward_hook(lambda module, images, output: key_images.append(images[0]))
    parallel = DistributedDataParallel(objective, broadcast_buffers=False)
    # The processes of a run have different seeds within a step.
    torch.manual_seed(rank)
    found = two_steps(objective, parallel, rank, world)
    torch.save(found | {"key_images": key_images[0]}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_train_as_one_on_shuffled_keys(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(process, (2, port, str(tmp_path)), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    alone = small()
    expected = two_steps(alone, alone, 0, 1)
    torch.testing.assert_close((found[0]["losses"] + found[1]["losses"]) / 2, expected["losses"], **TOLERANCE)
    scale = expected["gradient"].abs().max()
    for one in found:
        torch.testing.assert_close(one["rows"], expected["rows"], **TOLERANCE)
        assert torch.equal(one["index"], expected["index"])
        torch.testing.assert_close(one["gradient"] / scale, expected["gradient"] / scale, rtol=1e-5, atol=1e-5)
    seen = [{tuple(image.flatten().tolist()) for image in one["key_images"]} for one in found]
    assert seen[0] | seen[1] == {tuple(image.flatten().tolist()) for image in random_batch()["views"][1]}
    assert seen[0] != {tuple(image.flatten().tolist()) for image in random_batch()["views"][1, :6]}


@pytest.mark.parametrize("name", ["dim", "queue_size", "temperature"])
def test_a_constant_out_of_range_is_one_line(name):
    with pytest.raises(ValueError, match=f"objective_args.{name} must be above 0, found 0"):
        small(**{name: 0})


def test_a_momentum_out_of_range_is_one_line():
    with pytest.raises(ValueError, match=r"objective_args.momentum must be from 0 to below 1, found 1.0"):
        small(momentum=1.0)
