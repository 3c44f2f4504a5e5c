"""Whole published models, built by name and loaded by `load_published`: published responses, losses and gradients."""

import math

import pytest
import torch

from pretrain.checkpoint import load_published
from pretrain.published_encoder import select_encoder_weights
from tests.transfer.published_cases import CASES, Case
from transfer.published_parts import load_published_encoder


@pytest.fixture(scope="module")
def values(shared):
    return shared / "reference" / "values"


@pytest.mark.parametrize("name", CASES)
def test_whole_models(values, name):
    build, *which = CASES[name]
    case = build(values, *which)
    if case.animals:
        load_published_encoder(case.encoder, case.state, case.animals)
    else:
        load_published(case.encoder, case.state)
    encoder = case.encoder.eval()
    rates = {animal: encoder(**case.inputs, animal=animal) for animal in encoder.animals}
    for animal, expected in case.expected.items():
        torch.testing.assert_close(rates[animal], expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    if case.loss is None:
        return
    loss = case.loss(rates)
    assert loss.item() == pytest.approx(case.described["loss"], rel=1e-5)
    loss.backward()
    check_gradients(case)


def check_gradients(case: Case) -> None:
    """The norm of each gradient, or to 1e-6 of the largest; every published parameter is one of ours."""
    norms = case.described["norms"]
    largest = max(norm or 0.0 for norm in norms.values())
    for name, sources in sources_of(case).items():
        parameter = case.encoder.get_parameter(name)
        found = 0.0 if parameter.grad is None else parameter.grad.norm().item()
        expected = math.sqrt(sum((norms[source] or 0.0) ** 2 for source in sources))
        assert found == pytest.approx(expected, rel=case.tolerance, abs=1e-6 * largest), name


def sources_of(case: Case) -> dict[str, list[str]]:
    """Each of our weights with the published names of what it is made of, buffers left out."""
    account = select_encoder_weights(case.encoder, case.state, "it", case.animals)
    learned = {name for name, _ in case.encoder.named_parameters(remove_duplicate=False)}
    found: dict[str, list[str]] = {}
    for source in account.used:
        name = account.renamed.get(source, source)
        if name in learned:
            found.setdefault(name, []).append(source.removeprefix("module."))
    return found
