"""The moving average of weights against its closed form; exact resuming; what it leaves alone."""

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pretrain.average import WeightAverage, make_average
from pretrain.config import AverageConfig, OptimizerConfig
from pretrain.optimizer import make_optimizer


def backbone() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(16, 2))


def move(model: nn.Module, step: int) -> None:
    """Weights and statistics that a step number stands for."""
    generator = torch.Generator().manual_seed(step)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.randn(value.shape, generator=generator))
        else:
            value.fill_(step)


def weight_at(step: int) -> torch.Tensor:
    model = backbone()
    move(model, step)
    return model[0].weight.detach().double()


@settings(deadline=None)
@given(steps=st.integers(1, 12), decay=st.floats(0.01, 0.9999), warmup=st.booleans())
def test_the_average_is_its_closed_form(steps, decay, warmup):
    """Sum over steps k of (1 - d_k) * product of d_j over later steps j * weights_k, with d_1 = 0."""
    model = backbone()
    average = make_average(model, AverageConfig(decay=decay, warmup=warmup))
    shares = []
    for step in range(1, steps + 1):
        move(model, step)
        average.update(model, step)
        kept = min(decay, 1 - step ** (-2 / 3)) if warmup else (decay if step > 1 else 0.0)
        shares = [share * kept for share in shares] + [1 - kept]
    assert sum(shares) == pytest.approx(1)
    expected = sum(share * weight_at(step) for step, share in enumerate(shares, 1))
    torch.testing.assert_close(average.backbone[0].weight.double(), expected, rtol=1e-5, atol=1e-5)


def test_running_statistics_are_averaged_and_counts_are_copied():
    model = backbone()
    average = make_average(model, AverageConfig(decay=0.75, warmup=False))
    statistics = []
    for step in (1, 2):
        move(model, step)
        statistics.append(model[1].running_var.clone())
        average.update(model, step)
    torch.testing.assert_close(average.backbone[1].running_var, 0.75 * statistics[0] + 0.25 * statistics[1])
    assert average.backbone[1].num_batches_tracked == 2


def test_a_resumed_average_is_the_same_bit_for_bit():
    def run(stop: int | None) -> dict[str, torch.Tensor]:
        model = backbone()
        average = make_average(model, AverageConfig(decay=0.9))
        for step in range(1, 9):
            if step == stop:
                file = io.BytesIO()
                torch.save(average.state_dict(), file)
                file.seek(0)
                average = make_average(backbone(), AverageConfig(decay=0.9))
                average.load_state_dict(torch.load(file, weights_only=True))
            move(model, step)
            average.update(model, step)
        return average.state_dict()

    alone, resumed = run(None), run(5)
    assert list(alone) == list(backbone().state_dict())
    assert all(torch.equal(alone[key], resumed[key]) for key in alone)


