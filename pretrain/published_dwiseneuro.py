"""DwiseNeuro's published weights by our names.

What comes in: the dict of a file `experiments/<experiment>/fold_<k>/model-017-<score>.pth`, in which the weights, an
exponential moving average, lie under `nn_state_dict`, or these alone. What goes out: the same tensors by the names of
an `Encoder` whose core is `DwiseNeuro` and whose readouts are grouped linear ones. Source: Baikulov 2023,
https://github.com/lRomul/sensorium.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pretrain.published_names import OurWeights, renamed, require_fit

PLACE = "nn_state_dict"
# In the published order: the five scored recordings first.
ANIMALS = (
    "dynamic29515-10-12-Video-9b4f6a1a067fe51e15306b9628efea20",
    "dynamic29623-4-9-Video-9b4f6a1a067fe51e15306b9628efea20",
    "dynamic29647-19-8-Video-9b4f6a1a067fe51e15306b9628efea20",
    "dynamic29712-5-9-Video-9b4f6a1a067fe51e15306b9628efea20",
    "dynamic29755-2-8-Video-9b4f6a1a067fe51e15306b9628efea20",
    "dynamic29156-11-10-Video-8744edeac3b4d1ce16b680916b5267ce",
    "dynamic29228-2-10-Video-8744edeac3b4d1ce16b680916b5267ce",
    "dynamic29234-6-9-Video-8744edeac3b4d1ce16b680916b5267ce",
    "dynamic29513-3-5-Video-8744edeac3b4d1ce16b680916b5267ce",
    "dynamic29514-2-9-Video-8744edeac3b4d1ce16b680916b5267ce",
)
# Parts of a block and of a layer of the cortex; "covn" is the published spelling.
OF_BLOCK = {
    "conv_pw.0.": "expand.",
    "conv_pw.1.bn.": "expand.norm.",
    "spat_covn_dw.0.": "spatial.",
    "spat_covn_dw.1.bn.": "spatial.norm.",
    "temp_covn_dw.0.": "temporal.",
    "temp_covn_dw.1.bn.": "temporal.norm.",
    "se.conv_reduce.": "gate.reduce.",
    "se.conv_expand.": "gate.expand.",
    "conv_pwl.0.": "project.",
    "conv_pwl.1.bn.": "project.norm.",
    "bn_sc.bn.": "shortcut_norm.",
}
OF_LAYER = {"conv.": "conv.", "bn.bn.": "norm.", "bn_sc.bn.": "shortcut_norm."}
STEM = {"core.stem.0.": "core.stem.", "core.stem.1.bn.": "core.stem.norm."}
# A dropout and a convolution, there as in `GroupedLinearReadout`.
READOUT = {"layer.1.": "layer.1."}


def from_published(
    state: Mapping[str, Any],
    wanted: Mapping[str, Tensor] | None = None,
    animals: Sequence[str] = ANIMALS,
    origin: str = "the checkpoint",
) -> OurWeights:
    """Published weights by our names.

    Args:
        state: what a published file holds.
        wanted: the model's own state dict; the weights must fit it.
        animals: our names of the recordings, in the order of the published readouts.
        origin: the file's name, for messages.

    Raises:
        ValueError: a name or a shape that does not fit; the first is named.
    """
    state = state.get(PLACE, state)
    weights = renamed(state, lambda name: our_name(name, animals), origin)
    if wanted is not None:
        require_fit(weights, wanted, origin)
    return weights


def our_name(name: str, animals: Sequence[str] = ANIMALS) -> str | None:
    """Our name of a published one, None for the frequencies of positions, "" where there is no such name."""
    if found := re.fullmatch(r"core\.blocks\.(\d+)\.(.+)", name):
        # Published blocks alternate with positional encodings.
        number, rest = int(found[1]), found[2]
        if number % 2 == 0:
            return None if rest == "inv_freq" else ""
        return prefixed(f"core.blocks.{number // 2}.", rest, OF_BLOCK)
    if found := re.fullmatch(r"cortex\.layers\.(\d+)\.(.+)", name):
        return prefixed(f"core.cortex.{found[1]}.", found[2], OF_LAYER)
    if found := re.fullmatch(r"readouts\.(\d+)\.(.+)", name):
        number = int(found[1])
        return prefixed(f"readouts.{animals[number]}.", found[2], READOUT) if number < len(animals) else ""
    return prefixed("", name, STEM)


def prefixed(prefix: str, rest: str, parts: Mapping[str, str]) -> str:
    """The prefix and a name of which the beginning is translated; "" where it has no such beginning."""
    for theirs, ours in parts.items():
        if rest.startswith(theirs):
            return prefix + ours + rest.removeprefix(theirs)
    return ""
