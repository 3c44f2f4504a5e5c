"""Batch norm over processes: two of them give what one gives on the whole batch; converting keeps what is known."""

import copy
import socket
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pretrain.models.sync_norm import SyncBatchNorm, convert_sync_batch_norm, synchronised

CHANNELS = 6
BATCH = 8
# Shape of one image, images of each of the two processes, and arguments of the norm.
CASES: dict[str, tuple[tuple[int, ...], tuple[int, int], dict]] = {
    "maps": ((CHANNELS, 5, 4), (4, 4), {}),
    "vectors": ((CHANNELS,), (4, 4), {}),
    "volumes": ((CHANNELS, 3, 2, 2), (4, 4), {}),
    "maps, unequal": ((CHANNELS, 5, 4), (3, 5), {}),
    "vectors, unequal": ((CHANNELS,), (1, 7), {}),
    "mean of all batches": ((CHANNELS, 5, 4), (3, 5), {"momentum": None}),
    "without weights": ((CHANNELS, 5, 4), (3, 5), {"affine": False}),
    "without running statistics": ((CHANNELS, 5, 4), (3, 5), {"track_running_stats": False}),
}
NORMS = {1: nn.BatchNorm1d, 3: nn.BatchNorm2d, 4: nn.BatchNorm3d}


def norm_and_batches(case: str) -> tuple[nn.Module, list[Tensor], list[Tensor]]:
    """A plain norm, two batches (8, channels, ...) and the weighting of each output in the loss."""
    shape, _, arguments = CASES[case]
    torch.manual_seed(0)
    norm = NORMS[len(shape)](CHANNELS, **arguments)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    batches = [3 * torch.randn(BATCH, *shape) + torch.arange(CHANNELS).view(-1, *[1] * (len(shape) - 1)) for _ in "ab"]
    return norm, batches, [torch.randn(BATCH, *shape) for _ in "ab"]


def pass_batches(norm: nn.Module, batches: list[Tensor], weightings: list[Tensor]) -> dict[str, list[Tensor]]:
    """Outputs and gradients of the inputs for each batch, gradients of the weights of both together, and buffers."""
    inputs = [batch.clone().requires_grad_() for batch in batches]
    outputs = [norm(each) for each in inputs]
    sum((output * weighting).sum() for output, weighting in zip(outputs, weightings, strict=True)).backward()
    evaluated = copy.deepcopy(norm).eval()(batches[0])
    return {
        "outputs": [output.detach() for output in outputs],
        "inputs": [each.grad for each in inputs],
        "weights": [parameter.grad for parameter in norm.parameters()],
        "running": [buffer.double() for buffer in norm.buffers()],
        "evaluated": [evaluated.detach()],
    }


def network() -> nn.Module:
    torch.manual_seed(1)
    convolution = nn.Conv2d(3, CHANNELS, 3, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(CHANNELS), nn.ReLU(), nn.Flatten(), nn.Linear(4 * CHANNELS, 5))


def images() -> Tensor:
    return torch.randn(BATCH, 3, 4, 4, generator=torch.Generator().manual_seed(2))


def half_precision() -> tuple[nn.Module, Tensor]:
    norm, batches, _ = norm_and_batches("maps")
    return norm, batches[0].bfloat16()


def far_from_zero() -> Tensor:
    """Values of deviation 1 around 10,000, in double precision."""
    return 10_000 + torch.randn(BATCH, CHANNELS, 5, 4, generator=torch.Generator().manual_seed(3)).double()


