"""Supervised training and linear readouts: the published values, what is frozen, and which layer is read."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models import create_model
from pretrain.objectives.supervised import LinearReadout, Supervised, loss_and_hits

TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


def backbone(seed: int = 0) -> nn.Module:
    """Two convolutions of 8 x 8 images, the first followed by a ReLU in place; 32 features."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.BatchNorm2d(6),
        nn.Dropout(0.5),
        nn.Conv2d(6, 8, 3, stride=3),
        nn.Flatten(),
    )


def random_batch(batch: int = 12, classes: int = 7, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (batch,), generator=generator)
    return {"views": torch.randn(1, batch, 3, 8, 8, generator=generator), "label": label}


def train(objective: nn.Module, batch: dict[str, Tensor], steps: int, lr: float) -> list[dict[str, Tensor]]:
    trained = [weights for weights in objective.parameters() if weights.requires_grad]
    optimizer, found = torch.optim.SGD(trained, lr=lr, momentum=0.9), []
    for _ in range(steps):
        found.append(objective(batch))
        optimizer.zero_grad()
        found[-1]["loss"].backward()
        optimizer.step()
    return found


def test_published_loss_and_its_gradient(mouse_vision):
    values = torch.load(mouse_vision / "losses" / "cross_entropy.pt", weights_only=True)
    logits = values["logits"].clone().requires_grad_()
    loss = loss_and_hits(logits, values["targets"])["loss"]
    torch.testing.assert_close(loss, values["loss"], **TOLERANCE)
    loss.backward()
    expected = values["logits"].softmax(1) - F.one_hot(values["targets"], logits.shape[1])
    torch.testing.assert_close(logits.grad, expected / len(logits), **TOLERANCE)


def test_hits_are_counted_among_the_first_and_the_first_five():
    # Class 6 is ranked first, class 0 last; the right class has rank 1, 2, 5, 6 and 7.
    logits = torch.arange(7.0).expand(5, 7)
    found = loss_and_hits(logits, torch.tensor([6, 5, 2, 1, 0]))
    assert found["train_top1"].item() == pytest.approx(1 / 5)
    assert found["train_top5"].item() == pytest.approx(3 / 5)
    assert loss_and_hits(torch.zeros(4, 3), torch.tensor([0, 1, 2, 2]))["train_top5"] == 1


def test_supervised_trains_backbone_and_head_on_what_logits_gives():
    objective, batch = Supervised(backbone(), classes=7, input_size=8), random_batch()
    before = {name: weights.clone() for name, weights in objective.named_parameters()}
    objective.eval()
    logits = objective.logits(batch["views"][0])
    assert logits.shape == (12, 7)
    torch.testing.assert_close(objective(batch)["loss"], F.cross_entropy(logits, batch["label"]))
    objective.train()
    found = train(objective, batch, 40, 0.05)
    assert found[-1]["loss"] < 0.5 * found[0]["loss"]
    assert all((weights != before[name]).any() for name, weights in objective.named_parameters())


@pytest.mark.parametrize(("head", "layer"), [("linear", None), ("linear", "0"), ("pooled", "0")])
def test_a_readout_learns_and_leaves_the_backbone_as_it_was(head, layer):
    objective, batch = LinearReadout(backbone(), 7, 8, head=head, layer=layer), random_batch()
    objective.train()
    before = {key: value.clone() for key, value in objective.backbone.state_dict().items()}
    assert not any(module.training for module in objective.backbone.modules())
    assert objective.readout.training
    found = train(objective, batch, 60, 0.1)
    assert found[-1]["loss"] < 0.5 * found[0]["loss"]
    assert all(torch.equal(value, before[key]) for key, value in objective.backbone.state_dict().items())
    assert not any(weights.requires_grad for weights in objective.backbone.parameters())
    assert {name.split(".")[0] for name, weights in objective.named_parameters() if weights.requires_grad} == {
        "readout"
    }


