"""Memory layout, activations computed again, and compiling: the same losses, gradients, statistics, keys and hooks."""

import copy
import os
import shutil
import socket
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pretrain.average import make_average
from pretrain.config import AverageConfig, PretrainConfig
from pretrain.execution import (
    blocks_of,
    checkpoint_activations,
    has_batch_norm,
    set_up_execution,
    statistics_kept,
    use_channels_last,
)
from pretrain.models import create_model
from pretrain.models.sync_norm import convert_sync_batch_norm
from pretrain.objectives import create_objective
from pretrain.objectives.objective import Objective

# Arguments and the side of an image. Dropout and stochastic depth are on where a network has them.
NETWORKS: dict[str, tuple[dict, int]] = {
    "alexnet_bn": ({"pool_size": 1}, 64),
    "six_stream": ({}, 64),
    "mousenet": ({}, 32),
    "resnet18": ({}, 32),
    "timm/test_vit": ({"drop_path_rate": 0.3, "proj_drop_rate": 0.2, "img_size": 32}, 32),
    "timm/test_resnet": ({"drop_path_rate": 0.3}, 32),
    "timm/test_convnext": ({}, 32),
}
# MouseNet's 49 convolutions take seconds.
NAMES = [pytest.param(name, marks=pytest.mark.slow if name == "mousenet" else ()) for name in NETWORKS]


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return create_model(name, num_classes=0, **NETWORKS[name][0])


def step(model: nn.Module, size: int, seed: int = 1) -> tuple[Tensor, list[Tensor], Tensor]:
    """The loss and the gradients of one pass in training mode, and what torch's generator gives next."""
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    model.zero_grad()
    loss = model(images.to(next(model.parameters()).dtype)).square().mean()
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters() if p.grad is not None], torch.rand(3)


def require_same_step(changed: nn.Module, plain: nn.Module, size: int, tolerance: float) -> None:
    """Gradients may differ by `tolerance` of the largest."""
    (loss, gradients, drawn), (expected, wanted, next_draw) = step(changed, size), step(plain, size)
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=0)
    assert torch.equal(drawn, next_draw)
    assert len(gradients) == len(wanted) > 0
    scale = max(float(gradient.abs().max()) for gradient in wanted)
    assert max(float((a - b).abs().max()) for a, b in zip(gradients, wanted, strict=True)) <= tolerance * scale


@pytest.mark.parametrize("name", NAMES)
def test_activations_computed_again_change_no_number(name):
    plain = build(name)
    model = copy.deepcopy(plain)
    checkpoint_activations(model)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [module for module, _ in model.named_modules()] == [module for module, _ in plain.named_modules()]
    require_same_step(model, plain, NETWORKS[name][1], 1e-7)
    for key, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), f"{key} is not the same bit for bit"
    # Running statistics have moved, and once.
    counts = [value for key, value in model.state_dict().items() if key.endswith("num_batches_tracked")]
    assert all(count == 1 for count in counts) or name == "mousenet"
    assert bool(counts) == has_batch_norm(model)


