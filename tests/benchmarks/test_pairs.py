"""Every published model and ours, small, with the same weights: outputs, and gradients where the names are known."""

import pytest
import torch

from benchmarks.published.pairs import PAIRS, loss_of, without_dropping


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


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_our_core_compiled_is_the_same(name):
    """In training, where parts of cores are made again for the gradient; draws of dropout differ, so without any."""
    pair, found = PAIRS[name], []
    for compiled in (False, True):
        torch.compiler.reset()
        encoder = without_dropping(pair.build("ours", small=True))
        if compiled:
            # A backend that needs no compiler of C++, but captures forward and backward as others do.
            encoder.core.compile(backend="aot_eager")
        responses = pair.ask("ours", encoder, pair.signals(2, small=True))
        loss_of(responses).backward()
        gradients = [each.grad for each in encoder.parameters() if each.grad is not None]
        found.append([responses[0], *gradients])
    assert len(found[0]) > 10
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(one.detach().abs().max()))


def test_both_sides_have_the_same_weights_whenever_they_are_built():
    pair = PAIRS["factorized3d"]
    once, again = (pair.build("theirs", small=True).state_dict() for _ in range(2))
    assert all(torch.equal(value, again[key]) for key, value in once.items())
