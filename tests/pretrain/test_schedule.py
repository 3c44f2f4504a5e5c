"""Learning rates: the published ones by epoch, the same formulae by step, and timm's schedules against its stepping."""

import json
from itertools import pairwise

import pytest
import timm.scheduler
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.scheduler import create_scheduler_v2

from pretrain.config import TIMM_SCHEDULES, OptimizerConfig, PretrainConfig
from pretrain.schedule import learning_rate, learning_rate_at, require_possible_schedule, set_learning_rate
from ray_jobs.config import compose
from ray_jobs.keys import ConfigError

IN_THIS_TIMM = [
    name for name in TIMM_SCHEDULES if name not in ("wsd", "rsqrt") or hasattr(timm.scheduler, "WSDLRScheduler")
]


def two_groups(lr: float) -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "weight_decay": decay} for decay in (0.1, 0.0)]
    return torch.optim.SGD(groups, lr=lr)


def rates_by_step(config: OptimizerConfig, epochs: int, steps: int) -> list[float]:
    return [learning_rate_at(step, steps, epochs, config) for step in range(epochs * steps)]


def test_the_cosine_ends_at_its_lowest_rate_and_the_warmup_ends_at_the_rate():
    config = OptimizerConfig(lr=4.8, schedule="cosine", warmup_epochs=10, min_lr=0.01)
    rates = [learning_rate(epoch, 200, config) for epoch in range(200)]
    assert rates[0] == pytest.approx(4.8 * (1 - 0.9 * 0.9999))
    assert rates[9] == 4.8
    assert rates[-1] == pytest.approx(0.01)
    assert all(a > b for a, b in pairwise(rates[9:]))


def test_every_group_gets_the_rate():
    optimizer = two_groups(0.003)
    assert set_learning_rate(optimizer, 130 * 7 + 6, 7, 200, OptimizerConfig()) == pytest.approx(0.0003)
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(0.0003)] * 2


# The settings of the published families, as the recipes have them too.
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
    epochs, keys = FAMILIES[family]
    assert len(published) == epochs
    config = OptimizerConfig(**keys)
    assert [learning_rate(epoch, epochs, config) for epoch in range(epochs)] == pytest.approx(published, abs=1e-12)
    by_step = OptimizerConfig(**keys, schedule_by="step")
    assert rates_by_step(by_step, epochs, 3)[::3] == pytest.approx(published, abs=1e-12)


@st.composite
def trainings(draw: st.DrawFn) -> tuple[int, int, dict]:
    """Epochs, steps per epoch and keys of a schedule that fits them."""
    epochs = draw(st.integers(1, 30))
    return (
        epochs,
        draw(st.integers(1, 40)),
        {
            "schedule": draw(st.sampled_from(["step", "cosine"])),
            "lr": draw(st.floats(1e-4, 10)),
            "min_lr": draw(st.sampled_from([0.0, 1e-5])),
            "warmup_epochs": draw(st.integers(0, epochs - 1)),
            "warmup_ratio": draw(st.floats(0, 1)),
            "decay_epochs": sorted(draw(st.lists(st.integers(0, epochs), max_size=3))),
        },
    )


@settings(deadline=None)
@given(trainings())
def test_by_epoch_a_rate_is_that_of_its_epoch(training):
    epochs, steps, keys = training
    config = OptimizerConfig(**keys)
    expected = [learning_rate(epoch, epochs, config) for epoch in range(epochs) for _ in range(steps)]
    assert rates_by_step(config, epochs, steps) == expected


@settings(deadline=None)
@given(trainings())
def test_by_step_the_rates_at_the_starts_of_epochs_are_the_same_and_it_rises_then_falls(training):
    epochs, steps, keys = training
    config = OptimizerConfig(**keys, schedule_by="step")
    require_possible_schedule(epochs, config)
    rates = rates_by_step(config, epochs, steps)
    assert rates[::steps] == [learning_rate(epoch, epochs, config) for epoch in range(epochs)]
    top = max(config.warmup_epochs - 1, 0) * steps
    slack = 1e-12 * config.lr
    assert all(b >= a - slack for a, b in pairwise(rates[: top + 1]))
    assert all(b <= a + slack for a, b in pairwise(rates[top:]))
    if config.warmup_epochs:
        assert max(rates) == pytest.approx(config.lr)
    if config.schedule == "cosine":
        assert rates[-steps:] == pytest.approx([config.min_lr] * steps, abs=slack)


def test_by_step_the_rate_moves_within_an_epoch():
    config = OptimizerConfig(lr=1.0, schedule="cosine", warmup_epochs=2, warmup_ratio=0.0, schedule_by="step")
    rates = rates_by_step(config, 10, 4)
    assert rates[:5] == pytest.approx([0.5, 0.625, 0.75, 0.875, 1.0])
    assert all(a > b for a, b in pairwise(rates[4:37]))


