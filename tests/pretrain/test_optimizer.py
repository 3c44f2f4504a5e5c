"""Optimisers against torch's own and the published trace; which parameters have weight decay; timm's by name."""

import io

import pytest
import timm
import torch
from timm.optim import get_optimizer_info, list_optimizers
from torch import nn

from pretrain.config import OptimizerConfig
from pretrain.models import create_model
from pretrain.objectives import create_objective
from pretrain.optimizer import make_optimizer, parameter_groups
from pretrain.run import backbone_spec
from ray_jobs.config import compose


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
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.3, fused=True),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.3, nesterov=True, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.3, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.3, fused=True),
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


class Oddities(nn.Module):
    """Biases and scales that the number of dimensions does not tell, and a vector that is neither."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))
        self.bias = nn.Parameter(torch.ones(2, 2))
        self.gamma = nn.Parameter(torch.ones(2))
        self.temperature = nn.Parameter(torch.ones(()))
        self.planes = nn.LayerNorm((2, 3))
        self.roots = nn.RMSNorm((2, 3))
        self.batch = nn.BatchNorm2d(2)
        self.backbone = timm.create_model("test_vit", num_classes=0)


TOKENS = {"backbone.cls_token", "backbone.pos_embed"}


def names_of(module: nn.Module, config: OptimizerConfig) -> tuple[set[str], set[str]]:
    """Names of the parameters with weight decay, and of those without."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = parameter_groups(module, config)
    sides = [{names[id(p)] for g in groups for p in g["params"] if bool(g["weight_decay"]) == side} for side in (1, 0)]
    assert sum(map(len, sides)) == sum(len(group["params"]) for group in groups) == len(names)
    return sides[0], sides[1]


@pytest.mark.parametrize("name", ["adamw", "lars", "timm/lars", "timm/lookahead_larc"])
def test_decay_is_for_weights_alone_whatever_the_number_of_dimensions(name):
    """With LARS even where decay of biases is asked for."""
    config = OptimizerConfig(name=name, decay_biases=name != "adamw", weight_decay=0.3)
    decayed, free = names_of(Oddities(), config)
    ours = {
        "bias",
        "gamma",
        "temperature",
        "planes.weight",
        "planes.bias",
        "roots.weight",
        "batch.weight",
        "batch.bias",
    }
    assert {n for n in free if not n.startswith("backbone.")} == ours
    assert {n for n in decayed if not n.startswith("backbone.")} == {"weight"}
    assert free >= TOKENS
    assert all(n.endswith(".weight") and "norm" not in n for n in decayed if n.startswith("backbone."))


def test_the_rule_is_timms_own_where_norms_are_vectors():
    model = timm.create_model("test_vit", num_classes=0)
    free, decayed = timm.optim.param_groups_weight_decay(
        model, weight_decay=0.3, no_weight_decay_list=model.no_weight_decay()
    )
    ours = parameter_groups(model, OptimizerConfig(decay_biases=False, weight_decay=0.3))
    for found, expected in zip(ours, (decayed, free), strict=True):
        assert [id(p) for p in found["params"]] == [id(p) for p in expected["params"]]
        assert found["weight_decay"] == expected["weight_decay"]


def test_tokens_can_have_decay():
    both = [names_of(Oddities(), OptimizerConfig(decay_biases=False, decay_tokens=tokens)) for tokens in (False, True)]
    assert both[1][0] - both[0][0] == both[0][1] - both[1][1] == TOKENS


def test_with_decay_on_everything_there_is_one_group():
    assert names_of(Oddities(), OptimizerConfig())[1] == set()


@pytest.mark.parametrize("recipe", ["alexnet_bn_ir", "alexnet_bn_simclr", "six_stream_simclr", "vit_mae"])
def test_a_recipes_groups_are_told_by_dimensions_as_published(recipe):
    config = compose("pretrain", [f"recipe={recipe}"])
    spec = backbone_spec(config)
    backbone = create_model(spec.name, **spec.args | ({"depth": 1} if recipe == "vit_mae" else {}))
    objective = create_objective(config.objective, backbone, num_samples=9, input_size=spec.input_size)
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    groups = [trained]
    if recipe != "alexnet_bn_ir":
        groups = [[p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]]
    found = parameter_groups(objective, config.optimizer)
    for one, expected in zip(found, groups, strict=True):
        assert [id(p) for p in one["params"]] == [id(p) for p in expected]
    assert [group["weight_decay"] for group in found] == [config.optimizer.weight_decay, 0.0][: len(groups)]


