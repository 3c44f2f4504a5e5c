"""The Gabor bank: blind to phase and luminance, tuned to orientation and wavelength."""

import math

import pytest
import torch

from transfer.gabor_bank import ORIENTATIONS, WAVELENGTHS_PX, gabor_energy, quadrature_pair

SIDE = 64


def grating(wavelength: float, orientation: int, phase: float) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    angle = orientation * math.pi / ORIENTATIONS
    wave = torch.cos(2 * math.pi * (x * math.cos(angle) + y * math.sin(angle)) / wavelength + phase)
    return wave.expand(1, 3, -1, -1)


def by_filter(energies: torch.Tensor) -> torch.Tensor:
    """Energy (wavelengths, orientations) at the centre of the image."""
    found, start = [], 0
    for wavelength in WAVELENGTHS_PX:
        side = math.ceil(SIDE / (wavelength // 2))
        block = energies[0, start : start + ORIENTATIONS * side**2].view(ORIENTATIONS, side, side)
        found.append(block[:, side // 2, side // 2])
        start += ORIENTATIONS * side**2
    assert start == energies.shape[1]
    return torch.stack(found)


@pytest.mark.parametrize("scale", range(3))
@pytest.mark.parametrize("orientation", [0, 3, 6])
def test_a_grating_drives_its_own_filter_most_whatever_its_phase(scale, orientation):
    wavelength = WAVELENGTHS_PX[scale]
    energies = [by_filter(gabor_energy(grating(wavelength, orientation, phase))) for phase in (0.0, 1.0, 2.5)]
    for energy in energies:
        assert divmod(int(energy.argmax()), ORIENTATIONS) == (scale, orientation)
        torch.testing.assert_close(energy[scale, orientation], energies[0][scale, orientation], rtol=0.02, atol=0)


def test_luminance_is_not_seen():
    inside = by_filter(gabor_energy(torch.ones(1, 3, SIDE, SIDE)))[:3]
    assert inside.abs().max() < 1e-4


def test_filters_are_of_unit_length_and_orthogonal():
    even, odd = quadrature_pair(8)
    torch.testing.assert_close(even.square().sum((1, 2, 3)), torch.ones(ORIENTATIONS))
    assert (even * odd).sum((1, 2, 3)).abs().max() < 1e-5


def test_small_images_have_no_long_wavelengths():
    assert gabor_energy(torch.rand(2, 1, 32, 32)).shape == (2, ORIENTATIONS * (16**2 + 8**2 + 4**2))
