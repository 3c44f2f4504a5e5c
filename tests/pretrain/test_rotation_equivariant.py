"""The rotation-equivariant core: the published basis and values, and that it is equivariant."""

import numpy as np
import pytest
import torch

from pretrain.models import rotation_equivariant
from pretrain.models.rotation_equivariant import (
    HermiteConv,
    RotationEquivariant2d,
    hermite_functions,
    rotation_of_coefficients,
)
from pretrain.published_neuralpredictors import from_published

SMALL = {"behavior_channels": 0, "features": 3, "input_kernel": 5, "hidden_kernel": 5, "layers": 3, "rotations": 4}


@pytest.fixture(scope="module")
def values(shared) -> dict[str, torch.Tensor]:
    with np.load(shared / "reference" / "values" / "static" / "core" / "rotation_equivariant.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def test_published_basis(values):
    constant = "sd/features.layer0.hermite_conv.rotate_hermite."
    found = hermite_functions(5, 2).float()
    torch.testing.assert_close(found, values[constant + "H"], rtol=0, atol=1e-6)
    for turn in range(4):
        found = rotation_of_coefficients(5, turn * np.pi / 2).float()
        torch.testing.assert_close(found, values[f"{constant}Rs.{turn}"], rtol=0, atol=1e-6)


def test_published_values(values):
    gammas = {"gamma_input": 1.0, "gamma_hidden": 0.3, "average_regularizer": True}
    core = RotationEquivariant2d(pad_input=True, momentum=0.1, final_nonlinearity=True, **SMALL, **gammas)
    state = {f"core.{name.removeprefix('sd/')}": value for name, value in values.items() if name.startswith("sd/")}
    core.load_state_dict({name.removeprefix("core."): value for name, value in from_published(state).items()})
    for mode, name in ((False, "out/eval"), (True, "out/train")):
        found = core.train(mode)(values["in/x"])
        torch.testing.assert_close(found, values[name], rtol=1e-5, atol=1e-5 * float(values[name].abs().max()))
    torch.testing.assert_close(core.regularizer(), values["out/regularizer"], rtol=1e-5, atol=0)
    assert core.output_shape(18, 26) == (12, 18, 26)


def test_hermite_functions_are_orthogonal():
    """On a grid that is wide and fine enough, inner products of different functions vanish."""
    functions = hermite_functions(4, 16).flatten(1)
    torch.testing.assert_close(functions @ functions.T, torch.eye(10, dtype=torch.float64), rtol=0, atol=0.05)


@pytest.mark.parametrize("layers", [1, 3])
def test_turning_the_image_turns_the_maps_and_moves_the_orientations(layers):
    """By right angles, at which pixels stay on their grid."""
    torch.manual_seed(0)
    core = RotationEquivariant2d(**{**SMALL, "layers": layers}, pad_input=True, final_nonlinearity=True).eval()
    image = torch.randn(1, 1, 15, 15)
    straight, turned = core(image), core(torch.rot90(image, 1, (2, 3)))
    expected = torch.rot90(straight, 1, (2, 3)).unflatten(1, (4, 3))
    moved = [torch.allclose(expected.roll(by, 1).flatten(1, 2), turned, atol=1e-4) for by in (-1, 0, 1)]
    assert sum(moved) == 1
    assert not moved[1]


def test_sizes_of_the_published_core():
    """The GRU baseline's core has 110,212 parameters, of which 66,060 are constants that do not learn."""
    core = RotationEquivariant2d()
    assert sum(parameter.numel() for parameter in core.parameters()) == 110_212 - 66_060
    assert core.output_shape(36, 64) == (64, 28, 56)
    assert not [name for name in core.state_dict() if "functions" in name]


def test_kernels_are_made_of_few_numbers():
    conv = HermiteConv(4, 2, 5, 4, 2, 1, 2, first=False, init_std=0.1)
    assert conv.coeffs.shape == (15, 4, 2)
    assert conv.kernels().shape == (8, 4, 5, 5)
    assert torch.linalg.matrix_rank(conv.functions[0].flatten(1)) == 15


def test_behaviour_as_channels():
    torch.manual_seed(0)
    core = RotationEquivariant2d(**{**SMALL, "behavior_channels": 2}).eval()
    plain = RotationEquivariant2d(**{**SMALL, "image_channels": 3}).eval()
    plain.load_state_dict(core.state_dict())
    images, behavior = torch.randn(2, 1, 18, 26), torch.randn(2, 2)
    planes = torch.cat([images, behavior[..., None, None].expand(-1, -1, 18, 26)], 1)
    torch.testing.assert_close(core(images, behavior), plain(planes), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stack", [-1, None, [0, 2]])
def test_what_is_made_again_changes_no_number(monkeypatch, stack):
    """Outputs, gradients and running statistics, as of layers one after the other that keep all they make."""
    torch.manual_seed(0)
    images = torch.randn(8, 1, 18, 26)
    found = []
    for keep in (False, True):
        torch.manual_seed(1)
        core = RotationEquivariant2d(**{**SMALL, "features": 4, "hidden_kernel": 7, "stack": stack})
        if keep:
            monkeypatch.setattr(rotation_equivariant, "without_keeping", lambda step, norm, maps: step(maps))
        maps = core(images)
        maps.square().mean().backward()
        states = [value for name, value in core.state_dict().items() if "running" in name or "tracked" in name]
        found.append([maps, *states, *(parameter.grad for parameter in core.parameters())])
    assert len(found[0]) > 3 * SMALL["layers"]
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_bfloat16():
    core = RotationEquivariant2d(**SMALL)
    with torch.autocast("cpu", torch.bfloat16):
        found = core(torch.randn(2, 1, 18, 26))
    found.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in core.parameters())
