"""Optimisers against torch's own and the published trace; learning rates by epoch against the published ones."""

import json
from itertools import pairwise

import pytest
import torch
from torch import nn

from pretrain.config import OptimizerConfig
from pretrain.optimizer import learning_rate, make_optimizer, parameter_groups, set_learning_rate


def small() -> nn.Sequential:
    """Weights, biases and a norm layer, the same at every call."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def after_steps(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 3, generator=generator)).square().sum().backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


PLAIN = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.3),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.3, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.3),
}


@pytest.mark.parametrize("name", PLAIN)
def test_the_optimisers_are_torchs_with_decay_on_everything(name):
    ours, plain = small(), small()
    config = OptimizerConfig(name=name, lr=0.1, momentum=0.9, weight_decay=0.3)
    found = after_steps(ours, make_optimizer(ours, config))
    wanted = after_steps(plain, PLAIN[name](plain.parameters()))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_biases_and_norm_layers_can_be_left_without_decay():
    model = small()
    decayed, free = parameter_groups(model, OptimizerConfig(decay_biases=False, weight_decay=0.3))
    assert [p is q for p, q in zip(decayed["params"], (model[0].weight, model[3].weight), strict=True)] == [True, True]
    assert len(free["params"]) == 4
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.3, 0.0)


def test_frozen_parameters_are_left_out():
    model = small()
    model[0].requires_grad_(False)
    (group,) = parameter_groups(model, OptimizerConfig())
    assert len(group["params"]) == 4


class TwoParameters(nn.Module):
    """A weight and a bias that start and move as told."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())


def test_lars_follows_the_published_trace(mouse_vision):
    values = torch.load(mouse_vision / "losses" / "lars.pt", weights_only=True)
    model = TwoParameters(*values["init"])
    config = OptimizerConfig(
        name="lars", lr=values["lr"], momentum=values["momentum"], weight_decay=values["weight_decay"],
        trust=values["eta"],
    )  # fmt: skip
    optimizer = make_optimizer(model, config)
    for grad_weight, grad_bias, after in zip(values["grads1"], values["grads2"], values["trace"], strict=True):
        model.weight.grad, model.bias.grad = grad_weight.clone(), grad_bias.clone()
        optimizer.step()
        torch.testing.assert_close(model.weight.detach(), after[0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(model.bias.detach(), after[1], rtol=1e-6, atol=1e-6)


def test_lars_leaves_every_norm_scale_alone_whatever_its_name():
    """At numeric indices, too, where the published code scales and decays them."""
    model = small()
    weights, others = parameter_groups(model, OptimizerConfig(name="lars"))
    assert all(p.ndim == 2 for p in weights["params"])
    assert any(p is model[1].weight for p in others["params"])
    assert others["weight_decay"] == 0


def test_lars_without_decay_is_refused():
    with pytest.raises(ValueError, match=r"lars needs optimizer\.weight_decay above 0"):
        make_optimizer(small(), OptimizerConfig(name="lars", weight_decay=0.0))


def test_the_cosine_ends_at_its_lowest_rate_and_the_warmup_ends_at_the_rate():
    config = OptimizerConfig(lr=4.8, schedule="cosine", warmup_epochs=10, min_lr=0.01)
    rates = [learning_rate(epoch, 200, config) for epoch in range(200)]
    assert rates[0] == pytest.approx(4.8 * (1 - 0.9 * 0.9999))
    assert rates[9] == 4.8
    assert rates[-1] == pytest.approx(0.01)
    assert all(a > b for a, b in pairwise(rates[9:]))


def test_every_group_gets_the_rate():
    optimizer = make_optimizer(small(), OptimizerConfig(decay_biases=False))
    assert set_learning_rate(optimizer, 130, 200, OptimizerConfig()) == pytest.approx(0.0003)
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(0.0003)] * 2


# The settings of section 4.1's families, as the recipes have them too.
FAMILIES = {
    "ir/alexnet_bn_ir.json": (200, {"lr": 0.003}),
    "simclr/alexnet_bn_simclr_gpu.json": (200, {"lr": 4.8, "schedule": "cosine", "warmup_epochs": 10}),
    "simsiam/alexnet_bn_simsiam_gpu.json": (100, {"lr": 0.1, "schedule": "cosine"}),
    "mocov2/alexnet_bn_mocov2_gpu.json": (200, {"lr": 0.06, "schedule": "cosine"}),
    "relative_location/resnet50_relative_location_trainer_tpu.json": (
        70, {"lr": 0.2, "warmup_epochs": 5, "warmup_ratio": 0.1, "decay_epochs": [30, 50]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_rates_by_epoch_are_the_published_ones(family, mouse_vision):
    published = json.loads((mouse_vision / "training" / "lr_schedules.json").read_text())[family]
    epochs, settings = FAMILIES[family]
    assert len(published) == epochs
    config = OptimizerConfig(**settings)
    assert [learning_rate(epoch, epochs, config) for epoch in range(epochs)] == pytest.approx(published, abs=1e-12)
