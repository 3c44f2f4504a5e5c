"""A bank of Gabor energy filters: what a textbook complex cell tells of an image, as a model to compare others with.

Comes in: images (stimuli, channels, side, side). Goes out: energies (stimuli, features), the square root of the summed
squares of two Gabor filters in quadrature (Adelson and Bergen, J. Opt. Soc. Am. A 2:284, 1985), at every orientation
and wavelength, on a grid that is half a wavelength wide.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

ORIENTATIONS = 8
WAVELENGTHS_PX = (4, 8, 16, 32)  # one octave apart
# A filter that is one octave wide has a Gaussian envelope of this many wavelengths (Petkov and Kruizinga 1997, eq. 3).
ENVELOPE = math.sqrt(math.log(2) / 2) / math.pi * 3
REACH = 2.5  # standard deviations of the envelope that a filter covers to each side


def gabor_energy(images: Tensor) -> Tensor:
    """Energies float32 (stimuli, features) of images (stimuli, channels, side, side), their channels averaged.

    Features run over wavelengths, orientations, rows and columns. Wavelengths above half the side are left out.
    """
    grey = images.float().mean(1, keepdim=True)
    side = grey.shape[-1]
    energies = []
    for wavelength in WAVELENGTHS_PX:
        if wavelength > side / 2:
            continue
        even, odd = quadrature_pair(wavelength)
        settings = {"stride": wavelength // 2, "padding": even.shape[-1] // 2}
        energy = (F.conv2d(grey, even, **settings).square() + F.conv2d(grey, odd, **settings).square()).sqrt()
        energies.append(energy.flatten(1))
    return torch.cat(energies, 1)


def quadrature_pair(wavelength_px: float) -> tuple[Tensor, Tensor]:
    """Even and odd filters float32 (orientations, 1, width, width), without mean, of unit length."""
    sigma = ENVELOPE * wavelength_px
    reach = math.ceil(REACH * sigma)
    y, x = torch.meshgrid(torch.arange(-reach, reach + 1.0), torch.arange(-reach, reach + 1.0), indexing="ij")
    angle = torch.arange(ORIENTATIONS)[:, None, None] * math.pi / ORIENTATIONS
    across = x * angle.cos() + y * angle.sin()
    envelope = torch.exp(-(x**2 + y**2) / (2 * sigma**2)).expand_as(across)
    filters = []
    for carrier in (torch.cos, torch.sin):
        wave = envelope * carrier(2 * math.pi * across / wavelength_px)
        # Without the envelope's share of the mean the filter would also answer to luminance.
        wave = wave - envelope * (wave.sum((1, 2), keepdim=True) / envelope.sum((1, 2), keepdim=True))
        filters.append((wave / wave.norm(dim=(1, 2), keepdim=True))[:, None])
    return filters[0], filters[1]