ELSEWHERE = tuple(name for name in list_optimizers() if name.startswith(("bnb", "fused")))
SECOND_ORDER = tuple(name for name in list_optimizers() if get_optimizer_info(name).second_order)
# Kron compiles itself at its first step.
HERE = [
    pytest.param(f"timm/{name}", marks=pytest.mark.slow if name.startswith("kron") else ())
    for name in list_optimizers()
    if name not in (*ELSEWHERE, *SECOND_ORDER)
]


@pytest.mark.parametrize("name", [*HERE, "timm/lookahead_adam", "lars", "momentum"])
@pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum'")
def test_every_optimiser_resumes_exactly(name):
    """From a file that is read as data; nine steps pass the sixth, at which lookahead acts."""

    def train(stop: int | None) -> list[torch.Tensor]:
        model, generator = small(), torch.Generator().manual_seed(1)
        optimizer = make_optimizer(model, OptimizerConfig(name=name, lr=0.01, decay_biases=False, weight_decay=0.05))
        for step in range(9):
            if step == stop:
                file = io.BytesIO()
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
                file.seek(0)
                state = torch.load(file, weights_only=True)
                model = small()
                model.load_state_dict(state["model"])
                optimizer = make_optimizer(
                    model, OptimizerConfig(name=name, lr=0.01, decay_biases=False, weight_decay=0.05)
                )
                optimizer.load_state_dict(state["optimizer"])
            torch.manual_seed(step)
            optimizer.zero_grad()
            model(torch.randn(8, 3, generator=generator)).square().sum().backward()
            optimizer.step()
        return [parameter.detach() for parameter in model.parameters()]

    alone, resumed = train(None), train(4)
    assert all(torch.equal(one, other) for one, other in zip(alone, resumed, strict=True))
    assert not torch.equal(alone[0], small()[0].weight)


def test_a_timm_optimiser_takes_our_keys_and_its_own_arguments():
    config = OptimizerConfig(name="timm/lamb", lr=0.2, weight_decay=0.3, args={"betas": [0.8, 0.95], "eps": 1e-5})
    group = make_optimizer(small(), config).param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"], group["eps"]) == (0.2, 0.3, (0.8, 0.95), 1e-5)
    group = make_optimizer(small(), OptimizerConfig(name="timm/sgdp", momentum=0.7)).param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.7, True)
    group = make_optimizer(small(), OptimizerConfig(name="lars", args={"nesterov": True})).param_groups[0]
    assert group["nesterov"] is True


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"name": "timm/lambb"}, r"unknown optimizer\.name=timm/lambb; nearest: timm/lamb.*allowed: momentum"),
        ({"name": "adamv"}, r"unknown optimizer\.name=adamv; nearest: adam"),
        ({"name": "lamb"}, r"nearest: .*timm/lamb"),
        ({"name": "timm/adahessian"}, "needs second derivatives"),
        ({"name": "adamw", "args": {"beta": [0.9, 0.9]}}, r"'optimizer\.args\.beta' for adamw; nearest: betas"),
        ({"name": "adamw", "args": {"lr": 0.1}}, r"optimizer\.args\.lr has a key of its own: set optimizer\.lr"),
        ({"name": "lars", "args": {"trust_coefficient": 0.1}}, r"set optimizer\.trust"),
        ({"name": "adamw", "args": {"momentum": 0.1}}, r"unknown key 'optimizer\.args\.momentum' for adamw"),
        ({"name": "adamw", "args": {"betas": [2.0, 0.9]}}, r"optimizer\.name=adamw cannot be made .*Invalid beta"),
        ({"name": "adamw", "args": {"betas": 0.9}}, r"optimizer\.name=adamw cannot be made with lr=0\.003 and args="),
    ],
)  # fmt: skip
def test_a_wrong_name_or_argument_is_one_line(keys, line):
    with pytest.raises(ValueError, match=line) as error:
        make_optimizer(small(), OptimizerConfig(**keys))
    assert "\n" not in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU they are made, if their package is installed")
def test_an_optimiser_that_is_not_available_is_one_line():
    with pytest.raises(ValueError, match=r"optimizer\.name=timm/fusedadam is not available here: CUDA required"):
        make_optimizer(small(), OptimizerConfig(name="timm/fusedadam"))


def test_schedule_free_is_that_of_its_authors():
    from schedulefree import AdamWScheduleFree

    ours, plain = small(), small()
    config = OptimizerConfig(
        name="schedule_free_adamw", lr=0.1, weight_decay=0.3, args={"warmup_steps": 3, "betas": [0.8, 0.9]}
    )
    reference = AdamWScheduleFree(plain.parameters(), lr=0.1, weight_decay=0.3, warmup_steps=3, betas=(0.8, 0.9))
    reference.train()
    found, wanted = after_steps(ours, make_optimizer(ours, config)), after_steps(plain, reference)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
