"""Specs as plain data: written, read, changed; what is no plain data, and facts that cannot be, are one line."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
import yaml

from transfer.encoder_spec import AnimalFacts, EncoderSpec
from transfer.published_encoders import PUBLISHED_ENCODERS, published_spec


@pytest.mark.parametrize("name", PUBLISHED_ENCODERS)
def test_a_spec_comes_back_from_yaml(name):
    spec = published_spec(name, core_arguments={"sizes": (1, (2, 3))})
    assert EncoderSpec(**yaml.safe_load(yaml.safe_dump(asdict(spec)))) == spec


def test_changes_go_over_what_is_there_and_arguments_of_another_part_go():
    spec = EncoderSpec("a", "gaussian", "mlp", readout_arguments={"bias": False, "init_sigma": 1.0})
    changed = spec.changed(readout_arguments={"init_sigma": 2.0}, shifter=None, coordinate_axes=3)
    assert changed.readout_arguments == {"bias": False, "init_sigma": 2.0}
    assert (changed.shifter, changed.coordinate_axes, changed.core) == (None, 3, "a")
    assert spec.changed(readout="gaussian") == spec
    other = spec.changed(readout="factorized", readout_arguments={"normalize": False})
    assert other.readout_arguments == {"normalize": False}
    assert spec.readout_arguments == {"bias": False, "init_sigma": 1.0}


def test_mistakes_are_one_line():
    spec = EncoderSpec("a", "gaussian")
    with pytest.raises(ValueError, match="an encoder has no 'readout_args'; nearest: readout_arguments"):
        spec.changed(readout_args={})
    with pytest.raises(ValueError, match=r"core_arguments\.size is of type ndarray, expected numbers"):
        EncoderSpec("a", "gaussian", core_arguments={"size": np.ones(2)})
    with pytest.raises(ValueError, match="there is no published encoder 'viv1'; nearest: viv1t"):
        published_spec("viv1")


def test_facts_come_back_from_a_checkpoint(tmp_path):
    facts = AnimalFacts(4, [36, 64], 1, 2, 2, np.arange(12.0).reshape(4, 3), np.ones(4, np.float32))
    torch.save(facts.saved(), tmp_path / "facts.pt")
    found = AnimalFacts(**torch.load(tmp_path / "facts.pt", weights_only=True))
    assert (found.neurons, found.size, found.pupil_channels) == (4, (36, 64), 2)
    assert found.coordinates.tolist() == facts.coordinates.tolist()
    assert AnimalFacts(3, (5, 6)).saved()["coordinates"] is None


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({"neurons": 0}, "neurons of an animal is 0, expected at least 1"),
        ({"behavior_channels": -1}, "behavior_channels of an animal is -1, expected at least 0"),
        ({"pupil_channels": 1}, "pupil_channels of an animal is 1, expected 2, or 0 for no pupil"),
        ({"coordinates": np.ones((3, 3))}, r"coordinates of an animal have shape \(3, 3\), expected \(4, 2 or more\)"),
        ({"mean_responses": np.ones((4, 1))}, r"mean_responses of an animal have shape \(4, 1\), expected \(4,\)"),
    ],
)
def test_facts_that_cannot_be(facts, line):
    with pytest.raises(ValueError, match=line):
        AnimalFacts(**{"neurons": 4, "size": (5, 6)} | facts)
