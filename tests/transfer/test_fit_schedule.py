"""Schedules of fits against torch's own, and against the recipes of the published solutions."""

from types import SimpleNamespace

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

from transfer.fit_schedule import FitSchedule


def rates(schedule: FitSchedule, peak: float, steps: int) -> list[float]:
    return [schedule.rate(peak, step) for step in range(steps)]


def torchs(kind: type, steps: int, lr: float, **arguments) -> list[float]:
    """What a scheduler of torch's gives at each step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler, found = kind(optimizer, **arguments), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_dwiseneuro():
    """3 epochs linearly from 0, then half a cosine by step over 18; 2,250 steps an epoch, here 50."""
    schedule = FitSchedule("warmup_cosine", 50, 21, warmup_epochs=3, min_lr=2.4e-5)
    expected = torchs(LambdaLR, 150, 2.4e-3, lr_lambda=lambda step: step / 150)
    expected += torchs(CosineAnnealingLR, 900, 2.4e-3, T_max=900, eta_min=2.4e-5)
    assert rates(schedule, 2.4e-3, 1050) == pytest.approx(expected)


def test_dynamic_vfm():
    """600 steps linearly from a third; constant to epoch 79; then a cosine by epoch over 100, 120 steps an epoch."""
    schedule = FitSchedule("two_cosines", 120, 180, warmup_steps=600, warmup_ratio=1 / 3, second_epoch=80, min_lr=1e-6)
    found = rates(schedule, 1e-3, 180 * 120)
    assert found[0] == pytest.approx(1e-3 / 3)
    assert found[300] == pytest.approx(1e-3 * (1 - 0.5 * 2 / 3))
    assert set(found[600 : 81 * 120]) == {1e-3}
    assert found[80 * 120 :: 120] == pytest.approx(torchs(CosineAnnealingLR, 100, 1e-3, T_max=100, eta_min=1e-6))
    assert len(set(found[100 * 120 : 101 * 120])) == 1


def test_a_plateau_follows_its_judge_down_to_the_lowest_rate():
    judge = SimpleNamespace(reductions=0)
    schedule = FitSchedule("plateau", 10, 200, min_lr=1e-4, judge=judge)
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "peak_lr": lr} for lr in (0.005, 0.001, 1e-5)], lr=1.0)
    found = []
    for judge.reductions in range(5):
        assert schedule(optimizer, 7) == optimizer.param_groups[0]["lr"]
        found.append([group["lr"] for group in optimizer.param_groups])
    assert [pytest.approx(each) for each in found] == [
        [0.005, 0.001, 1e-5],
        [0.0015, 0.0003, 1e-5],
        [0.00045, 1e-4, 1e-5],
        [0.000135, 1e-4, 1e-5],
        [1e-4, 1e-4, 1e-5],
    ]


def test_a_constant_rate_warms_up():
    found = rates(FitSchedule("constant", 10, 5, warmup_steps=4), 0.1, 50)
    assert found == pytest.approx([0, 0.025, 0.05, 0.075] + [0.1] * 46)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "cosine"}, r"unknown schedule.name=cosine \(allowed: constant, warmup_cosine"),
        ({"name": "constant", "warmup_steps": 3, "warmup_epochs": 1.0}, "are both set; set one of them"),
        (
            {"name": "warmup_cosine", "warmup_epochs": 5},
            "the warm-up has 50 steps, and the training has 50; shorten it",
        ),
        ({"name": "two_cosines"}, "schedule.second_epoch=80 must be below epochs=5"),
        ({"name": "plateau"}, "schedule.name=plateau needs a judge"),
    ],
)
def test_what_does_not_fit_is_one_line(keys, message):
    with pytest.raises(ValueError, match=message):
        FitSchedule(steps_per_epoch=10, epochs=5, **keys)
