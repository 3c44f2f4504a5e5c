"""Weights of neuralpredictors' models by the names that our encoders have for them.

What comes in: the state dict of a model of ecker-lab/sensorium_2023 or of sinzlab/sensorium (2022): `core.*`,
`gru_module.*`, `readout.<recording>.*`, `shifter.<recording>.*`, `modulator.<recording>.*`. What goes out: `core.*`,
`readouts.<recording>.*`, `shifters.<recording>.*`, `modulators.<recording>.*`. Constants that the files carry along
(Laplace filters, Hermite functions and their rotations) are compared with ours and left out. The keys are described in
https://github.com/sinzlab/neuralpredictors; no file is read here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.models.regularizers import LAPLACE_1D, LAPLACE_2D
from pretrain.models.rotation_equivariant import hermite_functions, rotation_of_coefficients
from pretrain.published_names import OurWeights

PARTS = {"readout": "readouts", "shifter": "shifters", "modulator": "modulators"}
LAPLACE = re.compile(r"_input_weights?_regularizer\.laplace\.filter|temporal_regularizer\.laplace\.filter")
LAYER = re.compile(r"features\.layer(?P<layer>\d+)\.(?P<name>.+)")
HERMITE = re.compile(r"hermite_conv\.rotate_hermite\.(?P<constant>H|Rs\.(?P<turn>\d+))")
# Layers after the first have their number once more in the names of three-dimensional convolutions.
CONVOLUTION_3D = re.compile(r"(?P<name>conv|conv_spatial|conv_temporal)(?:_\d+)?\.(?P<of>weight|bias)")
GATE = re.compile(r"gru\.(?P<gate>reset|update|out)_gate_(?P<source>input|hidden)\.(?P<of>weight|bias)")
# Which gates one convolution of ours makes, in the order of its channels.
GATES = {
    "from_input": ("reset_gate_input", "update_gate_input", "out_gate_input"),
    "from_state": ("reset_gate_hidden", "update_gate_hidden"),
    "from_reset_state": ("out_gate_hidden",),
}
CONSTANT_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Released:
    """One of the files that sinzlab/sensorium released in 2022.

    `core` are arguments of `Stacked2d`; `pupil` says whether there is a shifter; `sha256` is the file's.
    """

    core: dict[str, int | bool]
    recording: str
    neurons: int
    pupil: bool
    sha256: str


LINEAR = {"layers": 3, "linear": True}
PLUS = {"behavior_channels": 3}
RELEASED = {
    "sensorium_sota_model": Released(
        {}, "26872-17-20", 7776, False, "7a87989732c34068fe10aaf1dd2c0421cb47cb1693b4f95a5e0e381632456173"
    ),
    "sensorium_ln_model": Released(
        LINEAR, "26872-17-20", 7776, False, "4a243d8b76b9a523563c58530414bc6da5778be0448c7ec37b9d1a010989114a"
    ),
    "sensorium_p_sota_model": Released(
        PLUS, "27204-5-13", 7538, True, "2c82812e8193ce72896d37e0ca6a5bf688ec3e284ba1e27dad8040ee21da274a"
    ),
    "sensorium_p_ln_model": Released(
        LINEAR | PLUS, "27204-5-13", 7538, True, "786723be498d87f676459f7fd9e975df61d7c86295dda8ea3afae8a29dc1d161"
    ),
}


def from_published(state: Mapping[str, Tensor]) -> OurWeights:
    """The weights of a published state dict by our names.

    Raises:
        ValueError: a key that no model of neuralpredictors has, a gate that is missing, or a constant other than ours.
    """
    recurrent = any(key.startswith("gru_module.") for key in state)
    rotations = len({constant["turn"] for key in state if (constant := HERMITE.search(key)) and constant["turn"]})
    found = OurWeights()
    gates: dict[str, Tensor] = {}
    for key, value in state.items():
        part, _, rest = key.partition(".")
        if part == "core":
            for name, weight in core_weight(rest, key, value, rotations):
                found.put(f"core.{'core.' * recurrent}{name}", weight, key)
        elif part in PARTS and rest.count("."):
            found.put(f"{PARTS[part]}.{rest}", value, key)
        elif part == "gru_module" and GATE.fullmatch(rest):
            gates[rest.removeprefix("gru.")] = value
        else:
            raise ValueError(f"{key!r}, shape {tuple(value.shape)}, is no part of a model of neuralpredictors")
    for name, weight in gru_weights(gates).items() if recurrent else ():
        part, of = name.split(".")
        found.put(f"core.gru.{name}", weight, *(f"gru_module.gru.{gate}.{of}" for gate in GATES[part]))
    return found


def core_weight(rest: str, key: str, value: Tensor, rotations: int) -> list[tuple[str, Tensor]]:
    """Our name and form of one entry below `core.`; none of a constant that is ours too."""
    if LAPLACE.fullmatch(rest):
        ours = torch.tensor(LAPLACE_1D if value.ndim == 3 else LAPLACE_2D.get(value.shape[-1], 0.0))
        require_constant(key, value, ours)
        return []
    in_layer = LAYER.fullmatch(rest)
    if not in_layer:
        raise ValueError(f"{key!r}, shape {tuple(value.shape)}, is no part of a core of neuralpredictors")
    name = in_layer["name"]
    if constant := HERMITE.fullmatch(name):
        require_hermite(key, value, constant["turn"], rotations)
        return []
    if convolution := CONVOLUTION_3D.fullmatch(name):
        name, value = convolution_weight(convolution["name"], convolution["of"], value)
    return [(f"features.{in_layer['layer']}.{name.replace('norm.batch_norm.', 'norm.')}", value)]


def convolution_weight(name: str, of: str, value: Tensor) -> tuple[str, Tensor]:
    """A convolution over space or time alone without the axes of length 1 that ours does not have."""
    if of == "weight" and name == "conv_spatial":
        value = value.squeeze(2)
    if of == "weight" and name == "conv_temporal":
        value = value.squeeze(4)
    return f"{name}.{of}", value


def gru_weights(gates: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convolutions of a GRU that make several gates at once, of one convolution for each."""
    made = {}
    for ours, theirs in GATES.items():
        for of in ("weight", "bias"):
            missing = [name for name in theirs if f"{name}.{of}" not in gates]
            if missing:
                raise ValueError(f"the file has a GRU without 'gru_module.gru.{missing[0]}.{of}'")
            made[f"{ours}.{of}"] = torch.cat([gates[f"{name}.{of}"] for name in theirs])
    return made


def require_hermite(key: str, value: Tensor, turn: str | None, rotations: int) -> None:
    """That the file's Hermite functions, or what one of the rotations does to their coefficients, are ours."""
    # A kernel of side k has k (k + 1) / 2 functions.
    kernel = int((2 * len(value)) ** 0.5)
    if turn is None:
        ours = hermite_functions(kernel, max(1, value.shape[-1] // kernel))
    else:
        ours = rotation_of_coefficients(kernel, 2 * torch.pi * int(turn) / rotations)
    require_constant(key, value, ours)


def require_constant(key: str, value: Tensor, ours: Tensor) -> None:
    given, ours = value.double().cpu().squeeze(), ours.double().squeeze()
    if given.shape != ours.shape or (given - ours).abs().max() > CONSTANT_TOLERANCE:
        raise ValueError(f"{key!r}, shape {tuple(value.shape)}, is another constant than the core here is made of")
