"""Groups by part: rates, decays, what is frozen, and that each parameter is in one of them."""

import pytest
import torch
from torch import nn

from transfer.activations import LearnedSoftplus
from transfer.encoder import Encoder
from transfer.fit_optimizer import make_fit_optimizer
from transfer.gaussian_readout import GaussianReadout
from transfer.modulators import GainModulator
from transfer.shifters import MLPShifter


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    model = Encoder(nn.Conv2d(1, 4, 3), LearnedSoftplus())
    for animal, neurons in {"a": 5, "b": 3}.items():
        readout = GaussianReadout((4, 6, 8), neurons)
        model.add_animal(animal, readout, MLPShifter(), GainModulator(neurons), LearnedSoftplus())
    return model


@pytest.mark.parametrize("name", ["adamw", "momentum", "timm/lamb", "schedule_free_adamw"])
def test_each_parameter_is_in_one_group_with_its_parts_rates(encoder, name):
    """ViV1T: the core's own rate and decay, the others' common ones."""
    optimizer = make_fit_optimizer(
        encoder, name, 0.0036, 0.3939, lr_of={"core": 0.0048, "shifters": None}, weight_decay_of={"core": 0.1789}
    )
    groups = {group["part"]: group for group in optimizer.param_groups}
    assert list(groups) == ["core", "readouts", "shifters", "modulators", "activations"]
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in encoder.parameters())
    for part, group in groups.items():
        assert group["lr"] == group["peak_lr"] == (0.0048 if part == "core" else 0.0036)
        assert group["weight_decay"] == (0.1789 if part == "core" else 0.3939)


def test_steps_are_torchs_with_these_groups(encoder):
    import copy

    other = copy.deepcopy(encoder)
    ours = make_fit_optimizer(encoder, "adamw", 0.01, 0.1, {"betas": [0.9, 0.99]}, lr_of={"core": 0.1})
    core = set(other.core.parameters())
    rest = [parameter for parameter in other.parameters() if parameter not in core]
    plain = torch.optim.AdamW(
        [{"params": list(core), "lr": 0.1}, {"params": rest}], lr=0.01, weight_decay=0.1, betas=(0.9, 0.99)
    )
    for step in range(3):
        for model, optimizer in ((encoder, ours), (other, plain)):
            for number, parameter in enumerate(model.parameters()):
                parameter.grad = torch.full_like(parameter, 1.0 + number + step)
            optimizer.step()
    for one, two in zip(encoder.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two)


def test_a_frozen_core_has_no_group(encoder):
    encoder.freeze_core()
    optimizer = make_fit_optimizer(encoder, "adamw", 0.01)
    assert "core" not in {group["part"] for group in optimizer.param_groups}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0}


def test_groups_come_back_with_their_rates(encoder):
    first = make_fit_optimizer(encoder, "adamw", 0.01, lr_of={"core": 0.1})
    second = make_fit_optimizer(encoder, "adamw", 0.01, lr_of={"core": 0.1})
    second.load_state_dict(first.state_dict())
    assert [group["peak_lr"] for group in second.param_groups] == [0.1, 0.01, 0.01, 0.01, 0.01]


def test_what_is_wrong_is_one_line(encoder):
    with pytest.raises(ValueError, match="an encoder has no part 'cores'; its parts are core, readouts"):
        make_fit_optimizer(encoder, "adamw", 0.01, lr_of={"cores": 0.1})
    with pytest.raises(ValueError, match=r"unknown optimizer.name=adamx; nearest: .*adam"):
        make_fit_optimizer(encoder, "adamx", 0.01)
    encoder.requires_grad_(False)
    with pytest.raises(ValueError, match="all of the encoder is frozen"):
        make_fit_optimizer(encoder, "adamw", 0.01)
