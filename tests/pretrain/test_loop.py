"""The loop's small parts: seeds and what is not finite. Whole runs are in test_run.py."""

import torch

from pretrain.loop import not_finite
from pretrain.randomness import derived_seed


def test_seeds_are_a_pure_function_of_their_parts():
    assert derived_seed(1, "views", 3) == derived_seed(1, "views", 3)
    parts = [(seed, name, step, rank) for seed in range(4) for name in "ab" for step in range(30) for rank in range(3)]
    parts += [(seed, name, step) for seed in range(4) for name in "ab" for step in range(30)]
    assert len({derived_seed(*one) for one in parts}) == len(parts)
    assert derived_seed(1, 23) != derived_seed(12, 3)
    assert all(0 <= derived_seed(*one) < 2**63 for one in parts)
    torch.manual_seed(derived_seed(*parts[0]))


def test_what_is_not_finite_is_named():
    good = {"weight": torch.ones(3), "count": torch.tensor(4)}
    assert not_finite(good) is None
    for value in (float("nan"), float("inf"), float("-inf")):
        assert not_finite(good | {"bias": torch.tensor([1.0, value])}) == "bias"
