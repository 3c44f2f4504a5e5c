"""Published weights for whole encoders whose animals have names of their own, and for single parts of one animal.

A whole encoder: what comes in is the encoder, a file, and which of the file's animals is which of the encoder's; with
the same names, `pretrain.checkpoint.load_published` is enough. A readout, shifter, modulator or activation: what comes
in are its entries without the prefix that says whose they are (`readouts.A.`, `shifter.<key>.`,
`output_activation.A.`), what goes out the same tensors by our names. neuralpredictors' and DwiseNeuro's names are ours;
V1T's and ViV1T's differ in a few, and carry constants. Sources: the state dicts of
https://github.com/sinzlab/neuralpredictors, https://github.com/bryanlimy/V1T, https://github.com/bryanlimy/ViV1T and
https://github.com/bryanlimy/ViV1T-closed-loop.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pretrain.checkpoint import opened, put_in_place
from pretrain.published_encoder import select_encoder_weights
from transfer.encoder import Encoder

# Weights of penalties, all 0, the 1 of ELU plus 1, a softplus' threshold, a scale that follows from the shape.
CONSTANTS = ("reg_scale", "history_reg", "behavior_reg", "one", "threshold", "scale")
RENAMED = {f"gru_cell.{name}": f"gru.{name}_l0" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
# What all animals' query attention shares lies beside them there.
SHARED_ATTENTION = ("position_embedding.twod_pe", "to_kv.weight")


def load_published_encoder(
    encoder: Encoder, source: Path | str | dict[str, Any], animals: Mapping[str, str] | None = None
) -> Encoder:
    """Load all weights of an encoder from a published file, and say which were used, renamed and ignored.

    Args:
        encoder: as the file's, on any device; animals of the file that it does not have are ignored.
        source: the file, or what `torch.load` gave for it.
        animals: the encoder's name of each of the file's animals that is wanted (`{"A": "my_mouse"}`); None where they
            have the same names, or those of the published recordings.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of none of the projects, or one of which a weight does not fit; the first is named.
    """
    state, origin = opened(source)
    found = select_encoder_weights(encoder, state, origin, animals)
    if found is None:
        raise ValueError(f"{origin} is no encoding model of DwiseNeuro, ViV1T, V1T, Dynamic-VFM or neuralpredictors")
    put_in_place(encoder, found, origin)
    return encoder


def from_published(part: Mapping[str, Tensor], shared: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Tensors of a part by our names.

    Args:
        part: of one animal.
        shared: ViV1T's query attention has keys and values for all animals, `position_embedding.twod_pe` and
            `to_kv.weight`; both go into each animal's readout, where they are one module.
    """
    ours = {RENAMED.get(name, name): value for name, value in part.items() if name not in CONSTANTS}
    if "sigma" in ours and "features" in ours and "mu" not in ours:
        features = ours.pop("features")
        ours["_features"] = features[:, :, None] if features.ndim == 3 else features
    if "neuron_query" in ours and ours.get("T") is not None and not ours["T"].ndim:
        del ours["T"]
    for name in SHARED_ATTENTION:
        if shared is not None and name in shared:
            ours[f"keys_values.{name}"] = shared[name]
    return ours
