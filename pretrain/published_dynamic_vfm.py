"""Dynamic-VFM's published weights by our names.

What comes in: the dict of a file `pretrained_weights_{mean,adaptive}/model_<levels>.pth`, tensors by names that begin
with `module.`. What goes out: the same tensors by the names of an `Encoder` whose core is `DynamicVFM`, whose readouts
are hierarchical Gaussian ones and whose shifters are MLPs. Source: Zhu 2023, https://github.com/zhuyu-cs/Dynamic-VFM.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pretrain.published_dwiseneuro import prefixed
from pretrain.published_names import OurWeights, renamed, require_fit

OF_CORE = {"patch_embedding.proj.": "embed.", "patch_embedding.norm.": "embed_norm."}
OF_BLOCK = {
    "mha.relative_position_bias_table": "attention.relative_position_bias_table",
    "mha.qkv.": "attention.qkv.",
    "mha.proj.": "attention.proj.",
    "mlp.linear1.0.": "mlp.expand.",
    "mlp.dwconv.0.conv.": "mlp.conv.",
    "mlp.linear2.0.": "mlp.project.",
    "b-mlp.model.0.": "behavior.layers.0.",
    "b-mlp.model.3.": "behavior.layers.2.",
}
# What follows from the architecture: pairs of tokens, and the share of samples that drop-path keeps.
DERIVED = r"core\.transformer\.(blocks\.\d+\.mha\.relative_position_index|drop_path\.keep_prop)"
OF_ANIMAL = {"readout": "readouts", "shifter": "shifters"}


def from_published(
    state: Mapping[str, Any], wanted: Mapping[str, Tensor] | None = None, origin: str = "the checkpoint"
) -> OurWeights:
    """Published weights by our names; animals keep their names, which are those of the recordings' folders.

    Args:
        state: what a published file holds.
        wanted: the model's own state dict; the weights must fit it.
        origin: the file's name, for messages.

    Raises:
        ValueError: a name or a shape that does not fit; the first is named.
    """
    weights = renamed(state, our_name, origin)
    if wanted is not None:
        require_fit(weights, wanted, origin)
    return weights


def our_name(name: str) -> str | None:
    """Our name of a published one, None for what follows from the architecture, "" where there is no such name."""
    if re.fullmatch(DERIVED, name):
        return None
    if found := re.fullmatch(r"core\.transformer\.blocks\.(\d+)\.(.+)", name):
        return prefixed(f"core.blocks.{found[1]}.", found[2], OF_BLOCK)
    if found := re.fullmatch(r"(readout|shifter)\.(.+)", name):
        return f"{OF_ANIMAL[found[1]]}.{found[2]}"
    return prefixed("core.", name.removeprefix("core."), OF_CORE)
