"""Every objective on two processes (gloo, DDP) follows the path that it takes on one with the same batches.

Batch norms are synchronised, and nothing is drawn at random within a step: no dropout, and the noise rows of instance
recognition and the masks of MAE, which each process draws for its own part, are given (their own files test them).
"""

import socket
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pretrain.models.sync_norm import convert_sync_batch_norm
from pretrain.objectives import create_objective, list_objectives
from pretrain.objectives.objective import Objective

BATCH, SIZE, LOCAL_SIZE, STEPS = 12, 16, 8, 3
CLASSES, IMAGES = 3, 40
# Small heads; what would draw at random is off.
SMALL: dict[str, dict] = {
    "simclr": {"hidden_dim": 16, "dim": 8},
    "simsiam": {"hidden_dim": 16, "dim": 8, "predictor_dim": 4},
    "moco_v2": {"hidden_dim": 16, "dim": 8, "queue_size": 24},
    "barlow_twins": {"hidden_dim": 16, "dim": 8},
    "vicreg": {"hidden_dim": 16, "dim": 8},
    "rotnet": {},
    "relative_location": {"hidden_dim": 16, "dropout": 0.0},
    "autoencoding": {"code_dim": 8},
    "depth_prediction": {"code_dim": 8},
    "supervised": {},
    "linear_readout": {},
    "instance_recognition_queue": {"dim": 8, "queue_size": 24},
    "byol": {"hidden_dim": 16, "dim": 8},
    "dino": {"hidden_dim": 16, "bottleneck_dim": 8, "dim": 12, "local_views": 2, "frozen_epochs": 0},
    "nnclr": {"hidden_dim": 16, "dim": 8, "queue_size": 24},
    "swav": {"hidden_dim": 16, "dim": 8, "prototypes": 6, "local_views": 2, "frozen_epochs": 0},
    "tico": {"hidden_dim": 16, "dim": 8},
}
DRAWS_BY_ITSELF = {"instance_recognition", "mae"}
# Measured differences stay below these; a loss of 1e-5 relative in one step grows over three.
RELATIVE, ABSOLUTE = 2e-4, 2e-5


def build(name: str) -> Objective:
    """The objective around a small backbone with batch norm, the same at every call."""
    torch.manual_seed(0)
    backbone = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 10),
    )  # fmt: skip
    return create_objective(name, backbone, num_samples=IMAGES, input_size=SIZE, classes=CLASSES, **SMALL[name])


def batch(step: int, rank: int = 0, world: int = 1) -> dict[str, torch.Tensor]:
    """Everything that any objective wants of a batch, or this process's rows of it."""
    generator = torch.Generator().manual_seed(step)
    rows = slice(rank, None, world)
    return {
        "views": torch.randn(2, BATCH, 3, SIZE, SIZE, generator=generator)[:, rows],
        "local_views": torch.randn(2, BATCH, 3, LOCAL_SIZE, LOCAL_SIZE, generator=generator)[:, rows],
        "patches": torch.randn(9, BATCH, 3, SIZE, SIZE, generator=generator)[:, rows],
        "depth": torch.rand(BATCH, SIZE, SIZE, generator=generator)[rows],
        "label": torch.randint(CLASSES, (BATCH,), generator=generator)[rows],
        "index": torch.randperm(IMAGES, generator=generator)[:BATCH][rows],
        "epoch": torch.tensor(1.0 + step / STEPS),
        "progress": torch.tensor(step / STEPS),
    }


def losses(objective: Objective, model: nn.Module, rank: int = 0, world: int = 1) -> list[float]:
    """The loss of each of a few steps, its mean over processes."""
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.02, momentum=0.9)
    found = []
    for step in range(STEPS):
        loss = model(batch(step, rank, world))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.after_step()
        mean = loss.detach().clone()
        if world > 1:
            torch.distributed.all_reduce(mean)
        found.append(mean.item() / world)
    return found


def process(rank: int, world: int, port: int, folder: str) -> None:
    """One of `world` processes, which trains every objective in turn."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    found = {}
    for name in SMALL:
        objective = convert_sync_batch_norm(build(name))
        found[name] = losses(objective, DistributedDataParallel(objective, broadcast_buffers=False), rank, world)
    torch.save(found, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """The losses of every objective on two processes."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(process, (2, port, str(folder)), nprocs=2)
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first == second
    return first


def test_no_objective_is_left_out():
    assert set(SMALL) | DRAWS_BY_ITSELF == set(list_objectives())


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_two_processes_have_the_losses_of_one(name, spread):
    objective = build(name)
    alone = losses(objective, objective)
    assert spread[name] == pytest.approx(alone, rel=RELATIVE, abs=ABSOLUTE)
    moved = zip(objective.parameters(), build(name).parameters(), strict=True)
    assert any(not torch.equal(after, before) for after, before in moved)
