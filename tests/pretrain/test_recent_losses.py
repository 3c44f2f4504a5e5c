"""Losses are numbers when they are read, and one that is not finite is named with its step and samples."""

import math

import pytest
import torch
from lightning_fabric import Fabric

from pretrain.recent_losses import LossNotFinite, RecentLosses


@pytest.fixture
def losses() -> RecentLosses:
    return RecentLosses(Fabric(accelerator="cpu"), "images")


def test_each_is_read_once(losses):
    for step in range(3):
        losses.note(step, torch.tensor(step / 2), {"index": torch.arange(4)})
    assert losses.read() == [0, 0.5, 1]
    assert losses.read() == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_that_is_not_finite_is_named(losses, value):
    for step, loss in ((7, 0.3), (8, value), (9, math.nan)):
        views = torch.zeros(2, 3, 4)
        losses.note(
            step, torch.tensor(loss), {"index": torch.arange(10) + 10 * step, "views": views, "epoch": views.sum()}
        )
    with pytest.raises(LossNotFinite) as found:
        losses.read()
    keys = ", ".join(f"{number:09d}" for number in range(80, 88))
    assert str(found.value) == (
        f"the loss is {value} at step 8, whose batch held index (10,), views (2, 3, 4) "
        f"of the images {keys} and 2 others"
    )


def test_samples_of_groups_are_named_by_group(losses):
    batch = {name: {"index": torch.tensor([number])} for number, name in enumerate(("mouse", "other"))}
    losses.note(1, torch.tensor(math.nan), batch)
    with pytest.raises(
        LossNotFinite, match=r"mouse/index \(1,\), other/index .* images mouse 000000000; other 000000001$"
    ):
        losses.read()
