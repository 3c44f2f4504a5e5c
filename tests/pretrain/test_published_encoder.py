"""Whole encoders from published files: whose they are, which animals, what is told, and what is refused."""

import pytest
import torch
from torch import Tensor

from pretrain.checkpoint import load_published
from pretrain.published_encoder import select_encoder_weights
from transfer.encoder import Encoder
from transfer.encoder_spec import AnimalFacts
from transfer.published_encoders import create_encoder
from transfer.published_files import load_published_encoder, published_facts

SCANS = {"27204-5-13": 7, "21067-10-18": 5}
CORE = {"channels": 4, "layers": 2, "input_kernel": 5, "hidden_kernel": 3}


def encoder(neurons: dict[str, int] = SCANS, **changes) -> Encoder:
    """A small Sensorium+ model."""
    facts = {
        animal: AnimalFacts(count, (14, 18), 1, 3, 2, torch.rand(count, 2), torch.rand(count))
        for animal, count in neurons.items()
    }
    return create_encoder("sensorium2022_cnn", facts, **{"core_arguments": CORE} | changes).eval()


def as_published(model: Encoder, animals: dict[str, str] | None = None) -> dict[str, Tensor]:
    """The model's state by neuralpredictors' names, animals renamed."""
    state = {}
    for name, value in model.state_dict().items():
        for number in range(2):
            name = name.replace(f"features.{number}.", f"features.layer{number}.")
        for ours, theirs in (animals or {}).items():
            name = name.replace(f"s.{ours}.", f"s.{theirs}.")
        state[name.replace("readouts.", "readout.").replace("shifters.", "shifter.")] = value
    return state


def rates(model: Encoder, animal: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 1, 14, 18), (2, 3), (2, 2)
    images, behavior, pupil = (torch.randn(shape, generator=generator) for shape in shapes)
    return model(images, animal, behavior, pupil)


def test_a_file_is_loaded_and_told(tmp_path, capsys):
    source, model = encoder(), encoder()
    path = tmp_path / "model.pth"
    torch.save({"epoch": 3, "state_dict": as_published(source), "optimizer": {"lr": 0.1}}, path)
    assert load_published(model, path) is model
    for animal in SCANS:
        torch.testing.assert_close(rates(model, animal), rates(source, animal))
    told = "".join(capsys.readouterr())
    assert f"{path}: {len(source.state_dict())} tensors from `state_dict`: core.features.layer0.conv.weight" in told
    assert "core.features.layer0.conv.weight -> core.features.0.conv.weight" in told
    assert "not used: epoch, optimizer" in told


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_names_of_wrappers_are_taken_away(prefix):
    source, model = encoder(), encoder()
    load_published(model, {prefix + name: value for name, value in as_published(source).items()})
    torch.testing.assert_close(rates(model, "27204-5-13"), rates(source, "27204-5-13"))


def test_our_own_state_dict_is_loaded_too():
    source, model = encoder(), encoder()
    load_published(model, source.state_dict())
    torch.testing.assert_close(rates(model, "27204-5-13"), rates(source, "27204-5-13"))


def test_animals_are_those_of_the_same_scan_and_others_are_left_out():
    source, model = encoder(), encoder({"27204-5-13": 7})
    state = as_published(source, {"27204-5-13": "static27204-5-13-GrayImageNet-94c6ff99"})
    found = select_encoder_weights(model, state, "it")
    assert found.renamed["readout.static27204-5-13-GrayImageNet-94c6ff99.bias"] == "readouts.27204-5-13.bias"
    assert {name.split(".")[1] for name in found.ignored} == {"21067-10-18"}
    load_published(model, state)
    torch.testing.assert_close(rates(model, "27204-5-13"), rates(source, "27204-5-13"))


def test_animals_of_any_name_are_said():
    source, model = encoder(), encoder({"mine": 5})
    load_published_encoder(model, as_published(source), {"21067-10-18": "mine"})
    torch.testing.assert_close(rates(model, "mine"), rates(source, "21067-10-18"))


def test_a_shifter_that_no_readout_uses_is_left_out():
    changes = {"readout": "factorized", "readout_arguments": {"bias": False}}
    source = encoder(**changes)
    unused = {f"shifter.{animal}.mlp.0.bias": torch.zeros(5) for animal in SCANS}
    found = select_encoder_weights(encoder(**changes), as_published(source) | unused, "it")
    assert set(found.ignored) == set(unused)


def test_an_encoder_is_built_from_a_file_alone():
    source = encoder()
    state = as_published(source)
    facts = published_facts(state, (14, 18), behavior_channels=3)
    assert {animal: each.neurons for animal, each in facts.items()} == SCANS
    model = create_encoder("sensorium2022_cnn", facts, core_arguments=CORE).eval()
    torch.testing.assert_close(
        model.readouts["27204-5-13"].source_grid, source.readouts["27204-5-13"].source_grid, rtol=0, atol=1e-6
    )
    load_published(model, state)
    torch.testing.assert_close(rates(model, "21067-10-18"), rates(source, "21067-10-18"))


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    assert name in state
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda state: state | {"readout.27204-5-13.bias": torch.zeros(8)},
            r"'readout.27204-5-13.bias' \('readouts.27204-5-13.bias' here\) has shape \(8,\) in it, \(7,\) in",
        ),
        (
            lambda state: without(state, "shifter.27204-5-13.mlp.4.bias"),
            r"it has no 'shifters.27204-5-13.mlp.4.bias', shape \(2,\)",
        ),
        (
            lambda state: state | {"core.features.layer2.norm.bias": torch.zeros(4)},
            r"it has 'core.features.layer2.norm.bias' \(.* here\), shape \(4,\), which the model does not have",
        ),
        (
            lambda state: state | {"core.features.layer0.conv_0.weight": torch.zeros(4, 4, 5, 5)},
            "layer0.conv.weight' and 'core.features.layer0.conv_0.weight' would both be 'core.features.0.conv.weight'",
        ),
        (lambda state: state | {"extra.weight": torch.zeros(2)}, r"'extra.weight', shape \(2,\), is no part of"),
        (
            lambda state: {name.replace("27204-5-13", "A"): value for name, value in state.items()},
            r"it \(neuralpredictors\) has no animal '27204-5-13', but A, 21067-10-18; name the encoder's animals as",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(change, line):
    model = encoder()
    with pytest.raises(ValueError, match=line) as caught:
        select_encoder_weights(model, change(as_published(model)), "it")
    assert "\n" not in str(caught.value)


def test_other_files_are_of_no_project():
    model = encoder()
    for state in ({"conv.weight": torch.zeros(2)}, {}, [1]):
        assert select_encoder_weights(model, state, "it") is None
        with pytest.raises(ValueError, match="is no encoding model of DwiseNeuro, ViV1T, V1T, Dynamic-VFM, neuralp"):
            load_published_encoder(model, state)
    with pytest.raises(ValueError, match="has no animal 'B'; it has 27204-5-13, 21067-10-18"):
        load_published_encoder(model, as_published(model), {"B": "27204-5-13", "21067-10-18": "21067-10-18"})