def timm_stepping(name: str, epochs: int, steps: int, config: OptimizerConfig) -> list[float]:
    """The rate at every step of a run that steps timm's scheduler as timm's own training script does."""
    optimizer = two_groups(config.lr)
    scheduler, _ = create_scheduler_v2(
        optimizer, name, num_epochs=epochs, warmup_epochs=config.warmup_epochs,
        warmup_lr=config.warmup_ratio * config.lr, min_lr=config.min_lr, decay_rate=config.decay_rate,
        decay_milestones=config.decay_epochs, step_on_epochs=config.schedule_by == "epoch", updates_per_epoch=steps,
        **config.schedule_args,
    )  # fmt: skip
    rates, updates = [], 0
    for epoch in range(epochs):
        for _ in range(steps):
            rates.append(optimizer.param_groups[1]["lr"])
            updates += 1
            scheduler.step_update(updates)
        scheduler.step(epoch + 1)
    return rates


@pytest.mark.parametrize("name", IN_THIS_TIMM)
@settings(max_examples=25, deadline=None)
@given(
    epochs=st.integers(8, 20),
    steps=st.integers(1, 12),
    warmup=st.integers(0, 3),
    by=st.sampled_from(["epoch", "step"]),
    noisy=st.booleans(),
)
def test_timms_schedules_equal_timms_own_stepping(name, epochs, steps, warmup, by, noisy):
    extra = {"noise": [0.4, 0.9]} if noisy else {}
    extra |= {"decay_epochs": 3} if name in ("step", "wsd") else {}
    extra |= {"decay_epochs": 3, "stable_timescale": 2} if name == "rsqrt" else {}
    config = OptimizerConfig(
        lr=0.2, schedule=f"timm/{name}", schedule_by=by, schedule_args=extra, warmup_epochs=warmup, min_lr=1e-3,
        decay_epochs=[4, 6],
    )  # fmt: skip
    require_possible_schedule(epochs, config)
    found = rates_by_step(config, epochs, steps)
    assert found == timm_stepping(name, epochs, steps, config)
    if name != "constant":
        assert len(set(found)) > 1


def test_timms_rate_of_a_step_needs_no_other_step():
    config = OptimizerConfig(schedule="timm/cosine", schedule_by="step", warmup_epochs=2)
    rates = rates_by_step(config, 12, 5)
    assert [learning_rate_at(step, 5, 12, config) for step in reversed(range(60))] == rates[::-1]


def test_a_warmup_before_timms_epochs_is_counted():
    prefixed = {"schedule": "timm/cosine", "warmup_epochs": 5}
    with pytest.raises(ValueError, match=r"takes 25 epochs, and epochs=20; set optimizer\.schedule_args\.num_epochs"):
        require_possible_schedule(20, OptimizerConfig(**prefixed, schedule_args={"warmup_prefix": True}))
    fitting = OptimizerConfig(**prefixed, lr=0.1, schedule_args={"warmup_prefix": True, "num_epochs": 15})
    require_possible_schedule(20, fitting)
    assert learning_rate_at(5, 1, 20, fitting) == 0.1


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"warmup_epochs": 9}, r"optimizer\.warmup_epochs=9 must be fewer than epochs=9"),
        ({"schedule_args": {"k_decay": 2}}, r"schedule_args are of timm's schedules, and optimizer\.schedule=step"),
        ({"schedule": "timm/poly", "schedule_args": {"cycle": 2}}, r"'optimizer\.schedule_args\.cycle'; nearest: cyc"),
        ({"schedule": "timm/poly", "schedule_args": {"min_lr": 2}}, r"unknown key 'optimizer\.schedule_args\.min_lr'"),
        ({"schedule": "timm/poly", "schedule_args": {"num_epochs": 0}}, r"schedule=timm/poly cannot be made"),
        ({"schedule": "timm/poly", "schedule_args": {"num_epochs": "x"}}, "cannot be made with schedule_args="),
    ],
)  # fmt: skip
def test_keys_that_do_not_fit_are_one_line(keys, line):
    with pytest.raises(ValueError, match=line) as error:
        require_possible_schedule(9, OptimizerConfig(**keys))
    assert "\n" not in str(error.value)


def test_a_schedule_with_a_state_is_not_among_the_choices():
    assert compose("pretrain", ["optimizer.schedule=timm/tanh"]) == PretrainConfig(
        optimizer=OptimizerConfig(schedule="timm/tanh")
    )
    with pytest.raises(ConfigError, match=r"optimizer\.schedule.*timm/plateau"):
        compose("pretrain", ["optimizer.schedule=timm/plateau"])
