"""Every published model and ours, small, with the same weights: outputs, and gradients where the names are known."""

import pytest
import torch

from benchmarks.published.pairs import PAIRS, loss_of


@pytest.mark.parametrize("name", PAIRS)
def test_outputs_and_gradients_are_the_same(name):
    pair = PAIRS[name]
    ours, theirs = (pair.build(side, small=True).eval() for side in ("ours", "theirs"))
    signals = pair.signals(2, small=True)
    found, expected = pair.ask("ours", ours, signals), pair.ask("theirs", theirs, signals)
    scale = float(expected[0].detach().abs().max())
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=2e-5 * scale)
    loss_of(found).backward()
    loss_of(expected).backward()
    gradients = {key: value.grad for key, value in theirs.named_parameters() if value.grad is not None}
    wanted = pair.renamed({**theirs.state_dict(), **gradients})
    compared = 0
    for key, parameter in ours.named_parameters():
        if parameter.grad is None:
            continue
        # float64, as the squares of small gradients vanish in float32.
        of_ours, of_theirs = parameter.grad.double(), wanted[key].double()
        assert float((of_ours - of_theirs).norm()) <= 1e-4 * float(of_theirs.norm()) + 1e-9, key
        compared += 1
    assert compared >= 10


def test_both_sides_have_the_same_weights_whenever_they_are_built():
    pair = PAIRS["factorized3d"]
    once, again = (pair.build("theirs", small=True).state_dict() for _ in range(2))
    assert all(torch.equal(value, again[key]) for key, value in once.items())