def process(rank: int, world: int, port: int, folder: str) -> None:
    """One of two processes: every case on its own part of the batch, and one step under DDP."""
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    found: dict[str, object] = {}
    for case, (_, sizes, _) in CASES.items():
        norm, batches, weightings = norm_and_batches(case)
        own = [[whole.split(sizes)[rank] for whole in wholes] for wholes in (batches, weightings)]
        found[case] = pass_batches(synchronised(norm), *own)

    parallel = DistributedDataParallel(convert_sync_batch_norm(network()))
    parallel(images().chunk(world)[rank]).square().mean().backward()
    found["ddp"] = [parameter.grad for parameter in parallel.parameters()]
    norm, batch = half_precision()
    found["half precision"] = synchronised(norm)(batch.chunk(world)[rank]).detach()
    found["far from zero"] = SyncBatchNorm(CHANNELS)(far_from_zero().float().chunk(world)[rank]).detach()
    found["double precision"] = SyncBatchNorm(CHANNELS).double()(far_from_zero().chunk(world)[rank]).detach()
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each process found."""
    folder: Path = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(process, (2, port, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def require_close(found: Tensor, expected: Tensor, relative: float = 1e-6) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= relative * expected.abs().max()


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_input_gradients_are_those_of_the_whole_batch(case, two_processes):
    alone = pass_batches(*norm_and_batches(case))
    for name in ("outputs", "inputs"):
        for number, expected in enumerate(alone[name]):
            require_close(torch.cat([found[case][name][number] for found in two_processes]), expected)


@pytest.mark.parametrize("case", CASES)
def test_weight_gradients_add_up_to_those_of_the_whole_batch(case, two_processes):
    alone = pass_batches(*norm_and_batches(case))["weights"]
    assert len(alone) == (0 if case == "without weights" else 2)
    parts = [found[case]["weights"] for found in two_processes]
    for one, other, expected in zip(*parts, alone, strict=True):
        require_close(one + other, expected)


@pytest.mark.parametrize("case", CASES)
def test_running_statistics_are_those_of_the_whole_batch_on_both_processes(case, two_processes):
    alone = pass_batches(*norm_and_batches(case))["running"]
    assert len(alone) == (0 if case == "without running statistics" else 3)
    for found in two_processes:
        for running, expected in zip(found[case]["running"], alone, strict=True):
            require_close(running, expected)


@pytest.mark.parametrize("case", [case for case in CASES if case != "without running statistics"])
def test_evaluation_is_each_process_on_its_own(case, two_processes):
    expected = pass_batches(*norm_and_batches(case))["evaluated"][0].split(CASES[case][1])
    for found, own in zip(two_processes, expected, strict=True):
        require_close(found[case]["evaluated"][0], own)


def test_ddp_on_a_cpu_gives_the_gradients_of_the_whole_batch(two_processes):
    alone = network()
    alone(images()).square().mean().backward()
    for found in two_processes:
        for gradient, parameter in zip(found["ddp"], alone.parameters(), strict=True):
            require_close(gradient, parameter.grad)


def test_half_precision_comes_out_as_it_went_in(two_processes):
    norm, batch = half_precision()
    found = torch.cat([found["half precision"] for found in two_processes])
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, norm(batch.float()).bfloat16(), rtol=2**-8, atol=1e-6)


def test_values_far_from_zero_keep_their_digits(two_processes):
    expected = nn.BatchNorm2d(CHANNELS).double()(far_from_zero())
    single = torch.cat([found["far from zero"] for found in two_processes])
    # float32 has steps of 1e-3 at 10,000; the mean of squares, at 10^8, has steps of 8, and the variance is 1.
    require_close(single.double(), expected, 1e-3)
    double = torch.cat([found["double precision"] for found in two_processes])
    assert double.dtype == torch.float64
    require_close(double, expected, 1e-11)


def test_one_process_is_plain_batch_norm():
    norm, batches, weightings = norm_and_batches("maps")
    plain = pass_batches(copy.deepcopy(norm), batches, weightings)
    found = pass_batches(synchronised(norm), batches, weightings)
    for name, values in plain.items():
        assert all(torch.equal(one, other) for one, other in zip(found[name], values, strict=True)), name


def test_a_batch_without_channels_is_one_line():
    with pytest.raises(ValueError, match=r"batch norm takes \(batch, channels, ...\), found shape \(4,\)"):
        SyncBatchNorm(4)(torch.zeros(4))


class Nested(nn.Module):
    """Norms of every kind and in every place; one of them is registered twice."""

    def __init__(self) -> None:
        super().__init__()
        self.vectors = nn.BatchNorm1d(3, eps=1e-3, momentum=0.2)
        self.inner = nn.ModuleDict({"VISp2/3": nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False))})
        self.volumes = nn.BatchNorm3d(5, momentum=None, track_running_stats=False)
        self.again = self.vectors
        self.other = nn.GroupNorm(1, 3)


def test_converting_keeps_keys_parameters_buffers_constants_and_mode():
    model = Nested().train()
    model.inner.eval()
    keys, parameters, buffers = list(model.state_dict()), list(model.parameters()), list(model.buffers())
    converted = convert_sync_batch_norm(model)
    assert converted is model
    assert list(model.state_dict()) == keys
    for before, after in ((parameters, model.parameters()), (buffers, model.buffers())):
        assert all(one is other for one, other in zip(before, after, strict=True))
    norm = model.inner["VISp2/3"][1]
    assert {type(module) for module in (model.vectors, norm, model.volumes)} == {SyncBatchNorm}
    assert (model.vectors.training, norm.training, model.volumes.training) == (True, False, True)
    assert (model.vectors.eps, model.vectors.momentum, model.volumes.momentum) == (1e-3, 0.2, None)
    assert norm.weight is None
    assert model.volumes.running_mean is None
    assert model.again is model.vectors
    assert isinstance(model.other, nn.GroupNorm)


def test_converting_a_norm_itself_and_a_converted_model():
    norm = nn.BatchNorm2d(3).eval()
    converted = convert_sync_batch_norm(norm)
    assert type(converted) is SyncBatchNorm
    assert converted.weight is norm.weight
    assert not converted.training
    assert convert_sync_batch_norm(converted) is converted


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_byobnet"])
def test_timm_models_compute_the_same_after_converting(name, keyed_fill):
    import timm

    # Some of their batch norms hold the activation that follows, which torch's own converting loses.
    model = keyed_fill(timm.create_model(name, num_classes=0))
    views = torch.randn(4, 3, 32, 32)
    keys, expected = list(model.state_dict()), [copy.deepcopy(model).train(mode)(views) for mode in (True, False)]
    converted = convert_sync_batch_norm(model)
    assert list(converted.state_dict()) == keys
    assert not any(isinstance(module, nn.BatchNorm2d) for module in converted.modules())
    for mode, output in zip((True, False), expected, strict=True):
        torch.testing.assert_close(copy.deepcopy(converted).train(mode)(views), output)


def test_a_norm_with_a_forward_pass_of_its_own_is_refused_in_one_line():
    class Twice(nn.BatchNorm2d):
        def forward(self, activations: Tensor) -> Tensor:
            return 2 * super().forward(activations)

    with pytest.raises(ValueError, match="statistics of Twice over all processes; train with sync_batch_norm=false"):
        convert_sync_batch_norm(nn.Sequential(Twice(3)))