def test_the_backbone_is_left_alone_and_the_average_is_for_evaluation():
    model = backbone()
    average = make_average(model, AverageConfig(decay=0.9))
    move(model, 1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    average.update(model, 1)
    move(model, 2)
    assert all(torch.equal(average.state_dict()[key], before[key]) for key in before), "at the first step a copy"
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not average.backbone.training
    assert not any(parameter.requires_grad for parameter in average.backbone.parameters())


def test_tensors_that_are_put_in_the_place_of_others_are_followed():
    model, alike = backbone(), backbone()
    average, expected = (WeightAverage(one, AverageConfig(decay=0.75, warmup=False)) for one in (model, alike))
    for step in range(1, 6):
        move(model, step)
        move(alike, step)
        if step == 3:
            model[1].running_mean = model[1].running_mean.clone()
            model[1].num_batches_tracked = model[1].num_batches_tracked.clone()
        if step == 4:
            state = {key: value.clone() for key, value in model.state_dict().items()}
            model.load_state_dict(state, assign=True)
            average.load_state_dict({key: value.clone() for key, value in average.state_dict().items()})
        average.update(model, step)
        expected.update(alike, step)
    for key, value in expected.state_dict().items():
        assert torch.equal(average.state_dict()[key], value), key
    assert average.backbone[1].num_batches_tracked == 5


class Twice(nn.Module):
    """A layer that is registered in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = nn.Sequential(self.first)


def test_a_layer_in_two_places_is_averaged_once():
    model = Twice()
    average = make_average(model, AverageConfig(decay=0.75, warmup=False))
    for step in (1, 2):
        nn.init.constant_(model.first.weight, step)
        average.update(model, step)
    torch.testing.assert_close(average.backbone.first.weight, torch.full((2, 2), 1.25))
    assert average.backbone.second[0] is average.backbone.first


@pytest.mark.parametrize("decay", [0.9, 0.9999])
def test_with_a_warmup_it_is_timms(decay):
    from timm.utils import ModelEmaV3

    model = backbone()
    average, reference = make_average(model, AverageConfig(decay=decay)), ModelEmaV3(model, decay, use_warmup=True)
    for step in range(1, 40):
        move(model, step)
        average.update(model, step)
        reference.update(model, step)
    for key, value in reference.module.state_dict().items():
        torch.testing.assert_close(average.state_dict()[key], value)


def test_no_average_where_none_is_asked_for():
    assert make_average(backbone(), AverageConfig()) is None
    average = make_average(backbone(), AverageConfig(decay=0.9))
    assert [average.decay_at(step) for step in (1, 8, 10**6)] == pytest.approx([0.0, 0.75, 0.9])


def test_from_the_start_it_is_the_winners_of_sensorium():
    """Everything floating, running statistics too, is 0.999 of itself and 0.001 of the newest, from the first step."""
    model = backbone()
    expected = {key: value.clone() for key, value in model.state_dict().items()}
    average = make_average(model, AverageConfig(decay=0.999, warmup=False, initial=True))
    for step in range(1, 9):
        move(model, step)
        average.update(model, step)
        for key, value in model.state_dict().items():
            expected[key] = 0.999 * expected[key] + 0.001 * value if value.is_floating_point() else value.clone()
    for key, value in average.state_dict().items():
        torch.testing.assert_close(value, expected[key])


def schedule_free(model: nn.Module) -> torch.optim.Optimizer:
    return make_optimizer(model, OptimizerConfig(name="schedule_free_adamw", lr=0.1, weight_decay=0.1))


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    model(torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(step))).square().sum().backward()
    optimizer.step()


def test_schedule_free_averages_are_the_optimisers_own_and_training_is_left_alone():
    model, alone = (backbone().eval() for _ in range(2))
    optimizer, other = schedule_free(model), schedule_free(alone)
    average = make_average(model, AverageConfig(), optimizer)
    for step in range(6):
        train_step(model, optimizer, step)
        train_step(alone, other, step)
        assert len(average.state_dict()) == len(model.state_dict())
    for one, two in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.equal(one, two), "asking for the averages changes nothing"
    found = {key: value.clone() for key, value in average.state_dict().items()}
    assert not torch.equal(found["0.weight"], model[0].weight)
    other.eval()
    assert all(torch.equal(value, found[key]) for key, value in alone.state_dict().items())
    assert not average.backbone.training


def test_schedule_free_and_another_average_are_too_many():
    model = backbone()
    with pytest.raises(ValueError, match=r"average\.decay=0\.9 beside a Schedule-Free optimiser"):
        make_average(model, AverageConfig(decay=0.9), schedule_free(model))
    assert isinstance(
        make_average(model, AverageConfig(decay=0.9), torch.optim.AdamW(model.parameters())), WeightAverage
    )


def test_a_table_that_is_made_in_training_is_not_averaged():
    """DwiseNeuro's positions are a buffer once they were used; the average's copy was never used."""
    backbone = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = WeightAverage(backbone, AverageConfig(decay=0.5, warmup=False))
    backbone[0].register_buffer("table", torch.ones(3), persistent=False)
    backbone[0].weight.data.fill_(4)
    average.update(backbone, 1)
    assert torch.equal(average.backbone[0].weight, backbone[0].weight)
