"""Judges against the traces of the public programs; their state survives at any epoch."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from transfer.plateau import EarlyStopping, Plateau, Rounds, make_plateau


class Weight(nn.Module):
    """One weight, which is the number of the last epoch unless it was put back."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def train_to(self, epoch: int) -> None:
        self.weight.data.fill_(epoch)


@pytest.fixture
def traces(shared: Path) -> dict:
    return json.loads((shared / "reference" / "values" / "static" / "training_traces.json").read_text())


@pytest.mark.parametrize(
    ("name", "patience", "min_epochs"), [("default", 10, 0), ("patience3", 3, 0), ("patience3_min10", 3, 10)]
)
def test_v1ts_scheduler(traces, name, patience, min_epochs):
    """The rate, both counts, the weight, and the end; at the end ours puts the best weights back, as V1T does after."""
    judge = make_plateau("v1t", patience, 2)
    judge.min_epochs = min_epochs
    module, best = Weight(), (0.0, 0)
    for epoch, value, lr, waited, reduced, weight, terminate in traces["v1t_scheduler"][name]:
        module.train_to(epoch)
        judge.judge(module, {"single_trial_correlation": value}, epoch, last=False)
        best = max(best, (value, epoch), key=lambda pair: pair[0])
        assert judge.ended == terminate
        assert 0.3**judge.reductions == pytest.approx(lr)
        if terminate:
            assert module.weight == best[1]
        else:
            assert (judge.waited, judge.failed, module.weight.item()) == (waited, reduced, weight)


# The name of a trace, patience, rounds, epochs between validations, sign.
ROUNDS = [
    ("sensorium_max", 5, 4, 1, 1),
    ("max_default_decay1", 5, 1, 1, 1),
    ("min", 3, 3, 1, -1),
    ("interval2", 3, 2, 2, 1),
]


@pytest.mark.parametrize(("name", "patience", "rounds", "interval", "sign"), ROUNDS)
def test_neuralpredictors_early_stopping(traces, name, patience, rounds, interval, sign):
    """The rate and the weight of each epoch, its objective the value of the one before."""
    known = traces["early_stopping"][name]
    judge, module = Rounds(patience, rounds, 1e-6), Weight()
    trace = known["trace"]
    judge.judge(module, {"single_trial_correlation": sign * trace[0][1]}, 0, last=False)
    for number, (epoch, _, lr, weight) in enumerate(trace):
        assert not judge.ended
        assert module.weight.item() == weight
        assert max(0.009 * 0.3**judge.reductions, 1e-4) == pytest.approx(lr)
        module.train_to(epoch)
        # What the last epoch came to is not in the trace; it was no better.
        value = trace[number + 1][1] if number + 1 < len(trace) else -sign
        if epoch % interval == 0:
            judge.judge(module, {"single_trial_correlation": sign * value}, epoch, last=False)
    assert judge.ended
    assert module.weight.item() == known["final_weight"]


def test_viv1t_acts_at_the_last_of_its_patience_and_puts_a_collapse_back():
    judge, module, found = make_plateau("viv1t", 5, 3), Weight(), []
    values = [0.1, 0.2, -0.001, *[0.15] * 5, 0.25, *[0.2] * 15]
    for epoch, value in enumerate(values, 1):
        module.train_to(epoch)
        put_back = judge.judge(module, {"single_trial_correlation": value}, epoch, last=False)
        if put_back:
            found.append((epoch, module.weight.item(), judge.reductions))
        if judge.ended:
            break
    # The collapse of epoch 3 does not count: 4 to 8 are the five.
    assert found == [(3, 2, 0), (8, 2, 1), (14, 9, 2), (19, 9, 3), (24, 9, 3)]
    assert judge.ended
    assert epoch == 24


@pytest.mark.parametrize("make", [lambda: make_plateau("viv1t", 5, 3), lambda: Rounds(5, 3)])
def test_the_last_epoch_ends_with_the_best_weights(make):
    judge, module = make(), Weight()
    for epoch, value in enumerate([0.1, 0.3, 0.2], 1):
        module.train_to(epoch)
        assert judge.judge(module, {"single_trial_correlation": value}, epoch, last=epoch == 3) == (epoch == 3)
    assert module.weight.item() == 2
    module.train_to(4)
    assert not judge.judge(module, {"single_trial_correlation": 0.4}, 4, last=True)
    assert module.weight.item() == 4


@pytest.mark.parametrize("make", [lambda: make_plateau("v1t", 5, 3), lambda: Rounds(5, 3), EarlyStopping])
def test_what_is_not_finite_ends_training(make):
    judge, module = make(), Weight()
    module.train_to(1)
    judge.judge(module, {"single_trial_correlation": 0.1}, 1, last=False)
    module.train_to(2)
    judge.judge(module, {"single_trial_correlation": float("nan")}, 2, last=False)
    assert judge.ended
    if not isinstance(judge, EarlyStopping):
        assert module.weight.item() == 1


def test_early_stopping_ends_ten_epochs_after_the_best():
    judge = EarlyStopping(10)
    for epoch in range(1, 40):
        value = min(epoch, 7) / 100
        judge.judge(nn.Identity(), {"single_trial_correlation": value}, epoch, last=False)
        if judge.ended:
            break
    assert epoch == 17


MAKERS: list[Callable] = [
    lambda: Plateau(3, 2, min_epochs=2),
    lambda: make_plateau("v1t", 2, 2),
    lambda: Rounds(2, 3, 0.01),
    lambda: EarlyStopping(4),
]


@settings(deadline=None, max_examples=60)
@given(
    which=st.sampled_from(range(len(MAKERS))),
    values=st.lists(st.sampled_from([-0.1, 0.0, 0.1, 0.105, 0.2, 0.3]), min_size=2, max_size=25),
    killed=st.integers(0, 24),
)
def test_a_judge_that_was_saved_goes_on_as_if_it_had_not_been(which, values, killed):
    """Saved after any epoch, as plain values that `weights_only` reads."""
    histories = []
    for kill in (None, min(killed, len(values) - 1)):
        judge, module, history = MAKERS[which](), Weight(), []
        for epoch, value in enumerate(values, 1):
            module.train_to(epoch)
            put_back = judge.judge(module, {"single_trial_correlation": value}, epoch, last=epoch == len(values))
            history.append((put_back, judge.ended, judge.reductions, module.weight.item()))
            if kill == epoch:
                state, judge = judge.state(), MAKERS[which]()
                judge.restore(state)
        histories.append(history)
    assert histories[0] == histories[1]


def test_what_is_wrong_is_one_line():
    with pytest.raises(ValueError, match=r"unknown schedule.counting=np \(allowed: viv1t, v1t, neuralpredictors\)"):
        make_plateau("np", 5, 3)
    with pytest.raises(ValueError, match=r"schedule\.patience=0 and schedule\.reductions=3 must be at least 1"):
        make_plateau("v1t", 0, 3)
