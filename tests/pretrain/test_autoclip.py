"""AutoClip against numpy's percentile of all lengths so far, on gradients, and resumed."""

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning_fabric import Fabric
from torch import nn

from pretrain.autoclip import AutoClip


@given(
    lengths=st.lists(st.floats(0, 1e6), min_size=1, max_size=40),
    percentile=st.floats(0, 100),
    saved=st.integers(0, 39),
)
def test_the_limit_is_numpys_percentile_of_all_lengths_so_far(lengths, percentile, saved):
    clip = AutoClip(percentile)
    for number, length in enumerate(lengths, 1):
        assert clip.limit(length) == pytest.approx(np.percentile(lengths[:number], percentile), rel=1e-9, abs=1e-9)
        if number == saved:
            file = io.BytesIO()
            torch.save(clip.state(), file)
            file.seek(0)
            before, clip = clip.lengths, AutoClip(percentile)
            clip.restore(torch.load(file, weights_only=True))
            assert clip.lengths == before


def test_a_length_that_is_not_finite_is_not_remembered():
    clip = AutoClip()
    assert clip.limit(math.nan) == math.inf
    assert clip.limit(3.0) == 3.0
    assert clip.limit(math.inf) == 3.0
    assert clip.lengths == [3.0]


def test_gradients_are_those_of_the_authors_code():
    """The loop's way, Fabric's clipping with a limit found in between, beside theirs: history, percentile, clip."""
    from pretrain.loop import Training
    from pretrain.task import Task

    torch.manual_seed(0)
    ours, theirs = nn.Linear(6, 3), nn.Linear(6, 3)
    theirs.load_state_dict(ours.state_dict())
    fabric = Fabric(accelerator="cpu", devices=1)
    training, history = Training.__new__(Training), []
    training.fabric = fabric
    training.model, training.optimizer = fabric.setup(ours, torch.optim.SGD(ours.parameters(), lr=0.1))
    training.task = Task.__new__(Task)
    training.task.autoclip, training.task.clip_norm, training.task.objective = AutoClip(10), 0.0, ours
    for step in range(12):
        inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(step)) * (1 + step % 4)
        for model in (training.model, theirs):
            model.zero_grad()
            model(inputs).square().sum().backward()
        training.clip_gradients()
        history.append(torch.nn.utils.get_total_norm([p.grad for p in theirs.parameters()]).item())
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), np.percentile(history, 10))
        for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one.grad, two.grad)
    assert len(training.task.autoclip.lengths) == 12


def test_a_percentile_above_100_is_refused():
    with pytest.raises(ValueError, match="the percentile of AutoClip is 101; it must be from 0 to 100"):
        AutoClip(101)
