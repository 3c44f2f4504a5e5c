"""The order of samples: what each epoch has, and that any step is found without those before it."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer.sample_order import SampleOrder
from transfer.windows import WindowPlan

LENGTHS = {"a": np.full(7, 60), "b": np.array([60, 48, 60]), "c": np.full(12, 57)}


def order(batching: str, plan: WindowPlan | None = None, batch_size: int = 4, **options: object) -> SampleOrder:
    return SampleOrder(LENGTHS, plan or WindowPlan(16, 2), batching, batch_size, 0, **options)


def seen(order: SampleOrder, epoch: int = 0) -> dict[str, Counter]:
    counts: dict[str, Counter] = {animal: Counter() for animal in LENGTHS}
    for step in range(order.steps_per_epoch):
        for animal, (trial, _) in order.step(epoch * order.steps_per_epoch + step).items():
            counts[animal].update(trial.tolist())
    return counts


def test_all_cycles_the_shorter_until_the_longest_is_through():
    """Batches of 4: 2, 1 and 3 of them, so that an epoch has 3 steps."""
    long = order("all")
    assert long.steps_per_epoch == 3
    counts = seen(long)
    assert counts["c"] == Counter(dict.fromkeys(range(12), 1))
    assert counts["b"] == Counter(dict.fromkeys(range(3), 3))
    assert sum(counts["a"].values()) == 4 + 3 + 4
    assert max(counts["a"].values()) == 2
    assert order("all", cycle="short").steps_per_epoch == 1


def test_one_takes_the_animals_in_turn():
    one, all_ = order("one"), order("all")
    assert one.steps_per_epoch == 9
    assert [next(iter(one.step(step))) for step in range(6)] == ["a", "b", "c"] * 2
    assert seen(one) == seen(all_)


def test_mixed_shows_every_sample_once():
    assert seen(order("mixed")) == {animal: Counter(range(len(lengths))) for animal, lengths in LENGTHS.items()}
    assert sum(len(trial) for trial, _ in order("mixed").step(0).values()) == 4


def test_mixed_draws_as_many_of_each_animal():
    """7,200 of each in DwiseNeuro."""
    counts = seen(order("mixed", samples_per_epoch=3000))
    assert [sum(of_animal.values()) for of_animal in counts.values()] == [1000] * 3
    assert all(abs(count - 1000 / 12) < 40 for count in counts["c"].values())


@pytest.mark.parametrize("batching", ["all", "one", "mixed"])
def test_epochs_and_seeds_differ(batching: str):
    def listed(order: SampleOrder, first: int) -> list:
        steps = (order.step(first + step) for step in range(order.steps_per_epoch))
        return [(animal, *map(tuple, samples)) for step in steps for animal, samples in step.items()]

    n = order(batching).steps_per_epoch
    other = SampleOrder(LENGTHS, WindowPlan(16, 2), batching, 4, 1)
    assert len({str(listed(*which)) for which in ((order(batching), 0), (order(batching), n), (other, 0))}) == 3


@given(st.sampled_from(["all", "one", "mixed"]), st.lists(st.integers(0, 200), min_size=1, max_size=8))
def test_a_step_is_the_same_whatever_was_asked_before(batching: str, steps: list[int]):
    used = order(batching)
    for step in steps:
        for (animal, samples), (other, expected) in zip(
            used.step(step).items(), order(batching).step(step).items(), strict=True
        ):
            assert animal == other
            np.testing.assert_array_equal(samples, expected)


def test_in_order_means_in_order():
    plain = order("mixed", WindowPlan(sampling="whole"), 5, shuffle=False)
    steps = [plain.step(step) for step in range(plain.steps_per_epoch)]
    rows = [(animal, int(trial)) for step in steps for animal, (trials, _) in step.items() for trial in trials]
    assert rows == [(animal, trial) for animal, lengths in LENGTHS.items() for trial in range(len(lengths))]


@pytest.mark.parametrize(
    ("batching", "options", "said"),
    [
        ("some", {}, "batching: found 'some'"),
        ("all", {"cycle": "forever"}, "cycle: found 'forever'"),
        ("all", {"batch_size": 0}, "batch_size: found 0"),
        ("all", {"samples_per_epoch": 5}, "found 5, a step alone takes 12"),
    ],
)
def test_a_mistake_is_one_line(batching: str, options: dict, said: str):
    with pytest.raises(ValueError, match=said):
        order(batching, **options)