def test_dropout_in_the_backbone_stays_off():
    objective, batch = LinearReadout(backbone(), 7, 8).train(), random_batch()
    torch.testing.assert_close(*(objective.logits(batch["views"][0]) for _ in range(2)), rtol=0, atol=0)


def test_a_named_layer_is_read_before_anything_changes_it_in_place():
    plain, images = backbone().eval(), random_batch()["views"][0]
    objective = LinearReadout(backbone(), 7, 8, layer="0")
    expected = plain[0](images)
    torch.testing.assert_close(objective.frozen(images), expected)
    assert (expected < 0).any()
    torch.testing.assert_close(objective.logits(images), objective.readout[1](expected.flatten(1)))
    assert not objective.backbone[0]._forward_hooks


def test_the_pooled_head_is_max_pool_norm_and_linear_layer():
    torch.manual_seed(0)
    maps = torch.randn(5, 8, 13, 13)
    objective = LinearReadout(nn.Sequential(nn.Conv2d(3, 8, 1)), 300, 13, head="pooled")
    pool, norm, _, linear = objective.readout
    pooled = torch.stack([
        torch.stack([maps[..., r * 13 // 6 : -(-(r + 1) * 13 // 6), c * 13 // 6 : -(-(c + 1) * 13 // 6)].amax((2, 3))
                     for c in range(6)], -1) for r in range(6)
    ], -2)  # fmt: skip
    torch.testing.assert_close(pool(maps), pooled)
    mean, spread = pooled.mean((0, 2, 3), keepdim=True), pooled.var((0, 2, 3), keepdim=True, correction=0)
    torch.testing.assert_close(norm(pooled), (pooled - mean) / (spread + 1e-5).sqrt())
    assert not list(norm.parameters())
    assert linear.weight.shape == (300, 8 * 36)
    assert linear.weight.std().item() == pytest.approx((2 / 300) ** 0.5, rel=0.02)
    assert not linear.bias.any()


def test_layers_of_the_published_backbones_are_read():
    with torch.device("meta"):
        network = create_model("alexnet_bn", num_classes=0)
        assert LinearReadout(network, 1000).readout[1].weight.shape == (1000, 4096)
        assert LinearReadout(network, 1000, layer="features.3").readout[1].weight.shape == (1000, 3136)
        assert LinearReadout(network, 1000, 224, "pooled", "features.16").readout[3].weight.shape == (1000, 256 * 36)


def test_the_loss_leaves_half_precision():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for objective in (Supervised(backbone(), 7, 8), LinearReadout(backbone(), 7, 8)):
            assert {value.dtype for value in objective(random_batch()).values()} == {torch.float32}


def test_both_want_a_view_and_its_class():
    for kind in (Supervised, LinearReadout):
        assert (kind.wants.views, kind.wants.label) == (1, True)


@pytest.mark.parametrize(
    ("kind", "arguments", "line"),
    [
        (Supervised, {"classes": 0}, "objective 'supervised' needs labelled shards with 2 classes or more, found 0"),
        (LinearReadout, {"classes": 1}, "objective 'linear_readout' needs labelled shards .* found 1; write shards"),
        (LinearReadout, {"head": "mlp"}, "objective_args.head must be one of linear, pooled, found 'mlp'"),
        (LinearReadout, {"head": "pooled"}, r"head=pooled needs maps .* found shape \(32,\); name a convolutional"),
        (LinearReadout, {"layer": "6"}, "objective_args.layer='6' is no layer of the backbone; nearest: 0, 1"),
    ],
)
def test_a_wrong_argument_is_one_line(kind, arguments, line):
    with pytest.raises(ValueError, match=line):
        kind(backbone(), **({"classes": 7, "input_size": 8} | arguments))


def test_a_layer_that_is_not_used_is_told():
    network = backbone()
    network[0].spare = nn.Identity()
    with pytest.raises(ValueError, match=r"objective_args.layer='0.spare' takes no part in the backbone's forward"):
        LinearReadout(network, 7, 8, layer="0.spare")
