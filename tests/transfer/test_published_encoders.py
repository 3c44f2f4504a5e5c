"""Whole published models, built by name and loaded by `load_published`: published responses, losses and gradients."""

import json
import math

import pytest
import torch

from pretrain.checkpoint import load_published
from pretrain.published_dwiseneuro import ANIMALS
from pretrain.published_encoder import scan_of, select_encoder_weights
from pretrain.published_neuralpredictors import RELEASED
from tests.pretrain.test_published_neuralpredictors import released_state
from tests.transfer.published_cases import CASES, Case
from transfer.encoder_spec import AnimalFacts
from transfer.published_encoders import create_encoder
from transfer.published_files import load_published_encoder, published_facts


@pytest.fixture(scope="module")
def values(shared):
    return shared / "reference" / "values"


NEURONS = (7863, 7908, 8202, 7939, 8122, 7440, 7928, 8285, 7671, 7495)
# As our recordings name the animals; the projects' files number them, letter them, or have the names of folders.
TEN = dict(zip((scan_of(name) for name in ANIMALS), NEURONS, strict=True))
FIVE = dict(list(TEN.items())[:5])
# Published name: file of keys, animals, parameters.
WHOLE = {
    "dwiseneuro": ("dwiseneuro/default_state_dict_keys", TEN, 170_656_070),
    "viv1t": ("viv1t_competition/default_state_dict_keys", TEN, 12_278_365),
    "viv1t_closed_loop": ("viv1t_closed_loop/default_state_dict_keys", TEN, 13_014_933),
    "dynamic_vfm": ("dynamic_vfm/default_state_dict_keys_mean", TEN, 36_906_001),
    "dynamic_vfm_adaptive": ("dynamic_vfm/default_state_dict_keys_adaptive", TEN, 36_907_361),
    "sensorium2023_factorized": ("eckerlab_baseline/default_state_dict_keys_factorised", FIVE, 5_707_743),
    "sensorium2023_gru": ("eckerlab_baseline/default_state_dict_keys_gru", FIVE, 4_798_583),
}
# Entries that follow from the architecture; the others are compared with ours, for which there must be values.
DERIVED = ("reg_scale", "scale", "keep_prob", "keep_prop", "inv_freq", "one", "relative_position_index")
COMPARED = ("laplace.filter", "rotate_hermite")


@pytest.mark.parametrize("name", WHOLE)
def test_published_sizes_and_keys(values, name):
    """At full size: as many parameters, and every key of the file has its place or is a constant."""
    file, neurons, parameters = WHOLE[name]
    entries = json.loads((values / "video" / f"{file}.json").read_text())
    kept = {key: shape for key, (shape, _) in entries.items() if not any(part in key for part in COMPARED)}
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in kept.items()}
        places = {animal: torch.empty(count, 2) for animal, count in neurons.items()}
        facts = {animal: AnimalFacts(neurons[animal], (36, 64), 1, 2, 2, place) for animal, place in places.items()}
        encoder = create_encoder(name, facts)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == parameters
    account = select_encoder_weights(encoder, state, file)
    assert set(account.weights) == set(encoder.state_dict())
    assert all(key.rpartition(".")[2] in DERIVED for key in account.ignored), account.ignored
    # DwiseNeuro's two groups have as many outputs each.
    surplus = (lambda count: count % 2) if name == "dwiseneuro" else (lambda count: 0)
    counts = sorted(facts.neurons for facts in published_facts(state).values())
    assert counts == sorted(count + surplus(count) for count in neurons.values())


@pytest.mark.parametrize("file", RELEASED)
def test_released_files_of_2022(file):
    """The four files, whose convolutions have no bias, go into the models of their names."""
    released = RELEASED[file]
    plus = released.pupil
    name = f"sensorium2022_{'ln' if '_ln_' in file else 'cnn'}{'' if plus else '_images'}"
    facts = AnimalFacts(released.neurons, (36, 64), 1, 3, 2, torch.rand(released.neurons, 3))
    encoder = create_encoder(name, {released.recording: facts})
    load_published(encoder, released_state(file))
    assert encoder.readouts[released.recording].sigma.abs().max() == 0
    assert bool(encoder.shifters) == plus


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
    if case.penalty is not None:
        penalty = encoder.regularizer(encoder.animals[:1]).item()
        assert penalty == pytest.approx(case.penalty, rel=1e-5)
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