class Kept:
    """Bytes of different tensors that are kept for the gradient outside of blocks that are computed again."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        storages: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model(images)
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.bytes = sum(size for place, size in storages.items() if place not in weights)
        output.square().mean().backward()


@pytest.mark.parametrize("name", NAMES)
def test_less_is_kept(name):
    model, images = build(name), torch.randn(8, 3, NETWORKS[name][1], NETWORKS[name][1])
    before = Kept(model, images).bytes
    checkpoint_activations(model)
    assert Kept(model, images).bytes < 0.65 * before


def test_hooks_of_a_block_run_once_and_those_within_see_the_same():
    model, seen = build("timm/test_resnet"), {"block": [], "within": []}
    model.layer1[0].register_forward_hook(lambda module, inputs, output: seen["block"].append(output.detach()))
    model.layer1[0].conv1.register_forward_hook(lambda module, inputs, output: seen["within"].append(output.detach()))
    checkpoint_activations(model)
    step(model, 32)
    assert len(seen["block"]) == 1
    first, again = seen["within"]
    assert torch.equal(first, again)
    with torch.no_grad():
        model(torch.randn(2, 3, 32, 32))
    assert (len(seen["block"]), len(seen["within"])) == (2, 3), "without gradient nothing is computed again"


def test_a_copy_computes_its_own_blocks_again():
    """As teachers and averages are copies."""
    model = build("six_stream")
    checkpoint_activations(model)
    twin = copy.deepcopy(model)
    assert all(block.forward.args == (block,) for block in blocks_of(twin))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    require_same_step(twin, build("six_stream"), 64, 1e-7)


def test_statistics_come_back_where_computing_again_fails():
    norm = nn.BatchNorm1d(2)
    mean, count = norm.running_mean, norm.num_batches_tracked
    with pytest.raises(ValueError, match="expected 2D or 3D input"), statistics_kept(norm):
        norm(norm(torch.randn(4, 2))[0])
    assert norm.running_mean is mean
    assert norm.num_batches_tracked is count
    assert torch.equal(mean, torch.zeros(2))
    assert count == 0


BLOCKS = {
    "alexnet_bn": ["features"],
    "vgg16_bn": ["features"],
    "single_stream": ["input_VISp", "VISp_ventral", "VISp_VISpor", "ventral_VISpor"],
    "resnet18": [f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)],
    "timm/test_vit": [f"blocks.{block}" for block in range(6)],
    "timm/convnext_tiny": [f"stages.{s}.blocks.{b}" for s, n in enumerate((3, 3, 9, 3)) for b in range(n)],
    "timm/efficientnet_b0": [f"blocks.{s}.{b}" for s, n in enumerate((1, 2, 2, 3, 3, 4, 1)) for b in range(n)],
}  # fmt: skip


@pytest.mark.parametrize("name", BLOCKS)
def test_the_blocks_are_the_innermost_parts_that_repeat(name):
    with torch.device("meta"):
        model = create_model(name)
    names = {module: path.removeprefix("model_layers.") for path, module in model.named_modules()}
    assert [names[block] for block in blocks_of(model)] == BLOCKS[name]


@pytest.mark.parametrize("name", ["single_stream_autoencoder", "timm/regnetx_002"])
def test_a_backbone_without_blocks_is_one_line(name):
    with torch.device("meta"):
        model = create_model(name)
    with pytest.raises(ValueError, match=r"activation_checkpointing=true finds no blocks in \w+; set activation_"):
        checkpoint_activations(model)


@pytest.mark.parametrize("name", [*NAMES, "single_stream_autoencoder"])
def test_channels_last_changes_no_number_beyond_rounding(name):
    """In double precision, since batch norm over few values makes single precision's rounding large."""
    if name in NETWORKS:
        plain, size = build(name).double(), NETWORKS[name][1]
    else:
        torch.manual_seed(0)
        plain, size = nn.Sequential(create_model(name), Drawn()).double(), 64
    model = copy.deepcopy(plain)
    parameters = list(model.parameters())
    use_channels_last(model)
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert all(conv.weight.is_contiguous(memory_format=torch.channels_last) for conv in convolutions)
    require_same_step(model, plain, size, 1e-10)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-10, atol=1e-12)


class Drawn(nn.Module):
    """What an hour-glass draws, of all that it gives."""

    def forward(self, made: dict[str, Tensor]) -> Tensor:
        return made["output"]


def test_with_channels_last_so_are_the_activations():
    model, layouts = build("alexnet_bn"), []
    for layer in model.features[:6]:
        layer.register_forward_hook(
            lambda module, inputs, output: layouts.append(output.is_contiguous(memory_format=torch.channels_last))
        )
    use_channels_last(model)
    model(torch.randn(2, 3, 64, 64))
    assert all(layouts)


def objective_of(name: str, backbone: str = "timm/test_vit", **arguments: object) -> Objective:
    return create_objective(name, build(backbone), num_samples=9, input_size=32, classes=3, **arguments)


