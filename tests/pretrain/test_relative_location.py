"""Relative location: the published values, who is paired with whom, and the same training on one process and on two."""

import socket

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models import create_model
from pretrain.models.sync_norm import convert_sync_batch_norm
from pretrain.objectives.objective import Objective
from pretrain.objectives.relative_location import RelativeLocation, paired_with_centre
from pretrain.objectives.rotnet import RotNet

TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}
PUBLISHED_LAYERS = {"neck.fc": "neck.0", "neck.bn": "neck.1", "head.fc_cls": "head"}


def small(seed: int = 0, **arguments: float) -> RelativeLocation:
    """An objective around a small backbone with batch norm, of 4 x 4 patches."""
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(48, 24), nn.BatchNorm1d(24), nn.ReLU())
    return RelativeLocation(backbone, input_size=4, **({"hidden_dim": 32} | arguments))


def random_patches(batch: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(9, batch, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def published(mouse_vision):
    """The published values, and the objective around their weights; they start from features."""
    values = torch.load(mouse_vision / "losses" / "relative_location.pt", weights_only=True)
    weights = {f"{part}.{key}": value for part, layers in values["weights"].items() for key, value in layers.items()}
    hidden_dim, features = weights["neck.fc.weight"].shape
    objective = RelativeLocation(nn.Sequential(nn.Flatten(), nn.Linear(3, features // 2)), 1, hidden_dim)
    renamed = {}
    for key, value in weights.items():
        layer, kind = key.rsplit(".", 1)
        renamed[f"{PUBLISHED_LAYERS[layer]}.{kind}"] = value
    assert {key for key in objective.state_dict() if not key.startswith("backbone.")} == renamed.keys()
    objective.load_state_dict(renamed, strict=False)
    return values, objective


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_published_loss_with_and_without_dropout(published, mode):
    values, objective = published
    objective.train(mode == "train")
    if mode == "train":
        torch.manual_seed(values["train_seed"])
    found = objective.compare(values["x"].flatten(0, 1).flatten(1), values["labels"].flatten())
    torch.testing.assert_close(found["loss"], values[mode]["loss"], **TOLERANCE)
    torch.testing.assert_close(found["accuracy"], values[mode]["acc1"], **TOLERANCE)


def test_published_gradient_is_that_of_the_layers_written_out(published):
    values, objective = published
    objective.eval()
    x, labels = values["x"].flatten(0, 1).flatten(1), values["labels"].flatten()
    ours, plain = x.clone().requires_grad_(), x.double().requires_grad_()
    objective.compare(ours, labels)["loss"].backward()
    neck, head = ({key: value.double() for key, value in values["weights"][part].items()} for part in ("neck", "head"))
    hidden = plain @ neck["fc.weight"].T + neck["fc.bias"]
    normed = (hidden - neck["bn.running_mean"]) / (neck["bn.running_var"] + 1e-5).sqrt()
    hidden = (normed * neck["bn.weight"] + neck["bn.bias"]).clamp(min=0)
    logits = hidden @ head["fc_cls.weight"].T + head["fc_cls.bias"]
    (-logits.log_softmax(1)[range(len(labels)), labels].mean()).backward()
    torch.testing.assert_close(ours.grad.double(), plain.grad, rtol=1e-4, atol=1e-9)


def test_each_neighbour_is_paired_with_the_centre_of_its_own_image():
    grid = torch.arange(9.0)[:, None, None] * 10 + torch.arange(3.0)[None, :, None]
    pairs, labels = paired_with_centre(grid.expand(9, 3, 2))
    assert pairs.shape == (24, 4)
    for pair, label in zip(pairs, labels, strict=True):
        assert torch.equal(pair[:2], pair[:1].expand(2))
        patch, image = divmod(int(pair[0]), 10)
        assert pair[2:].tolist() == [40 + image, 40 + image]
        assert patch == (0, 1, 2, 3, 5, 6, 7, 8)[label]
    assert len({tuple(pair.tolist()) for pair in pairs}) == 24


def test_each_patch_goes_through_the_backbone_once_and_the_loss_is_that_of_every_pair():
    objective, patches = small().eval(), random_patches()
    seen = []
    hook = objective.backbone.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    found = objective({"patches": patches})
    hook.remove()
    assert sum(seen) == 9 * 6
    neighbours = (0, 1, 2, 3, 5, 6, 7, 8)
    pairs = [torch.cat([objective.features(patches[n]), objective.features(patches[4])], 1) for n in neighbours]
    logits = [objective.head(objective.neck(pair)) for pair in pairs]
    losses = [F.cross_entropy(scores, torch.full((6,), place)) for place, scores in enumerate(logits)]
    torch.testing.assert_close(found["loss"], torch.stack(losses).mean())
    right = sum(int((scores.argmax(1) == place).sum()) for place, scores in enumerate(logits))
    assert found["accuracy"].item() == pytest.approx(right / 48)


def test_the_head_is_the_published_one():
    with torch.device("meta"):
        objective = RelativeLocation(create_model("alexnet_bn", num_classes=0))
    assert objective.neck[0].weight.shape == (4096, 2 * 4096)
    assert objective.head.weight.shape == (8, 4096)
    assert (objective.neck[1].momentum, objective.neck[3].p) == (0.003, 0.5)
    made = small(hidden_dim=2000)
    assert made.neck[0].weight.std().item() == pytest.approx(0.005, rel=0.02)
    assert made.head.weight.std().item() == pytest.approx(0.005, rel=0.05)
    assert made.neck[0].bias.unique().tolist() == pytest.approx([0.1])
    assert made.head.bias.unique().tolist() == [0]
    assert (made.wants.views, made.wants.patches) == (0, True)


def test_sixty_steps_on_one_batch_tell_the_places():
    objective, patches = small(dropout=0.0), random_patches()
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.5, momentum=0.9)
    for _ in range(60):
        found = objective({"patches": patches})
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
    assert found["accuracy"] > 0.9


def test_the_loss_leaves_half_precision():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = small()({"patches": random_patches()})
    assert {value.dtype for value in found.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"hidden_dim": 0}, "objective_args.hidden_dim must be above 0, found 0"),
        ({"dropout": 1.0}, "objective_args.dropout must be from 0 to below 1, found 1.0"),
        ({"dropout": -0.1}, "objective_args.dropout must be from 0"),
    ],
)
def test_a_constant_out_of_range_is_one_line(arguments, line):
    with pytest.raises(ValueError, match=line):
        small(**arguments)


def objectives_and_batches() -> list[tuple[Objective, dict[str, Tensor], int]]:
    """One objective with batch norm and one without, with a batch of each and the dimension of its images."""
    torch.manual_seed(1)
    rotnet = RotNet(nn.Sequential(nn.Flatten(), nn.Linear(48, 24), nn.ReLU()), input_size=4)
    views = torch.randn(1, 6, 3, 4, 4)
    return [(small(dropout=0.0), {"patches": random_patches()}, 1), (rotnet, {"views": views}, 1)]


def process(rank: int, world: int, port: int, folder: str) -> None:
    """One of `world` processes: forward and backward of its part of each batch; saves losses and mean gradients."""
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    found = []
    for objective, batch, images in objectives_and_batches():
        synchronised = convert_sync_batch_norm(objective)
        loss = synchronised({key: value.chunk(world, images)[rank] for key, value in batch.items()})["loss"]
        loss.backward()
        gradient = torch.cat([weights.grad.flatten() for weights in synchronised.parameters()])
        torch.distributed.all_reduce(gradient)
        found.append((loss.detach(), gradient / world))
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_train_as_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(process, (2, port, str(tmp_path)), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for (objective, batch, _), first, second in zip(objectives_and_batches(), *parts, strict=True):
        loss = objective(batch)["loss"]
        loss.backward()
        gradient = torch.cat([weights.grad.flatten() for weights in objective.parameters()])
        torch.testing.assert_close((first[0] + second[0]) / 2, loss.detach(), **TOLERANCE)
        scale = gradient.abs().max()
        for found in (first[1], second[1]):
            torch.testing.assert_close(found / scale, gradient / scale, rtol=1e-5, atol=1e-5)
