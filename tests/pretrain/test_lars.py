"""Our LARS beside lightly's: the same steps and the same state, whatever the layers are."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.utils.lars import LARS
from torch import nn

from pretrain.lars import Lars


def layers(seed: int) -> list[nn.Parameter]:
    """Weights of several sizes, one of which is all 0, and one that never has a gradient."""
    torch.manual_seed(seed)
    made = [nn.Parameter(torch.randn(size)) for size in ((5, 4), (3,), (2, 3, 2), (6, 2), (4,))]
    nn.init.zeros_(made[3])
    return made


def steps(kind: type[LARS], parameters: list[nn.Parameter], count: int, **arguments: float | bool) -> LARS:
    """Two groups, the second without decay; the third layer's gradient is 0 at the second step."""
    weights, others = parameters[:4], parameters[4:]
    groups = [{"params": weights}, {"params": others, "weight_decay": 0.0}]
    optimizer = kind(groups, lr=0.3, **arguments)
    generator = torch.Generator().manual_seed(7)
    for step in range(count):
        for number, parameter in enumerate(parameters):
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = None if number == 1 else gradient * (number != 2 or step != 1)
        optimizer.step()
        # As a schedule does.
        for group in optimizer.param_groups:
            group["lr"] *= 0.7
    return optimizer


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 99),
    st.sampled_from([0.0, 0.5, 0.9]),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from([1e-6, 0.1]),
    st.sampled_from([0.001, 1.0]),
)
def test_steps_are_lightlys(seed, momentum, dampening, decay, trust):
    arguments = {"momentum": momentum, "dampening": dampening, "weight_decay": decay, "trust_coefficient": trust}
    ours, theirs = layers(seed), layers(seed)
    found, expected = steps(Lars, ours, 4, **arguments), steps(LARS, theirs, 4, **arguments)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        assert found.state[one].keys() == expected.state[other].keys()
        for name, value in found.state[one].items():
            torch.testing.assert_close(value, expected.state[other][name], rtol=1e-5, atol=1e-6)


def test_nesterovs_momentum_is_lightlys_too():
    arguments = {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}
    ours, theirs = layers(0), layers(0)
    steps(Lars, ours, 3, **arguments)
    steps(LARS, theirs, 3, **arguments)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


def test_gradients_stay_as_they_are():
    parameters = layers(1)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    before = [parameter.grad.clone() for parameter in parameters]
    Lars(parameters, lr=0.1, momentum=0.9, weight_decay=0.1).step()
    assert all(torch.equal(parameter.grad, kept) for parameter, kept in zip(parameters, before, strict=True))


@pytest.mark.parametrize(("first", "second"), [(LARS, Lars), (Lars, LARS)])
def test_a_state_goes_over_to_the_other(first, second):
    """Runs that began with lightly's own go on with ours."""
    arguments = {"momentum": 0.9, "weight_decay": 0.1}
    parameters = layers(2)
    state = copy.deepcopy(steps(first, parameters, 2, **arguments).state_dict())
    groups = [{"params": parameters[:4]}, {"params": parameters[4:], "weight_decay": 0.0}]
    other = second(groups, lr=1.0, **arguments)
    other.load_state_dict(copy.deepcopy(state))
    assert other.param_groups[0]["lr"] == pytest.approx(0.3 * 0.7**2)
    reference = [parameter.detach().clone().requires_grad_() for parameter in parameters]
    same = first([{"params": reference[:4]}, {"params": reference[4:], "weight_decay": 0.0}], lr=1.0, **arguments)
    same.load_state_dict(state)
    for optimizer, moved in ((other, parameters), (same, reference)):
        torch.manual_seed(3)
        for parameter in moved:
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    for one, expected in zip(parameters, reference, strict=True):
        torch.testing.assert_close(one, expected)


def test_a_closure_gives_the_loss():
    parameter = nn.Parameter(torch.ones(3))
    optimizer = Lars([parameter], lr=0.1, momentum=0.9, weight_decay=0.1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3.0
    assert float(parameter.detach().sum()) < 3.0
