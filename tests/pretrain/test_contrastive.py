"""NT-Xent: lightly's value and gradient, on one process and on two."""

import socket

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pretrain.objectives.contrastive import NTXent


def random_vectors(batch: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(2, batch, dim, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def with_slopes(criterion: nn.Module, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and gradient of vectors (2, batch, dim)."""
    vectors = vectors.clone().requires_grad_()
    loss = criterion(*vectors)
    loss.backward()
    return loss.detach(), vectors.grad


@settings(deadline=None, max_examples=40)
@given(batch=st.integers(1, 12), dim=st.integers(1, 9), temperature=st.floats(0.05, 2), seed=st.integers(0, 2**31))
def test_loss_and_gradient_are_lightlys(batch, dim, temperature, seed):
    from lightly.loss import NTXentLoss

    vectors = random_vectors(batch, dim, seed)
    found, expected = (with_slopes(one(temperature), vectors) for one in (NTXent, NTXentLoss))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def process(rank: int, world: int, port: int, folder: str) -> None:
    """One of `world` processes: saves loss and gradient of its part, ours and lightly's."""
    from lightly.loss import NTXentLoss

    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    vectors = random_vectors(8, 5).chunk(world, dim=1)[rank]
    criteria = (NTXent(0.2), NTXentLoss(0.2, gather_distributed=True))
    torch.save([with_slopes(criterion, vectors) for criterion in criteria], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_on_two_processes_they_are_lightlys_and_those_of_the_whole_batch(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(process, (2, port, str(tmp_path)), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for found, expected in parts:
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    loss, slopes = with_slopes(NTXent(0.2), random_vectors(8, 5))
    losses, slopes_of_parts = zip(*(found for found, _ in parts), strict=True)
    torch.testing.assert_close(sum(losses) / 2, loss)
    # Processes average their gradients.
    torch.testing.assert_close(torch.cat(slopes_of_parts, 1) / 2, slopes)