def settings_of(objective: str, **keys: bool) -> PretrainConfig:
    return PretrainConfig(model="timm/test_vit", objective=objective, **keys)


@pytest.mark.parametrize("name", ["byol", "mae"])
def test_an_objective_trains_the_same_with_less_memory(name):
    """With a teacher, and where the transformer's blocks are called one by one."""
    small = {"byol": {"hidden_dim": 8, "dim": 4}, "mae": {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}}
    batch = {"views": torch.randn(2, 4, 3, 32, 32), "progress": torch.tensor(0.5), "epoch": torch.tensor(1.0)}
    found = []
    for saving in (False, True):
        objective = objective_of(name, **small[name])
        set_up_execution(objective, settings_of(name, channels_last=saving, activation_checkpointing=saving))
        torch.manual_seed(3)
        loss = objective(batch)["loss"]
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in objective.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1])
    scale = max(float(gradient.abs().max()) for gradient in found[0])
    assert max(float((a - b).abs().max()) for a, b in zip(*found, strict=True)) <= 1e-5 * scale


@pytest.mark.parametrize(
    ("objective", "arguments", "backbone", "keys", "line"),
    [
        ("mae", {"decoder_heads": 2, "decoder_dim": 8}, "timm/test_vit", {}, "objective=mae as it is set reaches"),
        ("linear_readout", {"layer": "blocks.2"}, "timm/test_vit", {}, "objective=linear_readout as it is set reaches"),
        ("rotnet", {}, "timm/test_resnet", {"activation_checkpointing": True}, "do not go together"),
    ],
)  # fmt: skip
def test_what_cannot_be_compiled_is_one_line(objective, arguments, backbone, keys, line):
    with pytest.raises(ValueError, match=line):
        set_up_execution(objective_of(objective, backbone, **arguments), settings_of(objective, compile=True, **keys))


COMPILER = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")


@pytest.mark.slow
@pytest.mark.skipif(not COMPILER, reason="torch.compile needs a C++ compiler, and neither g++ nor clang++ is here")
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("alexnet_bn", {}),
        ("six_stream", {"channels_last": True}),
        ("timm/test_vit", {}),
        ("timm/test_vit", {"activation_checkpointing": True}),
    ],
)
def test_compiling_changes_no_number_beyond_rounding(name, keys):
    size = NETWORKS[name][1]
    backbone = build(name)
    for module in backbone.modules():
        # Compiled code need not draw as the plain one does.
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    plain = copy.deepcopy(backbone).double()
    objective = create_objective("rotnet", backbone, input_size=size).double()
    set_up_execution(objective, PretrainConfig(objective="rotnet", compile=True, **keys))
    average = make_average(objective.backbone, AverageConfig(decay=0.9))
    model = objective.backbone
    assert list(model.state_dict()) == list(plain.state_dict())
    assert model._compiled_call_impl is not None
    assert average.backbone._compiled_call_impl is None
    (loss, gradients, _), (expected, wanted, _) = step(model, size), step(plain, size)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    for gradient, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-6, atol=1e-10)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-10, atol=1e-12)


def parallel_step(again: bool, rank: int, world: int) -> list[Tensor]:
    """Gradients and statistics of one of two processes, whose batch norms are over both."""
    objective = create_objective("rotnet", build("timm/test_resnet"), input_size=32)
    if again:
        checkpoint_activations(objective.backbone)
    objective = convert_sync_batch_norm(objective)
    model = DistributedDataParallel(objective, broadcast_buffers=False)
    views = torch.randn(1, 4, 3, 32, 32, generator=torch.Generator().manual_seed(1))[:, rank::world]
    torch.manual_seed(rank)
    model({"views": views})["loss"].backward()
    return [*(parameter.grad for parameter in objective.parameters()), *objective.buffers()]


def process(rank: int, world: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    torch.save([parallel_step(again, rank, world) for again in (False, True)], Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_on_two_processes_with_batch_norm_over_both(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(process, (2, port, str(tmp_path)), nprocs=2)
    for rank in range(2):
        plain, again = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for one, other in zip(plain, again, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-8)
